import copy

import numpy as np
import pytest
import torch
from small_learning import SGD, fit_task, learn, small_stream, small_units, start
from torch import nn

from fedkd.continual.baselines.baselines import Naive
from fedkd.continual.learner import Step
from fedkd.continual.registry import make_learner
from fedkd.continual.replay import buffer as episodes
from fedkd.continual.replay.agem import AGem, remove_conflict
from fedkd.continual.replay.er import ExperienceReplay
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.training.optimizer import OptimizerSpec


def network(outputs=6, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mlp((6,), outputs, hidden=(5,))


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def counts(learning):
    """How many samples are kept of every class of every task met, as (task, label): number."""
    memory = learning.context.memory
    pairs = list(zip(memory["episodes/tasks"].tolist(), memory["episodes/labels"].tolist(), strict=True))
    return {pair: pairs.count(pair) for pair in sorted(set(pairs))}


def losses(logits, labels):
    """Cross entropies in float64."""
    z = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(labels)), labels]


# Memory ---------------------------------------------------------------------------------------------------


def test_shares_of_the_memory_shrink_as_tasks_arrive():
    stream = small_stream(3, samples=20)
    learning = start(ExperienceReplay(memory_size=10), network(), stream)
    learning.enter(0)
    learning.end()
    assert counts(learning) == {(0, 0): 5, (0, 1): 5}
    first = learning.context.memory["episodes/samples"].clone()
    learning.enter(1)
    learning.end()
    assert counts(learning) == {(0, 0): 3, (0, 1): 2, (1, 0): 3, (1, 1): 2}
    # What remains of task 0 is the beginning of what there was.
    torch.testing.assert_close(learning.context.memory["episodes/samples"][:5], first[:5], rtol=0, atol=0)
    learning.enter(2)
    learning.end()
    # 10 = 4 + 3 + 3, a remainder going to the first task and class.
    assert counts(learning) == {(0, 0): 2, (0, 1): 2, (1, 0): 2, (1, 1): 1, (2, 0): 2, (2, 1): 1}


def test_samples_are_remembered_with_their_own_labels():
    stream = small_stream(2, samples=20)
    learning = learn(ExperienceReplay(memory_size=12), network(), stream, epochs=1)
    x, y, tasks = (
        learning.context.memory[n] for n in ("episodes/samples", "episodes/labels", "episodes/tasks")
    )
    for sample, label, task in zip(x, y.tolist(), tasks.tolist(), strict=True):
        (at,) = (stream[task][0] == sample).all(1).nonzero()[:, 0].tolist()
        assert stream[task][1][at] == label
    assert len({tuple(sample.tolist()) for sample in x}) == 12


def test_unused_shares_go_to_other_classes_and_tasks():
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    rare = torch.tensor([0] * 9 + [1])
    stream = [(x, rare), (x[:2], torch.tensor([0, 1])), (x[:0], rare[:0]), (x, rare)]
    learning = start(ExperienceReplay(memory_size=9), network(8), stream)
    expected = [
        {(0, 0): 8, (0, 1): 1},
        {(0, 0): 6, (0, 1): 1, (1, 0): 1, (1, 1): 1},
        {(0, 0): 6, (0, 1): 1, (1, 0): 1, (1, 1): 1},  # a task the client has nothing of
        {(0, 0): 3, (0, 1): 1, (1, 0): 1, (1, 1): 1, (3, 0): 2, (3, 1): 1},
    ]
    for task, kept in enumerate(expected):
        learning.enter(task)
        learning.end()
        assert counts(learning) == kept


def test_memory_bytes_equal_the_stored_samples():
    learning = learn(ExperienceReplay(memory_size=10), network(), small_stream(3), epochs=1)
    assert learning.context.stored_bytes() == 10 * (6 * 4 + 8 + 8)


def test_the_seed_selects_the_stored_samples():
    kept = [
        learn(
            ExperienceReplay(memory_size=6), network(), small_stream(2), epochs=1, seed=seed
        ).context.memory["episodes/samples"]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])


