"""The benchmark verb and its harness, on contenders with known results."""

from __future__ import annotations

import json
import sys
import time
import types

import pytest

from launch import benchmark
from launch.bench import chaos
from launch.bench.harness import Comparison, Contender, Curve, Row, Spread, compare, race, spread
from launch.bench.machine import hardware
from launch.cli import UsageError, compose
from tests.launch.conftest import run_verb


def comparison(ratio: float = 2.0, **changes) -> Comparison:
    values = {"part": "system", "case": "tiny", "unit": "steps/s", "ours": "ours", "peer": "slow"}
    rates = {"ours_rate": Spread(20.0, 19.0, 21.0), "peer_rate": Spread(10.0, 9.5, 10.5)}
    return Comparison(**{**values, **rates, "ratio": Spread(ratio, ratio, ratio), "rounds": 3, **changes})


@pytest.fixture
def fake_part(monkeypatch):
    """Replaces the part `system` by one that measures nothing and answers what the test puts into it."""
    module = types.ModuleType("launch.bench.system")
    module.PEERS = ("slow", "one_thread")
    module.results, module.seen = [comparison()], []
    module.measure = lambda settings: module.seen.append(settings) or module.results
    monkeypatch.setitem(sys.modules, "launch.bench.system", module)
    return module


def run(*overrides: str) -> int:
    return benchmark.benchmark(compose("benchmark", ["what=system", *overrides]))


def test_race_alternates_and_counts_only_measured_rounds(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    turns = []
    contenders = [
        Contender(name, lambda name=name, amount=amount: turns.append(name) or amount)
        for name, amount in (("a", 6.0), ("b", 3.0))
    ]
    lines = []
    rates = race(contenders, rounds=2, warmup_rounds=1, report=lines.append)
    assert "".join(turns) == "ba" + "ab" + "ba"
    assert rates == {"a": [6.0, 6.0], "b": [3.0, 3.0]}
    assert lines == ["warmed up", "round 1/2: a 6  b 3", "round 2/2: a 6  b 3"]


def test_race_refuses_no_rounds_and_equal_names():
    one = Contender("a", lambda: 1.0)
    with pytest.raises(ValueError, match="rounds is 0"):
        race([one], rounds=0)
    with pytest.raises(ValueError, match="different names"):
        race([one, one], rounds=1)


def test_ratio_is_formed_round_by_round():
    rates = {"ours": [10.0, 40.0, 30.0], "peer": [5.0, 10.0, 30.0]}
    found = compare(rates, "ours", "peer", part="p", case="c", unit="u", target=1.5, checks={"equal": True})
    assert found.ratio == Spread(2.0, 1.5, 3.0)  # of 2, 4 and 1; not of the medians
    assert found.ours_rate.median == 30 and found.peer_rate.median == 10
    assert (found.rounds, found.key, found.checks) == (3, "p | c | peer", {"equal": True})


def test_spread_of_one_sample_and_of_five():
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)


