"""What one fusion costs the server: CPU seconds and peak memory of every strategy that exchanges predictions.

    python scripts/bench/fusion_step.py [--clients 1000] [--samples 1000] [--classes 10] [strategy ...]

Every strategy of the registry runs in a fresh process with its defaults (and some settings that cost more).
Two rounds are fused and the slower one counts. As in a run all happens on one thread, so CPU seconds are
the wall-clock time of a machine that has nothing else to do. The peak is that of the process, with Python,
NumPy and the clients' uploads in it. Strategies that send weights, features or class means, or train on the
server, are left out. Exit status 1: one is over the limits.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from fedkd.fusion.registry import STRATEGIES, make_strategy
from fedkd.fusion.strategy import FusionStrategy, Knowledge
from fedkd.randomness import numpy_generator
from fedkd.training.fast.thread_pools import one_blas_thread

SECONDS, MEGABYTES = 2.0, 1500.0
COSTLIER: dict[str, list[dict[str, object]]] = {
    "cronus": [{"aggregate": "median"}, {"aggregate": "trimmed_mean"}, {"aggregate": "geometric_median"}],
    "comet": [{"clusters": 20}, {"space": "logits"}],
    "knfu": [{"divergence": "prediction_kl"}, {"divergence": "prediction_cosine"}],
    "scarlet": [{"samples_per_round": 1000}, {"samples_per_round": 300, "cache_rounds": 2}],
}


class Predictor:
    """A client of which only predictions and label counts can be had."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits
        self.request: np.ndarray | None = None
        self.memory: dict[str, np.ndarray] = {}
        self.classes = logits.shape[-1]

    def logits(self) -> np.ndarray:
        """Return given logits."""
        return self._logits if self.request is None else self._logits[self.request]

    def private_logits(self) -> np.ndarray:
        """Return some of them as if they were of the client's own samples."""
        return self._logits[:100]

    def label_counts(self) -> np.ndarray:
        """Return how often each class is predicted."""
        return np.bincount(self._logits.argmax(axis=-1), minlength=self.classes)


def exchanges_predictions(strategy: FusionStrategy) -> bool:
    """Return whether a client that can do no more than predict is enough for the strategy."""
    if strategy.capabilities.sends == "nothing" or strategy.capabilities.needs - {
        "gradients",
        "transfer_labels",
    }:
        return False
    try:
        return bool(strategy.upload(Predictor(np.zeros((4, 3), np.float32))))  # type: ignore[arg-type]
    except AttributeError:
        return False


def skewed_logits(clients: int, samples: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits `[N, M, C]` of clients that lean to classes of their own, and true labels `[M]`."""
    generator = numpy_generator(0, "bench-logits")
    logits = generator.standard_normal((clients, samples, classes), dtype=np.float32)
    logits += generator.normal(0, 2, (clients, 1, classes)).astype(np.float32)
    labels = generator.integers(0, classes, samples)
    logits[:, np.arange(samples), labels] += 3
    return logits, labels


def fuse(strategy: FusionStrategy, clients: int, samples: int, classes: int) -> float:
    """Fuse two rounds; return the CPU seconds of the slower one."""
    logits, labels = skewed_logits(clients, samples, classes)
    predictors = [Predictor(rows) for rows in logits]
    memory: dict[str, np.ndarray] = {}
    slowest = 0.0
    for round in (1, 2):
        request = strategy.request(samples, memory, numpy_generator(0, "bench-request", round=round))
        uploads = []
        for predictor in predictors:
            predictor.request = request
            uploads.append(strategy.upload(predictor))  # type: ignore[arg-type]
        arrays = {name: [upload[name] for upload in uploads] for name in uploads[0]}
        stacked = {name: np.stack(arrays.pop(name)) for name in ("logits", "label_counts") if name in arrays}
        knowledge = Knowledge(
            clients=tuple(range(clients)),
            logits=stacked.get("logits"),
            samples=np.full(clients, 100),
            label_counts=stacked.get("label_counts"),
            payload=arrays,
            request=request,
            labels=(labels if request is None else labels[request])
            if "transfer_labels" in strategy.capabilities.needs
            else None,
        )
        started = time.process_time()
        with one_blas_thread():
            guidance = strategy.fuse(knowledge, memory)
        slowest = max(slowest, time.process_time() - started)
        memory = guidance.memory
    return slowest


def peak_megabytes() -> float:
    """Return the most memory this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def measure_apart(name: str, options: dict[str, object], shape: list[str]) -> tuple[float, float]:
    """Measure one strategy in a process of its own; return CPU seconds and peak megabytes."""
    command = [sys.executable, __file__, *shape, "--one", name, json.dumps(options)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{name} {options}: {result.stderr.strip()}")
    seconds, megabytes = json.loads(result.stdout)
    return seconds, megabytes


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("strategies", nargs="*", help="names; none: all")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "OPTIONS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, options = args.one
        seconds = fuse(make_strategy(name, json.loads(options)), args.clients, args.samples, args.classes)
        print(json.dumps([seconds, peak_megabytes()]))
        return

    print(f"N = {args.clients}, M = {args.samples}, C = {args.classes}; one fusion\n")
    print("| strategy | options | CPU seconds | peak MB |\n|---|---|---|---|")
    shape = [f"--{key}={getattr(args, key)}" for key in ("clients", "samples", "classes")]
    over = []
    for name in args.strategies or STRATEGIES.names():
        if not exchanges_predictions(make_strategy(name, {})):
            continue
        for options in [{}, *COSTLIER.get(name, [])]:
            seconds, megabytes = measure_apart(name, options, shape)
            text = " ".join(f"{key}={value}" for key, value in options.items())
            print(f"| {name} | {text} | {seconds:.2f} | {megabytes:.0f} |", flush=True)
            if seconds > SECONDS or megabytes > MEGABYTES:
                over.append(f"{name} {text}".strip())
    if over:
        raise SystemExit(f"over {SECONDS:g} s or {MEGABYTES:g} MB: {', '.join(over)}")


if __name__ == "__main__":
    main()