def test_every_draw_is_new_and_without_repeats():
    learning = learn(ExperienceReplay(memory_size=30), network(), small_stream(2), epochs=1)
    learning.enter(1)
    drawn = [episodes.draw(learning.context, 8).samples for _ in range(40)]
    assert all(len(x.unique(dim=0)) == 8 for x in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    # 40 draws of 8 of 30: a sample has no chance of (22/30)^40 = 4e-6 to be missing.
    assert len(torch.cat(drawn).unique(dim=0)) == 30
    assert len(episodes.draw(learning.context, 100).samples) == 30


def test_batch_norm_skips_a_replay_batch_of_one():
    stream = [
        (torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 2)
        for n in (1, 8)
    ]
    for norm, drawn in (("batch", False), ("group", True)):
        learning = start(ExperienceReplay(), resnet8((1, 4, 4), 4, norm=norm), stream)
        learning.enter(1)
        assert (episodes.draw(learning.context, 8) is not None) == drawn
        fit_task(learning, stream, 1)


# Experience replay ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["samples", "tasks", "sum"])
def test_the_loss_mixes_new_and_replayed_samples(mix):
    stream = small_stream(3, samples=12)
    units = [(0, 1), (2, 3), (3, 4)]
    net = nn.Linear(6, 5)
    learning = learn(
        ExperienceReplay(memory_size=9, replay_batch_size=6, mix=mix), net, stream[:2], units, epochs=1
    )
    context = learning.context
    learning = start(learning.learner, net, stream, units)
    learning.context.memory.update(context.memory)
    learning.context.task = 2
    x, y = stream[2][0][:4], stream[2][1][:4]
    model = learning.model(2)
    loss = nn.functional.cross_entropy(model(x), y)
    total = loss + learning.learner.penalty(learning.context, Step(x, model, loss))

    learning.context.memory.pop("episodes/draws")
    old = episodes.draw(learning.context, 6)
    assert set(old.tasks.tolist()) == {0, 1}
    W, b = (p.detach().numpy().astype(np.float64) for p in (net.weight, net.bias))

    def own(x, y, t):
        z = x.numpy().astype(np.float64) @ W.T + b
        return losses(z[:, list(units[t])], y.numpy())

    new = own(x, y, 2)
    remembered = np.concatenate(
        [own(old.samples[old.tasks == t], old.labels[old.tasks == t], t) for t in (0, 1)]
    )
    assert len(remembered) == 6
    expected = {
        "samples": np.concatenate([new, remembered]).mean(),
        "tasks": new.mean() / 3 + 2 / 3 * remembered.mean(),
        "sum": new.mean() + remembered.mean(),
    }
    assert total.item() == pytest.approx(expected[mix], rel=1e-6)


def test_default_replay_equals_one_joint_batch():
    stream = small_stream(2, samples=8)
    units = small_units(2, shared=True)
    net = network(2)
    learning = start(ExperienceReplay(memory_size=8), net, stream, units)
    fit_task(learning, stream, 0)
    learning.end()
    other = copy.deepcopy(net)
    fit_task(learning, stream, 1, epochs=1)
    both = [torch.cat(pair) for pair in zip(*stream, strict=True)]
    nn.functional.cross_entropy(other(both[0]), both[1]).backward()
    expected = weights(other) - 0.1 * torch.cat([p.grad.flatten() for p in other.parameters()])
    torch.testing.assert_close(weights(net), expected, rtol=1e-6, atol=1e-7)


def test_replay_remembers_the_first_of_two_contrary_tasks():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(3))
    first, second = (x[:, 0] > 0).long(), (x[:, 1] > 0).long()
    stream = [(x[:, :], first), (x + 1.0, second)]

    def accuracy(learner):
        learning = learn(learner, network(2), stream, small_units(2, shared=True), epochs=60)
        return [
            float((learning.model(t)(stream[t][0]).argmax(1) == stream[t][1]).float().mean()) for t in (0, 1)
        ]

    naive, er = accuracy(Naive()), accuracy(ExperienceReplay(memory_size=40))
    assert naive[0] + 0.1 < er[0] and er[1] > 0.6


# A-GEM ----------------------------------------------------------------------------------------------------


def vectors(seed, sign):
    g = torch.Generator().manual_seed(seed)
    shapes = {"weight": (4, 3), "bias": (4,), "head": (2, 4)}
    r = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return {n: sign * v + 0.7 * torch.randn(v.shape, generator=g) for n, v in r.items()}, r


def flat(tensors):
    return np.concatenate([v.detach().numpy().astype(np.float64).ravel() for v in tensors.values()])


def test_agem_projects_a_contrary_gradient():
    gradients, reference = vectors(0, -1.0)
    g, r = flat(gradients), flat(reference)
    assert g @ r < 0
    projected = flat(remove_conflict(gradients, reference))
    np.testing.assert_allclose(projected, g - (g @ r) / (r @ r) * r, rtol=1e-5, atol=1e-6)
    assert abs(projected @ r) < 1e-5 * np.linalg.norm(g) * np.linalg.norm(r)


def test_agem_keeps_an_agreeing_gradient():
    gradients, reference = vectors(1, 1.0)
    projected = remove_conflict(gradients, reference)
    assert all(torch.equal(projected[name], g) for name, g in gradients.items())


def test_agem_projects_all_parameters_together():
    # Contrary in one tensor, but not as a whole.
    gradients = {"a": torch.tensor([-1.0]), "b": torch.tensor([2.0])}
    reference = {"a": torch.tensor([1.0]), "b": torch.tensor([1.0])}
    assert remove_conflict(gradients, reference)["a"].item() == -1.0
    # As a whole: ⟨g, r⟩ = −2 + 1 = −1, ⟨r, r⟩ = 2, so g + r/2.
    gradients = {"a": torch.tensor([-2.0]), "b": torch.tensor([1.0]), "c": torch.tensor([3.0])}
    projected = remove_conflict(gradients, reference)
    assert [projected[name].item() for name in "abc"] == [-1.5, 1.5, 3.0]


