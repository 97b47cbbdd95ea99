"""When training counts as having taught nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedkd.training.early_stopping import EarlyStopping
from fedkd.training.job import TrainJob
from fedkd.training.loop import fit
from fedkd.training.losses import count_correct, cross_entropy
from fedkd.training.majority_guessing import TrainingHits, majority_class_count
from fedkd.training.optimizer import OptimizerSpec


@pytest.mark.parametrize(
    ("right", "samples", "guessing", "at_chance"),
    [
        # Balanced, two classes: σ = √(50 · 50 / 100) = 5.
        (50, 100, 50, True),
        (60, 100, 50, True),
        (61, 100, 50, False),
        (30, 100, 50, True),  # worse than guessing
        # A share of 0.8: σ = √(80 · 20 / 100) = 4.
        (88, 100, 80, True),
        (89, 100, 80, False),
        # Ten classes: σ = √(10 · 90 / 100) = 3.
        (16, 100, 10, True),
        (17, 100, 10, False),
        # What cannot be told apart: one class, one sample, no mistake within 4σ of guessing.
        (100, 100, 100, False),
        (0, 1, 1, False),
        (7, 15, 8, False),  # σ = 1.93, 7 others
        (8, 16, 8, True),  # σ = 2, 8 others
        (97, 100, 97, False),
        # The same shares, ever more samples: 1.04 times chance is nothing of 100, and something of 10,000.
        (52, 100, 50, True),
        (5200, 10_000, 5000, False),
    ],
)
def test_chance_level_is_two_standard_deviations_above_guessing(right, samples, guessing, at_chance):
    hits = TrainingHits(right, samples, guessing)
    assert hits.at_chance is at_chance
    assert (hits.accuracy, hits.chance) == (right / samples, guessing / samples)


def test_guessing_predicts_the_majority_class():
    assert majority_class_count([2, 0, 2, 1, 2]) == 3
    assert majority_class_count(torch.tensor([4])) == 1
    assert majority_class_count([]) == 0


class Recalls(nn.Module):
    """Answers with the class that a sample says, less one for each step so far."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(x.long().flatten(), 3) + 0.0 * self.weight


def job(labels, epochs: int = 2, **more) -> tuple[TrainJob, list[int]]:
    x, y = torch.tensor([[0.0], [1.0], [2.0], [0.0], [1.0]]), torch.tensor(labels)
    counted: list[int] = []

    def loss(model, inputs, wanted):
        return cross_entropy(model(inputs), wanted)

    def scored_loss(model, inputs, wanted):
        counted.append(len(wanted))
        return loss(model, inputs, wanted), count_correct(model(inputs), wanted)

    spec, order = OptimizerSpec("sgd", 0.1), torch.Generator().manual_seed(0)
    options = {"scored_loss": scored_loss, "guessing": 2, **more}
    return TrainJob(Recalls(), (x, y), loss, spec, epochs, 2, order, 0, **options), counted


def test_hits_are_counted_in_the_last_epoch_only():
    one, counted = job([0, 1, 0, 0, 0])  # right but for the third and the last
    assert fit(one).hits == TrainingHits(3, 5, 2)
    assert counted == [2, 2, 1]  # not in the first
    assert fit(job([0, 1, 0, 0, 0], accumulate=2)[0]).hits == TrainingHits(3, 5, 2)


def test_early_stopping_counts_hits_in_every_epoch():
    held_out = (torch.tensor([[0.0]]), torch.tensor([0]))
    stopping = EarlyStopping(held_out, cross_entropy, patience=1)
    one, counted = job([0, 1, 0, 0, 0], epochs=5, early_stopping=stopping)
    assert fit(one).hits == TrainingHits(3, 5, 2)
    assert counted == [2, 2, 1]  # it does not change, so one epoch is enough


def test_hits_are_counted_on_request_only():
    assert fit(job([0, 1, 0, 0, 0], scored_loss=None)[0]).hits is None
    assert fit(job([0, 1, 0, 0, 0], epochs=0)[0]).hits is None
