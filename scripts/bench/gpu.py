"""What a GPU gives: training steps of many small clients, and whole rounds of published configurations.

    python scripts/bench/gpu.py                # some 20 minutes
    python scripts/bench/gpu.py --dry-run      # every part for a moment, on the CPU

It needs fedkd alone: images and labels are drawn. The first table has the time of a step of one client: one
by one, from a CUDA graph, and of many clients together. The second has the seconds of a round, and the use of
the GPU meanwhile as `nvidia-smi` samples it:

- pfl's CIFAR-10 benchmark: 1,000 users of 50 images, 50 users a round, one epoch, batches of 10, a CNN of two
  convolutions; its authors time 1,500 rounds, here a tenth.
- the quick start of PFLlib: 20 clients with 52,500 images of MNIST's shape, one epoch, batches of 10, the
  same CNN, all clients evaluated. A user reported 17 to 18 s a round at 7 % use
  of an RTX 5090 in November 2025.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import executors
import numpy as np
import torch
from torch import Tensor, nn

import fedkd
from fedkd.models.zoo.lenet import lenet
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.training.job import FitResult, TrainJob

SHAPES = {"mlp": (1, 28, 28), "lenet": (1, 28, 28), "resnet8": (3, 32, 32)}
FACTORIES = {"mlp": mlp, "lenet": lenet, "resnet8": resnet8}
TOGETHER = (16, 100)


class GraphExecutor:
    """Runs jobs one after the other; each full batch of plain SGD is one replay of a CUDA graph."""

    def __init__(self) -> None:
        self._steps: dict[tuple[Any, ...], _GraphStep] = {}

    def run(self, jobs: Sequence[TrainJob]) -> list[FitResult | Exception]:
        """Train the models in place."""
        return [self._fit(job) for job in jobs]

    def _fit(self, job: TrainJob) -> FitResult:
        key = (job.kind, job.batch_size)
        if key not in self._steps:
            self._steps[key] = _GraphStep(job)
        step, number = self._steps[key], len(job.arrays[0])
        step.load(job.model)
        steps = 0
        for _ in range(job.epochs):
            rows = torch.randperm(number, generator=job.generator).to(job.arrays[0].device)
            for start in range(0, number, job.batch_size):
                batch = rows[start : start + job.batch_size]
                step.take([array.index_select(0, batch) for array in job.arrays])
                steps += 1
        step.store(job.model)
        return FitResult(float("nan"), steps, number * job.epochs)


class _GraphStep:
    """A recorded step of a model with weights of its own."""

    def __init__(self, job: TrainJob) -> None:
        self._model = executors.prepare_model(FACTORIES[str(job.kind)](*_sizes(str(job.kind))), "cuda")
        self._loss, self._lr = job.loss, job.optimizer.lr
        self._batch = [array[: job.batch_size].clone() for array in job.arrays]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # kernels are chosen and memory is taken before the recording
                self._train(self._batch)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._train(self._batch)

    def _train(self, batch: Sequence[Tensor]) -> None:
        parameters = list(self._model.parameters())
        gradients = torch.autograd.grad(self._loss(self._model, *batch), parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-self._lr)

    def load(self, model: nn.Module) -> None:
        _copy(model, self._model)

    def store(self, model: nn.Module) -> None:
        _copy(self._model, model)

    def take(self, batch: Sequence[Tensor]) -> None:
        """Take one step; a batch that is not full is taken without the graph."""
        if len(batch[0]) < len(self._batch[0]):
            self._train(batch)
            return
        for held, values in zip(self._batch, batch, strict=True):
            held.copy_(values)
        self._graph.replay()


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    torch._foreach_copy_(list(target.parameters()), list(source.parameters()))


def _sizes(model: str) -> tuple[tuple[int, int, int], int]:
    return SHAPES[model], executors.CLASSES


def step_rows(words: argparse.Namespace) -> Iterator[str]:
    """Yield rows of the table of steps; ratios are paired with steps taken one by one."""
    for name in FACTORIES:
        executors.MODELS[name] = lambda name=name: FACTORIES[name](*_sizes(name))
        executors.SHAPE = SHAPES[name]
        graphs = {"CUDA graph": GraphExecutor()} if words.device == "cuda" else {}
        yield from executors.compare(name, words, graphs)


def round_scenarios(folder: Path, words: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the scenarios of published configurations, on drawn images in `folder`."""
    few = words.dry_run
    made = {
        "pfl, CIFAR-10 CNN": ((3, 32, 32), 40 if few else 1000, 4 if few else 50, 50, 2 if few else 150),
        "PFLlib, quick start": ((1, 28, 28), 4 if few else 20, None, 50 if few else 2625, 2 if few else 12),
    }
    scenarios = {}
    for number, (name, (shape, clients, cohort, samples, rounds)) in enumerate(made.items()):
        path = folder / f"images-{number}.npz"
        draws = np.random.default_rng(number)
        arrays = {}
        for split, size in {"train": clients * samples * 5 // 4 + 64, "test": 100 if few else 10_000}.items():
            arrays[f"{split}_x"] = draws.integers(0, 256, (size, *shape), dtype=np.uint8)
            arrays[f"{split}_y"] = draws.permutation(np.arange(size) % executors.CLASSES)
        np.savez(path, **arrays)
        scenarios[name] = {
            "name": "gpu",
            "rounds": rounds,
            **({"clients_per_round": cohort, "evaluate_every": 10, "evaluate_clients": 1} if cohort else {}),
            "data": {
                "dataset": "npz",
                "args": {"path": str(path)},
                "clients": clients,
                "partition": {"scheme": "iid", "samples_per_client": samples * 5 // 4},
                "transfer": {"size": 0},
            },
            "clients": [{"model": "cnn", "args": {"padding": 0}}],
            "training": {"optimizer": "sgd", "lr": 0.005, "batch_size": 10},
            "fusion": {"strategy": "flwr:FedAvg"},
            "engine": {"kind": "inline", "device": words.device},
        }
    return scenarios


def round_rows(words: argparse.Namespace) -> Iterator[str]:
    """Yield rows of the table of rounds."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, tables) in enumerate(round_scenarios(Path(folder), words).items()):
            for executor in ("loop", "vectorised"):
                tables["training"] |= {"executor": executor} | (
                    {"vmap_size": 100} if executor == "vectorised" else {}
                )
                out = Path(folder) / f"{number}-{executor}"
                with gpu_use(words.device) as use:
                    begun = time.perf_counter()
                    fedkd.run(tables, out=out, report=False, progress=False)
                    whole = time.perf_counter() - begun
                lines = map(json.loads, (out / "timings.jsonl").read_text().splitlines())
                parts: dict[int, float] = {}
                for part in lines:
                    if "round" in part:
                        parts[part["round"]] = parts.get(part["round"], 0.0) + part["seconds"]
                steady = statistics.median([parts[at] for at in sorted(parts)][1:])
                busy = f"{statistics.fmean(use):.0f} %" if use else "–"
                yield f"| {name} | {executor} | {steady:.3f} | {whole:.1f} | {busy} |"


@contextmanager
def gpu_use(device: str) -> Iterator[list[float]]:
    """Yield a list that has the percentage of busy time of the GPU, a sample a second, after the block."""
    found: list[float] = []
    if device != "cuda":
        yield found
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-l", "1"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as sampler:
        try:
            yield found
        finally:
            sampler.terminate()
            assert sampler.stdout is not None
            found += [float(line) for line in sampler.stdout.read().split()]


def main() -> None:
    """Print both tables, a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="every part for a moment, on the CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    words = parser.parse_args()
    words.device = "cpu" if words.dry_run else words.device
    if words.device == "cpu" and not words.dry_run:
        parser.error("torch sees no GPU here; --dry-run tries every part on the CPU")
    torch.set_num_threads(1)
    small = words.dry_run
    vars(words).update(
        clients=4 if small else 100, samples=40 if small else 320, together=[4] if small else list(TOGETHER)
    )
    vars(words).update(batch_size=32, epochs=1, optimizer="sgd", autocast=False, repeats=1 if small else 5)
    print(f"torch {torch.__version__} on {executors.machine(words.device)}, {words.clients} clients\n")
    print("| model | steps | ms a step and client | times as fast |\n| --- | --- | --: | --: |")
    for line in step_rows(words):
        print(line, flush=True)
    print("\n| configuration | executor | s a round | s in all | GPU busy |\n| --- | --- | --: | --: | --: |")
    for line in round_rows(words):
        print(line, flush=True)


if __name__ == "__main__":
    main()
