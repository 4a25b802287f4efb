"""The replay race: every contender draws the same transitions, and what is missing is said."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from launch.bench import replay, replay_sizes, replay_work
from launch.bench.harness import Comparison, Row
from launch.bench.reference_replay import DataLoaderReplay, RLlibReplay, TorchRLReplay
from launch.bench.settings import BenchSettings
from learner.replay import EpisodeStore
from learner.staging import to_tensors

EPISODES = replay_work.make_episodes(3, seed=0)
COMMON = {
    "batch_size": replay_work.BATCH_SIZE,
    "n_step": replay_work.N_STEP,
    "gamma": replay_work.GAMMA,
    "seed": 1,
}
SIZED = {**COMMON, "capacity_transitions": 300}


def bench_settings(**changes) -> BenchSettings:
    values = {
        "rounds": 1,
        "threads": 1,
        "device": "cpu",
        "smoke": True,
        "against": None,
        "seed": 0,
        "report": lambda line: None,
    }
    return BenchSettings(**{**values, **changes})


def make_peer(name: str, folder: Path):
    if name.startswith("torchrl"):
        pytest.importorskip("torchrl")
        return TorchRLReplay(storage=name.removeprefix("torchrl "), folder=folder, **SIZED)
    if name == "rllib":
        return RLlibReplay(**SIZED)
    return DataLoaderReplay(folder=folder, workers=1, **COMMON)


@pytest.mark.parametrize("name", ["torchrl tensor", "torchrl memmap", "rllib", "dataloader"])
def test_a_peer_draws_the_transitions_of_the_episodes(name, tmp_path):
    peer = make_peer(name, tmp_path)
    peer.fill(EPISODES)
    found = [replay_work.checked(peer.sample(), EPISODES) for _ in range(2)]
    peer.rest()
    peer.close()
    assert all(check["transitions_compared"] > 200 and check["largest_difference"] < 1e-5 for check in found)


def test_the_check_finds_a_wrong_frame_a_wrong_return_and_a_wrong_type(tmp_path):
    store = EpisodeStore(
        tmp_path, replay_work.store_config(300), replay_work.RESOLUTION_PX, replay_work.ACTION_DIM
    )
    for episode in EPISODES:
        store.insert(episode)
    batch = to_tensors(store.sample(replay_work.BATCH_SIZE, np.random.default_rng(0)), torch.device("cpu"))
    store.close()
    assert replay_work.checked(batch, EPISODES)["transitions_compared"] == replay_work.BATCH_SIZE
    with pytest.raises(RuntimeError, match="pixels of frame"):
        replay_work.checked(batch._replace(next_obs=batch.obs), EPISODES)
    with pytest.raises(RuntimeError, match="differ by 0"):
        replay_work.checked(batch._replace(discount=batch.discount * 0.99), EPISODES)
    with pytest.raises(RuntimeError, match="a batch has"):
        replay_work.checked(batch._replace(reward=batch.reward.double()), EPISODES)


@pytest.mark.ray
def test_measure_compares_both_ways_of_sampling():
    """Starts a local Ray."""
    results = replay.measure(bench_settings(against=("dataloader",)))
    comparisons = [result for result in results if isinstance(result, Comparison)]
    assert [comparison.key for comparison in comparisons] == [
        "replay | batch 256, n-step 3, in process | dataloader",
        "replay | batch 256, n-step 3, through Ray | dataloader",
    ]
    assert all(comparison.target == 2 and comparison.ratio.median > 0 for comparison in comparisons)
    assert all(set(comparison.checks) == {"ours", "peer"} for comparison in comparisons)
    assert {row.case for row in results if isinstance(row, Row)} == {
        "roofline, in process",
        "through Ray, shard asked (other node)",
    }


def test_a_missing_package_is_reported_or_refused(monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        replay.importlib.util, "find_spec", lambda name: None if name == "torchrl" else found(name)
    )
    lines: list[str] = []
    peers = replay._peers(bench_settings(report=lines.append), tmp_path, 1)
    assert [peer.name for peer in peers] == ["rllib", "dataloader"]
    assert lines == ["torchrl is not installed: pip install -e .[bench]"]
    with pytest.raises(RuntimeError, match=r"pip install -e \.\[bench\]"):
        replay._peers(bench_settings(against=("torchrl",)), tmp_path, 1)


def test_the_curve_has_a_point_per_size(monkeypatch):
    pytest.importorskip("psutil")
    monkeypatch.setattr(replay_sizes, "CURVE_TRANSITIONS", (300, 600, 900))
    curve = replay.replay_curve(bench_settings())
    assert [point["transitions"] for point in curve.points] == [300, 600]
    for name in ("batch_ms", "insert_ms", "private_memory_mib"):
        assert all(point[name] > 0 for point in curve.points)
    assert "evicting_insert_ms" in curve.points[-1]
