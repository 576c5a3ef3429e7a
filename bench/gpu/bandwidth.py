"""How fast a device copies its own memory: the bandwidth that decoding is held against. Needs torch.

A copy reads and writes; both count. Decoding mostly reads, which a card does a little faster than copying.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from bench.gpu.said import quiet_output, say

CARD_BYTES = 2**31
CPU_BYTES = 2**27
"""More than a cache holds."""
ROUNDS = 5
COPIES = 10


def bandwidth(device: str) -> float:
    """Bytes per second, the median of some rounds of copies."""
    import torch

    size = CPU_BYTES if device == "cpu" else CARD_BYTES
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def round_s() -> float:
        start = time.perf_counter()
        for _ in range(COPIES):
            target.copy_(source)
        if device != "cpu":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    round_s()
    return 2 * size * COPIES / statistics.median(round_s() for _ in range(ROUNDS))


def main() -> None:
    parser = argparse.ArgumentParser(prog="bandwidth", description=__doc__)
    parser.add_argument("--device", required=True, help="cpu or cuda:N")
    given = parser.parse_args()
    with quiet_output():
        try:
            import torch
        except ImportError as error:
            sys.exit(f"torch is not installed, and nothing else measures the device's bandwidth: {error}")
        say("versions", torch=torch.__version__, torch_cuda=torch.version.cuda or "none")
        say("bandwidth", bytes_per_s=bandwidth(given.device))


if __name__ == "__main__":
    main()
