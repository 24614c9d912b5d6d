"""Waits until all hosts of a model have joined its Ray cluster; the model's unit runs this before vLLM.

vLLM itself waits for cards, not for hosts: it would be content with two on one host.
"""

from __future__ import annotations

import sys
import time

import ray

PAUSE = 2  # seconds


def missing(gpus: int, addresses: list[str]) -> list[str]:
    """Hosts that have not joined, or offer too few cards.

    Args:
        gpus: Cards that the model has on each host.
        addresses: Of the hosts.
    """
    joined = {node["NodeManagerAddress"]: node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]}
    return [address for address in addresses if joined.get(address, 0) < gpus]


def main(gpus: int, addresses: list[str]) -> None:
    """Return when no host is missing; ``TimeoutStartSec=`` of the unit ends a wait that is in vain.

    Args:
        gpus: Cards that the model has on each host.
        addresses: Of the hosts.
    """
    said: list[str] = []
    while True:
        try:
            ray.init(log_to_driver=False, logging_level="error")
            while absent := missing(gpus, addresses):
                if absent != said:
                    print(f"Waiting for Ray on {', '.join(absent)}", flush=True)
                    said = absent
                time.sleep(PAUSE)
            return
        except (ConnectionError, ray.exceptions.RayError) as error:
            print(f"Waiting for Ray on this host: {error}", flush=True)
            time.sleep(PAUSE)
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
