"""Split MNIST in Avalanche, as its users write it, for `scripts/bench/learners.py`.

    python scripts/bench/peers/avalanche_split_mnist.py TASKS.npz naive|replay

It is run by a Python that has Avalanche, and prints a line of JSON: the seconds that training took, and the
accuracy on all test samples afterwards. There is no evaluation on the way, and no logging.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.supervised import Naive
from torch import nn


def main() -> None:
    """Train on one task after the other."""
    path, strategy = sys.argv[1:]
    with np.load(path) as given:
        tasks = [
            (torch.from_numpy(given[f"x{task}"]), torch.from_numpy(given[f"y{task}"]))
            for task in range(int(given["tasks"]))
        ]
        test = torch.from_numpy(given["test_x"]), torch.from_numpy(given["test_y"])
        options = {name: int(given[name]) for name in ("batch", "epochs", "memory", "threads")}
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)
    )
    size = options["batch"]
    replay = ReplayPlugin(mem_size=options["memory"], batch_size=size, batch_size_mem=size)
    trainer = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=size,
        train_epochs=options["epochs"],
        plugins=[replay] if strategy == "replay" else [],
        evaluator=EvaluationPlugin(),
    )
    benchmark = tensors_benchmark(
        train_tensors=tasks, test_tensors=[test], task_labels=[0] * len(tasks), complete_test_set_only=True
    )
    seconds = 0.0
    for experience in benchmark.train_stream:
        begun = time.perf_counter()
        trainer.train(experience)
        seconds += time.perf_counter() - begun
    model.eval()
    with torch.no_grad():
        accuracy = float((model(test[0]).argmax(dim=1) == test[1]).double().mean())
    print(json.dumps({"seconds": seconds, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
