"""Part learner of the benchmark: the peer computes the same update, and every promised race is run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from launch.bench import learner as part
from launch.bench.harness import Comparison
from launch.bench.learner import Case, Plain, check, make_batches, make_learner, roofline
from launch.bench.reference_learner import bilinear_shift
from launch.bench.settings import BenchSettings
from learner.networks import random_shift
from learner.staging import to_tensors

SETTINGS = BenchSettings(1, 1, "cpu", True, None, 0, lambda line: None)


def small(case: Case):
    """The case at sizes that take no time."""
    found = _case_settings(case)
    agent = replace(found.agent, batch_size=8, hidden_dim=32, feature_dim=16, encoder_channels=8)
    return replace(found, agent=agent)


_case_settings = part.case_settings


@pytest.fixture(autouse=True)
def small_cases(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(part, "case_settings", small)
    monkeypatch.setattr(part, "SMOKE_TURN_S", 0.02)


def test_bilinear_shift_is_the_crop_up_to_rounding():
    images = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
    shifts = torch.tensor([[0, 0], [8, 8], [4, 4], [1, 7], [8, 0]])
    found = bilinear_shift(images.permute(0, 3, 1, 2).float(), shifts, 4)
    expected = random_shift(images, shifts, 4).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("reward", ["sparse", "rnd"])
def test_both_agents_compute_the_same_update(reward):
    case = Case("laptop", reward)
    found = check(case, SETTINGS)
    assert found["weights_apart_share"] < 0.02 and found["critic_difference"] < 1e-4


@pytest.mark.parametrize("preset", ["laptop", "paper"])
def test_weights_after_three_updates_are_within_the_golden_tolerance(preset):
    train = small(Case(preset))
    train = replace(train, agent=replace(train.agent, lr=1e-4))
    batches = make_batches(8, 3, seed=1)
    learner = make_learner(train, batches, SETTINGS)
    plain = Plain(learner, train, batches, read_metrics=True)
    for batch in batches:
        draws = plain.draw(len(batches[0].obs))
        metrics = learner.agent.update(to_tensors(batch, learner.device), part.AGENT_STEPS, None, 1.0, *draws)
        expected = plain.update(draws)
        assert expected == pytest.approx({name: float(metrics[name]) for name in expected}, abs=5e-5)
    for name in part.NETWORKS:
        theirs = getattr(plain.agent, name).state_dict()
        for key, value in getattr(learner.agent, name).state_dict().items():
            torch.testing.assert_close(value, theirs[key], atol=5e-5, rtol=0, msg=f"{name}.{key}")
    learner.close()


def test_another_update_is_refused(monkeypatch):
    def slower(case: Case):
        found = small(case)
        return replace(found, agent=replace(found.agent, critic_target_tau=0.5))

    built = part.make_learner

    def other_agent(train, batches, settings):
        return built(replace(train, agent=replace(train.agent, critic_target_tau=0.01)), batches, settings)

    monkeypatch.setattr(part, "case_settings", slower)
    monkeypatch.setattr(part, "make_learner", other_agent)
    with pytest.raises(RuntimeError, match="they do not compute the same update"):
        check(Case("laptop"), SETTINGS)


def test_smoke_races_paper_and_laptop_sizes():
    results = part.measure(SETTINGS)
    assert all(isinstance(result, Comparison) and result.peer == "eager" for result in results)
    assert [result.case for result in results] == ["paper, 1 thread", "laptop, 1 thread"]
    assert results[0].target == 1.3 and results[0].checks["updates"] == 3
    assert part.measure(replace(SETTINGS, against=("torchrl",))) == []


def test_roofline_counts_the_operations_of_the_encoder():
    values = roofline(SETTINGS, "laptop").values
    # Forward: 31^2 x 27 x 8, 15^2 x 72 x 8 and 13^2 x 72 x 8 products a frame, for 8 frames twice; backward adds two of
    # each for one of them, the first layer's input gradient excepted.
    first, rest = 31**2 * 27 * 8, (15**2 + 13**2) * 72 * 8
    convolutions = 2 * 8 * (2 * (first + rest) + first + 2 * rest) / 1e9
    assert convolutions < values["gflop_per_update"] < 3 * convolutions
    assert values["gb_per_update"] > 0 and values["share_of_best"] > 0
