"""The second thread: work done once, by whoever is free, with the caller's numbers."""

import threading

import pytest
import torch

from learner.drqv2 import DrQV2Agent
from learner.drqv2_config import DrQV2Config
from learner.second_thread import SecondThread
from tests.learner.helpers import make_tensor_batch


@pytest.fixture
def second_thread():
    thread = SecondThread(enabled=True)
    yield thread
    thread.close()


def test_work_that_was_begun_beside_the_caller_is_waited_for(second_thread):
    begun, go_on = threading.Event(), threading.Event()

    def work():
        begun.set()
        assert go_on.wait(10)
        return threading.current_thread().name

    task = second_thread.start(work)
    assert begun.wait(10)
    go_on.set()
    assert task.result() == "second_0"


def test_work_that_nobody_has_begun_is_done_by_the_caller_and_only_once(second_thread):
    go_on, doers = threading.Event(), []
    busy = second_thread.start(lambda: go_on.wait(10))
    task = second_thread.start(lambda: doers.append(threading.current_thread()))
    task.result()
    go_on.set()
    assert busy.result()
    second_thread.start(lambda: None).result()  # whatever was left in the queue is done by now
    assert doers == [threading.main_thread()]


@pytest.mark.parametrize("enabled", [False, True])
def test_what_goes_wrong_reaches_the_caller(enabled):
    thread = SecondThread(enabled)
    task = thread.start(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        task.result()
    thread.close()


def test_the_agent_learns_the_same_bit_for_bit(second_thread):
    config = DrQV2Config(feature_dim=16, hidden_dim=32)
    alone, beside = DrQV2Agent(64, 2, config), DrQV2Agent(64, 2, config, second_thread=second_thread)
    for seed in range(4):
        batch = make_tensor_batch(seed)
        metrics, others = (agent.update(batch, agent_steps=100) for agent in (alone, beside))
        assert {name: float(value) for name, value in metrics.items()} == {
            name: float(value) for name, value in others.items()
        }
    for one, other in zip(_tensors(alone.state_dict()), _tensors(beside.state_dict()), strict=True):
        assert torch.equal(one, other)


def _tensors(state):
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else []
    return [tensor for value in values for tensor in _tensors(value)]
