"""Captured updates: the same numbers as eager ones, through checkpoints; in bfloat16 close to float32."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from learner.captured import WARMUP_CALLS, CapturedFunction, record_cuda_graph, run_eagerly
from learner.drqv2 import DrQV2Agent
from learner.drqv2_config import DrQV2Config
from learner.learner_core import LearnerConfig
from tests.learner.helpers import make_tensor_batch

SMALL = DrQV2Config(
    batch_size=6,
    encoder_strides=(2, 2, 2),
    encoder_channels=8,
    hidden_dim=16,
    lr=1e-3,
    acting_ema_decay=0.9,
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def run(agent: DrQV2Agent, seeds: range) -> list[dict[str, float]]:
    found = []
    for seed in seeds:
        batch = make_tensor_batch(seed, str(agent.device))
        metrics = agent.update(batch, seed * 100, bonus=batch.reward * 0.5, bonus_weight=0.3)
        found.append({name: float(value) for name, value in metrics.items()})
    return found


def assert_equal(first: DrQV2Agent, second: DrQV2Agent, tolerance: float = 0.0) -> None:
    for name, value in first.critic_target.state_dict().items():
        other = second.critic_target.state_dict()[name]
        torch.testing.assert_close(value.cpu(), other.cpu(), atol=tolerance, rtol=0)


def assert_same_policy(first: DrQV2Agent, second: DrQV2Agent) -> None:
    acting = second.actor_weights()
    for name, weights in first.actor_weights().items():
        np.testing.assert_array_equal(weights, acting[name], err_msg=name)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_captured_updates_equal_eager_ones():
    eager, captured = DrQV2Agent(64, 2, SMALL), DrQV2Agent(64, 2, SMALL, record=run_eagerly)
    assert run(eager, range(WARMUP_CALLS + 3)) == run(captured, range(WARMUP_CALLS + 3))
    assert_equal(eager, captured)
    assert_same_policy(eager, captured)


def test_a_captured_agent_takes_up_a_checkpoint_and_goes_on_alike():
    straight = DrQV2Agent(64, 2, SMALL, record=run_eagerly)
    run(straight, range(5))
    state = copy.deepcopy(straight.state_dict())
    rest = run(straight, range(5, 10))
    resumed = DrQV2Agent(64, 2, SMALL, seed=3, record=run_eagerly)
    run(resumed, range(6))
    resumed.load_state_dict(state)
    assert run(resumed, range(5, 10)) == rest
    assert_equal(straight, resumed)
    assert_same_policy(straight, resumed)


def test_captured_function_keeps_its_inputs_in_place_and_records_once():
    seen, recorded = [], []

    def function(x, y):
        seen.append((x.data_ptr(), y.data_ptr()))
        return {"sum": x + y}

    def record(run_once):
        recorded.append(len(seen))
        return run_once

    captured = CapturedFunction(function, record)
    cpu = torch.device("cpu")
    for number in range(WARMUP_CALLS + 2):
        value = captured(cpu, [torch.full((2,), float(number)), torch.ones(2)])["sum"]
        np.testing.assert_array_equal(value, [number + 1.0] * 2)
    assert len(set(seen)) == 1 and recorded == [WARMUP_CALLS]
    with pytest.raises(ValueError, match=r"takes \(2,\) torch\.float32, got \(3,\)"):
        captured(cpu, [torch.zeros(3), torch.ones(2)])


def test_bfloat16_stays_close_and_keeps_weights_and_losses_in_float32():
    exact, rounded = DrQV2Agent(64, 2, SMALL), DrQV2Agent(64, 2, SMALL, precision="bfloat16")
    for expected, found in zip(run(exact, range(8)), run(rounded, range(8))):
        for name in ("critic_loss", "critic_target_q", "actor_logprob"):
            assert found[name] == pytest.approx(expected[name], abs=0.05)
    parameters = [p for net in (rounded.encoder, rounded.actor, rounded.critic) for p in net.parameters()]
    assert {p.dtype for p in parameters} == {p.grad.dtype for p in parameters} == {torch.float32}
    assert_equal(exact, rounded, tolerance=5e-4)
    with pytest.raises(AssertionError):
        assert_equal(exact, rounded)


def test_bfloat16_does_not_round_large_values():
    agents = [DrQV2Agent(64, 2, SMALL, precision=precision) for precision in ("float32", "bfloat16")]
    for agent in agents:
        for critic in (agent.critic, agent.critic_target):
            for head in (critic.Q1, critic.Q2):
                head[-1].bias.data.fill_(50.1)  # bfloat16 knows 50.0 and 50.25
    exact, rounded = (next(iter(run(agent, range(1)))) for agent in agents)
    assert rounded["critic_q1"] == pytest.approx(exact["critic_q1"], abs=0.01)
    assert rounded["critic_loss"] == pytest.approx(exact["critic_loss"], rel=1e-3)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"learner\.precision='float16'.*'bfloat16'"):
        LearnerConfig(precision="float16")
    with pytest.raises(ValueError, match=r"learner\.cuda_graph='yes'"):
        LearnerConfig(cuda_graph="yes")
    with pytest.raises(ValueError, match="put the learner on a GPU"):
        LearnerConfig(cuda_graph=True).captures(torch.device("cpu"))
    for value, on_gpu in ((False, False), (True, True), ("auto", True)):
        assert LearnerConfig(cuda_graph=value).captures(torch.device("cuda")) is on_gpu
    assert not LearnerConfig().captures(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"agent\.shift_pad_px=64.*less than the 64 px"):
        DrQV2Agent(64, 2, DrQV2Config(shift_pad_px=64))


def test_a_second_thread_is_for_cpus():
    assert LearnerConfig(second_thread=True).works_beside(torch.device("cpu"))
    assert not LearnerConfig().works_beside(torch.device("cuda"))
    with pytest.raises(
        ValueError, match=r"learner\.second_thread=true is not allowed with the learner on 'cuda'"
    ):
        LearnerConfig(second_thread=True).works_beside(torch.device("cuda"))


@needs_gpu
def test_a_cuda_graph_equals_eager_updates_and_crosses_devices():
    eager = DrQV2Agent(64, 2, SMALL, "cuda")
    captured = DrQV2Agent(64, 2, SMALL, "cuda", record=record_cuda_graph)
    for expected, found in zip(run(eager, range(8)), run(captured, range(8))):
        assert found == pytest.approx(expected, abs=1e-3)
    assert_equal(eager, captured, tolerance=1e-3)
    on_cpu = DrQV2Agent(64, 2, SMALL)
    on_cpu.load_state_dict(captured.state_dict())
    run(on_cpu, range(8, 10))
    captured.load_state_dict(on_cpu.state_dict())
    assert_equal(on_cpu, captured)
    assert_same_policy(on_cpu, captured)
    run(captured, range(10, 16))
