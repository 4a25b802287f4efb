"""Folders of pairs: what is stored, resumed, split and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from models.images.config import PairConfig, SafeGuidanceConfig
from models.images.ddim import DDIMSteps, scaled_linear_abar
from models.images.pairs import PairSet, make_pairs

STEPS = DDIMSteps(scaled_linear_abar(1000, 0.00085, 0.012), 4)
GUIDANCE = SafeGuidanceConfig(num_steps=4, cfg_scale=2.0)
CONFIG = PairConfig(trajectories=24, shard_trajectories=5, validation_every=4)


def predictor(prompts):
    shift = torch.from_numpy(prompts).float().view(-1, 1, 1, 1)
    return lambda latents, level: (0.1 * latents, 0.1 * latents - 0.02 * shift, 0.1 * latents + 0.03)


def make(folder, config=CONFIG, seed=0, predict=predictor, facts=None):
    return make_pairs(folder, predict, STEPS, GUIDANCE, config, (1, 2, 2), 3, facts or {}, seed=seed)


def test_every_prompt_and_both_models_are_followed_in_both_splits(tmp_path):
    pairs = make(tmp_path / "pairs")
    assert sorted(np.unique(pairs.prompts, return_counts=True)[1]) == [8, 8, 8]
    for split, count in (("train", 18), ("validation", 6)):
        chosen = pairs.trajectories(split)
        assert len(chosen) == count
        assert pairs.follows_safe[chosen].mean() == 0.5


@pytest.mark.parametrize("every", [2, 5, 10])
def test_held_out_trajectories_follow_both_whatever_the_split(tmp_path, every):
    pairs = make(
        tmp_path / "pairs", PairConfig(trajectories=20, shard_trajectories=20, validation_every=every)
    )
    assert pairs.follows_safe[pairs.trajectories("validation")].mean() == 0.5


def test_gather_has_the_step_that_was_asked_for(tmp_path):
    pairs = make(tmp_path / "pairs")
    shard = np.load(tmp_path / "pairs" / "shard-00001.npy", allow_pickle=False)
    assert shard.shape == (5, 3, 4, 1, 2, 2)
    batch = pairs.gather(np.array([7, 7]), np.array([3, 0]))  # noisiest, last
    assert np.array_equal(batch.current[0], shard[2, 0, 0]) and np.array_equal(batch.safe[1], shard[2, 2, 3])
    followed = batch.safe if pairs.follows_safe[7] else batch.base
    assert torch.equal(pairs.results(np.array([7]))[0], followed[1])
    assert torch.equal(pairs.current(2, np.array([7]))[0], followed[0])


def test_an_unfinished_folder_is_filled_with_what_it_would_have_had(tmp_path):
    whole = make(tmp_path / "whole")
    make(tmp_path / "cut")
    (tmp_path / "cut" / "shard-00002.npy").unlink()
    (tmp_path / "cut" / ".shard-00002.npy.abc").write_bytes(b"half")
    with pytest.raises(FileNotFoundError, match="1 of 5 shards"):
        PairSet(tmp_path / "cut")
    again = make(tmp_path / "cut")
    rows = np.arange(24)
    assert torch.equal(again.results(rows), whole.results(rows))
    assert not list((tmp_path / "cut").glob(".shard*"))


def test_another_seed_gives_other_noise(tmp_path):
    one, two = make(tmp_path / "a"), make(tmp_path / "b", seed=1)
    rows = np.arange(24)
    assert not torch.equal(one.current(3, rows), two.current(3, rows))


def test_other_settings_are_refused(tmp_path):
    make(tmp_path / "pairs", facts={"unsafe": [3]})
    with pytest.raises(ValueError, match=r"facts\.unsafe: \[3\] there, \[4\] asked for"):
        make(tmp_path / "pairs", facts={"unsafe": [4]})
    with pytest.raises(ValueError, match=r"facts\.weights: 'a' there, 'b' asked for"):
        make(tmp_path / "of_weights", facts={"weights": "a"})
        make(tmp_path / "of_weights", facts={"weights": "b"})
    make(tmp_path / "pairs", facts={"unsafe": [3], "weights": "a"})  # from before weights were remembered
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    with pytest.raises(FileExistsError, match="holds no latent pairs"):
        make(tmp_path / "else")


def test_latents_that_are_not_finite_are_not_kept(tmp_path):
    def broken(prompts):
        return lambda latents, level: (latents, latents * np.inf, latents)

    with pytest.raises(FloatingPointError, match=r"lower guidance\.cfg_scale"):
        make(tmp_path / "pairs", predict=broken)
    assert not list((tmp_path / "pairs").glob("*.npy"))


def test_statistics_per_step_and_pixel(tmp_path):
    pairs = make(tmp_path / "pairs")
    statistics = pairs.statistics("train", std_floor=1e-3)
    chosen = pairs.trajectories("train")
    for step in range(4):
        batch = pairs.gather(chosen, np.full(len(chosen), step))
        torch.testing.assert_close(statistics.mean[step], batch.current.mean(0))
        torch.testing.assert_close(statistics.std[step], batch.current.std(0, correction=0))
        both = torch.cat([batch.base, batch.safe])
        torch.testing.assert_close(statistics.next_std[step], both.std(0, correction=0))


def test_the_floor_is_a_share_of_the_largest(tmp_path):
    pairs = make(tmp_path / "pairs")
    std = pairs.statistics("train", std_floor=1.0).std
    assert bool((std == std.amax(dim=(1, 2, 3), keepdim=True)).all())


@pytest.mark.parametrize("damage", ["kind", "shape"])
def test_damaged_folders_are_refused(tmp_path, damage):
    make(tmp_path / "pairs")
    if damage == "kind":
        index = json.loads((tmp_path / "pairs" / "pairs.json").read_text())
        (tmp_path / "pairs" / "pairs.json").write_text(json.dumps({**index, "kind": "trajectories"}))
    else:
        np.save(tmp_path / "pairs" / "shard-00000.npy", np.zeros((5, 3, 4, 1, 2, 3), np.float32))
    with pytest.raises(ValueError, match=r"check the path|remove it"):
        PairSet(tmp_path / "pairs")


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no latent pairs"):
        PairSet(tmp_path)
