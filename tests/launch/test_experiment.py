"""Experiments and their reports: what is run, what is skipped, what the tables say."""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import pytest

from launch.cli import UsageError, compose, group_options
from launch.experiment import Plan, Run, plan_of, run_experiment
from launch.report import (
    COLOURS,
    budget,
    curves,
    final_success,
    markdown,
    read_rows,
    replaced,
    report,
    within_budget,
    write_rows,
)
from models.files import write_json
from tests.launch.conftest import run_here, run_verb
from tests.launch.test_training import SMALL

PLAN = Plan(
    name="small",
    title="Two rewards",
    about="A comparison.",
    tasks=("reach", "door-close"),
    rewards=("relative frame_reward.form=r2", "sparse"),
    seeds=(0, 1),
    train=("preset=laptop", "total_agent_steps=200"),
    own={"relative frame_reward.form=r2": ["reward.checkpoint=models/pair"]},
)


def row(task, reward, seed, phase, agent_steps, success, learned_return=""):
    return {
        **{"task": task, "reward": reward, "seed": seed, "phase": phase, "agent_steps": agent_steps},
        **{"frames": 3 * agent_steps, "updates": agent_steps // 2, "wall_s": 36.0, "success": success},
        **{"episodes": 20.0, "env_return": 1.5, "learned_return": learned_return},
    }


@pytest.mark.parametrize("name", group_options("experiment"))
def test_every_experiment_can_be_read_and_says_its_budget(name):
    plan = plan_of(compose("experiment", [f"experiment={name}"]))
    assert plan.name == name
    assert budget(plan) > 0
    runs = {(run.task, run.reward): run for run in plan.runs()}  # Seeds differ by a number only.
    most = max(
        len(plan.tasks), len(plan.rewards)
    )  # No file belongs to a task and a reward: each of them once will do.
    for task, reward in islice(zip(cycle(plan.tasks), cycle(plan.rewards)), most):
        compose("train", plan.overrides(runs[task, reward]))


def test_a_run_is_what_train_is_given():
    run = Run("reach", "relative frame_reward.form=r2", 1)
    assert run in PLAN.runs() and len(PLAN.runs()) == 8
    assert run.folder_name == "reach_relative_frame_reward.form-r2_seed1"
    assert PLAN.overrides(run) == [
        *("task=reach", "reward=relative", "seed=1", "preset=laptop", "total_agent_steps=200"),
        *("reward.checkpoint=models/pair", "frame_reward.form=r2"),
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan.tasks=[dor-close]", "did you mean 'door-close'"),
        ("plan.rewards=[spars]", "did you mean 'sparse'"),
        ("plan.seeds=[-1]", "seeds must be numbers of 0 or more"),
        ("plan.tasks=[]", "tasks is empty"),
        ("plan.tasks=reach", r"tasks must be a list: plan\.tasks=\[reach\]"),
        ("plan.seeds=3", r"seeds must be a list: plan\.seeds=\[3\]"),
        ("plan.seeds=[true]", "seeds must be numbers of 0 or more"),
        ("plan.rewards=[3]", "rewards has '3'"),
        ("plan.own=null", r"no reward\.checkpoint="),
        ("plan.seed=[1]", "unknown key 'plan.seed'"),
    ],
)
def test_bad_plans_are_refused(override, message):
    with pytest.raises(UsageError, match=message):
        plan_of(compose("experiment", [override]))


