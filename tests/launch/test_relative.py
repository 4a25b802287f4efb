"""`relative.py` and `pretrain.py stage=diffuser`: the paper's table by task, clear refusals, and a small run of each."""

from __future__ import annotations

import json

import pytest

from launch.cli import UsageError, build, compose
from launch.diffuser_stage import family_of, goal_name, with_family_of_the_data
from launch.relative import DOMAINS, domain_module, relative, with_action_and_family
from models.diffuser.config import DiffuserConfig, DiffuserTrainingConfig
from models.relative.config import RelativeRewardConfig, RelativeTrainingConfig, SteeringConfig
from tests.launch.conftest import run_here, run_verb
from tests.models.diffuser.support import walks

TINY = [
    "device=cpu",
    "threads=1",
    "family=maze2d",
    "diffuser.horizon=8",
    "diffuser.num_steps=6",
    "diffuser.width=8",
    "diffuser.multipliers=[1,2]",
    "diffuser_training.train_steps=8",
    "diffuser_training.batch_windows=8",
    "diffuser_training.validation_windows=8",
]
TINY_REWARD = [
    "device=cpu",
    "threads=1",
    "relative_reward.window_steps=2",
    "relative_training.train_steps=8",
    "relative_training.batch_windows=8",
    "relative_training.validation_windows=8",
]


def sections(family: str, preset: str = "paper"):
    config = compose("relative", [f"family={family}", f"preset={preset}"])
    return (
        build(DiffuserConfig, config.diffuser),
        build(DiffuserTrainingConfig, config.diffuser_training),
        build(RelativeRewardConfig, config.relative_reward),
        build(RelativeTrainingConfig, config.relative_training),
        build(SteeringConfig, config.steering),
    )


def test_paper_maze():
    model, training, reward, relative, _ = sections("maze2d")
    assert (model.horizon, model.num_steps, model.width, model.multipliers) == (256, 100, 32, (1, 4, 8))
    assert (model.normaliser, model.clip_x0, model.conditioning) == ("min_max", True, "both_ends")
    assert (training.train_steps, training.batch_windows, training.learning_rate) == (500_000, 128, 2e-4)
    assert (training.ema_decay, training.ema_start_steps, training.ema_every_steps) == (0.995, 2000, 10)
    assert (reward.network, reward.window_steps, reward.hidden) == ("mlp", 64, (128, 64, 32))
    assert (relative.train_steps, relative.batch_windows, relative.learning_rate) == (100_000, 256, 5e-5)
    assert (relative.form, relative.point) == ("mean", "base_mean")


@pytest.mark.parametrize(
    ("family", "horizon", "multipliers", "attention", "rate", "steps", "clip", "scale", "stop"),
    [
        ("halfcheetah", 4, (1, 4, 8), True, 2e-4, 100_000, None, 0.5, 5),
        ("hopper", 32, (1, 2, 4, 8), False, 2e-4, 100_000, 0.2, 0.2, 10),
        ("walker2d", 32, (1, 2, 4, 8), False, 1e-3, 50_000, None, 0.5, 5),
    ],
)
def test_paper_locomotion(family, horizon, multipliers, attention, rate, steps, clip, scale, stop):
    model, training, reward, relative, steering = sections(family)
    assert (model.horizon, model.multipliers, model.attention) == (horizon, multipliers, attention)
    assert (model.num_steps, model.normaliser, model.clip_x0) == (20, "gaussian", False)
    assert (model.conditioning, model.first_action_weight) == ("first", 10.0)
    assert (training.train_steps, training.batch_windows, training.learning_rate) == (1_000_000, 32, 2e-4)
    assert (reward.network, reward.channels) == ("half_temporal", (64, 64, 128, 128))
    assert (relative.learning_rate, relative.train_steps, relative.clip_grad_value) == (rate, steps, clip)
    assert relative.batch_windows == 128
    assert (steering.scale, steering.stop_steps) == (scale, stop)


@pytest.mark.parametrize("preset", ["laptop", "gpu", "paper"])
@pytest.mark.parametrize("family", ["maze2d", "halfcheetah", "hopper", "walker2d", "toy"])
def test_every_size_is_valid(family, preset):
    sections(family, preset)


def test_families():
    assert [family_of(task) for task in ("pointmaze-large", "Hopper-v5", "walker2d")] == [
        "maze2d",
        "hopper",
        "walker2d",
    ]
    assert (goal_name([3, 6]), goal_name((1.3, 2.7))) == ("3-6", "1.3-2.7")
    assert with_action_and_family(["all"]) == ["family=toy", "action=all"]
    assert with_action_and_family(["evaluate", "domain=maze"])[0] == "family=maze2d"
    assert (
        with_action_and_family(["all", "domain=locomotion", "locomotion.task=hopper"])[0] == "family=hopper"
    )
    short = with_action_and_family(["all", "domain=locomotion", "task=walker2d"])
    assert short == ["family=walker2d", "action=all", "domain=locomotion", "locomotion.task=walker2d"]
    assert with_action_and_family(["all", "family=walker2d"]) == ["action=all", "family=walker2d"]


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_every_domain_has_its_actions(domain):
    module = domain_module(domain)
    assert callable(module.evaluate) and callable(module.run_all)


