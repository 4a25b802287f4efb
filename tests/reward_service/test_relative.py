"""The relative reward: what it must be whatever the models are, its scale, its refusals."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoints import save_checkpoint
from models.files import read_json, write_json
from models.relative_video.checkpoint import VideoPair, load_pair
from models.relative_video.network import CodeReward, save_reward_network
from models.videos import VideoSet, frames_only
from models.vqdiffusion.checkpoint import save_video_model
from reward_service.contract import reward_class, reward_names
from reward_service.relative_reward import RelativeReward, RelativeRewardConfig
from reward_service.statistics import compute_statistics
from tests.reward_service.support import META, RENDER, random_video, tiny_codec, tiny_model, write_tiny_folder

STRATIFIED = RelativeRewardConfig(num_steps=3, batch_rows=4)
ALL = replace(STRATIFIED, masks="all")
CONFIGS = [config for c in (STRATIFIED, ALL) for config in (c, replace(c, form="r2"))]
LEARNED = [replace(STRATIFIED, form="r3"), replace(ALL, form="r3")]


def write_pair(
    folder: Path, same: bool = False, meta: dict | None = None, base_meta: dict | None = None, **changes
) -> Path:
    """A complete folder with random models, or twice the same one."""
    expert = tiny_model(**changes)
    save_video_model(folder, expert, tiny_codec(), {**META, **(meta or {})})
    base = tiny_model(**changes)
    if not same:
        torch.manual_seed(9)
        with torch.no_grad():
            for parameter in base.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    facts = {"kind": "vqdiffusion", "model": asdict(base.config), **META, **(base_meta or {})}
    save_checkpoint(folder / "base", base, facts)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("relative") / "model")


def write_network(folder: Path, steps: tuple[int, ...]) -> Path:
    """A reward network with random weights beside the models of a folder."""
    sizes = {"latent_size": 8, "latent_dim": 4, "num_history_frames": 2, "width": 8}
    sizes |= {"multipliers": [1, 2], "time_dim": 8}
    torch.manual_seed(4)
    network = CodeReward(**sizes)
    torch.nn.init.normal_(network.net.head[-1].weight)
    save_reward_network(folder / "network", network, sizes, {"steps": list(steps)})
    return folder


@pytest.fixture(scope="module")
def folder_of(folder, tmp_path_factory):
    """Folder for a config: for form r3 one with a network for its diffusion steps."""

    def find(config):
        if config.form != "r3":
            return folder
        own = tmp_path_factory.mktemp("network") / "model"
        steps = (99,) if config.masks == "all" else (6, 48, 90)
        return write_network(write_pair(own), steps)

    return find


@pytest.fixture(scope="module")
def pair(folder):
    return load_pair(folder)


def video_set(folder: Path, mode: str, seeds: range) -> VideoSet:
    episodes = tuple(frames_only(f"{mode}{seed}", "door-close", random_video(seed, 6)) for seed in seeds)
    records = tuple({"split": "validation"} for _ in episodes)
    return VideoSet(folder / mode, "door-close", "metaworld", mode, RENDER, 3, episodes, records)


@pytest.mark.parametrize("config", CONFIGS, ids=RelativeRewardConfig.signature)
def test_equal_models_give_exactly_zero(tmp_path, config):
    reward = RelativeReward.from_checkpoint(write_pair(tmp_path / "same", same=True), config)
    for values in reward.raw([random_video(0, 7), random_video(1, 3)], [0, 1]):
        assert np.array_equal(values, np.zeros_like(values))


@pytest.mark.parametrize("config", CONFIGS, ids=RelativeRewardConfig.signature)
def test_swapped_models_give_exactly_the_opposite(pair, tmp_path, config):
    videos, seeds = [random_video(0, 7), random_video(1, 3)], [4, 5]
    one = RelativeReward(pair, config, tmp_path).raw(videos, seeds)
    swapped = VideoPair(pair.base, pair.expert, pair.codec, pair.base_meta, pair.meta)
    other = RelativeReward(swapped, config, tmp_path).raw(videos, seeds)
    for a, b in zip(one, other):
        assert np.abs(a).max() > 0.01
        np.testing.assert_array_equal(a, -b)


def test_the_lowest_tokens_reward_less_than_all_of_them(pair, tmp_path):
    def raw(lowest):
        config = replace(ALL, lowest_tokens=lowest)
        return RelativeReward(pair, config, tmp_path).raw([random_video(0, 5)], [0])[0]

    one, two, every = raw(1), raw(2), raw(10_000)
    assert (one < two).all() and (two < every).all()
    np.testing.assert_allclose(every, raw(None), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [*CONFIGS, *LEARNED], ids=RelativeRewardConfig.signature)
def test_a_reward_depends_on_its_seed_but_not_on_the_batch_it_is_in(folder_of, config):
    folder = folder_of(config)
    reward = RelativeReward.from_checkpoint(folder, config)
    wide = RelativeReward.from_checkpoint(folder, replace(config, batch_rows=64, batch_frames=3))
    videos, seeds = [random_video(i, length) for i, length in enumerate((5, 1, 8))], [7, 8, 9]
    together = reward.raw(videos, seeds)
    for video, seed, values in zip(videos, seeds, together):
        assert values.shape == (len(video),) and values.dtype == np.float32
        np.testing.assert_allclose(wide.raw([video], [seed])[0], values, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(reward.raw([video], [seed])[0], reward.raw([video], [seed])[0])
    shorter = wide.raw([videos[2][:5]], [9])[0]
    np.testing.assert_allclose(shorter, together[2][:5], rtol=1e-4, atol=1e-5)
    other_seed = reward.raw(videos[2:], [1])[0]
    changes = np.abs(other_seed - together[2]).max() > 1e-4
    assert changes == (config.masks == "stratified")


def test_both_models_see_the_same_masks(folder, monkeypatch):
    reward = RelativeReward.from_checkpoint(folder, STRATIFIED)
    seen = {"expert": [], "base": []}
    for name, states in seen.items():
        denoiser = getattr(reward.predictions, name)
        predict = denoiser.log_probabilities

        def recorded(tokens, step, history, states=states, predict=predict):
            states.append((step, tokens.clone()))
            return predict(tokens, step, history)

        monkeypatch.setattr(denoiser, "log_probabilities", recorded)
    reward.raw([random_video(0, 6)], [3])
    assert [step for step, _ in seen["expert"]] == [6, 48, 90] * 2  # two chunks of rows
    for (step, expert), (base_step, base) in zip(seen["expert"], seen["base"], strict=True):
        assert step == base_step and torch.equal(expert, base)
    shares = [float((state == 16).float().mean()) for _, state in seen["expert"][:3]]
    assert shares[0] < 0.2 < shares[1] < 0.8 < shares[2]


def test_only_masked_tokens_count(folder, monkeypatch):
    """Predictions of visible tokens may be anything."""
    reward = RelativeReward.from_checkpoint(folder, STRATIFIED)
    video = random_video(0, 4)
    (before,) = reward.raw([video], [3])
    expert = reward.predictions.expert
    predict = expert.log_probabilities

    def spoiled(tokens, step, history):
        logs = predict(tokens, step, history)
        return torch.where((tokens == 16)[..., None], logs, -3.0)

    monkeypatch.setattr(expert, "log_probabilities", spoiled)
    np.testing.assert_array_equal(reward.raw([video], [3])[0], before)


def test_a_frame_changes_its_own_row_and_those_that_have_it_as_history(folder):
    reward = RelativeReward.from_checkpoint(folder, ALL)
    video = random_video(0, 9)
    changed = video.copy()
    changed[4] = 255 - changed[4]
    before, after = reward.raw([video, changed], [0, 0])
    assert np.flatnonzero(np.abs(before - after) > 1e-4).tolist() == [4, 5, 6]


def test_a_pair_of_first_frames_knows_no_other_history(tmp_path):
    folder = write_pair(tmp_path / "model", history="first", num_history_frames=1)
    reward = RelativeReward.from_checkpoint(folder, ALL)
    video = random_video(0, 6)
    changed = video.copy()
    changed[2] = 255 - changed[2]
    before, after = reward.raw([video, changed], [0, 0])
    assert np.flatnonzero(np.abs(before - after) > 1e-4).tolist() == [2]


def test_frames_that_share_their_history_are_predicted_by_one_look(tmp_path):
    folder = write_pair(tmp_path / "model", history="first", num_history_frames=1)
    reward = RelativeReward.from_checkpoint(folder, ALL)
    videos = [random_video(0, 6), random_video(1, 4)]
    one_by_one = RelativeReward.from_checkpoint(folder, replace(ALL, batch_rows=1))
    for row, alone in zip(reward.raw(videos, [0, 0]), one_by_one.raw(videos, [0, 0])):
        np.testing.assert_allclose(row, alone, atol=1e-5)
    first = torch.tensor([[3] * 16] * 6 + [[5] * 16] * 4)
    seen = reward.predictions.histories(first, shared=True)
    assert seen.expert.batch_size == seen.base.batch_size == 2
    assert seen.rows.tolist() == [0] * 6 + [1] * 4


def test_a_pair_with_a_clock_knows_the_first_frame_and_the_time(tmp_path):
    clock = {"history": "clock", "num_history_frames": 2, "condition_position": "learned"}
    reward = RelativeReward.from_checkpoint(write_pair(tmp_path / "model", **clock), ALL)
    video = random_video(0, 6)
    changed = video.copy()
    changed[2] = 255 - changed[2]
    before, after, alone = reward.raw([video, changed, video], [0, 0, 0])
    assert np.flatnonzero(np.abs(before - after) > 1e-4).tolist() == [2]
    np.testing.assert_allclose(before, alone, atol=1e-5)
    # The same frame is another reward at another time, until the clock has filled all places.
    still = reward.raw([np.repeat(video[:1], 80, axis=0)], [0])[0]
    places = reward.model_config.content_len
    assert np.abs(np.diff(still))[:places].min() > 1e-7
    np.testing.assert_allclose(still[places:], still[places], atol=1e-5)


def test_the_scale_puts_experts_at_one_and_others_at_minus_one(tmp_path):
    folder = write_pair(tmp_path / "model")
    reward = RelativeReward.from_checkpoint(folder, replace(ALL, clip_low=None, clip_high=None))
    a, b = video_set(tmp_path, "expert", range(5)), video_set(tmp_path, "random", range(5, 10))
    means = [np.concatenate(reward.raw([e.frames for e in v.episodes], [0] * 5)).mean() for v in (a, b)]
    if means[0] < means[1]:  # whichever these random models prefer is the expert here
        a, b = replace(b, mode="expert"), replace(a, mode="noisy")
    high, low = max(means), min(means)
    entry = compute_statistics(reward, [a, b])["door-close"]
    np.testing.assert_allclose([entry["mean_expert"], entry["mean_others"]], [high, low], rtol=1e-5)
    np.testing.assert_allclose([entry["mean"], entry["std"]], [(high + low) / 2, (high - low) / 2], rtol=1e-4)
    assert entry["frames"] == entry["frames_others"] == 30
    assert set(read_json(folder / "statistics.json")[ALL.signature()]) == {"door-close", "domain"}
    for videos, mean in ((a, 1.0), (b, -1.0)):
        scores = reward.score([e.frames for e in videos.episodes], ["door-close"] * 5, [0] * 5)
        np.testing.assert_allclose(np.concatenate(scores).mean(), mean, atol=1e-4)
    clipped = RelativeReward.from_checkpoint(folder, ALL)
    scores = np.concatenate(clipped.score([e.frames for e in a.episodes], ["door-close"] * 5, [0] * 5))
    assert scores.min() == -2.0 and scores.max() == 2.0

    with pytest.raises(ValueError, match="'door-close' has no other videos"):
        compute_statistics(reward, [a])
    with pytest.raises(ValueError, match="'door-close' has no expert videos"):
        compute_statistics(reward, [b])
    with pytest.raises(ValueError, match="does not prefer the expert"):
        compute_statistics(reward, [replace(b, mode="expert"), replace(a, mode="random")])


def test_statistics_belong_to_these_very_models(tmp_path):
    folder = write_pair(tmp_path / "model")
    entry = {"mean": 0.0, "std": 1.0, "frames": 1, "split": "train", "weights": "00000000"}
    write_json(folder / "statistics.json", {ALL.signature(): {"door-close": entry}})
    with pytest.raises(ValueError, match="computed with other weights"):
        RelativeReward.from_checkpoint(folder, ALL).scale("door-close")


def test_signatures_and_siblings():
    assert len({config.signature() for config in CONFIGS}) == 4
    assert replace(ALL, batch_rows=1, clip_low=-1.0, num_steps=8).signature() == ALL.signature()
    for change in ({"smoothing": 0.1}, {"ratio_clip": 3.0}, {"lowest_tokens": 8}):
        assert replace(ALL, **change).signature() != ALL.signature()
    assert [c.form for c in ALL.cheap_siblings()] == ["r1", "r2"]
    assert [c.form for c in LEARNED[1].cheap_siblings()] == ["r3", "r1", "r2"]
    assert [c.form for c in LEARNED[0].cheap_siblings()] == ["r3", "r1"]
    assert STRATIFIED.cheap_siblings() == (STRATIFIED,)


def test_what_the_models_do_not_know_is_refused(tmp_path, folder):
    full = write_pair(tmp_path / "full", base_meta={"all_mask_fraction": 1.0})
    with pytest.raises(ValueError, match="trained on fully masked ones only"):
        RelativeReward.from_checkpoint(full)
    RelativeReward.from_checkpoint(full, ALL)
    with pytest.raises(ValueError, match=r"last_step is 100, but the models of .* have 100 diffusion steps"):
        RelativeReward.from_checkpoint(folder, {"last_step": 100})
    with pytest.raises(FileNotFoundError, match="without a base model"):
        RelativeReward.from_checkpoint(write_tiny_folder(tmp_path / "alone"))
    other = write_pair(tmp_path / "other")
    config = read_json(other / "base" / "config.json")
    config["model"]["frame_skip"] = 3
    write_json(other / "base" / "config.json", config)
    with pytest.raises(ValueError, match="frame_skip: 1 against 3"):
        RelativeReward.from_checkpoint(other)
    for values, message in (
        ({"form": "r9"}, "form is 'r9'"),
        ({"masks": "none"}, "masks is 'none'"),
        ({"smoothing": 1.0}, r"smoothing is 1.0, expected a number in \[0, 1\)"),
        ({"ratio_clip": 0.0}, "ratio_clip is 0.0"),
        ({"lowest_tokens": 0}, "lowest_tokens is 0"),
        ({"num_steps": 0}, "0 diffusion steps"),
        ({"mask": "all"}, "did you mean 'masks'"),
    ):
        with pytest.raises(ValueError, match=message):
            RelativeReward.from_checkpoint(folder, values)


def test_a_learned_reward_needs_a_network_for_the_same_steps(folder, folder_of):
    with pytest.raises(
        FileNotFoundError, match=r"form r3 needs one\. Train it with .* frame_reward\.form=r3"
    ):
        RelativeReward.from_checkpoint(folder, LEARNED[1])
    with pytest.raises(ValueError, match=r"trained for the diffusion steps \[6, 48, 90\].* asks for \[99\]"):
        RelativeReward.from_checkpoint(folder_of(LEARNED[0]), LEARNED[1])


def test_a_learned_reward_is_measured_from_what_the_base_expects(folder_of):
    """Anything that depends on history and step alone cancels."""
    reward = RelativeReward.from_checkpoint(folder_of(LEARNED[0]), LEARNED[0])
    video = random_video(0, 4)
    (before,) = reward.raw([video], [3])
    assert np.abs(before).max() > 1e-3
    with torch.no_grad():
        reward.network.net.head[-1].bias.add_(7.0)
    np.testing.assert_allclose(reward.raw([video], [3])[0], before, atol=1e-3)


def test_it_is_found_by_name():
    assert "relative" in reward_names() and reward_class("relative") is RelativeReward
