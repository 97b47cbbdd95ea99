"""Training of a model part by part: some parameters at a time, with the others frozen."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from fedkd.training.executor import Training
from fedkd.training.job import FitResult, TrainJob, merge_results

Trains = Callable[[str], bool]
"""Whether the parameter of a name is trained."""


def train_in_phases(
    job: TrainJob, parts: Sequence[tuple[int, Trains]], train: Callable[[TrainJob], Training[FitResult]]
) -> Training[FitResult]:
    """Train in parts (epochs, trained parameters), each with its own seed; `ValueError`: none is trained."""
    results, state = [], job.optimizer_state
    for number, (epochs, trains) in enumerate(parts):
        part = replace(job, epochs=epochs, seed=job.seed + number, optimizer_state=state)
        with only(job.model, trains):
            results.append((yield from train(part)))
        if state is not None:  # the next part may train other tensors
            state = {**state, **(results[-1].optimizer_state or {})}
    return replace(merge_results(results), optimizer_state=state)


@contextmanager
def only(model: nn.Module, trains: Trains) -> Iterator[None]:
    """Let only chosen trainable parameters require a gradient in the block, at least one (`ValueError`)."""
    before = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not any(trains(name) for name, _ in before):
        raise ValueError("a phase of local training would train no parameter of the model")
    for name, parameter in before:
        parameter.requires_grad_(trains(name))
    try:
        yield
    finally:
        for _, parameter in before:
            parameter.requires_grad_()
