"""Steering in locomotion: tuning, tables, and all stages after the trajectories with the smallest models."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from actors.envs.locomotion import LocomotionConfig
from actors.state_rollouts import roll_out, uniform
from launch.cli import UsageError, compose
from launch.locomotion_evaluation import (
    Cell,
    CellFile,
    Planner,
    References,
    best_cells,
    difference,
    grid,
    summary_rows,
)
from launch.relative import with_action_and_family
from launch.relative_locomotion import LocomotionSettings, run_all, settings_of
from models.diffuser.config import DiffuserConfig
from models.diffuser.diffuser import Diffuser
from models.diffuser.normaliser import Normaliser
from models.relative.config import SteeringConfig
from models.relative.steering import guided_windows
from models.trajectories import TrajectoryWriter


def test_score_and_its_errors():
    references = References(-100.0, 300.0)
    np.testing.assert_allclose(references.score([-100, 300, 100]), [0, 100, 50])
    with pytest.raises(UsageError, match=r"expert's return, 5\.0, is not above that of random actions, 6\.0"):
        References(6.0, 5.0)
    curve = {"steps": [50, 100], "random": [-1.0, -2.0], "expert": [10.0, 30.0]}
    assert References.of_the_data({"reference_curve": curve}, 100) == References(-2.0, 30.0)
    with pytest.raises(UsageError, match="episode_steps=70: the data has references for 50, 100 steps"):
        References.of_the_data({"reference_curve": curve}, 70)
    # Gains are taken rollout by rollout: +10 each, although the rollouts themselves differ by far.
    gap, error = difference([40.0, 140.0], [0.0, 100.0], references)
    assert gap == pytest.approx(10) and error == pytest.approx(0)
    steered = Cell("report", "relative", SteeringConfig(0.5, 5))
    results = {
        "report/unsteered": {"returns": [0.0, 100.0], "lengths": [9, 11], "plans_per_s": 7.0},
        steered.key: {"returns": [40.0, 140.0], "lengths": [10, 10], "plans_per_s": 5.0},
    }
    plain, row = summary_rows([Cell("report", "unsteered"), steered], results, references)
    assert (plain["score"], plain["score_se"], plain["gain"], plain["scale"]) == (37.5, 12.5, None, None)
    assert (row["score"], row["gain"], row["gain_se"], row["scale"], row["stop_steps"]) == (
        47.5,
        10,
        0,
        0.5,
        5,
    )


def test_best_of_the_grid_for_each_method():
    cells = grid(("discriminator", "relative"), (0.5, 2.0), (0, 5), "mean")
    assert len({cell.key for cell in cells}) == 8
    returns = {cell.key: {"returns": [1.0, 3.0]} for cell in cells}
    returns["tune/relative/scale2/stop0"] = {"returns": [5.0, 2.0]}
    best = best_cells(returns, cells)
    assert (best["relative"].steering.scale, best["relative"].steering.stop_steps) == (2.0, 0)
    # The weaker steering where all are equal.
    assert (best["discriminator"].steering.scale, best["discriminator"].steering.stop_steps) == (0.5, 5)


class Push:
    """Steers all elements up, or down."""

    def __init__(self, size: float = 1.0) -> None:
        self.size = size

    def mean_gradient(self, x, t):
        return self.size * torch.ones_like(x)


def tiny_diffuser(**changes) -> Diffuser:
    values = {"horizon": 4, "num_steps": 3, "observation_dim": 11, "action_dim": 3, "width": 8}
    values |= {"multipliers": (1, 2), "normaliser": "gaussian", "clip_x0": False, "conditioning": "first"}
    torch.manual_seed(0)
    normaliser = Normaliser(torch.zeros(14), torch.full((14,), 2.0), 3)
    return Diffuser(DiffuserConfig(**{**values, **changes}), normaliser).eval()


def test_planner_takes_the_first_action_of_plans_that_start_here():
    model, seen = tiny_diffuser(), []
    network = model.predict_x0

    def predict(x, t):
        seen.append(x[:, 0, 3:].clone())
        return network(x, t)

    model.predict_x0 = predict
    states = np.random.default_rng(0).normal(size=(5, 11)).astype(np.float32)
    cells = [Cell("tune", "unsteered")] * 5
    plain = Planner(model, {"relative": Push()}, cells, seed=3)
    actions = plain(np.arange(5), states)
    assert actions.shape == (5, 3) and plain.plans == 5 and len(seen) == 3
    for given in seen:
        np.testing.assert_allclose(given, states / 2, rtol=1e-6)
    # Rollouts of different planners share a batch and its noise; each is steered as its own cell says.
    cells = [
        Cell("tune", "unsteered"),
        Cell("tune", "relative", SteeringConfig(0.0)),
        Cell("tune", "relative", SteeringConfig(1.0, stop_steps=3)),
        Cell("tune", "relative", SteeringConfig(1.0)),
        Cell("tune", "discriminator", SteeringConfig(1.0)),
    ]
    rewards = {"relative": Push(), "discriminator": Push(-1.0)}
    steered = Planner(model, rewards, cells, seed=3)(np.arange(5), states)
    np.testing.assert_array_equal(steered[:3], actions[:3])
    assert not np.allclose(steered[3], actions[3], atol=1e-3)
    assert not np.allclose(steered[4], actions[4], atol=1e-3)
    # As `guided_windows` steers them.
    generator = torch.Generator().manual_seed(3)
    conditions = model.conditions(torch.as_tensor(states)[:, None])
    for row, push in ((3, Push()), (4, Push(-1.0))):
        windows = guided_windows(
            model, push, SteeringConfig(1.0), conditions, generator=generator.manual_seed(3)
        )
        np.testing.assert_allclose(2 * windows[row, 0, :3].numpy(), steered[row], rtol=1e-4, atol=1e-5)
    # Who has ended is not in the batch any more.
    late = Planner(model, rewards, cells, seed=3)(np.array([0, 3]), states[[0, 3]])
    assert late.shape == (2, 3) and not np.allclose(late[1], actions[3], atol=1e-3)
    with pytest.raises(UsageError, match="conditioning='both_ends', planning step by step needs 'first'"):
        Planner(tiny_diffuser(conditioning="both_ends"), {}, cells, seed=0)


def test_results_of_other_settings_are_not_mixed(tmp_path):
    cells = CellFile(tmp_path / "cells.json", {"task": "hopper", "sizes": (1, 2)})
    cells.put({"tune/unsteered": {"returns": [1.0]}})
    again = CellFile(tmp_path / "cells.json", {"task": "hopper", "sizes": (1, 2)})
    assert again.get("tune/unsteered") == {"returns": [1.0]} and again.get("report/unsteered") is None
    with pytest.raises(UsageError, match="holds results with task='hopper', now it is 'walker2d'"):
        CellFile(tmp_path / "cells.json", {"task": "walker2d", "sizes": (1, 2)})


def test_settings_of_the_paper_and_bad_ones():
    words = ["all", "domain=locomotion", "task=hopper", "preset=paper"]
    config = compose("relative", with_action_and_family(words))
    assert settings_of(config).task == "hopper" and settings_of(config).rollouts == 512
    assert (config.steering.scale, config.steering.stop_steps) == (0.2, 10)
    assert (config.diffuser.horizon, config.diffuser.num_steps) == (32, 20)
    assert config.relative_training.clip_grad_value == 0.2
    for override, message in (
        ("locomotion.task=ant", "unknown task 'ant'"),
        ("locomotion.scales=[0]", "scales must be above 0"),
        ("locomotion.scales=[]", "must hold a value each"),
        ("locomotion.rollouts=0", "rollouts must be at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            settings_of(compose("relative", ["family=hopper", override]))


def write_data(folder, mode: str, seed: int) -> None:
    config = LocomotionConfig("hopper", 40)
    curve = {"steps": [6, 12], "random": [0.0, 0.0], "expert": [50.0, 100.0]}
    extra = {"reference_curve": curve}
    sizes = {"observation_dim": 11, "action_dim": 3}
    with TrajectoryWriter(
        folder, domain="locomotion", task="hopper", mode=mode, seed=seed, extra=extra, **sizes
    ) as writer:
        for episode in roll_out(config, range(seed, seed + 24), uniform(3, seed)):
            writer.add(*episode)


TINY = [
    "all",
    "domain=locomotion",
    "task=hopper",
    "device=cpu",
    "diffuser.horizon=8",
    "diffuser.num_steps=4",
    "diffuser.width=8",
    "diffuser.multipliers=[1,2]",
    "relative_reward.channels=[16,64]",
    "diffuser_training.train_steps=4",
    "diffuser_training.validation_windows=16",
    "relative_training.train_steps=4",
    "relative_training.validation_windows=16",
    "locomotion.rollouts=3",
    "locomotion.episode_steps=12",
    "locomotion.tune_rollouts=2",
    "locomotion.tune_episode_steps=6",
    "locomotion.scales=[0.5,1]",
    "locomotion.stop_steps=[1]",
    "locomotion.lockstep=2",
]


def test_all_stages_after_the_trajectories(tmp_path, capsys):
    for mode, seed in (("base", 0), ("expert", 100)):
        write_data(tmp_path / "data" / "hopper" / mode, mode, seed)
    folders = [
        f"locomotion.data_folder={tmp_path}/data",
        f"locomotion.checkpoint_folder={tmp_path}/checkpoints",
    ]
    out = tmp_path / "out"
    config = compose("relative", with_action_and_family([*TINY, *folders, f"out={out}"]))
    assert run_all(config) == 0
    table = list(csv.DictReader((out / "table.csv").open()))
    assert [row["method"] for row in table] == ["unsteered", "discriminator", "relative", "expert"]
    assert all(row["rollouts"] == "3" for row in table)
    assert len(list(csv.DictReader((out / "grid.csv").open()))) == 5
    results = json.loads((out / "evaluation.json").read_text())
    assert results["seed_bases"]["tune"] != results["seed_bases"]["report"]
    for cell in results["cells"].values():
        assert cell["plans"] == sum(cell["lengths"]) and cell["plans_per_s"] > 0
    assert "relative reward" in capsys.readouterr().out

    # Everything is there: nothing is trained or played again.
    before = (out / "cells.json").stat().st_mtime_ns
    assert run_all(config) == 0
    assert (out / "cells.json").stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("is there already") == 6
    changed = compose(
        "relative", with_action_and_family([*TINY, *folders, f"out={out}", "locomotion.rollouts=4"])
    )
    with pytest.raises(UsageError, match="holds results with rollouts=3, now it is 4"):
        run_all(changed)
    for other in ("diffuser_training.train_steps=5", "relative_training.batch_windows=4"):
        changed = compose("relative", with_action_and_family([*TINY, *folders, other]))
        with pytest.raises(ValueError, match=f"{other.split('.')[1].split('=')[0]}: .* there, .* asked for"):
            run_all(changed)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["locomotion.episode_steps=75"],
            r"locomotion\.episode_steps=75: the data has references for 50, 100, ",
        ),
        (
            ["locomotion.tune_episode_steps=30"],
            r"locomotion\.tune_episode_steps=30: the data has references for 50",
        ),
        (["locomotion_data.episode_steps=100"], r"locomotion\.episode_steps=200: .* for 50, 100 steps"),
        (["diffuser.conditioning=both_ends"], "planning step by step needs 'first'"),
    ],
)
def test_what_the_evaluation_would_refuse_is_said_before_sac_is_trained(tmp_path, overrides, message):
    words = ["all", "domain=locomotion", "task=hopper", f"locomotion.data_folder={tmp_path}", *overrides]
    with pytest.raises(UsageError, match=message):
        run_all(compose("relative", with_action_and_family(words)))


def test_references_of_the_tuning_are_asked_for_only_where_there_is_one():
    extra = {"reference_curve": {"steps": [6, 12], "random": [0.0, 0.0], "expert": [50.0, 100.0]}}
    settings = LocomotionSettings(task="hopper", episode_steps=12, tune_rollouts=0, tune_episode_steps=99)
    assert settings.references(extra) == {"report": References(0.0, 100.0)}
