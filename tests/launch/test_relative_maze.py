"""Mazes end to end: heatmaps that find a known goal, tables, and every stage through the command line."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from actors.envs.pointmaze import maze_layout
from actors.maze_planner import PlannerConfig
from launch.cli import UsageError, compose
from launch.collect_trajectories import collect_trajectories, data_settings, with_goal_as_list
from launch.maze_evaluation import Evaluation, _heatmaps
from launch.maze_heatmap import (
    Heatmap,
    heatmap,
    judge,
    maze_windows,
    smoothed,
    window_rewards,
)
from launch.maze_report import summarise
from launch.maze_settings import MazeSettings
from launch.maze_steering import random_starts, score_plans
from launch.relative import relative, with_action_and_family
from models.checkpoints import load_tensors, save_tensors
from models.diffuser.config import DiffuserConfig
from models.diffuser.diffuser import Diffuser
from models.diffuser.normaliser import Normaliser
from models.relative.config import RelativeRewardConfig, SteeringConfig
from models.relative.reward import RelativeReward
from models.trajectories import read_trajectories
from tests.launch.conftest import refused, run_verb

UMAZE = maze_layout("pointmaze-umaze")
NAN = float("nan")
# Every stage real, as small as it gets.
TINY = [
    *("domain=maze", "maze.task=pointmaze-umaze", "maze.goals=[[1.3,2.7],[3,1]]", "maze.transitions=1500"),
    *(
        "maze.heatmap_windows=2000",
        "maze.plans=8",
        "maze.workers=1",
        "maze.expert_train_steps=4",
        "threads=1",
    ),
    *("diffuser.horizon=16", "diffuser.num_steps=8", "diffuser.width=8", "relative_reward.window_steps=4"),
    *("diffuser_training.train_steps=6", "diffuser_training.validation_windows=32"),
    *("relative_training.train_steps=6", "relative_training.validation_windows=32"),
]


def relative_maze(action, *overrides):
    """`python launch/relative.py <action> ...`, in this process."""
    expanded = with_action_and_family([action, *overrides])
    config = compose("relative", expanded)
    config.overrides = expanded
    assert relative(config) == 0


@pytest.fixture(scope="module")
def base_data(tmp_path_factory):
    out = tmp_path_factory.mktemp("maze") / "base"
    overrides = ["task=pointmaze-umaze", "mode=base", "transitions=25000", "workers=1", f"out={out}"]
    collect_trajectories(compose("collect_trajectories", overrides))
    return read_trajectories(out)


def test_smoothing_leaves_out_what_was_not_seen():
    values = np.array([[1.0, 2.0, NAN], [3.0, NAN, NAN], [NAN, NAN, 8.0]])
    expected = [[2.0, 2.0, NAN], [2.0, NAN, NAN], [NAN, NAN, 8.0]]
    np.testing.assert_allclose(smoothed(values), expected)


def test_rewards_go_into_the_bin_of_their_place():
    cells = np.array([[0.9, 1.2]] * 5 + [[1.0, 1.2]] * 6 + [[2.0, 2.0]] * 9 + [[3.2, 3.4]] * 2)
    rewards = np.array([1.0, 2, 3, 4, 5] + [7.0] * 6 + [100.0] * 9 + [50.0] * 2)
    places = heatmap(rewards, cells, UMAZE, 2)
    assert places.values.shape == (10, 10)
    assert places.values[2, 3] == 3.0  # rows 0.5 to 1.0, columns 1.0 to 1.5
    assert places.values[3, 3] == 7.0
    assert np.isnan(places.values).sum() == 98  # the wall and the place with two windows have no value
    np.testing.assert_allclose(places.centres()[2, 3], [0.75, 1.25])


def test_judging_by_hand():
    values = np.full((5, 5), NAN)
    for row, column in UMAZE.free_cells:
        values[row, column] = -row - 0.1 * column
    judged = judge(Heatmap(values, np.zeros((5, 5), np.int64), 1), (1, 1))
    assert judged.best == (1.0, 1.0) and judged.recovered and judged.distance_cells == 0
    assert judged.percentile == pytest.approx(100 * 6 / 7)
    assert judged.chance == pytest.approx(2 / 7)  # (1, 1) and (1, 2)
    other = judge(Heatmap(values, np.zeros((5, 5), np.int64), 1), (3, 1))
    assert not other.recovered and other.distance_cells == 2.0
    with pytest.raises(ValueError, match="no bin of the heatmap has enough windows"):
        judge(Heatmap(np.full((5, 5), NAN), np.zeros((5, 5), np.int64), 1), (1, 1))


@pytest.mark.parametrize("goal", [(1.3, 2.7), (3.0, 1.0)])
def test_a_reward_that_is_highest_at_the_goal_recovers_it(base_data, goal):
    config = DiffuserConfig(horizon=16, num_steps=20, width=8, multipliers=(1,), padding="last")
    base = Diffuser(config, Normaliser.fit(base_data, "min_max"))
    target = torch.tensor(UMAZE.to_xy(goal))

    def near_goal(x, t):
        return -(base.normaliser.observations(x)[..., :2] - target).norm(dim=-1).mean(1)

    windows = maze_windows(base_data, base, UMAZE, 4, 4000)
    rewards = window_rewards(near_goal, base, windows.x, (1, 2), seed=0)
    judged = judge(heatmap(rewards, windows.cells, UMAZE, 2), goal)
    assert judged.recovered and judged.percentile > 75
    opposite = judge(heatmap(-rewards, windows.cells, UMAZE, 2), goal)
    assert not opposite.recovered and opposite.percentile < 25
    np.testing.assert_array_equal(rewards, window_rewards(near_goal, base, windows.x, (1, 2), seed=0))
    assert not np.array_equal(rewards, window_rewards(near_goal, base, windows.x, (1, 2), seed=1))


def test_scores_of_plans_by_hand():
    x, y = UMAZE.to_xy((1, 1))
    states = torch.zeros(2, 3, 4)
    states[:, :, 0], states[:, :, 1] = x, y
    states[1, 1, 1] -= 1.0  # through the wall at (2, 1)
    states[1, 2, 0] += 1.0  # ends at (1, 2)
    scores = score_plans(UMAZE, states, (1, 1.2))
    assert scores.at_goal == 0.5
    assert scores.distance_m == pytest.approx((0.2 + 0.8) / 2, abs=1e-6)
    assert scores.in_walls == pytest.approx(1 / 6)


def test_starts_are_first_states_and_fixed_by_the_seed(base_data):
    starts = random_starts(base_data, 10, 3)
    assert starts.shape == (10, 4) and (starts[:, 2:] == 0).all()
    np.testing.assert_array_equal(starts, random_starts(base_data, 10, 3))
    assert not np.array_equal(starts, random_starts(base_data, 10, 4))


def test_a_summary_is_the_mean_over_goals():
    def result(recovered, percentile):
        judged = {"recovered": recovered, "distance_cells": 1.0, "percentile": percentile, "chance": 0.1}
        plans = {"at_goal": percentile / 100, "distance_m": 1.0, "in_walls": 0.0}
        return {"heatmaps": {"relative": {"band": judged, "zero": judged}}, "plans": {"base": plans}}

    summary = summarise([result(True, 90.0), result(False, 50.0)])
    band = summary["heatmaps"]["relative"]["band"]
    assert (band["recovered"], band["goals"], band["percentile"], band["chance"]) == (1, 2, 70.0, 0.1)
    assert summary["plans"]["base"]["at_goal"] == pytest.approx(0.7)


def test_the_presets_hold_what_they_promise():
    paper = data_settings(compose("collect_trajectories", ["preset=paper"]))
    assert (paper.transitions, paper.maze.action_repeat, paper.maze.episode_frames) == (10_000_000, 1, 1000)
    planner = paper.planner
    assert planner == PlannerConfig(3.0, -0.548, 0.24, 0.26, 0.3, 0.1)
    assert data_settings(compose("collect_trajectories", [])).maze.action_repeat == 4
    config = compose("relative", ["domain=maze", "preset=paper"])
    assert (config.diffuser.horizon, config.diffuser.num_steps, config.diffuser.width) == (256, 100, 32)
    assert (config.diffuser_training.train_steps, config.relative_training.learning_rate) == (500_000, 5e-5)
    assert not config.maze.init_from_base and config.maze.expert_train_steps is None


def test_a_time_just_below_one_is_the_last_step(base_data, tmp_path):
    """0.99 of 8 steps rounds to step 8, which there is not."""
    base = Diffuser(DiffuserConfig(horizon=16, num_steps=8, width=8, multipliers=(1,), padding="last"))
    settings = MazeSettings(task="pointmaze-umaze", heatmap_times=(0.99,), heatmap_windows=4000)
    network = RelativeRewardConfig(window_steps=4, hidden=(8,), time_dim=4)
    reward = RelativeReward(network, "mean", 16, 8, base.normaliser)
    shared = Evaluation(settings, SteeringConfig(), 0, tmp_path, torch.device("cpu"), base, base_data)
    judged, _ = _heatmaps(shared, reward, (3.0, 1.0))
    assert 0 <= judged["band"].percentile <= 100


def test_a_goal_on_the_command_line():
    given = with_goal_as_list(["goal=3,6", "mode=expert", "goal=[1,2]", "out=a,b"])
    assert given == ["goal=[3,6]", "mode=expert", "goal=[1,2]", "out=a,b"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mode=expert"], "mode=expert needs a goal"),
        (["goal=[3,6]"], "mode=base has random goals"),
        (["mode=expert", "goal=[2,2]"], "valid are the paper's goals 1,1 1,10 3,6"),
        (["mode=expert", "goal=[1,2,3]"], "expected row,column"),
        (["mode=exprt"], "did you mean 'expert'"),
        (["task=pointmaze-mid"], "did you mean 'pointmaze-medium'"),
        (["transitions=0"], "transitions must be at least 1"),
        (["pointmaze.action_repeat=0"], "action_repeat is 0"),
        (["planner.offset=0.4"], "more than half a cell"),
    ],
)
def test_bad_requests_for_trajectories_are_refused(overrides, message):
    with pytest.raises(UsageError) as caught:
        data_settings(compose("collect_trajectories", overrides))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"goals": ((3, 6), (2, 2))}, "goal 2,2 of pointmaze-large is in a wall"),
        ({"goals": (3, 6)}, r"expected \[\[row,column\],...\]"),
        ({"goals": ()}, "goals is"),
        ({"task": "large"}, "'large' is not a point maze"),
        ({"heatmap_times": (1.0,)}, "heatmap_times"),
        ({"plans": 0}, "plans is 0"),
    ],
)
def test_bad_settings_of_mazes_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        MazeSettings(**values)


def test_all_eight_goals_by_default():
    assert len(MazeSettings(task="pointmaze-umaze").cells) == 8


def test_trajectories_do_not_depend_on_the_number_of_processes(tmp_path, base_data):
    again = tmp_path / "again"
    common = ["task=pointmaze-umaze", "mode=base", "transitions=25000"]  # two blocks
    run_verb("collect", *common, "workers=2", f"out={again}")
    for name in ("observations", "actions", "rewards", "ends"):
        assert (again / f"{name}.npy").read_bytes() == (base_data.folder / f"{name}.npy").read_bytes()
    assert base_data.index["extra"]["arrived"] == len(base_data.ends)
    assert "nothing is overwritten" in refused("collect", *common, f"out={again}")


@pytest.mark.parametrize("verb", ["train", "pretrain", "score"])
def test_verbs_of_videos_refuse_a_maze(verb):
    with pytest.raises(UsageError, match="'pointmaze-large' has states instead of pictures"):
        compose(verb, ["task=pointmaze-large"])


def test_everything_from_the_command_line_and_again(tmp_path, capsys):
    folders = [f"maze.data_folder={tmp_path}/data", f"maze.checkpoint_folder={tmp_path}/checkpoints"]
    out = tmp_path / "out"
    relative_maze("all", *TINY, *folders, f"out={out}")
    assert "of 2 goals recovered" in capsys.readouterr().out
    for name in ("heatmaps.png", "1.3-2.7/heatmaps.png", "1.3-2.7/plans.png", "3-1/plans.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    with (out / "heatmaps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2  # goals, rewards, times
    assert {row["reward"] for row in rows} == {"relative", "discriminator"}
    report = json.loads((out / "results.json").read_text())
    assert report["summary"]["heatmaps"]["relative"]["band"]["goals"] == 2
    assert set(report["summary"]["plans"]) == {
        "base",
        "base steered by relative",
        "base steered by discriminator",
        "expert",
    }
    weights = tmp_path / "checkpoints/relative/pointmaze-umaze-3-1/weights.pt"
    before = weights.stat().st_mtime_ns
    relative_maze("all", *TINY, *folders, f"out={out}")
    assert weights.stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("is there already") == 3 + 3 + 4
    assert json.loads((out / "results.json").read_text())["goals"] == report["goals"]
    with pytest.raises(UsageError, match="evaluated with other settings"):
        relative_maze("evaluate", *TINY, *folders, f"out={out}", "maze.plans=9")
    # What is finished is taken as it is only if it is what was asked for.
    for key, value in (("relative_training.batch_windows", 9), ("diffuser.num_steps", 9), ("seed", 1)):
        with pytest.raises(ValueError, match=rf"{key.split('.')[-1]}: \d+ there, {value} asked for"):
            relative_maze("all", *TINY, *folders, f"out={out}", f"{key}={value}")
    the_results_follow_the_models(out, folders, weights)


def the_results_follow_the_models(out, folders, weights):
    evaluate = ("evaluate", *TINY, *folders, f"out={out}")
    base = weights.parents[2] / "diffuser/pointmaze-umaze/base/weights.pt"
    first = base.read_bytes()
    save_tensors(base, {key: value + 0.01 for key, value in load_tensors(base).items()})
    with pytest.raises(ValueError, match="was trained from a base diffuser with weights"):
        relative_maze("evaluate", *TINY, *folders, f"out={out}-2")
    with pytest.raises(ValueError, match=r"weights\.base: .* there, .* asked for"):
        relative_maze("all", *TINY, *folders, f"out={out}-2")
    base.write_bytes(first)
    original = weights.read_bytes()
    weights.write_bytes((weights.parents[1] / "pointmaze-umaze-1.3-2.7" / "weights.pt").read_bytes())
    with pytest.raises(UsageError, match="3-1 was evaluated with other weights"):
        relative_maze(*evaluate)
    weights.write_bytes(original)
    relative_maze(*evaluate)
    # A result from before the weights were remembered still counts.
    result = out / "3-1" / "result.json"
    facts = json.loads(result.read_text())
    del facts["made_with"]["weights"]
    result.write_text(json.dumps(facts))
    relative_maze(*evaluate)
    # A reward that is still being trained is no result; a missing discriminator is said before any goal.
    (weights.parent / "summary.json").unlink()
    relative_maze(*(word for word in evaluate if not word.startswith("maze.goals")))
    report = json.loads((out / "results.json").read_text())
    assert [entry["goal"] for entry in report["goals"]] == [[1.3, 2.7]]
    (weights.parents[2] / "discriminator/pointmaze-umaze-3-1/weights.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"maze\.discriminator=false"):
        relative_maze(*evaluate)


def test_an_evaluation_without_rewards_says_how_to_get_them(tmp_path):
    folders = [f"maze.checkpoint_folder={tmp_path}/none", f"maze.data_folder={tmp_path}"]
    with pytest.raises(UsageError, match=r"relative\.py all domain=maze"):
        relative_maze("evaluate", "domain=maze", *folders)
