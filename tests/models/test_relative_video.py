"""Relative rewards of two video models: their mathematics, and the training of the pair."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.checkpoints import load_weights, save_checkpoint
from models.relative_video.checkpoint import load_pair
from models.relative_video.config import RewardNetworkConfig
from models.relative_video.masks import masked_tokens, spread_steps
from models.relative_video.network import load_reward_network
from models.relative_video.network_training import _windows, train_reward_network
from models.relative_video.predictions import PairPredictions
from models.relative_video.ratios import (
    embedding_contrast,
    expected_codes,
    masked_log_ratio,
    standard_codes,
)
from models.relative_video.training import train_expert
from models.video_facts import dataset_facts
from models.video_training import train_video_model
from models.video_windows import TokenWindows
from models.vqdiffusion import VQDiffusion
from models.vqdiffusion.checkpoint import save_video_model
from models.vqgan import VQGAN, save_codec
from tests.models.toy_videos import CODEC, MODEL, TRAINING, Killed, video_set

ALL_MASK = replace(TRAINING, all_mask_fraction=1.0)


def logs(*rows):
    """(1, L, K) log-probabilities."""
    return torch.tensor(rows).log()[None]


def random_logs(seed, batch=3, tokens=5, codes=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, codes, generator=generator).mul(4).log_softmax(-1)


def test_log_ratio_of_a_frame_by_hand():
    expert, base = logs([0.8, 0.2], [0.5, 0.5], [1.0, 0.0]), logs([0.2, 0.8], [0.5, 0.5], [0.0, 1.0])
    tokens = torch.tensor([[0, 1, 0]])
    first_two = torch.tensor([[True, True, False]])
    expected = (np.log(0.8 / 0.2) + 0) / 2
    np.testing.assert_allclose(
        masked_log_ratio(expert, base, tokens, first_two, smoothing=0.0), [expected], rtol=1e-6
    )
    smooth = np.log((0.9 * 0.8 + 0.05) / (0.9 * 0.2 + 0.05)) / 2
    np.testing.assert_allclose(
        masked_log_ratio(expert, base, tokens, first_two, smoothing=0.1), [smooth], rtol=1e-6
    )
    # the last token's ratio is infinite without smoothing and clipped
    everything = torch.ones(1, 3, dtype=torch.bool)
    clipped = (np.log(4) + 0 + 5) / 3
    np.testing.assert_allclose(
        masked_log_ratio(expert, base, tokens, everything, smoothing=0.0), [clipped], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("lowest", "expected"), [(1, -np.log(4)), (2, -np.log(4) / 2), (3, -np.log(3) / 3), (9, -np.log(3) / 3)]
)
def test_the_lowest_tokens_are_those_that_speak_against_the_expert(lowest, expected):
    expert = logs([0.8, 0.2], [0.5, 0.5], [0.2, 0.8], [0.1, 0.9])
    base = logs([0.6, 0.4], [0.5, 0.5], [0.8, 0.2], [0.9, 0.1])
    # the last token speaks against the expert most of all, but was shown to the models
    seen = torch.tensor([[True, True, True, False]])
    found = masked_log_ratio(expert, base, torch.zeros(1, 4, dtype=torch.int64), seen, 0.0, lowest=lowest)
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_contrast_of_expected_codes_by_hand():
    codes = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    expert = expected_codes(logs([0.5, 0.5, 0.0], [0.0, 0.0, 1.0]), codes)
    base = expected_codes(logs([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]), codes)
    assert expert.tolist() == [[[1.0, 0.0], [0.0, 2.0]]]
    # (1, 0) . ((2, 0) - (0.5, 0)) and nothing where both agree
    both = torch.ones(1, 2, dtype=torch.bool)
    assert embedding_contrast(expert, base, codes[torch.tensor([[1, 0]])], both).tolist() == [1.5]
    assert embedding_contrast(expert, base, codes[torch.tensor([[0, 0]])], both).tolist() == [-0.5]
    second = torch.tensor([[False, True]])
    assert embedding_contrast(expert, base, codes[torch.tensor([[1, 0]])], second).tolist() == [0.0]


@pytest.mark.parametrize("form", ["r1", "r2"])
def test_equal_models_give_zero_and_swapped_ones_the_opposite(form):
    a, b = random_logs(0), random_logs(1)
    tokens = torch.tensor([[0, 1, 2, 3, 0], [1, 1, 1, 1, 1], [3, 2, 1, 0, 3]])
    masked = torch.tensor([[1, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]], dtype=torch.bool)
    codes = standard_codes(torch.randn(4, 3, generator=torch.Generator().manual_seed(2)))

    def reward(expert, base):
        if form == "r1":
            return masked_log_ratio(expert, base, tokens, masked)
        return embedding_contrast(
            expected_codes(expert, codes), expected_codes(base, codes), codes[tokens], masked
        )

    assert torch.equal(reward(a, a), torch.zeros(3))
    assert torch.equal(reward(a, b), -reward(b, a))
    assert reward(a, b).abs().min() > 0


def test_steps_are_spread_over_their_range():
    assert spread_steps(8, 6, 90) == (6, 18, 30, 42, 54, 66, 78, 90)
    assert spread_steps(1, 6, 90) == (48,)
    assert spread_steps(3, 5, 7) == (5, 6, 7)
    for count, first, last in ((0, 6, 90), (4, 5, 7), (2, 9, 3), (2, -1, 3)):
        with pytest.raises(ValueError, match=f"{count} diffusion steps from {first} to {last}"):
            spread_steps(count, first, last)


def test_a_mask_has_its_share_of_tokens_and_never_none():
    uniform = torch.tensor([[0.1, 0.5, 0.9], [0.8, 0.7, 0.6]])
    assert masked_tokens(uniform, 0.55).tolist() == [[True, True, False], [False, False, True]]
    assert masked_tokens(uniform, 0.0).tolist() == [[True, False, False], [False, False, True]]
    assert masked_tokens(uniform, 1.0).all()


@pytest.fixture()
def base(tmp_path, codec_folder):
    train_video_model(ALL_MASK, MODEL, [video_set(tmp_path, mode="random")], codec_folder, tmp_path / "base")
    return tmp_path / "base"


def test_a_training_starts_from_the_weights_it_is_given(tmp_path, codec_folder, base):
    config = replace(ALL_MASK, train_steps=1, learning_rate=1e-12, warmup_steps=0, weight_decay=0.0)
    out, videos = tmp_path / "out", [video_set(tmp_path)]
    train_video_model(config, MODEL, videos, codec_folder, out, init_from=base)
    before, after = load_weights(base / "weights.pt"), load_weights(out / "weights.pt")
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    fresh = tmp_path / "fresh"
    train_video_model(config, MODEL, videos, codec_folder, fresh)
    assert not torch.allclose(
        before["transformer.to_logits.1.weight"],
        load_weights(fresh / "weights.pt")["transformer.to_logits.1.weight"],
    )
    remembered = json.loads((out / "config.json").read_text())["init_from"]
    assert remembered["folder"] == str(base) and remembered["trained_steps"] == 12
    assert json.loads((out / "training.json").read_text())["init_from"] == {"weights": remembered["weights"]}


def test_a_resumed_training_must_start_from_the_same_weights(tmp_path, codec_folder, base):
    def kill(step, total, metrics):
        if step == 8 and metrics["phase"] == "validation":
            raise Killed

    videos = [video_set(tmp_path)]
    whole = train_video_model(ALL_MASK, MODEL, videos, codec_folder, tmp_path / "whole", init_from=base)
    with pytest.raises(Killed):
        train_video_model(
            ALL_MASK, MODEL, videos, codec_folder, tmp_path / "cut", progress=kill, init_from=base
        )
    with pytest.raises(ValueError, match=r"init_from\.weights"):
        train_video_model(ALL_MASK, MODEL, videos, codec_folder, tmp_path / "cut")
    resumed = train_video_model(ALL_MASK, MODEL, videos, codec_folder, tmp_path / "cut", init_from=base)
    assert resumed["best_validation_loss"] == whole["best_validation_loss"]


def test_a_start_that_does_not_fit_is_refused(tmp_path, codec_folder, base):
    videos = [video_set(tmp_path)]

    def train(model=MODEL, sets=videos, codec=codec_folder, start=base):
        train_video_model(ALL_MASK, model, sets, codec, tmp_path / "out", init_from=start)

    with pytest.raises(ValueError, match=r"video.frame_skip: 1 there, 2 here"):
        train(model=replace(MODEL, frame_skip=2))
    with pytest.raises(ValueError, match=r"action_repeat: 2 there, 3 here"):
        train(sets=[video_set(tmp_path, action_repeat=3)])
    torch.manual_seed(5)
    save_codec(tmp_path / "other", VQGAN(CODEC), {})
    with pytest.raises(ValueError, match="it has another codec"):
        train(codec=tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="no vqdiffusion checkpoint"):
        train(start=tmp_path / "nothing")
    assert not (tmp_path / "out").exists()


def test_the_expert_brings_its_base_along(tmp_path, base):
    videos = [video_set(tmp_path, mode="random"), video_set(tmp_path)]
    summary = train_expert(ALL_MASK, base, videos, tmp_path / "pair")
    assert summary["steps"] == 12
    moved = (tmp_path / "pair").rename(tmp_path / "moved")
    base_weights = load_weights(base / "weights.pt")
    for path in base.rglob("*.pt"):
        path.unlink()  # the folder needs nothing outside itself
    pair = load_pair(moved)
    assert all(torch.equal(value, base_weights[name]) for name, value in pair.base.state_dict().items())
    assert not torch.equal(
        pair.expert.transformer.to_logits[1].weight, pair.base.transformer.to_logits[1].weight
    )
    assert not pair.knows_partial_masks and pair.meta["tasks"] == ["bar"]
    assert not pair.expert.training and not any(p.requires_grad for p in pair.base.parameters())


def test_an_expert_cut_off_before_its_base_was_copied_is_completed(tmp_path, codec_folder, base):
    videos, out = [video_set(tmp_path)], tmp_path / "pair"
    train_video_model(ALL_MASK, MODEL, videos, codec_folder, out, init_from=base)
    with pytest.raises(FileNotFoundError, match="without a base model"):
        load_pair(out)
    assert train_expert(ALL_MASK, base, videos, out)["steps"] == 12
    load_pair(out)
    with pytest.raises(FileExistsError, match="finished"):
        train_expert(ALL_MASK, base, videos, out)


def test_pairs_that_cannot_be_compared_are_refused(tmp_path, codec_folder, base):
    expert = [video_set(tmp_path)]
    with pytest.raises(ValueError, match="no expert videos"):
        train_expert(ALL_MASK, base, [video_set(tmp_path, mode="random")], tmp_path / "a")
    with pytest.raises(ValueError, match="has never seen lever"):
        train_expert(ALL_MASK, base, [video_set(tmp_path, task="lever")], tmp_path / "b")
    with pytest.raises(ValueError, match=r"all_mask_fraction 1\.0, the expert would be with 0\.5"):
        train_expert(replace(ALL_MASK, all_mask_fraction=0.5), base, expert, tmp_path / "c")
    train_video_model(ALL_MASK, MODEL, expert, codec_folder, tmp_path / "alone")
    with pytest.raises(ValueError, match="they are no pair"):
        train_expert(ALL_MASK, base, expert, tmp_path / "alone")


NETWORK = RewardNetworkConfig(
    width=8,
    multipliers=(1, 2),
    time_dim=8,
    train_steps=6,
    batch_windows=8,
    learning_rate=1e-3,
    clip_grad_value=None,
    ema_decay=0.0,
    ema_start_steps=0,
    ema_every_steps=1,
    log_every_steps=3,
    validate_every_steps=3,
    validation_windows=8,
    save_every_steps=3,
)


def write_pair(tmp_path, same=False):
    """A pair of models with large random weights."""
    torch.manual_seed(0)
    codec = VQGAN(CODEC)
    with torch.no_grad():
        codec.codebook.embedding.weight.normal_()
    meta = dataset_facts([video_set(tmp_path)])
    models = [VQDiffusion(MODEL), VQDiffusion(MODEL)]
    with torch.no_grad():
        for parameter in [p for model in models for p in model.parameters()]:
            parameter.add_(0.3 * torch.randn_like(parameter))
    expert, base = models[0], models[0] if same else models[1]
    folder = tmp_path / ("same" if same else "pair")
    save_video_model(folder, expert, codec, meta)
    save_checkpoint(folder / "base", base, {"kind": "vqdiffusion", "model": asdict(MODEL), **meta})
    return folder


def test_the_reward_network_learns_the_difference_of_the_models(tmp_path):
    folder, videos = write_pair(tmp_path), [video_set(tmp_path), video_set(tmp_path, mode="random")]
    config = replace(NETWORK, width=16, train_steps=90, validate_every_steps=30, learning_rate=3e-3)
    train_reward_network(config, folder, videos, (99,))
    lines = [json.loads(line) for line in (folder / "network/metrics.jsonl").read_text().splitlines()]
    explained = [line["explained"] for line in lines if "explained" in line]
    assert explained[-1] > 0.5 and explained[-1] > explained[0]
    network, meta = load_reward_network(folder / "network")
    assert meta["steps"] == [99] and 30 <= meta["trained_steps"] <= 90
    # its gradient points to what the expert expects: rho rises from the base's expectation to the expert's
    pair = load_pair(folder)
    predictions = PairPredictions(pair)
    windows = TokenWindows.encode(pair.codec, [e.frames for e in videos[0].split("validation")], 2)
    history, _ = windows.rows(windows.even(9))
    look = predictions.full_look()
    expert, base = predictions.expected(look, predictions.histories(history))
    values = [network(u, predictions.codes[history], look.masked.expand(9, -1), 99) for u in (expert, base)]
    assert (values[0] > values[1]).all()


def test_the_reward_network_sees_held_ends_of_expert_videos_as_the_expert_model_did(tmp_path):
    pair = load_pair(write_pair(tmp_path))
    first = replace(pair.expert.config, history="first", num_history_frames=1)
    held = SimpleNamespace(codec=pair.codec, expert=SimpleNamespace(config=first), meta={"hold_frames": 40})
    videos = [video_set(tmp_path)]
    count = len(videos[0].split("train"))
    assert len(_windows(held, videos, "train", "expert")) == 40 * count
    assert len(_windows(held, videos, "train", "others")) < 40 * count


def test_a_network_of_equal_models_stays_exactly_zero(tmp_path):
    folder, videos = (
        write_pair(tmp_path, same=True),
        [video_set(tmp_path), video_set(tmp_path, mode="random")],
    )
    train_reward_network(NETWORK, folder, videos, (50, 99))
    network, _ = load_reward_network(folder / "network")
    codes = torch.randn(3, 16, 4)
    assert torch.equal(network(codes, torch.randn(3, 32, 4), torch.ones(3, 16) > 0, 50), torch.zeros(3))


def test_a_killed_network_training_goes_on_exactly_and_a_finished_one_is_left_alone(tmp_path):
    def kill(step, total, metrics):
        if step == 3 and metrics["phase"] == "validation":
            raise Killed

    videos = [video_set(tmp_path), video_set(tmp_path, mode="random")]
    folder = write_pair(tmp_path)
    cut = shutil.copytree(folder, tmp_path / "cut")
    whole = train_reward_network(NETWORK, folder, videos, (30, 60))
    with pytest.raises(Killed):
        train_reward_network(NETWORK, cut, videos, (30, 60), progress=kill)
    with pytest.raises(ValueError, match="steps"):
        train_reward_network(NETWORK, cut, videos, (99,))
    resumed = train_reward_network(NETWORK, cut, videos, (30, 60))
    assert resumed["best_validation_loss"] == whole["best_validation_loss"]
    with pytest.raises(FileExistsError, match="finished reward network"):
        train_reward_network(NETWORK, cut, videos, (30, 60))
    with pytest.raises(ValueError, match="no videos of others"):
        train_reward_network(NETWORK, write_pair(tmp_path / "new"), videos[:1], (99,))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_kind_of_videos_without_one_split_is_refused(tmp_path, split):
    videos = [video_set(tmp_path), video_set(tmp_path, mode="random")]
    others = ({"split": "train" if split == "validation" else "validation"},) * 5
    videos[1] = replace(videos[1], records=others)
    with pytest.raises(
        ValueError, match=f"no {split} videos of others, the reward network needs both splits"
    ):
        train_reward_network(NETWORK, write_pair(tmp_path), videos, (99,))


def test_network_settings_are_checked():
    for values, message in (
        ({"width": 12}, "reward network width=12"),
        ({"expert_share": 2.0}, "reward network expert_share=2.0"),
        ({"train_steps": 0}, "reward network train_steps=0"),
        ({"time_dim": 5}, "reward network time_dim=5"),
    ):
        with pytest.raises(ValueError, match=message):
            RewardNetworkConfig(**values)
