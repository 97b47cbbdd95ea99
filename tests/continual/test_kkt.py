"""k-NN knowledge transfer chooses the initial scores of a task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_learning import fit_task, small_stream, small_units, start

from fedkd.continual.masks import kkt, masks
from fedkd.continual.registry import make_learner
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.randomness import seeded_torch, torch_generator
from fedkd.training.evaluate import predict_logits
from fedkd.training.optimizer import OptimizerSpec

ADAM = OptimizerSpec("adam", 0.01)
NAMES = ["supsup", "ssnet", "exssnet"]


def small_mlp(outputs):
    with seeded_torch(3):
        return mlp((6,), outputs, hidden=(20, 16))


def scores_of(learning, task):
    prefix = f"scores/{task}/"
    return {n.removeprefix(prefix): v for n, v in learning.context.memory.items() if n.startswith(prefix)}


@pytest.mark.parametrize("k", [1, 3, 10, 200])
def test_knn_accuracy_equals_a_hand_count(k):
    g = torch_generator(1, "features")
    reference, queries = torch.randn(30, 4, generator=g), torch.randn(13, 4, generator=g)
    labels = torch.randint(0, 3, (30,), generator=g)
    answers = torch.randint(0, 3, (13,), generator=g)
    correct = 0
    for query, answer in zip(queries.double().numpy(), answers.tolist(), strict=True):
        distances = np.sqrt(((reference.double().numpy() - query) ** 2).sum(axis=1))
        votes = np.bincount(labels.numpy()[np.argsort(distances, kind="stable")[:k]], minlength=3)
        correct += int(votes.argmax() == answer)
    assert kkt.knn_accuracy(reference, labels, queries, answers, k, 3) == correct / 13


def test_k_is_at_most_the_reference_size():
    g = torch_generator(2, "features")
    reference, queries = torch.randn(7, 2, generator=g), torch.randn(5, 2, generator=g)
    labels, answers = torch.tensor([0, 1, 1, 0, 1, 2, 1]), torch.tensor([1, 1, 0, 2, 1])
    # All seven vote, so the most frequent label is what every query gets.
    assert kkt.knn_accuracy(reference, labels, queries, answers, 200, 3) == 3 / 5


def test_queries_in_chunks_give_the_same_answers():
    g = torch_generator(3, "features")
    reference, queries = torch.randn(20, 3, generator=g), torch.randn(1100, 3, generator=g)
    labels, answers = torch.arange(20) % 2, torch.arange(1100) % 2
    parts = [
        kkt.knn_accuracy(reference, labels, queries[i : i + 100], answers[i : i + 100], 5, 2)
        for i in range(0, 1100, 100)
    ]
    assert kkt.knn_accuracy(reference, labels, queries, answers, 5, 2) == pytest.approx(np.mean(parts))


def test_transfer_scores_use_a_fifth_of_the_batches():
    def positions(count, batch_size, share=0.2):
        return kkt.sample_batches(count, batch_size, share, torch_generator(4, "kkt"))

    assert len(positions(1000, 10)) == 200
    assert len(positions(95, 10)) == 20
    assert len(positions(8, 32)) == 8  # less than a batch
    drawn = positions(100, 10)
    assert len(drawn.unique()) == 20 and drawn.max() < 100


def test_the_first_two_thirds_are_the_reference():
    x, y = torch.arange(50.0)[:, None], (torch.arange(50) % 3 > 0).long()

    def features(task, samples):
        assert samples is x
        return torch.zeros(50, 2) if task == 1 else torch.nn.functional.one_hot(y, 2).float()

    # Where all features are alike the first three references vote, with labels 0, 1 and 1.
    ones = y[33:].float().mean().item()
    found = kkt.accuracies(features, [1, 4], x, y, neighbours=3, classes=2)
    assert found == pytest.approx([ones, 1.0])
    assert kkt.accuracies(features, [1], x[:1], y[:1], neighbours=3, classes=2) == []


def test_a_task_must_beat_chance_to_be_reused():
    assert kkt.best([3, 5, 8], [0.4, 0.9, 0.9], 2) == 5
    assert kkt.best([3, 5], [0.5, 0.5], 2) is None
    assert kkt.best([3], [0.3], 4) == 3
    assert kkt.best([], [], 2) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_similar_task_lends_a_copy_of_its_scores(name):
    same = small_stream(1, samples=60)[0]
    stream = [same, same]
    learning = start(
        make_learner(name, {"kkt": True, "kkt_share": 1.0, "kkt_neighbours": 5}), small_mlp(4), stream
    )
    fit_task(learning, stream, 0, optimizer=ADAM)
    learning.end()
    kept = {n: v.clone() for n, v in scores_of(learning, 0).items()}
    for layer, mask in learning.learner.memory(learning.context).masks(0).items():
        assert torch.equal(masks.mask_of(kept[layer], "topk", 0.1), mask)
    bits = {n: v.clone() for n, v in learning.context.memory.items() if n.startswith("bits/0/")}
    learning.enter(1)
    learning.context.phase = "mask"
    learning.learner.begin_phase(learning.context)
    for layer, scores in scores_of(learning, 1).items():
        assert torch.equal(scores, kept[layer])
        assert scores.data_ptr() != scores_of(learning, 0)[layer].data_ptr()
    report = learning.learner.report(learning.context)
    assert report["kkt_task"] == 0 and report["kkt_accuracy"] > 0.6 > report["kkt_chance"] == 0.5
    fit_task(learning, stream, 1, optimizer=ADAM)
    learning.end()
    assert any(not torch.equal(v, kept[n]) for n, v in scores_of(learning, 1).items())
    assert all(torch.equal(v, kept[n]) for n, v in scores_of(learning, 0).items())
    assert all(torch.equal(learning.context.memory[n], v) for n, v in bits.items())


@pytest.mark.parametrize(("wrong", "taken"), [(7, False), (6, True)])
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_random_if_no_task_beats_chance(name, wrong, taken):
    x, y = torch.zeros(40, 6), torch.zeros(40, dtype=torch.int64)
    stream = [(x, torch.arange(40) % 2), (x, y)]
    options = {"kkt_share": 1.0, "kkt_neighbours": 1, "mask_lr": 1e-30}
    lending, plain = (
        start(make_learner(name, {**options, "kkt": kkt}), small_mlp(4), stream) for kkt in (True, False)
    )
    # All samples look alike, so every query gets the label of the first reference.
    order = torch.randperm(40, generator=lending.context.generator("kkt", 1))
    y[order[26 : 26 + wrong]] = 1  # of 14 queries
    for learning in (lending, plain):
        fit_task(learning, stream, 0, epochs=1)
        learning.end()
        fit_task(learning, stream, 1, epochs=1, task_epochs=2)
    report = lending.learner.report(lending.context)
    assert report["kkt_accuracy"] == (14 - wrong) / 14
    assert report["kkt_task"] == (0 if taken else -1)
    ours, theirs = scores_of(lending, 1), scores_of(plain, 1)
    assert all(torch.equal(ours[layer], theirs[layer]) != taken for layer in ours)


def test_the_most_accurate_task_is_chosen_under_its_own_mask():
    stream = small_stream(4, samples=40, shape=(1, 8, 8))
    learner = make_learner("exssnet", {"kkt": True, "kkt_share": 1.0, "kkt_neighbours": 3, "density": 0.3})
    with seeded_torch(3):
        network = resnet8((1, 8, 8), 8, norm="batch")
    learning = start(learner, network, stream)
    for task in range(3):
        fit_task(learning, stream, task, optimizer=ADAM)
        learning.end()
    x, y = stream[3]
    order = torch.randperm(40, generator=learning.context.generator("kkt", 3))
    expected = []
    network.eval()
    for old in range(3):
        with torch.no_grad():
            made = torch.cat([learning.model(old).features(x[order][i : i + 8]) for i in range(0, 40, 8)])
        expected.append(kkt.knn_accuracy(made[:26], y[order][:26], made[26:], y[order][26:], 3, 2))
    fit_task(learning, stream, 3, epochs=1, task_epochs=2, optimizer=ADAM)
    assert learning.context.memory["kkt_accuracies/3"].tolist() == pytest.approx(expected)
    best = int(np.argmax(expected)) if max(expected) > 0.5 else -1
    assert int(learning.context.memory["kkt/3"]) == best


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_stored_only_with_transfer(name):
    stream = small_stream(2)
    costs = []
    for transfer in (False, True):
        learning = start(make_learner(name, {"kkt": transfer}), small_mlp(4), stream)
        fit_task(learning, stream, 0, optimizer=ADAM)
        learning.end()
        costs.append(learning.context.stored_bytes())
        bits = learning.learner.report(learning.context)["stored_bits_per_weight"]
        assert bits == (33.0 if transfer else 1.0)
    assert costs[1] - costs[0] == 4 * (6 * 20 + 20 * 16 + 16 * 4)


def test_transfer_keeps_the_outputs_of_old_tasks():
    stream = small_stream(4, samples=30)
    learning = start(
        make_learner("exssnet", {"kkt": True, "density": 0.3}),
        small_mlp(2),
        stream,
        small_units(4, shared=True),
    )
    kept = []
    for task in range(4):
        fit_task(learning, stream, task, optimizer=ADAM)
        learning.end()
        kept.append(predict_logits(learning.model(task), stream[task][0]))
    for task in range(4):
        assert torch.equal(predict_logits(learning.model(task), stream[task][0]), kept[task])
