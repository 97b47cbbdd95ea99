"""EWC, online EWC, SI, MAS and LwF against their formulas in NumPy, and in their limits."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_learning import fit_task, guide, learn, small_stream, small_units, start

from fedkd.continual.baselines.baselines import Naive
from fedkd.continual.learner import Step
from fedkd.continual.regularisation.ewc import EWC, OnlineEWC
from fedkd.continual.regularisation.lwf import LwF
from fedkd.continual.regularisation.mas import MAS
from fedkd.continual.regularisation.si import SI
from fedkd.errors import TrainingDiverged
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.randomness import seeded_torch
from fedkd.training.optimizer import OptimizerSpec

ADAM = OptimizerSpec("adam", 0.01)
QUADRATIC = {"ewc": EWC, "online_ewc": OnlineEWC, "si": SI, "mas": MAS}
NEUTRAL = {
    "ewc": EWC(strength=0),
    "online_ewc": OnlineEWC(strength=0),
    "si": SI(strength=0),
    "mas": MAS(strength=0),
    "lwf": LwF(weight=0),
}
EVERY = {
    "ewc": EWC(strength=50, samples=20),
    "ewc, last": EWC(strength=50, samples=20, anchor="last"),
    "online_ewc": OnlineEWC(strength=50, decay=0.5, labels="true"),
    "si": SI(strength=3),
    "mas": MAS(strength=3, samples=20),
    "lwf": LwF(),
    "lwf, seen": LwF(distil="seen", compete="seen", mix="tasks"),
}


def network(outputs=6, dropout=0.0):
    with seeded_torch(4):
        return mlp((6,), outputs, hidden=(8, 7), dropout=dropout).double()


def stream(tasks=3, **options):
    return [(x.double(), y) for x, y in small_stream(tasks, **options)]


def weights(net):
    return np.concatenate([p.detach().numpy().ravel() for p in net.parameters()])


def gathered(context, kind):
    return np.concatenate(
        [context.memory[f"{kind}/{name}"].numpy().ravel() for name, _ in context.network.named_parameters()]
    )


def per_sample(net, data, score, magnitude):
    """Return the mean over samples of the magnitude of each one's gradient, flat."""
    x, y = data
    net.eval()
    total = np.zeros_like(weights(net))
    for n in range(len(x)):
        value = score(net(x[n : n + 1]), y[n : n + 1])
        gradients = torch.autograd.grad(value, list(net.parameters()))
        total += magnitude(np.concatenate([g.numpy().ravel() for g in gradients]))
    net.train()
    return total / len(x)


def penalty_and_gradient(learning, x):
    """Return the penalty in the present task and its gradient, flat."""
    context = learning.context
    model = learning.model()
    value = learning.learner.penalty(context, Step(x, model, model(x).sum()))
    gradients = torch.autograd.grad(value, list(context.network.parameters()))
    return value.item(), np.concatenate([g.numpy().ravel() for g in gradients])


def own_units(task):
    return slice(2 * task, 2 * task + 2)


# The quadratic penalties ------------------------------------------------------------------------------


def test_ewc_adds_a_quadratic_penalty_for_each_old_task():
    data, net = stream(4), network(8)
    learning = start(EWC(strength=7.0, labels="true"), net, data)
    fishers, optima = [], []
    for task in range(3):
        fit_task(learning, data, task)
        learning.end()
        units = own_units(task)
        fishers.append(
            per_sample(net, data[task], lambda o, y, u=units: F.cross_entropy(o[:, u], y), np.square)
        )
        optima.append(weights(net))
    fit_task(learning, data, 3)
    theta = weights(net)
    expected = 3.5 * sum(f @ (theta - w) ** 2 for f, w in zip(fishers, optima, strict=True))
    slope = 7.0 * sum(f * (theta - w) for f, w in zip(fishers, optima, strict=True))
    value, gradient = penalty_and_gradient(learning, data[3][0])
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    np.testing.assert_allclose(gradient, slope, rtol=1e-8, atol=1e-14)


def test_ewc_around_the_last_task_weighs_the_mean_of_all_tasks():
    data, net = stream(4), network(8)
    learning = start(EWC(strength=7.0, anchor="last", labels="true"), net, data)
    fishers = []
    for task in range(3):
        fit_task(learning, data, task)
        learning.end()
        units = own_units(task)
        fishers.append(
            per_sample(net, data[task], lambda o, y, u=units: F.cross_entropy(o[:, u], y), np.square)
        )
        anchor = weights(net)
    fit_task(learning, data, 3)
    moved = weights(net) - anchor
    value, gradient = penalty_and_gradient(learning, data[3][0])
    mean = sum(fishers) / 3
    np.testing.assert_allclose(value, 3.5 * mean @ moved**2, rtol=1e-10)
    np.testing.assert_allclose(gradient, 7.0 * mean * moved, rtol=1e-8, atol=1e-14)


