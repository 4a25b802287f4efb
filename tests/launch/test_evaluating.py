"""An evaluation whose results are lost starts again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ObjectReconstructionFailedError

from launch import evaluating
from launch.evaluating import EvaluationRun

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
