"""KnFu for several β at once, and which of them a client takes: against loops, and by hand."""

from __future__ import annotations

import knfu_by_loops
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from rounds import draw_logits, guidance_for, knowledge_of
from small_views import SmallClient

from fedkd.errors import UserError
from fedkd.fusion.distillation.chosen_beta import ChosenBeta
from fedkd.fusion.distillation.experts import Experts
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.registry import make_strategy
from fedkd.fusion.views import TrialLogits


class TriedClient(SmallClient):
    """A client whose trials come out as they are dictated, and that writes down what it was asked."""

    def __init__(self, outcomes, **what) -> None:
        super().__init__(**what)
        self._outcomes = iter(outcomes)
        self.trials: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def trial(self, targets, samples, asked) -> TrialLogits:
        self.trials.append((targets, samples, asked))
        right, agreed = next(self._outcomes)
        experts = np.arange(len(self.all_logits)) % self.classes
        return TrialLogits(
            np.eye(4, dtype=np.float32)[np.where(np.arange(10) < right, 1, 2)],
            np.full(10, 1),
            np.eye(4, dtype=np.float32)[(experts[asked] + (np.arange(len(asked)) >= agreed)) % 4],
        )


def client_and_guidance(outcomes, samples: int = 40, counts=(5, 5, 0, 0), betas: int = 3):
    logits = np.zeros((samples, 4), dtype=np.float32)
    client = TriedClient(outcomes, logits=logits, counts=np.array(counts))
    guidance = {f"targets_{n}": np.full((samples, 4), n, dtype=np.float32) for n in range(betas)}
    return client, guidance | {"experts": (np.arange(samples) % 4).astype(np.uint8)}


@pytest.mark.parametrize("distribution", ["soft", "hard", "calibrated", "shared"])
def test_guidance_equals_loops(distribution):
    logits, age, betas = draw_logits(4, 6, 5, seed=3), np.array([0, 2, 0, 1]), (0.0, 0.7, 4.0)
    counts = np.arange(1, 21).reshape(4, 5)
    strategy = ChosenBeta(betas, distribution=distribution, temperature=1.5, stale_decay=0.5)
    found = strategy.fuse(knowledge_of(logits, age=age, label_counts=counts), {})
    epsilon = 1e-2 if distribution == "hard" else 1e-6
    q = [[knfu_by_loops.softmax(row, 1.5) for row in client] for client in logits.tolist()]
    p = knfu_by_loops.class_distributions(q, distribution, epsilon, counts.tolist())
    for n in range(4):
        for place, beta in enumerate(betas):
            w = [0.5 ** age[m] * np.exp(-beta * knfu_by_loops.kl(p[n], p[m])) for m in range(4)]
            expected = sum(w[m] / sum(w) * np.array(q[m]) for m in range(4))
            assert_allclose(guidance_for(n, found)[f"targets_{place}"], expected, rtol=1e-4, atol=1e-6)
    experts = Experts(1.5, distribution, stale_decay=0.5).fuse(
        knowledge_of(logits, age=age, label_counts=counts), {}
    )
    assert_array_equal(found.shared["experts"], experts.targets.argmax(axis=1))


def test_downloads_are_all_targets_plus_one_byte_per_sample():
    guidance = ChosenBeta().fuse(knowledge_of(draw_logits(3, 7, 4)), {})
    assert sum(values.nbytes for values in guidance_for(0, guidance).values()) == 5 * 7 * 4 * 4 + 7
    wide = ChosenBeta((0, 1)).fuse(knowledge_of(np.zeros((2, 3, 300), np.float32)), {})
    assert wide.shared["experts"].dtype == np.uint16


def test_one_beta_equals_knfu_without_trials():
    knowledge = knowledge_of(draw_logits(3, 7, 4))
    strategy = ChosenBeta((2,))
    found = strategy.fuse(knowledge, {})
    assert_array_equal(guidance_for(1, found)["targets_0"], KnFu(beta=2).fuse(knowledge, {}).targets[1])
    client = TriedClient([], logits=knowledge.logits[1])
    client.learn(strategy, guidance_for(1, found))
    assert strategy.capabilities.trials == 0 and client.trials == [] and not found.shared
    assert_array_equal(client.distilled[0][0], guidance_for(1, found)["targets_0"])
    assert strategy.client_metrics(client) == {"beta": 2.0}


def test_the_choice_weighs_accuracy_and_half_the_agreement():
    """Trials with 9, 8 and 7 of 10 right, that agree on 0, 4 and 8 of the 16 or so that the client lacks."""
    strategy = ChosenBeta((0, 1, 5), trial_share=0.2)
    outcomes = [(9, 0), (8, 4), (7, 8)]
    client, guidance = client_and_guidance(outcomes)
    client.learn(strategy, guidance)
    asked = len(client.trials[0][2])
    scores = [right / 10 + 0.5 * agreed / asked for right, agreed in outcomes]
    best = int(np.argmax(scores))
    assert strategy.client_metrics(client) == {"beta": (0, 1, 5)[best]} and best > 0
    (targets, samples), found = client.distilled[-1], strategy.targets_of(client, guidance)
    assert samples is None and (targets == best).all() and found is not None and found[0] is targets
    alone, _ = client_and_guidance(outcomes)
    alone.learn(ChosenBeta((0, 1, 5), agreement=0), guidance)
    assert alone.memory["choice"] == 0


def test_a_trial_learns_a_share_and_is_tested_on_missing_classes():
    client, guidance = client_and_guidance([(5, 0)] * 3)
    client.learn(ChosenBeta((0, 1, 5), trial_share=0.2), guidance)
    first = client.trials[0]
    for place, (targets, samples, asked) in enumerate(client.trials):
        assert len(samples) == len(targets) == 8 and (targets == place).all()
        assert_array_equal(samples, first[1])
        assert_array_equal(asked, first[2])
    rest = np.setdiff1d(np.arange(40), first[1])
    assert_array_equal(first[2], rest[rest % 4 >= 2])  # it has the classes 0 and 1
    assert client.memory["choice"] == 0  # of equal ones the first


def test_private_samples_decide_without_an_agreement_measure():
    client, guidance = client_and_guidance([(5, 0), (7, 0), (6, 0)], counts=(5, 5, 5, 5))
    client.learn(ChosenBeta((0, 1, 5)), guidance)
    assert all(len(asked) == 0 for _, _, asked in client.trials) and client.memory["choice"] == 1


def test_trials_work_with_a_single_transfer_sample():
    client, guidance = client_and_guidance([(5, 0)] * 3, samples=1)
    client.learn(ChosenBeta((0, 1, 5), trial_share=0.01), guidance)
    assert [len(samples) for _, samples, _ in client.trials] == [1, 1, 1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"betas": [1, 1]}, r"fusion.betas: must be different, got \[1.0, 1.0\]"),
        ({"betas": []}, r"fusion.betas: must have at least 1 entries, got 0"),
        ({"betas": [0, -1]}, r"fusion.betas.1: must be ≥ 0, got -1"),
        ({"trial_share": 0}, r"fusion.trial_share: must be > 0, got 0"),
        ({"agreement": -1}, r"fusion.agreement: must be ≥ 0, got -1"),
    ],
)
def test_impossible_trials_are_refused(given, told):
    with pytest.raises(UserError, match=told):
        make_strategy("chosen_beta", given)