def test_a_zero_reference_gradient_changes_nothing():
    gradients = {"a": torch.tensor([-1.0, 2.0])}
    assert torch.equal(remove_conflict(gradients, {"a": torch.zeros(2)})["a"], gradients["a"])
    assert remove_conflict(gradients, {}) is gradients


def linear_gradient(W, b, x, y):
    """Gradient of the mean cross entropy of a linear classifier in float64, as one vector."""
    z = x @ W.T + b
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1.0
    p /= len(y)
    return np.concatenate([(p.T @ x).ravel(), p.sum(axis=0)])


@pytest.mark.parametrize("contrary", [True, False])
def test_a_step_of_agem_equals_the_formula(contrary):
    (x, y), _ = small_stream(2, samples=8)
    stream = [(x, y), (x + 0.1, 1 - y if contrary else y)]
    net = nn.Linear(6, 2)
    learning = start(AGem(memory_size=8), net, stream, small_units(2, shared=True))
    fit_task(learning, stream, 0)
    learning.end()
    W, b = (p.detach().numpy().astype(np.float64) for p in (net.weight, net.bias))
    old, new = ([part.numpy() for part in task] for task in stream)
    r = linear_gradient(W, b, old[0].astype(np.float64), old[1])
    g = linear_gradient(W, b, new[0].astype(np.float64), new[1])
    assert (g @ r < 0) == contrary
    step = g - (g @ r) / (r @ r) * r if contrary else g
    fit_task(learning, stream, 1, epochs=1)
    np.testing.assert_allclose(
        flat(dict(net.named_parameters())), np.concatenate([W.ravel(), b]) - 0.1 * step, rtol=1e-5, atol=1e-6
    )


def test_reference_batch_may_be_larger_than_the_training_batch(monkeypatch):
    sizes = []
    draw = episodes.draw
    monkeypatch.setattr(episodes, "draw", lambda context, size: sizes.append(size) or draw(context, size))
    learn(AGem(memory_size=20, reference_batch_size=16), network(), small_stream(2), epochs=1)
    assert set(sizes) == {16}


# Both -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", [ExperienceReplay(memory_size=0), AGem(memory_size=0)])
@pytest.mark.parametrize("optimizer", [SGD, OptimizerSpec("adam", 0.01, weight_decay=0.01)])
def test_learners_without_memory_train_like_naive(learner, optimizer):
    stream = small_stream(3)
    expected = learn(Naive(), network(), stream, optimizer=optimizer).context.network
    learning = learn(learner, network(), stream, optimizer=optimizer)
    assert torch.equal(weights(learning.context.network), weights(expected))
    assert learning.context.stored_bytes() == 0


@pytest.mark.parametrize("learner", [ExperienceReplay(), AGem()])
def test_the_first_task_is_trained_like_naive(learner):
    stream = small_stream(1)
    assert torch.equal(
        weights(learn(learner, network(), stream).context.network),
        weights(learn(Naive(), network(), stream).context.network),
    )


@pytest.mark.parametrize("learner", [ExperienceReplay(memory_size=15), AGem(memory_size=15)])
def test_a_learner_restored_within_a_task_continues_exactly(learner):
    stream = small_stream(3)
    net = network()
    learning = start(learner, net, stream)
    for task in (0, 1):
        fit_task(learning, stream, task)
        learning.end()
    fit_task(learning, stream, 2, epochs=1, task_epochs=2)
    state, copied = copy.deepcopy(learning.state()), copy.deepcopy(net)
    assert int(state["memory/" + "episodes/draws"][0]) == 3

    def finish(learning):
        fit_task(learning, stream, 2, first=1, epochs=1)
        learning.end()
        return weights(learning.context.network), learning.context.memory

    expected, memory = finish(learning)
    restored = start(learner, copied, stream)
    restored.restore(state)
    found, found_memory = finish(restored)
    assert torch.equal(found, expected)
    assert found_memory.keys() == memory.keys()
    assert all(torch.equal(found_memory[name], memory[name]) for name in memory)
    assert "episodes/draws" not in memory  # scratch of a task


@pytest.mark.parametrize("name", ["er", "agem"])
def test_default_learners_survive_a_task_without_samples(name):
    stream = small_stream(3)
    stream[1] = (stream[1][0][:0], stream[1][1][:0])
    learning = learn(make_learner(name, {}), network(), stream)
    assert set(learning.context.memory["episodes/tasks"].tolist()) == {0, 2}
    assert bool(weights(learning.context.network).isfinite().all())
