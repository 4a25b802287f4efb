"""Evaluations in the course of training: when they start, and again if their results are lost."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import imageio.v2 as imageio
import numpy as np
import pytest
import ray
from omegaconf import OmegaConf
from ray.exceptions import ActorDiedError, ObjectReconstructionFailedError

from launch import coordinator, evaluate, evaluating
from launch.cli import UsageError, compose
from launch.coordinator import Coordinator
from launch.evaluating import EvaluationResult, EvaluationRun
from launch.interrupts import StopFlag
from launch.run_folder import ReplayStart, RunFolder
from launch.watching import StoredEpisodes
from learner.limiter import UpdateRatioLimiter
from models.episode import Episode

STATS = ("total_inserted_steps", "total_inserted_episodes", "size_transitions")
SUMMARY = {"success_rate": 0.5, "success_low": 0.1, "success_high": 0.9, "episodes": 2, "weight_version": 3}


class Remote:
    """A method of an actor; results are names of objects in `store`."""

    def __init__(self, *results: str) -> None:
        self.results, self.calls = results, 0

    def options(self, **_: int) -> Remote:
        return self

    def remote(self, *_: object) -> object:
        self.calls += 1
        return self.results if len(self.results) > 1 else self.results[0]


@pytest.mark.parametrize("has_reward", [True, False])
def test_episodes_lost_with_their_node_after_scoring_are_rolled_out_again(monkeypatch, tmp_path, has_reward):
    store: dict[str, object] = {"summary": SUMMARY, "scores": []}

    def get(ref: str) -> object:
        if ref not in store:
            raise ObjectReconstructionFailedError(ref, "", "")
        return store[ref]

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(evaluating, "RETRY_AFTER_S", 0.0)
    rollout, score = Remote("summary", "episodes"), Remote("scores")
    system = SimpleNamespace(
        evaluator=SimpleNamespace(evaluate=rollout),
        rewards=[SimpleNamespace(score=score)] if has_reward else [],
    )
    settings = SimpleNamespace(eval_episodes=2, eval_videos=1, video_fps=10)
    run = EvaluationRun(settings, system, SimpleNamespace(path=tmp_path), "version", 4000)
    recoveries: list[str] = []
    assert run.advance(run.ref, recoveries.append) is None
    assert run.advance(run.ref, recoveries.append) is None
    assert run.is_lost and len(recoveries) == 1 and "evaluation starts again" in recoveries[0]
    run.submit("version")
    assert rollout.calls == 2
    store["episodes"] = []
    run.advance(run.ref, recoveries.append)
    result = run.advance(run.ref, recoveries.append)
    assert result is not None and result.metrics["success_rate"] == 0.5 and len(recoveries) == 1


def test_an_evaluation_whose_actor_dies_every_time_ends_the_run(monkeypatch, tmp_path):
    def get(_: str) -> object:
        raise ActorDiedError

    monkeypatch.setattr(ray, "get", get)
    system = SimpleNamespace(evaluator=SimpleNamespace(evaluate=Remote("summary", "episodes")), rewards=[])
    settings = SimpleNamespace(eval_episodes=2, eval_videos=0)
    run = EvaluationRun(settings, system, SimpleNamespace(path=tmp_path), "version", 4000)
    recoveries: list[str] = []
    for _ in range(19):
        assert run.advance(run.ref, recoveries.append) is None
        run.submit("version")
    with pytest.raises(RuntimeError, match=r"at 4,000 agent steps failed 20 times, .*ActorDied.* resume="):
        run.advance(run.ref, recoveries.append)
    assert len(recoveries) == 19


def test_an_evaluation_that_is_made_again_after_a_kill_has_videos_of_its_own(monkeypatch, tmp_path):
    steps = np.zeros(1, np.float32)
    still = [np.full((2, 16, 16, 3), grey, np.uint8) for grey in (0, 255)]
    first, second = (Episode("e", "reach", f, np.zeros((1, 4)), steps, steps + 1, steps > 0) for f in still)
    system = SimpleNamespace(evaluator=SimpleNamespace(evaluate=Remote("summary", "episodes")), rewards=[])
    settings = SimpleNamespace(eval_episodes=1, eval_videos=1, video_fps=10)
    for episode in (first, second):
        store = {"summary": SUMMARY, "episodes": [episode]}
        monkeypatch.setattr(ray, "get", store.__getitem__)
        run = EvaluationRun(settings, system, SimpleNamespace(path=tmp_path), "version", 4000)
        assert run.advance(run.ref, print) is None and run.advance(run.ref, print) is not None
    names = ("eval_000004000_0.mp4", "eval_000004000_0.2.mp4")
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == sorted(names)
    shown = [imageio.mimread(tmp_path / "videos" / name)[0][:200].mean() for name in names]
    assert shown[0] < 50 < 200 < shown[1]


class InFlight:
    """An evaluation that ends when it is told to."""

    is_lost, ref = False, "evaluation"

    def __init__(self, *arguments: object) -> None:
        self.agent_steps = arguments[-1]
        self.is_over = False

    def advance(self, *_: object) -> EvaluationResult | None:
        return EvaluationResult({"success_rate": 1.0}, {}, "evaluated") if self.is_over else None


@pytest.fixture
def training(monkeypatch, tmp_path):
    """A coordinator whose counters a test sets: `at(agent_steps, updates_due)`; `rows` and `saved` are what it writes."""
    monkeypatch.setattr(coordinator, "EvaluationRun", InFlight)

    def begin(evaluated_at_steps: int) -> Coordinator:
        made = Coordinator.__new__(Coordinator)
        made.rows, made.saved = [], {}
        made.settings = SimpleNamespace(
            total_agent_steps=400,
            eval_every_agent_steps=200,
            keep_checkpoints=1,
            env=SimpleNamespace(action_repeat=3),
            cluster=SimpleNamespace(sync=False),
        )
        made.limiter = UpdateRatioLimiter(0.5, min_steps=0, tolerance_steps=100)
        made.replay_start, made.evaluation, made.uploads, made.recoveries = ReplayStart(), None, None, 0
        made.system = made.blocks = SimpleNamespace(next_block=0)
        made.learner = SimpleNamespace(in_flight={}, updates=0, publish_ref=lambda: "v", save=lambda _: None)
        made.log = SimpleNamespace(
            row=lambda phase, counters, _: made.rows.append((phase, counters["agent_steps"])),
            wall_s=lambda: 1.0,
            flush=lambda: None,
        )
        made.view = SimpleNamespace(event=lambda _: None)
        made.folder = SimpleNamespace(
            new_checkpoint_folder=lambda _: tmp_path,
            commit_checkpoint=lambda folder, steps, counters, keep: made.saved.update(counters),
        )
        made._evaluated_at_steps = evaluated_at_steps
        return made

    def at(made: Coordinator, agent_steps: int, updates: int) -> None:
        made._stored = StoredEpisodes([dict.fromkeys(STATS, agent_steps)])
        made.learner.updates = updates
        made._start_evaluation()

    return SimpleNamespace(begin=begin, at=at)


def test_an_evaluation_that_a_stop_cuts_off_is_made_up_for(training):
    first = training.begin(evaluated_at_steps=0)
    training.at(first, 200, 100)
    assert first.evaluation is not None
    first._checkpoint()
    assert first.saved["evaluated_at_steps"] == 0 and first.rows == []
    resumed = training.begin(first.saved["evaluated_at_steps"])
    training.at(resumed, 200, 100)
    resumed.evaluation.is_over = True
    resumed._evaluation_step("evaluation")
    resumed._checkpoint()
    assert resumed.rows == [("eval", 200)] and resumed.saved["evaluated_at_steps"] == 200
    training.at(resumed, 300, 150)
    assert resumed.evaluation is None


def test_the_last_evaluation_is_of_the_final_weights(training):
    made = training.begin(evaluated_at_steps=200)
    training.at(made, 400, 180)  # 20 updates are still due
    assert made.evaluation is None and not made._is_done()
    training.at(made, 400, 200)
    assert made.evaluation is None and made._is_done()

    def wait() -> None:
        made.evaluation.is_over = True
        made._evaluation_step("evaluation")

    made.stop, made._wait, made.supervisor = False, wait, SimpleNamespace(look=lambda _: None)
    made._finish_evaluation()
    assert made.rows == [("eval", 400)]
    made._finish_evaluation()
    assert made.rows == [("eval", 400)]


@pytest.mark.parametrize("stop_reason", [None, "SIGTERM"])
def test_updates_that_died_with_the_learner_over_the_last_evaluation_are_made_up_for(
    training, monkeypatch, stop_reason
):
    made, saved = training.begin(evaluated_at_steps=400), []
    made.stop = StopFlag.__new__(StopFlag)
    made.stop.reason = None
    made.start = lambda: training.at(made, 400, 200)

    def save(_: object) -> None:
        if not saved:  # Nobody noticed its death before.
            made.learner.updates, made.stop.reason = 140, stop_reason
        saved.append(made.learner.updates)

    def turn() -> None:
        made.learner.updates += made._updates_due(made.learner.updates)

    made.learner.save, made.turn, made._report = save, turn, lambda force: None
    assert made.run() == (stop_reason or "finished")
    assert saved == ([140, 200] if stop_reason is None else [140]) and made.saved["updates"] == saved[-1]
    assert made.rows == []  # The last evaluation is not made again.


def test_a_run_that_still_trains_may_delete_the_checkpoint_that_is_evaluated(monkeypatch, tmp_path):
    config = compose("train", ["task=reach", "reward=sparse", "preset=laptop"])
    folder = RunFolder.create(tmp_path / "run", config)
    counters = {"agent_steps": 500, "frames": 1500, "updates": 240}
    checkpoint = folder.save_checkpoint(500, lambda path: None, counters, keep=1)

    def roll_out(*_: object) -> tuple[dict, list]:
        shutil.rmtree(checkpoint)
        return {**SUMMARY, "success_rate": 1.0}, []

    monkeypatch.setattr(evaluate, "roll_out", roll_out)
    out = tmp_path / "out"
    command = {"run": str(folder.path), "episodes": 2, "videos": 0, "seed": None, "out": str(out)}
    assert evaluate.evaluate_run(OmegaConf.create(command)) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert {key: summary[key] for key in counters} == counters and summary["seed"] == 1_000_000


def test_an_evaluation_cut_off_among_its_videos_can_be_made_again(monkeypatch, tmp_path):
    folder = RunFolder.create(
        tmp_path / "run", compose("train", ["task=reach", "reward=sparse", "preset=laptop"])
    )
    folder.save_checkpoint(5, lambda path: None, {"agent_steps": 5, "frames": 15, "updates": 2}, keep=1)
    monkeypatch.setattr(evaluate, "roll_out", lambda *_: (dict(SUMMARY), []))
    out = tmp_path / "out"
    config = OmegaConf.create(
        {"run": str(folder.path), "episodes": 2, "videos": 1, "seed": None, "out": str(out)}
    )

    def cut_off(*_: object) -> None:
        assert not out.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluate, "_write_videos", cut_off)
        evaluate.evaluate_run(config)
    assert evaluate.evaluate_run(config) == 0
    assert [path.name for path in out.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("given", [{"videos": 1.5}, {"episodes": 2.5}, {"seed": "first"}])
def test_numbers_are_refused_before_the_rollouts(tmp_path, given):
    command = {"run": str(tmp_path), "episodes": 2, "videos": 1, "seed": None, "out": None, **given}
    with pytest.raises(UsageError, match=f"{next(iter(given))}={next(iter(given.values()))}.*whole numbers"):
        evaluate.evaluate_run(OmegaConf.create(command))


def test_the_folder_of_an_expert_is_no_run(tmp_path):
    folder = RunFolder.create(tmp_path / "expert", compose("train_expert", ["task=reach"]))
    command = {"run": str(folder.path), "episodes": 2, "videos": 0, "seed": None, "out": None}
    with pytest.raises(UsageError, match=r"no section reward, .*: it is none of train\.py"):
        evaluate.evaluate_run(OmegaConf.create(command))