def test_all_ewc_variants_agree_after_one_task():
    data = stream(2)
    each, last = (learn(EWC(strength=7.0, anchor=anchor), network(4), data) for anchor in ("each", "last"))
    np.testing.assert_array_equal(weights(each.context.network), weights(last.context.network))


def test_online_ewc_decays_old_importances_and_has_one_anchor():
    data, net = stream(3), network()
    learning = start(OnlineEWC(strength=7.0, decay=0.3, labels="true"), net, data)
    fisher = 0.0
    for task in range(2):
        fit_task(learning, data, task)
        learning.end()
        units = own_units(task)
        own = per_sample(net, data[task], lambda o, y, u=units: F.cross_entropy(o[:, u], y), np.square)
        fisher = 0.3 * fisher + own
        anchor = weights(net)
    fit_task(learning, data, 2)
    moved = weights(net) - anchor
    value, gradient = penalty_and_gradient(learning, data[2][0])
    np.testing.assert_allclose(value, 3.5 * fisher @ moved**2, rtol=1e-10)
    np.testing.assert_allclose(gradient, 7.0 * fisher * moved, rtol=1e-8, atol=1e-14)


def test_mas_adds_up_sensitivities_of_each_tasks_logits():
    data, net = stream(3), network()
    learning = start(MAS(strength=0.2), net, data)
    omega = 0.0
    for task in range(2):
        fit_task(learning, data, task)
        learning.end()
        units = own_units(task)
        omega = omega + per_sample(net, data[task], lambda o, _, u=units: (o[:, u] ** 2).sum(), np.abs)
        anchor = weights(net)
    fit_task(learning, data, 2)
    moved = weights(net) - anchor
    value, gradient = penalty_and_gradient(learning, data[2][0])
    np.testing.assert_allclose(value, 0.2 * omega @ moved**2, rtol=1e-10)
    np.testing.assert_allclose(gradient, 0.4 * omega * moved, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_si_integrates_the_training_loss_only(clip):
    data, c, xi, lr, momentum = stream(3), 0.5, 0.01, 0.05, 0.5
    spec = OptimizerSpec("sgd", lr, momentum=momentum, clip_norm=clip)
    learning = learn(SI(strength=c, damping=xi), network(), data, epochs=3, optimizer=spec)

    net = network()
    parameters = list(net.parameters())
    omega = np.zeros_like(weights(net))
    for task, (x, y) in enumerate(data):
        begin, path, velocity = weights(net), np.zeros_like(omega), None
        generator = torch.Generator().manual_seed(100 * task)
        for _ in range(3):
            for index in torch.randperm(24, generator=generator).split(8):
                loss = F.cross_entropy(net(x[index])[:, own_units(task)], y[index])
                g = np.concatenate([g.numpy().ravel() for g in torch.autograd.grad(loss, parameters)])
                if clip is not None:
                    g *= min(1.0, clip / (np.linalg.norm(g) + 1e-6))
                step = g + 2 * c * omega * (weights(net) - begin)
                velocity = step if velocity is None else momentum * velocity + step
                path += g * lr * velocity
                vector = torch.from_numpy(weights(net) - lr * velocity)
                torch.nn.utils.vector_to_parameters(vector, parameters)
        omega += np.maximum(path, 0) / ((weights(net) - begin) ** 2 + xi)
    np.testing.assert_allclose(weights(learning.context.network), weights(net), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(gathered(learning.context, "importance"), omega, rtol=1e-7, atol=1e-12)
    assert omega.max() > 0.1  # the penalty had something to say


def test_si_importance_is_the_loss_reduction_of_a_weight():
    """With small plain steps the path integral of all weights is the loss that has gone."""
    data, net = stream(1), network(2)
    x, y = data[0]
    before = F.cross_entropy(net(x), y).item()
    learning = start(SI(), net, data, batch_size=24)
    fit_task(learning, data, 0, epochs=150, optimizer=OptimizerSpec("sgd", 1e-3), batch_size=24)
    gone = before - F.cross_entropy(net(x), y).item()
    np.testing.assert_allclose(gathered(learning.context, "path").sum(), gone, rtol=2e-3)


# Limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEUTRAL)
def test_zero_strength_equals_naive_bit_for_bit(name):
    data = stream()
    found = learn(NEUTRAL[name], network(dropout=0.3), data, optimizer=ADAM)
    naive = learn(Naive(), network(dropout=0.3), data, optimizer=ADAM)
    assert np.array_equal(weights(found.context.network), weights(naive.context.network))


@pytest.mark.parametrize("name", EVERY)
def test_a_single_task_equals_naive_bit_for_bit(name):
    data = stream(1)
    found = learn(EVERY[name], network(2), data, optimizer=ADAM)
    naive = learn(Naive(), network(2), data, optimizer=ADAM)
    assert np.array_equal(weights(found.context.network), weights(naive.context.network))


@pytest.mark.parametrize("name", QUADRATIC)
def test_a_stronger_penalty_moves_weights_less(name):
    """Weights of importance 1 come to rest where the loss and the pull balance: 1/strength away."""
    data = stream(2)

    distances = []
    for strength in (1e3, 1e5):
        slow = OptimizerSpec("sgd", 0.5 / strength)
        net = network(4)
        learning = start(QUADRATIC[name](strength=strength), net, data)
        fit_task(learning, data, 0)
        learning.end()
        for key in learning.context.memory:
            if key.startswith("importance/"):
                learning.context.memory[key].fill_(1.0)
        anchor = weights(net)
        fit_task(learning, data, 1, epochs=25, optimizer=slow)
        distances.append(np.abs(weights(net) - anchor).max())
    naive = start(Naive(), network(4), data)
    fit_task(naive, data, 0)
    anchor = weights(naive.context.network)
    fit_task(naive, data, 1, epochs=25, optimizer=slow)
    assert distances[1] < distances[0] / 90
    assert distances[1] < np.abs(weights(naive.context.network) - anchor).max() / 20


@pytest.mark.parametrize(
    "learner",
    [EWC(strength=10), OnlineEWC(strength=10), SI(strength=1), MAS(strength=0.3), LwF(weight=1)],
    ids=lambda learner: learner.name,
)
def test_a_new_task_is_learned_without_forgetting_the_old(learner):
    """The first feature tells the classes in one task, and misleads in the next, where the second tells."""
    y = torch.arange(48) % 2
    sign, noise = 2.0 * y - 1.0, 0.3 * torch.randn(2, 48, 2, generator=torch.Generator().manual_seed(0))
    data = [
        ((torch.stack([sign, 0 * sign], 1) + noise[0]).double(), y),
        ((torch.stack([-sign, sign], 1) + noise[1]).double(), y),
    ]

    def losses(learner, tasks):
        with seeded_torch(1):
            net = mlp((2,), 2, hidden=()).double()
        learn(learner, net, data[:tasks], small_units(tasks, shared=True), epochs=10)
        return [F.cross_entropy(net(x), y).item() for x, y in data]

    first, naive, found = losses(Naive(), 1), losses(Naive(), 2), losses(learner, 2)
    assert naive[0] > 3 * first[0] and naive[1] < first[1] / 3
    assert found[0] < naive[0] / 2 and found[1] < first[1] / 2


# Learning without forgetting --------------------------------------------------------------------------


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def distillation(old, new, temperature):
    p, q = softmax(old / temperature), softmax(new / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(1).mean()


def expected_lwf(teacher, net, x, heads, temperature):
    with torch.no_grad():
        old, new = teacher(x).numpy(), net(x).numpy()
    return sum(distillation(old[:, head], new[:, head], temperature) for head in heads)


def class_stream():
    """Tasks 0, 1 and 2 have classes {0, 1}, {3, 4} and {2, 5} of six."""
    pairs = [(0, 1), (3, 4), (2, 5)]
    return [(x, torch.tensor(pair)[y]) for (x, y), pair in zip(stream(), pairs, strict=True)]


@pytest.mark.parametrize(
    ("distil", "data", "outputs", "units", "heads"),
    [
        ("met", stream(), 6, small_units(3), [[0, 1], [2, 3]]),
        ("all", stream(), 6, small_units(3), [[0, 1], [2, 3]]),
        ("met", stream(), 2, small_units(3, shared=True), [[0, 1]]),
        ("met", class_stream(), 6, [tuple(range(6))] * 3, [[0, 1, 3, 4]]),
        ("all", class_stream(), 6, [tuple(range(6))] * 3, [[0, 1, 2, 3, 4, 5]]),
    ],
    ids=["task", "task-all", "domain", "class", "class-all"],
)
def test_lwf_distils_the_heads_of_old_tasks(distil, data, outputs, units, heads):
    net = network(outputs)
    learning = start(LwF(weight=1.5, temperature=3.0, distil=distil), net, data, units)
    for task in range(2):
        fit_task(learning, data, task)
    teacher = deepcopy(net)
    fit_task(learning, data, 2, epochs=10)
    x = data[2][0]
    value, gradient = penalty_and_gradient(learning, x)
    # A divergence near zero is a sum of float32 terms near one: their rounding stays.
    np.testing.assert_allclose(value, 1.5 * expected_lwf(teacher, net, x, heads, 3.0), rtol=2e-5, atol=1e-6)
    assert np.abs(gradient).max() > 0


def test_lwf_distils_a_shared_head():
    data, net, units = class_stream(), network(), [tuple(range(6))] * 3
    learner = LwF(weight=1.5, temperature=2.0, distil="seen", compete="seen", mix="tasks")
    learning = start(learner, net, data, units)
    fit_task(learning, data, 0)
    x, y = data[0]
    log_p = log_softmax(net(x).detach().numpy()[:, :2])
    own = -log_p[np.arange(len(y)), y].mean()
    np.testing.assert_allclose(total_loss(learning, x, y), own, rtol=1e-5)
    fit_task(learning, data, 1)
    teacher = deepcopy(net)
    fit_task(learning, data, 2, epochs=10)
    (x, y), old, seen = data[2], [0, 1, 3, 4], [0, 1, 3, 4, *sorted(set(data[2][1].tolist()))]
    z, taught = (n(x).detach().numpy() for n in (net, teacher))
    own = -log_softmax(z[:, seen])[np.arange(len(y)), [seen.index(label) for label in y.tolist()]].mean()
    log_q = log_softmax(taught[:, old] / 2.0)
    held = 4.0 * (np.exp(log_q) * (log_q - log_softmax(z[:, seen] / 2.0)[:, :4])).sum(1).mean()
    np.testing.assert_allclose(total_loss(learning, x, y), own / 3 + 2 / 3 * 1.5 * held, rtol=1e-5)


def total_loss(learning, x, y):
    """Return the loss of own samples with the penalty."""
    model, tasks = learning.model(), torch.full((len(y),), learning.task)
    loss = F.cross_entropy(model(x), y)
    added = learning.learner.penalty(learning.context, Step(x, model, loss, y, tasks))
    return (loss + added).item()


def log_softmax(z):
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def test_lwf_has_no_gradient_at_the_old_weights():
    data = stream()
    learning = start(LwF(), network(), data)
    fit_task(learning, data, 0)
    learning.enter(1)
    value, gradient = penalty_and_gradient(learning, data[1][0])
    assert abs(value) < 1e-6 and np.abs(gradient).max() < 1e-6


def test_lwf_at_a_high_temperature_matches_logits():
    """T² KL → ½ mean_c (d_c − mean d)², d the change of the logits (Hinton et al. 2015)."""
    data, net = class_stream(), network()
    units = [tuple(range(6))] * 3
    learning = start(LwF(temperature=40.0), net, data, units)
    for task in range(2):
        fit_task(learning, data, task)
    teacher = deepcopy(net)
    fit_task(learning, data, 2, epochs=10)
    x, met = data[2][0], [0, 1, 3, 4]
    with torch.no_grad():
        d = (net(x) - teacher(x)).numpy()[:, met]
    d -= d.mean(1, keepdims=True)
    value, _ = penalty_and_gradient(learning, x)
    np.testing.assert_allclose(value, 0.5 * (d**2).mean(1).mean(), rtol=0.02)


def test_lwf_holds_the_outputs_that_it_distils():
    data = stream(2)
    changes = []
    for weight in (0.0, 10.0, 100.0):
        net = network(4)
        learning = start(LwF(weight=weight), net, data)
        fit_task(learning, data, 0, epochs=5)
        learning.end()
        with torch.no_grad():
            before = net(data[1][0])[:, :2].softmax(1)
        fit_task(learning, data, 1, epochs=20, optimizer=OptimizerSpec("sgd", 0.01))
        with torch.no_grad():
            changes.append((net(data[1][0])[:, :2].softmax(1) - before).abs().max().item())
    assert changes[0] > changes[1] > changes[2] and changes[2] < changes[0] / 4


def test_lwf_distils_on_transfer_samples_too():
    data, net = stream(2), network(4)
    learning = start(LwF(weight=100.0), net, data)
    fit_task(learning, data, 0, epochs=5)
    learning.enter(1)
    transfer = torch.randn(24, 6, generator=torch.Generator().manual_seed(9)).double()
    with torch.no_grad():
        before = net(transfer)
    guide(
        learning,
        (transfer, torch.zeros(24, dtype=torch.int64)),
        lambda model, x, y: F.cross_entropy(model(x), y),
        optimizer=OptimizerSpec("sgd", 0.01),
        epochs=80,
        batch_size=8,
        generator=torch.Generator().manual_seed(1),
        seed=1,
    )
    with torch.no_grad():
        after = net(transfer)
    losses = [F.cross_entropy(z[:, 2:], torch.zeros(24, dtype=torch.int64)) for z in (before, after)]
    assert losses[1] < losses[0] / 2
    assert (after[:, :2].softmax(1) - before[:, :2].softmax(1)).abs().max() < 0.02


def test_lwf_teacher_statistics_are_separate_from_the_network():
    with seeded_torch(2):
        net = resnet8((1, 8, 8), 4, norm="batch")
    data = small_stream(2, shape=(1, 8, 8))
    learning = start(LwF(), net, data)
    fit_task(learning, data, 0)
    teacher = deepcopy(net).eval()
    fit_task(learning, data, 1)
    x, model = data[1][0], learning.model()
    with torch.no_grad():
        new, old = model.outputs(x).numpy(), teacher(x).numpy()
    before = deepcopy(net.state_dict())
    value = learning.learner.penalty(learning.context, Step(x, model, torch.zeros(())))
    np.testing.assert_allclose(value.item(), distillation(old[:, :2], new[:, :2], 2.0), rtol=1e-4)
    assert net.training
    assert all(torch.equal(values, before[name]) for name, values in net.state_dict().items())


# Everything -------------------------------------------------------------------------------------------


STORED = [("ewc", 2), ("online_ewc", 2), ("si", 2), ("mas", 2), ("lwf", 0)]


@pytest.mark.parametrize(("name", "floats"), STORED)
def test_memory_is_independent_of_the_number_of_tasks(name, floats):
    net = network()
    count = sum(p.numel() for p in net.parameters())
    learning = start(EVERY[name], net, stream())
    sizes = []
    for task in range(3):
        fit_task(learning, stream(), task)
        learning.end()
        sizes.append(learning.context.stored_bytes())
    assert sizes[0] == sizes[2]
    assert floats * 8 * count <= sizes[2] <= floats * 8 * count + 8


@pytest.mark.parametrize("name", EVERY)
def test_regularisation_handles_convolutions_and_normalisation(name):
    with seeded_torch(1):
        net = resnet8((1, 8, 8), 4, norm="batch")
    learning = learn(EVERY[name], net, small_stream(2, shape=(1, 8, 8)), epochs=1, optimizer=ADAM)
    assert all(values.isfinite().all() for values in learning.context.memory.values())


@pytest.mark.parametrize("name", EVERY)
def test_a_task_without_samples_changes_nothing(name):
    data = stream()
    data[1] = (data[1][0][:0], data[1][1][:0])
    net = network()
    learning = start(EVERY[name], net, data)
    fit_task(learning, data, 0)
    learning.end()
    before = weights(net)
    learning.enter(2)
    assert np.array_equal(weights(net), before)
    fit_task(learning, data, 2)
    learning.end()
    assert all(values.isfinite().all() for values in learning.context.memory.values())


@pytest.mark.parametrize("name", EVERY)
def test_regularisation_handles_tasks_of_different_sizes(name):
    data = [stream(1)[0], stream(1, classes=3)[0], stream(1, classes=1)[0], stream(1)[0]]
    units = [(0, 1), (2, 3, 4), (5,), (6, 7)]
    learning = learn(EVERY[name], network(8), data, units)
    assert all(values.isfinite().all() for values in learning.context.memory.values())


def test_nan_predictions_give_no_fisher_information():
    tasks = stream(2)
    learning = start(EWC(), network(4), tasks)
    fit_task(learning, tasks, 0)
    with torch.no_grad():
        next(learning.context.network.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match=r"predictions stopped being finite; a lower training\.lr"):
        learning.end()