def test_refusals(tmp_path):
    with pytest.raises(UsageError, match="unknown action 'trian'; did you mean 'train'"):
        with_action_and_family(["trian"])
    with pytest.raises(UsageError, match="unknown domain 'mase'; did you mean 'maze'"):
        relative(compose("relative", ["domain=mase"]))
    with pytest.raises(UsageError, match="needs base=<folder of a diffuser>"):
        relative(compose("relative", ["action=train", "domain=maze"]))
    for action, domain, key in (
        ("all", "maze", "base"),
        ("evaluate", "locomotion", "expert_data"),
        ("train", "toy", "base"),
    ):
        words = [f"action={action}", f"domain={domain}", f"{key}={tmp_path}"]
        with pytest.raises(UsageError, match=f"^{key}= is for `relative.py train domain=maze"):
            relative(compose("relative", words))
    with pytest.raises(UsageError, match="needs data=<folder of trajectories>"):
        with_family_of_the_data(["stage=diffuser"])
    with pytest.raises(FileNotFoundError, match="no trajectories at"):
        with_family_of_the_data(["stage=diffuser", f"data={tmp_path}"])


def test_from_trajectories_to_a_reward(tmp_path):
    walks(tmp_path / "slow", 0.0, "base")
    walks(tmp_path / "fast", 0.5, "expert")
    stage = ["stage=diffuser", *TINY]
    assert "done" in run_here("pretrain", *stage, f"data={tmp_path / 'slow'}", f"out={tmp_path / 'base'}")
    pair = [f"base={tmp_path / 'base'}", f"out={tmp_path / 'expert'}"]
    run_here("pretrain", *stage, f"data={tmp_path / 'fast'}", *pair)
    pair = [f"base={tmp_path / 'base'}", f"expert={tmp_path / 'expert'}", f"out={tmp_path / 'reward'}"]
    assert "[reward] done" in run_verb("relative", "train", "domain=maze", *pair, *TINY_REWARD).stdout
    facts = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert facts["base"]["folder"] == str(tmp_path / "base") and facts["horizon"] == 8


def test_the_toy_end_to_end(tmp_path):
    tiny = ["relative_training.train_steps=20", "relative_training.validation_windows=64", "toy.samples=50"]
    arguments = ["all", f"out={tmp_path / 'toy'}", *tiny, "threads=1"]
    assert "share of samples at the expert's mode" in run_verb("relative", *arguments).stdout
    results = json.loads((tmp_path / "toy" / "results.json").read_text())
    assert set(results["expert_mode_share"]) == {"scale 0", "scale 1", "scale 2", "expert"}
    assert len(results["log_ratio_correlation"]) == 20
    assert 1000 < (tmp_path / "toy" / "toy.png").stat().st_size < 150_000
    assert "trained already" in run_here("relative", *arguments)


def test_a_trained_toy_is_not_passed_off_as_another(tmp_path):
    tiny = ["relative_training.train_steps=4", "relative_training.validation_windows=16", "toy.samples=20"]
    tiny += ["family=toy", f"out={tmp_path / 'toy'}"]
    assert relative(compose("relative", tiny)) == 0
    for other in ("toy.activation=leaky_relu", "seed=1", "relative_training.train_steps=5"):
        with pytest.raises(ValueError, match=f"{other.split('.')[-1].split('=')[0]}: .* there, .* asked for"):
            relative(compose("relative", [*tiny, other]))
    # What the evaluation alone depends on is taken from the command, by both actions.
    for action in ("all", "evaluate"):
        assert relative(compose("relative", [*tiny, f"action={action}", "toy.scales=[0,4]"])) == 0
        results = json.loads((tmp_path / "toy" / "results.json").read_text())
        assert set(results["expert_mode_share"]) == {"scale 0", "scale 4", "expert"}
        assert results["toy"]["activation"] == "silu"


def test_the_toy_has_no_discriminator(tmp_path):
    words = ["family=toy", "relative_training.objective=discriminator", f"out={tmp_path / 'toy'}"]
    for action in ("train", "all"):
        with pytest.raises(UsageError, match="the toy has the relative reward only"):
            relative(compose("relative", [f"action={action}", *words]))
    assert not (tmp_path / "toy").exists()


def test_a_missing_model_names_the_verb_that_trains_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"launch/relative\.py train"):
        relative(compose("relative", ["family=toy", "action=evaluate", f"out={tmp_path}"]))
    words = ["action=train", "domain=maze", f"base={tmp_path}", f"expert={tmp_path}"]
    with pytest.raises(FileNotFoundError, match=r"launch/pretrain\.py"):
        relative(compose("relative", words))


@pytest.mark.parametrize("domain", ["maze", "locomotion"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("relative_reward.window_steps=300", "window_steps=300: expected at most the horizon"),
        ("relative_reward.network=half_2d", "is for images"),
        ("relative_training.point=here", "relative training point='here'"),
        ("steering.units=metres", "steering units='metres'"),
        ("diffuser_training.precision=float16", "diffuser training precision='float16'"),
    ],
)
def test_what_is_wrong_in_the_last_stage_is_said_before_the_first(tmp_path, domain, override, message):
    words = ["all", f"domain={domain}", "relative_reward.network=mlp", override]
    words += [f"{domain}.data_folder={tmp_path}/data", f"{domain}.checkpoint_folder={tmp_path}/checkpoints"]
    with pytest.raises(UsageError, match=message):
        relative(compose("relative", with_action_and_family(words)))
    assert not list(tmp_path.iterdir())
