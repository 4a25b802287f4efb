"""The batcher with asyncio alone: when batches close, who sees an error, what is held back."""

from __future__ import annotations

import asyncio
import threading

import pytest

from reward_service.batching import Batcher, BatcherConfig

FOREVER_S = 30.0


class Recorder:
    """Doubles numbers; remembers its batches; waits at `gate`; fails on request."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, requests):
        self.batches.append(list(requests))
        self.threads.add(threading.get_ident())
        assert self.gate.wait(FOREVER_S)
        if -1 in requests:
            raise ValueError("bad batch")
        return [2 * request for request in requests]


def run(recorder, scenario, **config):
    async def main():
        batcher = Batcher(recorder, BatcherConfig(**config))
        try:
            return await asyncio.wait_for(scenario(batcher), FOREVER_S)
        finally:
            recorder.gate.set()

    return asyncio.run(main())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_a_batch_closes_at_the_frame_count_without_waiting_for_the_deadline():
    recorder = Recorder()

    async def scenario(batcher):
        return await asyncio.gather(*(batcher.submit(i, num_frames=10) for i in range(6)))

    results = run(recorder, scenario, max_batch_frames=30, max_wait_s=FOREVER_S)
    assert results == [0, 2, 4, 6, 8, 10]
    assert recorder.batches == [[0, 1, 2], [3, 4, 5]]
    assert len(recorder.threads) == 1 and threading.get_ident() not in recorder.threads


def test_the_deadline_closes_a_batch_that_stays_small():
    recorder = Recorder()

    async def scenario(batcher):
        return await asyncio.gather(batcher.submit(1, 1), batcher.submit(2, 1))

    assert run(recorder, scenario, max_batch_frames=1000, max_wait_s=0.01) == [2, 4]
    assert recorder.batches == [[1, 2]]


def test_a_request_that_would_overfill_opens_the_next_batch():
    recorder = Recorder()

    async def scenario(batcher):
        sizes = [(1, 20), (2, 20), (3, 500), (4, 1)]
        return await asyncio.gather(*(batcher.submit(i, size) for i, size in sizes))

    assert run(recorder, scenario, max_batch_frames=30, max_wait_s=0.01) == [2, 4, 6, 8]
    assert recorder.batches == [[1], [2], [3], [4]]


def test_an_error_reaches_the_request_that_caused_it_only():
    recorder = Recorder()

    async def scenario(batcher):
        requests = (batcher.submit(i, 10) for i in (1, -1, 2, 3))
        results = await asyncio.gather(*requests, return_exceptions=True)
        return results, await batcher.submit(7, 20), batcher.stats()

    results, later, stats = run(recorder, scenario, max_batch_frames=20, max_wait_s=FOREVER_S)
    assert str(results.pop(1)) == "bad batch"
    assert results == [2, 4, 6] and later == 14
    assert recorder.batches[:3] == [[1, -1], [1], [-1]]
    assert (stats["batches"], stats["requests"], stats["failed_batches"]) == (4, 5, 2)


def test_a_full_queue_holds_requests_back_until_there_is_room():
    recorder = Recorder()

    async def scenario(batcher):
        recorder.gate.clear()
        tasks = [asyncio.create_task(batcher.submit(i, 1)) for i in range(6)]
        await until(lambda: recorder.batches == [[0]] and batcher.stats()["queue_requests"] == 2)
        for _ in range(20):
            await asyncio.sleep(0.001)
        waiting = batcher.stats()["queue_requests"]
        recorder.gate.set()
        return waiting, await asyncio.gather(*tasks)

    waiting, results = run(recorder, scenario, max_batch_frames=1, max_wait_s=0.0, max_queue_requests=2)
    assert waiting == 2
    assert results == [0, 2, 4, 6, 8, 10]


def test_requests_gather_while_a_batch_is_running():
    recorder = Recorder()

    async def scenario(batcher):
        recorder.gate.clear()
        first = asyncio.create_task(batcher.submit(0, 1))
        await until(lambda: recorder.batches)
        rest = [asyncio.create_task(batcher.submit(i, 1)) for i in range(1, 5)]
        await until(lambda: batcher.stats()["queue_requests"] == 4)
        recorder.gate.set()
        return await asyncio.gather(first, *rest)

    assert run(recorder, scenario, max_batch_frames=100, max_wait_s=0.0) == [0, 2, 4, 6, 8]
    assert recorder.batches == [[0], [1, 2, 3, 4]]


def test_a_requester_that_gives_up_does_not_disturb_the_others():
    recorder = Recorder()

    async def scenario(batcher):
        recorder.gate.clear()
        first, second = (asyncio.create_task(batcher.submit(i, 1)) for i in (1, 2))
        await until(lambda: recorder.batches)
        first.cancel()
        recorder.gate.set()
        return await second

    assert run(recorder, scenario, max_batch_frames=2, max_wait_s=FOREVER_S) == 4


def test_a_function_that_loses_results_is_an_error():
    async def scenario(batcher):
        with pytest.raises(RuntimeError, match="returned 0 results for 1 requests"):
            await batcher.submit(1, 1)

    run_with = Recorder()
    run_with.__class__ = type("Forgetful", (Recorder,), {"__call__": lambda self, requests: []})
    run(run_with, scenario, max_wait_s=0.0)


def test_stats_count_requests_frames_and_fill():
    recorder = Recorder()

    async def scenario(batcher):
        await asyncio.gather(*(batcher.submit(i, 5) for i in range(4)))
        return batcher.stats()

    stats = run(recorder, scenario, max_batch_frames=10, max_wait_s=FOREVER_S)
    assert (stats["batches"], stats["requests"], stats["frames"], stats["batch_fill"]) == (2, 4, 20, 1.0)
    assert stats["latency_s"] > 0 and stats["frames_per_s"] > 0 and stats["queue_requests"] == 0


@pytest.mark.parametrize(
    ("key", "value"), [("max_batch_frames", 0), ("max_wait_s", -1.0), ("max_queue_requests", 0)]
)
def test_bad_limits_are_refused(key, value):
    with pytest.raises(ValueError, match=f"{key} is {value}"):
        BatcherConfig(**{key: value})