def test_models_are_made_for_the_rewards_that_are_run_only(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr("launch.experiment.run_step", lambda _name, arguments: commands.append(arguments))
    model = f"plan.own={{relative:['reward.checkpoint={tmp_path}/pair/{{task}}']}}"
    given = [f"runs={tmp_path}/runs", "plan.tasks=[reach]", "plan.seeds=[0]", model]
    made = "plan.prepare={relative:'quality task={task} rewards=[relative]'}"
    run_experiment(compose("experiment", [*given, made, "plan.rewards=[relative]"]))
    assert commands[0] == ["quality", "task=reach", "rewards=[relative]"]
    assert commands[1][:3] == ["train", "task=reach", "reward=relative"]
    commands.clear()
    run_experiment(compose("experiment", [*given, made, "plan.rewards=[sparse]"]))
    assert [command[0] for command in commands] == ["train"]
    commands.clear()
    (tmp_path / "pair/reach").mkdir(parents=True)
    for name in ("training.json", "summary.json", "statistics.json"):  # cut off, without statistics, whole
        write_json(tmp_path / "pair/reach" / name, {})
        commands.clear()
        run_experiment(compose("experiment", [*given, made, "plan.rewards=[relative]"]))
        is_whole = name == "statistics.json"
        assert [command[0] for command in commands] == (["train"] if is_whole else ["quality", "train"])


@pytest.mark.parametrize(
    "name",
    ["metaworld_laptop", "relative_weight", "success_share", "solved_stays", "solved_ends", "excursions"],
)
def test_the_commands_that_make_models_are_taken_by_their_verbs(name):
    plan = plan_of(compose("experiment", [f"experiment={name}"]))
    assert "relative" in plan.prepare
    for reward in plan.prepare:
        verb, *arguments = shlex.split(str(plan.prepare[reward]).replace("{task}", "reach"))
        quality = compose(verb, arguments)
        assert f"{quality.checkpoints}/{Path(plan.checkpoint(reward)).parent.name}/reach" == plan.checkpoint(
            reward, "reach"
        )
        is_pair = reward.startswith("relative")
        pair = [*quality.base_overrides, *quality.expert_overrides] if is_pair else []
        model = compose("pretrain", pair)
        assert model.video.history == ("first" if is_pair else "recent")
        holds = name in ("solved_stays", "solved_ends", "excursions")
        assert model.video_training.hold_frames == (101 if holds else None)


def test_a_failed_run_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def fail_once(name, arguments):
        if "seed=0" in arguments:
            raise RuntimeError("no GL")
        folder = next(a.partition("=")[2] for a in arguments if a.startswith("out="))
        finished_run(folder, total=20)

    monkeypatch.setattr("launch.experiment.run_step", fail_once)
    given = [f"runs={tmp_path}", "plan.tasks=[reach]", "plan.seeds=[0,1]", "plan.rewards=[sparse]"]
    assert run_experiment(compose("experiment", given)) == 1
    assert "failed: reach_sparse_seed0: no GL" in capsys.readouterr().err
    assert run_experiment(compose("experiment", [*given, "plan.seeds=[1]"])) == 0


def test_runs_that_another_command_has_done_meanwhile_are_left_alone(tmp_path, monkeypatch):
    began = []

    def run(_name, arguments):
        began.append(arguments[-1])
        for seed in (0, 1):
            finished_run(tmp_path / f"metaworld_laptop/reach_sparse_seed{seed}", total=20)

    monkeypatch.setattr("launch.experiment.run_step", run)
    given = [f"runs={tmp_path}", "plan.tasks=[reach]", "plan.seeds=[0,1]", "plan.rewards=[sparse]"]
    assert run_experiment(compose("experiment", given)) == 0
    assert began == [f"out={tmp_path}/metaworld_laptop/reach_sparse_seed0"]


def test_a_run_that_was_begun_with_another_plan_is_named(tmp_path, capsys):
    given = [f"runs={tmp_path}", "plan.tasks=[reach]", "plan.seeds=[0,1]", "plan.rewards=[sparse]"]
    plan = plan_of(compose("experiment", given))
    for run in plan.runs():
        folder = tmp_path / "metaworld_laptop" / run.folder_name
        finished_run(folder, total=20)
        begun = [*plan.overrides(run), "console=off"]
        if run.seed == 1:
            begun[begun.index("preset=laptop")] = "preset=gpu"
        with (folder / "config.yaml").open("a") as file:
            file.write(f"overrides: {json.dumps(begun)}\n")
    assert run_experiment(compose("experiment", given)) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.endswith("reach_sparse_seed0")
    assert second.endswith("reach_sparse_seed1   WARNING: begun without preset=laptop")


def test_every_reward_of_a_plan_is_drawn(tmp_path, monkeypatch):
    rewards = group_options("reward")
    drawn = []
    monkeypatch.setattr("launch.report._draw", lambda *arguments: drawn.append(arguments[-1]))
    rows = [row("reach", reward, 0, "eval", 200, 0.5) for reward in rewards]
    curves(replace(PLAN, rewards=tuple(rewards)), rows, tmp_path / "picture.png")
    assert set(drawn) == set(rewards) and len(rewards) > len(COLOURS)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr("launch.experiment.run_step", lambda _name, arguments: commands.append(arguments))
    folder = tmp_path / "metaworld_laptop/reach_sparse_seed0"
    finished_run(folder, total=20)
    next(folder.glob("checkpoints/step_*/counters.json")).write_text("")
    given = [f"runs={tmp_path}", "plan.tasks=[reach]", "plan.seeds=[0,1]", "plan.rewards=[sparse]"]
    assert run_experiment(compose("experiment", [*given, "list=true"])) == 0
    assert "interrupted  reach_sparse_seed0\n  new          reach_sparse_seed1" in capsys.readouterr().out
    report(compose("report", [*given, f"out={tmp_path}/results"]))
    assert "reach `sparse` seed 0 (100% at 20 agent" in (tmp_path / "results/metaworld_laptop.md").read_text()


def finished_run(path, total):
    checkpoint = Path(path) / "checkpoints" / f"step_{total:09d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "counters.json").write_text(json.dumps({"agent_steps": total}))
    (checkpoint.parent / "LATEST").write_text(checkpoint.name)
    (Path(path) / "config.yaml").write_text(f"total_agent_steps: {total}\n")
    line = {"phase": "eval", "agent_steps": total, "success_rate": 1.0}
    (Path(path) / "metrics.jsonl").write_text(json.dumps(line) + "\n")


@pytest.mark.ray
def test_an_experiment_runs_once_and_its_report_has_its_numbers(tmp_path):
    train = ["preset=laptop", "total_agent_steps=200", *SMALL[1:]]
    plan = [
        *("plan.name=tiny", "plan.tasks=[door-close]", "plan.rewards=[dense]", "plan.seeds=[3]"),
        "plan.train=[" + ",".join(f"'{override}'" for override in train) + "]",
    ]
    first = run_verb("experiment", f"runs={tmp_path}/runs", *plan).stdout
    assert "1 of 1 runs to do" in first
    again = run_here("experiment", f"runs={tmp_path}/runs", *plan)
    assert "finished     door-close_dense_seed3\n" in again and "0 of 1 runs to do" in again
    run_verb("report", f"runs={tmp_path}/runs", f"out={tmp_path}/results", *plan)
    rows = list(csv.DictReader((tmp_path / "results" / "tiny.csv").open()))
    assert {row["phase"] for row in rows} == {"train", "eval"}
    assert rows[-1]["agent_steps"] == "200" and rows[-1]["reward"] == "dense"
    # Twenty steps of three frames, up to 10 a frame: no sparse reward of a beginner looks like that.
    assert all(0 < float(row["env_return"]) < 600 for row in rows if row["phase"] == "train")
    assert "1 finished runs, 0 of the plan not run" in (tmp_path / "results" / "tiny.md").read_text()
    assert (tmp_path / "results" / "tiny.png").stat().st_size > 5000


def test_the_report_counts_what_is_in_the_csv():
    relative = "relative frame_reward.form=r2"
    rows = [
        row("reach", relative, 0, "eval", 100, 0.8),
        row("reach", relative, 0, "eval", 200, 1.0),
        row("reach", relative, 1, "eval", 200, 0.9),
        row("reach", "sparse", 0, "eval", 200, 0.0),
        row("reach", "sparse", 1, "eval", 100, 1.0),  # cut off before its end
        row("reach", "sparse", 0, "train", 200, 0.05),
    ]
    assert {key: sorted(seeds) for key, seeds in final_success(rows, 200).items()} == {
        ("reach", relative): [0, 1],
        ("reach", "sparse"): [0],
    }
    text = markdown(PLAN, rows)
    assert "| reach | **95%** (100%, 90%)<br>83% to 99% | 0% (0%), 1 of 2 seeds<br>0% to 16% |" in text
    assert "| tasks solved | 1 of 1 | 0 of 1 |" in text
    assert "| reach | 150 | - (1 of 2 seeds) |" in text
    assert "3 finished runs, 5 of the plan not run" in text
    assert "Cut off, and in no table above: reach `sparse` seed 1 (100% at 100 agent steps).\n" in text
    assert "Cut off" not in markdown(PLAN, [r for r in rows if r["agent_steps"] == 200])
    assert "door-close" not in text.partition("## Success")[2]


def test_a_task_is_solved_only_where_every_seed_of_the_plan_has_finished():
    rows = [
        row("reach", "sparse", 0, "eval", 100, 0.9),
        row("reach", "sparse", 0, "eval", 200, 1.0),
        row("reach", "sparse", 1, "eval", 100, 0.0),  # stopped on the way
        row("reach", "sparse", 5, "eval", 200, 1.0),  # of no plan: does not stand in for seed 1
        row("door-close", "sparse", 0, "eval", 200, 1.0),
        row("door-close", "sparse", 1, "eval", 200, 0.5),
    ]
    text = markdown(PLAN, rows)
    assert "| reach | - | 100% (100%, 100%), 1 of 2 seeds<br>91% to 100% |" in text
    assert "| door-close | - | 75% (100%, 50%)<br>60% to 86% |" in text
    assert "| tasks solved | - | 0 of 2 |" in text
    assert "| reach | - | 150 (1 of 2 seeds) |" in text
    # The same task once its second seed is there.
    text = markdown(PLAN, [*rows, row("reach", "sparse", 1, "eval", 200, 0.6)])
    assert "| reach | - | **87%** (100%, 60%, 100%)<br>" in text
    assert "| tasks solved | - | 1 of 2 |" in text


def test_rows_survive_the_file_and_a_shorter_run_does_not_replace_a_longer_one(tmp_path):
    rows = [row("reach", "sparse", seed, "eval", 200, 0.25) for seed in (1, 0)]
    write_rows(tmp_path / "a.csv", rows)
    back = read_rows(tmp_path / "a.csv")
    assert back == sorted(rows, key=lambda r: r["seed"])
    run = Run("reach", "sparse", 1)
    assert replaced(back, run, [row("reach", "sparse", 1, "eval", 100, 1.0)]) == back
    longer = [row("reach", "sparse", 1, "eval", 300, 1.0)]
    assert replaced(back, run, longer) == [back[0], *longer]


def test_a_run_that_was_resumed_beyond_the_budget_counts_at_the_budget(tmp_path):
    path = tmp_path / "runs/metaworld_laptop/reach_sparse_seed0"
    finished_run(path, total=40_000)
    line = {"phase": "eval", "updates": 1, "wall_s": 1.0, "episodes": 10}
    at = [(16_000, 0.0), (20_060, 0.3), (24_000, 0.9), (40_000, 1.0)]
    lines = [{**line, "agent_steps": step, "frames": 3 * step, "success_rate": rate} for step, rate in at]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report(compose("report", [f"runs={tmp_path}/runs", f"out={tmp_path}/results"]))
    rows = read_rows(tmp_path / "results/metaworld_laptop.csv")
    assert [(row["agent_steps"], row["success"]) for row in rows] == at[:2]
    text = (tmp_path / "results/metaworld_laptop.md").read_text()
    assert "| reach | - | - | - | 30% (30%)" in text


@pytest.mark.parametrize(("steps", "kept"), [([90, 100, 110], 2), ([99, 101, 102], 2), ([99, 103], 1)])
def test_only_the_first_evaluation_at_the_budget_counts(steps, kept):
    rows = [row("reach", "sparse", 0, "eval", step, 0.5) for step in steps]
    assert within_budget(rows, 100) == rows[:kept]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("updates", "steps"), r"has columns \[.*'steps'.*\], expected"),
        (lambda text: text.rpartition(",")[0] + "\n", "of another length than its head: line 2"),
        (lambda text: text.rstrip() + ",3\n", "of another length than its head: line 2"),
    ],
)
def test_a_table_of_other_columns_is_left_alone(tmp_path, change, message):
    path = tmp_path / "metaworld_laptop.csv"
    write_rows(path, [row("reach", "sparse", 0, "eval", 200, 0.25)])
    path.write_text(change(path.read_text()))
    before = path.read_text()
    with pytest.raises(UsageError, match=message):
        report(compose("report", [f"runs={tmp_path}/runs", f"out={tmp_path}"]))
    assert path.read_text() == before


def test_a_report_of_tasks_that_nobody_ran_says_what_to_do(tmp_path):
    write_rows(tmp_path / "metaworld_laptop.csv", [row("reach", "sparse", 0, "eval", 200, 0.25)])
    given = [f"runs={tmp_path}/runs", f"out={tmp_path}"]
    with pytest.raises(UsageError, match="no runs of door-close in"):
        report(compose("report", [*given, "plan.tasks=[door-close]"]))
    assert report(compose("report", [*given, "plan.tasks=[reach]"])) == 0  # one evaluation, no line


def test_a_report_without_anything_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=r"run launch/experiment\.py experiment=metaworld_laptop first"):
        report(compose("report", [f"runs={tmp_path}/runs", f"out={tmp_path}/results"]))
