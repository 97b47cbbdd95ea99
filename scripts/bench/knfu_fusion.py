"""Processor time and memory of KnFu's fusion of many clients, without a run.

    python scripts/bench/knfu_fusion.py [--sizes 1000 3000 10000] [--neighbours 10] [--samples 200]
        [--repeats 3]

Each fusion of random predictions of ten classes is a process of its own, with one thread.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.math.weight_blocks import fusion_memory
from fedkd.fusion.strategy import Knowledge
from fedkd.training import one_blas_thread

CLASSES = 10


def one_fusion(clients: int, samples: int, neighbours: int | None) -> None:
    """Fuse random predictions in this process, and print seconds and GB."""
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((clients, samples, CLASSES), dtype=np.float32)
    logits += np.log(generator.dirichlet(np.ones(CLASSES), (clients, 1)) + 1e-6).astype(np.float32)
    knowledge = Knowledge(clients=tuple(range(clients)), logits=logits, samples=np.full(clients, 20))
    started = time.process_time()
    with one_blas_thread():
        KnFu(neighbours=neighbours).fuse(knowledge, {})
    seconds = time.process_time() - started
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9]))


def main(words: list[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 3_000, 10_000])
    parser.add_argument("--neighbours", type=int, default=10, help="of the second row of each size")
    parser.add_argument("--samples", type=int, default=200, help="of the transfer set")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.one is not None:
        return one_fusion(*json.loads(given.one))
    print("| clients | neighbours | processor time | peak memory | estimate of `fedkd check` |")
    print("| --: | --: | --: | --: | --: |")
    for clients in given.sizes:
        for neighbours in (None, given.neighbours):
            case = json.dumps([clients, given.samples, neighbours])
            command = [sys.executable, __file__, "--one", case]
            runs = [json.loads(subprocess.check_output(command)) for _ in range(given.repeats)]
            seconds = statistics.median(run[0] for run in runs)
            most = max(run[1] for run in runs)
            estimate = fusion_memory(clients, given.samples, CLASSES) / 1e9
            name = "all" if neighbours is None else neighbours
            print(
                f"| {clients:,} | {name} | {seconds:.1f} s | {most:.2f} GB | {estimate:.2f} GB |", flush=True
            )


if __name__ == "__main__":
    main()
