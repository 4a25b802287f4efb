"""Training of relative rewards: E = B is flat, a swap flips, resuming is exact, and pairs must be pairs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.diffuser.diffuser import load_diffuser
from models.diffuser.diffuser_training import train_diffuser
from models.relative.config import RelativeRewardConfig, RelativeTrainingConfig
from models.relative.relative_training import train_relative_reward
from models.relative.reward import load_relative_reward, require_pair_of_reward
from models.training_folder import SUMMARY_FILE
from models.trajectories import read_trajectories
from tests.models.diffuser.support import SHORT, TINY, Stop, stop_at, walks

MLP = RelativeRewardConfig(window_steps=2, hidden=(16, 8))
TRAINING = RelativeTrainingConfig(
    train_steps=12,
    batch_windows=16,
    learning_rate=2e-3,
    ema_decay=0.5,
    ema_start_steps=4,
    ema_every_steps=2,
    log_every_steps=2,
    validate_every_steps=4,
    validation_windows=32,
    save_every_steps=4,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """Diffusers of slow and of fast walks to the right."""
    folder = tmp_path_factory.mktemp("pair")
    training = replace(SHORT, train_steps=100, batch_windows=32, validate_every_steps=100, log_every_steps=50)
    slow, fast = walks(folder / "slow", 0.0, "base"), walks(folder / "fast", 0.5, "expert")
    train_diffuser(training, TINY, slow, folder / "base")
    experts = replace(training, initialise_from_base=True)
    train_diffuser(experts, TINY, fast, folder / "expert", base=folder / "base")
    return folder


def train(pair: Path, out: Path, base: str = "base", expert: str = "expert", network=MLP, **changes):
    return train_relative_reward(replace(TRAINING, **changes), network, pair / base, pair / expert, out)


def means(folder: Path, pair: Path, step: int = 1) -> tuple[float, float]:
    """Mean rewards of slow and of fast walks."""
    reward, facts = load_relative_reward(folder)
    from models.trajectories import read_trajectories

    values = []
    for name in ("base", "expert"):
        windows = read_trajectories(facts[name]["data"]).split("validation").windows(TINY.horizon)
        observations, actions = map(torch.from_numpy, windows.read(np.arange(len(windows))))
        values.append(float(reward.score(observations, actions, step).mean()))
    return values[0], values[1]


@pytest.mark.parametrize("form", ["mean", "x0", "epsilon"])
def test_it_prefers_the_expert(pair, tmp_path, form):
    summary = train(pair, tmp_path / "r", form=form, train_steps=150, validate_every_steps=150)
    reward, facts = load_relative_reward(tmp_path / "r")
    assert facts["explained"] > 0.2 and reward.form == form
    assert facts["base"]["mode"] == "base" and facts["expert"]["mode"] == "expert"
    slow, fast = means(tmp_path / "r", pair)
    assert fast > slow
    assert summary["best_step"] == 150


def test_the_same_model_twice_gives_a_flat_reward(pair, tmp_path):
    train(pair, tmp_path / "r", expert="base", train_steps=200, validate_every_steps=200, learning_rate=1e-2)
    reward, facts = load_relative_reward(tmp_path / "r")
    assert facts["target_power"] == 0
    x, t = torch.randn(64, 8, 3), torch.randint(6, (64,))
    assert reward.gradient(x, t).square().mean() < 1e-4
    assert reward.gradient(x, t).abs().max() < 0.05


def test_a_swap_flips_the_preference(pair, tmp_path):
    train(pair, tmp_path / "r", base="expert", expert="base", train_steps=150, validate_every_steps=150)
    slow, fast = (value for value in means(tmp_path / "r", pair)[::-1])
    assert slow > fast


@pytest.mark.parametrize("objective", ["relative", "discriminator"])
def test_resuming_gives_the_same_weights(pair, tmp_path, objective):
    train(pair, tmp_path / "whole", objective=objective)
    with pytest.raises(Stop):
        train_relative_reward(
            replace(TRAINING, objective=objective),
            MLP,
            pair / "base",
            pair / "expert",
            tmp_path / "cut",
            progress=stop_at(6),
        )
    train(pair, tmp_path / "cut", objective=objective)
    whole, cut = (torch.load(tmp_path / n / "weights.pt", weights_only=True) for n in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    with pytest.raises(FileExistsError, match="already holds a finished relative reward"):
        train(pair, tmp_path / "cut", objective=objective)


def test_a_reward_remembers_which_diffusers_it_was_extracted_from(pair, tmp_path):
    base, expert = shutil.copytree(pair / "base", tmp_path / "base"), pair / "expert"
    train_relative_reward(TRAINING, MLP, base, expert, tmp_path / "r")
    _, facts = load_relative_reward(tmp_path / "r")
    require_pair_of_reward(tmp_path / "r", facts, base, expert)
    shutil.copy(expert / "weights.pt", base)
    with pytest.raises(ValueError, match=r"from a base diffuser with weights .*: it was trained again since"):
        require_pair_of_reward(tmp_path / "r", facts, base, expert)
    del facts["weights"]  # from before they were remembered
    require_pair_of_reward(tmp_path / "r", facts, base, expert)


def test_a_training_goes_on_only_with_the_diffusers_it_began_with(pair, tmp_path):
    base = shutil.copytree(pair / "base", tmp_path / "base")
    given = (TRAINING, MLP, base, pair / "expert", tmp_path / "r")
    with pytest.raises(Stop):
        train_relative_reward(*given, progress=stop_at(6), base_data=walks(tmp_path / "other", 0.1, "base"))
    original = (base / "weights.pt").read_bytes()
    shutil.copy(pair / "expert" / "weights.pt", base)
    with pytest.raises(ValueError, match=r"weights\.base: .* there, .* asked for"):
        train_relative_reward(*given, base_data=read_trajectories(tmp_path / "other"))
    (base / "weights.pt").write_bytes(original)
    began = json.loads((tmp_path / "r" / "training.json").read_text())
    del began["weights"]  # from before they were remembered
    (tmp_path / "r" / "training.json").write_text(json.dumps(began))
    train_relative_reward(*given, base_data=read_trajectories(tmp_path / "other"))
    assert (tmp_path / "r" / SUMMARY_FILE).exists()


def test_discriminator_tells_them_apart(pair, tmp_path):
    train(pair, tmp_path / "r", objective="discriminator", train_steps=150, validate_every_steps=150)
    reward, facts = load_relative_reward(tmp_path / "r")
    assert facts["accuracy"] > 0.7 and reward.form == "score"
    slow, fast = means(tmp_path / "r", pair)
    assert fast > slow
    x, t = torch.randn(4, 8, 3), torch.tensor([0, 1, 2, 5])
    factor = (reward.schedule.beta / reward.schedule.alpha.sqrt())[t][:, None, None]
    torch.testing.assert_close(reward.mean_gradient(x, t), factor * reward.gradient(x, t))


def test_given_observations(pair, tmp_path):
    """By default the first observation is clean and does not count; the official code noises it and counts it."""
    from models.diffuser.window_batches import WindowBatches, joint_vectors
    from models.relative.relative_training import _RelativeRun
    from models.relative.reward import RelativeReward
    from models.trajectories import read_trajectories

    base, expert = (load_diffuser(pair / name)[0] for name in ("base", "expert"))
    data = read_trajectories(pair / "slow")
    windows = WindowBatches(joint_vectors(data, base.normaliser), data.windows(8)).draw(4)
    reward = RelativeReward(MLP, "mean", 8, 6, base.normaliser)
    for given, clean in (("model", True), ("first", True), ("none", False)):
        config = replace(TRAINING, given=given)
        models = {"base": base, "expert": expert}
        run = _RelativeRun(config, reward, models, {}, tmp_path, torch.device("cpu"), {})
        x_t, t = run._noised(windows)
        point, target = run._target(windows, x_t, t)
        assert torch.equal(x_t[:, 0, 1:], windows[:, 0, 1:]) == clean
        assert torch.equal(point[:, 0, 1:], windows[:, 0, 1:]) == clean
        assert bool(target[:, 0, 1:].any()) != clean
        assert not torch.equal(x_t[:, 1:], windows[:, 1:]) and target[:, 1:].any()
        assert (run.ignored is not None) == clean


def test_half_temporal_network(pair, tmp_path):
    network = RelativeRewardConfig(network="half_temporal", channels=(8, 64))
    train(pair, tmp_path / "r", network=network, clip_grad_value=0.2)
    reward, _ = load_relative_reward(tmp_path / "r")
    assert reward.score(torch.zeros(2, 8, 2), torch.zeros(2, 8, 1)).shape == (2,)
    assert (tmp_path / "r" / SUMMARY_FILE).exists()


def test_no_pair_is_refused(pair, tmp_path):
    fast = walks(tmp_path / "fast", 0.5, "expert")
    train_diffuser(SHORT, TINY, fast, tmp_path / "alone")
    with pytest.raises(ValueError, match=r"are no pair \(normaliser.shift; normaliser.scale differ\)"):
        train_relative_reward(TRAINING, MLP, pair / "base", tmp_path / "alone", tmp_path / "r")
    train_diffuser(SHORT, replace(TINY, num_steps=7), fast, tmp_path / "other")
    with pytest.raises(ValueError, match="num_steps: 6 against 7"):
        train_relative_reward(TRAINING, MLP, pair / "base", tmp_path / "other", tmp_path / "r")
    with pytest.raises(ValueError, match="window_steps=9: expected at most the horizon, 8"):
        train(pair, tmp_path / "long", network=replace(MLP, window_steps=9))
    with pytest.raises(FileNotFoundError, match="no relative_reward checkpoint"):
        load_relative_reward(tmp_path / "nothing")
    with pytest.raises(ValueError, match="describes a 'diffuser' model, expected 'relative_reward'"):
        load_relative_reward(pair / "base")


def test_trajectories_from_elsewhere_are_of_the_same_task_and_remembered(pair, tmp_path):
    other = walks(tmp_path / "other", 0.5, "expert")
    folders = pair / "base", pair / "expert", tmp_path / "r"
    train_relative_reward(TRAINING, MLP, *folders, expert_data=other)
    _, facts = load_relative_reward(tmp_path / "r")
    assert (facts["base"]["data"], facts["expert"]["data"]) == (str(pair / "slow"), str(other.folder))
    elsewhere = replace(other, index={**other.index, "task": "pointmaze-large"})
    message = "base diffuser is one of 'pointmaze-test', .* of 'pointmaze-large': give base_data"
    with pytest.raises(ValueError, match=message):
        train_relative_reward(TRAINING, MLP, *folders[:2], tmp_path / "new", base_data=elsewhere)
    assert not (tmp_path / "new").exists()
