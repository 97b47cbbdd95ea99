"""iCaRL: herding, the loss, and the nearest mean, against NumPy and in their limits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_learning import fit_task, guide, small_stream, start, train
from torch import nn

from fedkd.continual.learner import Step
from fedkd.continual.replay.icarl import FARTHER, ICaRL, herding
from fedkd.errors import UserError
from fedkd.models.zoo.mlp import mlp
from fedkd.randomness import seeded_torch
from fedkd.training.optimizer import OptimizerSpec

SGD = OptimizerSpec("sgd", 0.1)
EVERY = [tuple(range(6))] * 3


def network(outputs=6):
    with seeded_torch(4):
        return mlp((6,), outputs, hidden=(8,)).double()


def stream(tasks=3, *, apart=False, **options):
    """Tasks of two classes; with `apart`, labels count on, as where all classes compete."""
    return [(x.double(), y + 2 * t * apart) for t, (x, y) in enumerate(small_stream(tasks, **options))]


def learn_task(learning, data, task, *, epochs=2):
    """Train as a client does: own samples and exemplars, by the learner's own loss."""
    learning.enter(task)
    learner, context = learning.learner, learning.context
    own = (*data[task], torch.full((len(data[task][1]),), task))
    held = learner.batch(context).replayed
    arrays = own if held is None else tuple(map(torch.cat, zip(own, held, strict=True)))
    train(
        learning,
        arrays,
        lambda model, x, y, t: learner.loss(context, model.outputs(x), y, t),
        optimizer=SGD,
        epochs=range(epochs),
        task_epochs=epochs,
        batch_size=8,
        generator=torch.Generator().manual_seed(task),
        seed=task,
    )
    learning.end()


def directions(net, x):
    with torch.no_grad():
        phi = net.features(x).numpy()
    return phi / np.linalg.norm(phi, axis=1, keepdims=True)


# Exemplars ------------------------------------------------------------------------------------------------


def test_herding_equals_exhaustive_search():
    phi = torch.randn(15, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mean, left, chosen = phi.numpy().mean(axis=0), list(range(15)), []
    for k in range(1, 8):
        total = phi.numpy()[chosen].sum(axis=0)
        best = min(left, key=lambda n: np.linalg.norm(mean - (phi.numpy()[n] + total) / k))
        chosen.append(best)
        left.remove(best)
    assert herding(phi, 7).tolist() == chosen
    assert sorted(herding(phi, 15).tolist()) == list(range(15))


def test_shrinking_classes_keep_their_first_exemplars():
    data, net = stream(samples=20), network()
    learning = start(ICaRL(memory_size=12), net, data)
    fit_task(learning, data, 0)
    x, y = data[0]
    expected = [x[y == c][herding(torch.tensor(directions(net, x[y == c])), 6)] for c in (0, 1)]
    learning.end()
    memory = learning.context.memory
    for label, best in enumerate(expected):
        assert torch.equal(memory["episodes/samples"][memory["episodes/labels"] == label], best)
    for task in (1, 2):
        fit_task(learning, data, task)
        learning.end()
    held = [memory[name] for name in ("episodes/samples", "episodes/labels", "episodes/tasks")]
    for label, best in enumerate(expected):
        assert torch.equal(held[0][(held[2] == 0) & (held[1] == label)], best[:2])
    assert len(held[1]) == 12


# The loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("apart", "temperature"), [(False, 1.0), (True, 2.0)], ids=["own heads", "shared head"]
)
def test_the_loss_equals_the_formula(apart, temperature):
    data, net = stream(apart=apart), network()
    learning = start(ICaRL(memory_size=8, temperature=temperature), net, data, EVERY if apart else None)
    learn_task(learning, data, 0)
    teacher = copy.deepcopy(net)
    learning.enter(1)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1
    learner, context, model = learning.learner, learning.context, learning.model()
    held = learner.batch(context).replayed
    x, y = torch.cat([data[1][0][:5], held.samples]), torch.cat([data[1][1][:5], held.labels])
    tasks = torch.tensor([1] * 5 + [0] * 8)
    loss = learner.loss(context, model.outputs(x), y, tasks)
    loss = loss + learner.penalty(context, Step(x, model, loss, y, tasks))

    with torch.no_grad():
        g, q = (1 / (1 + np.exp(-n(x).numpy() / t)) for n, t in ((net, 1.0), (teacher, temperature)))
    wanted = np.zeros((13, 4))
    wanted[:, :2] = q[:, :2]  # task 0 has units 0 and 1
    unit = y.numpy() if apart else y.numpy() + 2 * tasks.numpy()
    wanted[:5, 2:] = np.eye(4)[unit[:5], 2:]
    expected = -(wanted * np.log(g[:, :4]) + (1 - wanted) * np.log(1 - g[:, :4])).sum(axis=1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_first_task_has_no_distillation_loss():
    data, net = stream(), network()
    learning = start(ICaRL(), net, data)
    learning.enter(0)
    model, x = learning.model(), data[0][0]
    assert learning.learner.penalty(learning.context, Step(x, model, model(x).sum())) is None
    assert learning.learner.batch(learning.context).replayed is None


# The answer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True], ids=["own heads", "shared head"])
def test_the_nearest_current_class_mean_answers(apart):
    data, net = stream(apart=apart), network()
    learning = start(ICaRL(memory_size=8), net, data, EVERY if apart else None)
    for task in (0, 1):
        learn_task(learning, data, task)
    guide(
        learning,
        (data[1][0],),
        lambda model, x: model(x).square().mean(),
        optimizer=SGD,
        epochs=1,
        batch_size=8,
        seed=1,
        generator=torch.Generator().manual_seed(1),
    )
    x = torch.cat([data[0][0][:6], data[1][0][:6]])
    net.eval()
    found = learning.learner.predict(learning.context, learning.model(), x).numpy()
    held = learning.learner.batch(learning.context).replayed
    phi = directions(net, x)
    for unit in range(4):
        task, label = divmod(unit, 2)
        own = held.samples[(held.tasks == task) & (held.labels == label + 2 * task * apart)]
        mean = directions(net, own).mean(axis=0)
        expected = -((phi - mean / np.linalg.norm(mean)) ** 2).sum(axis=1)
        np.testing.assert_allclose(found[:, unit], expected, atol=1e-5)
    assert (found[:, 4:] == -FARTHER).all()
    # A second batch does not make the means anew, and a model of changed weights does.
    model = learning.model()
    first = learning.learner.predict(learning.context, model, x)
    assert torch.equal(learning.learner.predict(learning.context, model, x.clone()), first)


def test_training_samples_give_class_means_until_the_task_ends():
    data, net = stream(samples=30), network()
    learning = start(ICaRL(memory_size=8), net, data)
    assert torch.equal(
        learning.learner.predict(learning.context, learning.model(0), data[0][0]), net(data[0][0])
    )
    fit_task(learning, data, 0, epochs=8)
    x, y = data[0]

    def right():
        answers = learning.learner.predict(learning.context, learning.model(), x)
        assert (answers[:, 2:] == -FARTHER).all()
        return float((answers[:, :2].argmax(1) == y).double().mean())

    assert right() > 0.75  # half by chance
    learning.end()
    assert right() > 0.75


def test_a_model_without_features_is_refused():
    with pytest.raises(UserError, match="no method `features`"):
        start(ICaRL(), nn.Sequential(nn.Linear(6, 6)), stream())
