"""How fast clients train on one device: steps taken one by one, replayed, and of many clients together.

    python scripts/bench/executors.py [--device cuda] [--models mlp lenet] [--clients 100] [--together 16 100]

Each client has its own weights, samples and batches. All ways train the same jobs, in turn, several times
over; printed are the median times of a step of one client, and the ratios to steps that are taken one by one,
paired. It needs nothing but the package: images and labels are drawn.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from fedkd.models.zoo.lenet import lenet
from fedkd.models.zoo.mlp import mlp
from fedkd.training.device import prepare_model
from fedkd.training.executor import Executor, LoopExecutor
from fedkd.training.fast.replay import Replays
from fedkd.training.fast.vectorised import VectorisedExecutor
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.losses import cross_entropy
from fedkd.training.optimizer import OptimizerSpec

SHAPE, CLASSES = (1, 28, 28), 10
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp(SHAPE, CLASSES, hidden=(200,)),
    "lenet": lambda: lenet(SHAPE, CLASSES),
}


def jobs_of(name: str, words: argparse.Namespace) -> list[TrainJob]:
    """Return a job for each client; the same at every call."""
    found = []
    for client in range(words.clients):
        torch.manual_seed(client)
        draws = torch.Generator().manual_seed(client)
        x = torch.randn(words.samples, *SHAPE, generator=draws).to(words.device)
        y = torch.randint(0, CLASSES, (words.samples,), generator=draws).to(words.device)
        found.append(
            TrainJob(
                prepare_model(MODELS[name](), words.device),
                (x, y),
                lambda model, x, y: cross_entropy(model(x), y),
                OptimizerSpec(words.optimizer, 0.01),
                epochs=words.epochs,
                batch_size=words.batch_size,
                generator=draws,
                seed=client,
                autocast=words.autocast,
                kind=name,
                replayable=True,
            )
        )
    return found


def seconds_a_step(executor: Executor, jobs: Sequence[TrainJob]) -> float:
    """Run the jobs and return the seconds per step of one client."""
    cuda = jobs[0].arrays[0].device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    begun = time.perf_counter()
    results = executor.run(jobs)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    return seconds / sum(result.steps for result in results if isinstance(result, FitResult))


def compare(name: str, words: argparse.Namespace, others: Mapping[str, Executor] | None = None) -> list[str]:
    """Return rows of the table: milliseconds of a step, and how many times as fast as one by one."""
    jobs = jobs_of(name, words)
    executors: dict[str, Executor] = {"one by one": LoopExecutor(Replays(patience=sys.maxsize))}
    if words.device == "cpu":  # elsewhere nothing is replayed
        executors["replayed"] = LoopExecutor()
    executors |= {f"{number} together": VectorisedExecutor(number) for number in words.together}
    executors |= others or {}
    times: dict[str, list[float]] = {way: [] for way in executors}
    for repeat in range(words.repeats + 1):
        for way, executor in executors.items():
            seconds = seconds_a_step(executor, jobs)
            if repeat:  # the first warms up
                times[way].append(seconds)
    return [_row(name, way, times[way], times["one by one"]) for way in executors]


def _row(name: str, way: str, times: Sequence[float], plain: Sequence[float]) -> str:
    ratios = sorted(one / other for one, other in zip(plain, times, strict=True))
    ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return f"| {name} | {way} | {1000 * statistics.median(times):.3f} | {ratio} |"


def machine(device: str) -> str:
    """Return what the times were measured on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)"


def main() -> None:
    """Print a table, a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--together", nargs="+", type=int, default=[16, 100])
    parser.add_argument("--samples", type=int, default=320, help="of each client")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--autocast", action="store_true", help="bfloat16, on a GPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    how = f"{words.clients} clients, {words.optimizer}, batch {words.batch_size}"
    print(f"torch {torch.__version__} on {machine(words.device)}; {how}\n")
    print("| model | steps | ms a step and client | times as fast |")
    print("| --- | --- | --: | --: |")
    for name in words.models:
        print(*compare(name, words), sep="\n", flush=True)


if __name__ == "__main__":
    main()
