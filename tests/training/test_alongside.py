"""Batches that come along with those of a job, however it is executed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedkd.training.executor import LoopExecutor
from fedkd.training.fast.replay import Replays
from fedkd.training.fast.vectorised import VectorisedExecutor
from fedkd.training.job import AuxBatches, TrainJob
from fedkd.training.losses import cross_entropy, logits_mse
from fedkd.training.optimizer import OptimizerSpec


def alongside(count: int, size: int, seed: int = 1) -> AuxBatches:
    numbers = torch.arange(count, dtype=torch.float32)[:, None]
    return AuxBatches([numbers, -numbers], size, torch.Generator().manual_seed(seed))


def test_every_sample_is_used_once_before_any_repeats():
    batches, seen = alongside(7, 3), []
    for _ in range(7):
        one, other = batches.draw()
        assert len(one) == 3 and torch.equal(one, -other)
        seen += one.flatten().tolist()
    for lap in range(3):
        assert sorted(seen[7 * lap : 7 * lap + 7]) == list(range(7))


def test_fewer_samples_than_a_batch_form_one_batch():
    for _ in range(2):
        assert sorted(alongside(2, 5).draw()[0].flatten().tolist()) == [0, 1]


def test_rewinding_repeats_the_same_batches():
    batches = alongside(5, 3)
    batches.draw()
    position = batches.position()
    drawn = [batches.draw()[0] for _ in range(4)]
    batches.go_back(position)
    assert all(torch.equal(batches.draw()[0], batch) for batch in drawn)


def jobs(how_many: int, *, dropout: float = 0.0) -> list[TrainJob]:
    """Return jobs of unlike sizes that bring a model's outputs to zero on other samples besides."""

    def loss(model, inputs, labels, others, wanted):
        return cross_entropy(model(inputs), labels) + 0.5 * logits_mse(model(others), wanted)

    found = []
    for number in range(how_many):
        draw = torch.Generator().manual_seed(number)
        torch.manual_seed(number)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(dropout), nn.Linear(5, 3))
        own = 40 + 7 * number
        arrays = torch.randn(own, 6, generator=draw), torch.randint(3, (own,), generator=draw)
        others = [torch.randn(13, 6, generator=draw), torch.zeros(13, 3)]
        found.append(
            TrainJob(
                model,
                arrays,
                loss,
                OptimizerSpec("adam", 0.01, 0.0, 0.0, None),
                epochs=3,
                batch_size=8,
                generator=torch.Generator().manual_seed(7),
                seed=3,
                aux_batches=AuxBatches(others, 8, torch.Generator().manual_seed(number + 50)),
                kind="train",
                replayable=True,
            )
        )
    return found


def trained(executor, **how) -> list[np.ndarray]:
    made = jobs(3, **how)
    for outcome in executor.run(made):
        if isinstance(outcome, Exception):
            raise outcome
    return [p.detach().numpy() for job in made for p in job.model.parameters()]


def test_replayed_steps_are_the_same_to_the_bit():
    replays = Replays(patience=2)
    replayed = trained(LoopExecutor(replays))
    assert replays._proved
    for one, other in zip(replayed, trained(LoopExecutor(Replays(patience=10**6))), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["together", "what vmap refuses"])
def test_vectorised_jobs_equal_single_ones(dropout, monkeypatch):
    executor = VectorisedExecutor(4)
    together = trained(executor, dropout=dropout)
    assert bool(executor._not_for_vmap) == (dropout > 0)
    for one, other in zip(together, trained(LoopExecutor(), dropout=dropout), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
