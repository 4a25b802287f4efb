"""Waits until a Ray cluster has all its nodes: python launch/cluster/wait_for_nodes.py <host:port> <number of nodes>"""

from __future__ import annotations

import sys
import time

import ray

TIMEOUT_S = 300.0


def wait_for_nodes(address: str, expected: int, timeout_s: float = TIMEOUT_S) -> None:
    """Returns when `expected` nodes are alive.

    Args:
        address: host:port of the head.
        expected: Number of nodes, the head included.
        timeout_s: How long to wait for all of them.

    Raises:
        TimeoutError: saying how many came.
    """
    deadline_s = time.monotonic() + timeout_s
    alive = 0
    while alive < expected:
        if time.monotonic() > deadline_s:
            raise TimeoutError(
                f"{alive} of {expected} Ray nodes are up at {address} after {timeout_s:.0f} s: see the logs of the "
                "others, and whether they reach this address"
            )
        time.sleep(1.0)
        try:
            if not ray.is_initialized():
                ray.init(address, logging_level="error")
            alive = sum(node["Alive"] for node in ray.nodes())
        except ConnectionError:  # No head yet.
            continue
    print(f"{alive} Ray nodes with {ray.cluster_resources().get('CPU', 0):g} CPUs", flush=True)


if __name__ == "__main__":
    wait_for_nodes(sys.argv[1], int(sys.argv[2]))