def test_json_says_what_was_measured_where_and_how(fake_part, tmp_path, capsys):
    fake_part.results += [
        Curve("replay", "transitions", [{"transitions": 10, "ms": 1.5}, {"transitions": 20}], "Flat."),
        Row("system", "shares", {"learner": 0.9}),
    ]
    out = tmp_path / "new" / "result.json"
    assert run(f"out={out}", "threads=1", "rounds=4", "smoke=true", "against=slow", "json=true") == 0
    report = json.loads(out.read_text())
    printed = capsys.readouterr()
    assert json.loads(printed.out) == report
    assert {"commit", "uncommitted_changes", "command", "time_utc", "hardware", "versions"} <= set(report)
    assert {"cpu", "cores", "memory_gib", "gpus"} <= set(report["hardware"])
    assert {"python", "torch", "numpy", "ray"} <= set(report["versions"])
    given = {"rounds": 4, "threads": 1, "device": "cpu", "smoke": True, "seed": 0}
    assert {name: report["settings"][name] for name in given} == given
    assert report["comparisons"][0]["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert report["curves"][0]["points"] == [{"transitions": 10, "ms": 1.5}, {"transitions": 20}]
    assert report["rows"] == [{"part": "system", "case": "shares", "values": {"learner": 0.9}}]
    assert "| system | tiny | steps/s | 20 | slow | 10 | 2.00 (2.00-2.00) | - |" in printed.err
    assert "| 20 | - |" in printed.err
    (settings,) = fake_part.seen
    assert settings.wants("slow") and not settings.wants("one_thread")


def test_pictures_are_drawn_where_asked(fake_part, tmp_path):
    fake_part.results = [Curve("replay", "transitions", [{"transitions": 10, "ms": 1.5}])]
    assert run(f"out={tmp_path}/a.json", f"plots={tmp_path}/plots") == 0
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["curve_replay_transitions.png"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["what=sistem"], "unknown part 'sistem'.*system"),
        (["against=[slow,one_tread]"], "unknown peer 'one_tread' of system.*one_thread"),
        (["rounds=0"], "rounds is 0, expected 1 or more"),
        (["threads=0"], "threads is 0, expected 1 or more"),
        (["device=tpu"], "device is 'tpu', expected cpu, cuda or auto"),
        (["min_share=1.5"], r"min_share is 1.5, expected a share in \(0, 1\]"),
        (["min_share=0.8", "recorded=nowhere.json"], "nowhere.json does not exist; record a run first"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(fake_part, tmp_path, overrides, message):
    with pytest.raises(UsageError, match=message):
        run(f"out={tmp_path}/a.json", *overrides)
    assert fake_part.seen == [] and not list(tmp_path.iterdir())


def test_results_are_not_overwritten(fake_part, tmp_path):
    out = tmp_path / "a.json"
    out.write_text("mine")
    with pytest.raises(UsageError, match="already exists; nothing is overwritten"):
        run(f"out={out}")
    assert out.read_text() == "mine" and fake_part.seen == []


def test_a_ratio_under_its_share_of_the_recorded_one_fails(fake_part, tmp_path, capsys):
    recorded = tmp_path / "recorded.json"
    assert run(f"out={recorded}") == 0
    check = ["min_share=0.8", f"recorded={recorded}"]
    fake_part.results = [comparison(1.61)]
    assert run(f"out={tmp_path}/good.json", *check) == 0
    fake_part.results = [comparison(1.59), comparison(0.1, case="new")]
    assert run(f"out={tmp_path}/bad.json", *check) == 1
    assert (
        "slower than recorded: system | tiny | slow: ratio 1.59, recorded 2.00, allowed 80% of it"
        in capsys.readouterr().err
    )


def test_of_several_records_that_of_this_processor_counts(fake_part, tmp_path, capsys):
    other, this = tmp_path / "other.json", tmp_path / "this.json"
    for path, ratio in ((other, 9.0), (this, 2.0)):
        fake_part.results = [comparison(ratio)]
        run(f"out={path}")
    other.write_text(other.read_text().replace(f'"cpu": "{hardware()["cpu"]}"', '"cpu": "another"'))
    assert run(f"out={tmp_path}/a.json", "min_share=0.8", f"recorded=[{other},{this}]") == 0
    assert "another processor" not in capsys.readouterr().err
    assert run(f"out={tmp_path}/b.json", "min_share=0.8", f"recorded=[{other}]") == 1
    assert "was recorded on another processor" in capsys.readouterr().err


def test_recorded_results_of_other_parts_are_no_check(fake_part, tmp_path):
    fake_part.results = [comparison(part="render")]
    recorded = tmp_path / "recorded.json"
    run(f"out={recorded}")
    with pytest.raises(UsageError, match="holds nothing about system"):
        run(f"out={tmp_path}/a.json", "min_share=0.8", f"recorded={recorded}")


def test_a_user_sees_one_line_for_a_wrong_part():
    done = run_verb("benchmark", "what=rewart", check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown part 'rewart'; did you mean")
    assert "Traceback" not in done.stderr


def test_folders_that_are_not_there_are_said_before_anything_is_measured(fake_part, tmp_path):
    for key in ("checkpoint", "data"):
        with pytest.raises(UsageError, match=f"{key}: there is no folder"):
            run(f"{key}={tmp_path}/nowhere", f"out={tmp_path}/out.json")
    assert not fake_part.seen


def test_chaos_ends_where_a_training_never_goes_on(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(chaos.time, "monotonic", lambda: clock[0])
    coordinator = types.SimpleNamespace(agent_steps=10, learner=types.SimpleNamespace(updates=5))
    settings = types.SimpleNamespace(kill_every_s=20.0, seed=0, report=lambda line: None)
    killer = chaos.Killer(None, [], coordinator, settings)
    killer._killed = ("learner", clock[0], 10, 5)
    coordinator.agent_steps = 11  # episodes come in, but nothing learns any more
    clock[0] += chaos.RECOVERY_LIMIT_S
    killer.act(is_over=True)
    assert killer.is_recovering
    clock[0] += 1
    with pytest.raises(RuntimeError, match="after the learner was killed training has not gone on"):
        killer.act(is_over=True)
