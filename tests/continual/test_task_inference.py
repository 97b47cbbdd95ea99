"""Inference of the task of a sample from slopes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_learning import fit_task, learn, small_stream, small_units, start
from torch import nn
from torch.func import functional_call

from fedkd.continual.masks.supsup import SupSup
from fedkd.continual.masks.task_inference import Superposition, keep_units
from fedkd.continual.registry import make_learner
from fedkd.errors import UserError
from fedkd.models.zoo.cnn import cnn
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.randomness import seeded_torch, torch_generator
from fedkd.training.evaluate import predict_logits
from fedkd.training.optimizer import OptimizerSpec

ADAM = OptimizerSpec("adam", 0.01)
OBJECTIVES = ["entropy", "superfluous"]


def network_of(kind, outputs):
    with seeded_torch(3):
        if kind == "mlp":
            return mlp((1, 8, 8), outputs, hidden=(12,)).eval()
        if kind == "cnn":
            return cnn((1, 8, 8), outputs, features=8).eval()
        return resnet8((1, 8, 8), outputs, norm="batch" if kind == "batch" else "group").eval()


def together(network, count, objective="entropy", classes=4, seed=0):
    g = torch_generator(seed, "masks")
    weights = {name: p for name, p in network.named_parameters() if p.dim() > 1}
    drawn = [
        {name: torch.rand(p.shape, generator=g) < 0.4 for name, p in weights.items()} for _ in range(count)
    ]
    shapes = {n: b.shape for n, b in network.named_buffers() if b.is_floating_point()}
    statistics = [
        {
            n: 0.1 * torch.randn(shape, generator=g)
            if n.endswith("running_mean")
            else 0.1 + torch.rand(shape, generator=g)
            for n, shape in shapes.items()
        }
        for _ in range(count)
    ]
    return Superposition(
        lambda x, tensors: functional_call(network, tensors, (x,)),
        weights,
        drawn,
        statistics,
        objective,
        classes,
    )


def by_autograd(network, own, x, members, objective):
    """The slopes from reverse-mode differentiation by α, a sample at a time."""
    rows = []
    for sample in x:
        alphas = torch.full((len(members),), 1.0 / len(members), requires_grad=True)
        tensors = {
            name: w * sum(a * own.masks[i][name] for a, i in zip(alphas, members, strict=True))
            for name, w in own.weights.items()
        }
        for name in own.statistics[0]:
            tensors[name] = torch.stack([own.statistics[i][name] for i in members]).mean(dim=0)
        outputs = functional_call(network, tensors, (sample[None],))
        if objective == "entropy":
            value = torch.distributions.Categorical(logits=outputs).entropy().sum()
        else:
            real, further = outputs[:, : own.classes].detach(), outputs[:, own.classes :]
            value = torch.cat([real, further], dim=1).logsumexp(dim=1).sum()
        rows.append(torch.autograd.grad(value, alphas)[0])
    return torch.stack(rows).double()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", ["mlp", "cnn", "group", "batch"])
def test_slopes_equal_autograd(kind, objective):
    network = network_of(kind, 7)
    own = together(network, 3, objective)
    x = torch.randn(4, 1, 8, 8, generator=torch_generator(1, "x"))
    for members in ([0, 1, 2], [2, 0]):
        expected = by_autograd(network, own, x, members, objective)
        torch.testing.assert_close(own.slopes(x, members), expected, rtol=1e-3, atol=1e-6)
        assert expected.abs().min() > 1e-5


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_slopes_of_a_linear_network_equal_the_formula(objective):
    network = nn.Linear(3, 5, bias=False).eval()
    own = together(network, 2, objective, classes=3)
    x = torch.randn(6, 3, generator=torch_generator(2, "x"))
    w = network.weight.detach().double().numpy()
    parts = [x.double().numpy() @ (w * mask["weight"].numpy()).T for mask in own.masks]
    z = 0.5 * (parts[0] + parts[1])
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    entropy = -(p * np.log(p)).sum(axis=1, keepdims=True)
    for i, direction in enumerate(parts):
        if objective == "entropy":
            expected = -(p * (np.log(p) + entropy) * direction).sum(axis=1)
        else:
            expected = (p[:, 3:] * direction[:, 3:]).sum(axis=1)
        np.testing.assert_allclose(own.slopes(x, [0, 1])[:, i].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_slopes_of_a_sample_ignore_the_other_samples():
    own = together(network_of("batch", 4), 3)
    x = torch.randn(5, 1, 8, 8, generator=torch_generator(3, "x"))
    every = own.slopes(x, range(3))
    torch.testing.assert_close(every[1:3], own.slopes(x[1:3], range(3)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_halving_keeps_the_smaller_slopes(count):
    network = network_of("mlp", 4)
    own = together(network, count)
    x = torch.randn(6, 1, 8, 8, generator=torch_generator(4, "x"))
    expected = []
    for sample in x:
        members = list(range(count))
        while len(members) > 1:
            slopes = own.slopes(sample[None], members)[0]
            kept = sorted(range(len(members)), key=lambda i: float(slopes[i]))[: (len(members) + 1) // 2]
            members = [members[i] for i in sorted(kept)]
        expected.append(members[0])
    assert own.binary(x).tolist() == expected
    assert own.one_shot(x).tolist() == own.slopes(x, range(count)).argmin(dim=1).tolist()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_mask_alone_has_its_own_statistics(objective):
    network = network_of("batch", 7)
    x = torch.randn(9, 1, 8, 8, generator=torch_generator(5, "x"))
    winners = set()
    for seed in range(5):
        own = together(network, 3, objective, seed=seed)
        values = []
        for mask, statistics in zip(own.masks, own.statistics, strict=True):
            tensors = {name: weight * mask[name] for name, weight in own.weights.items()}
            z = functional_call(network, {**tensors, **statistics}, (x,)).detach().double().numpy()
            p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
            values.append(-(p * np.log(p)).sum(axis=1) if objective == "entropy" else p[:, 4:].sum(axis=1))
        assert own.exhaustive(x).tolist() == np.stack(values).argmin(axis=0).tolist()
        winners.update(own.exhaustive(x).tolist())
    assert len(winners) > 1


def test_inference_accepts_no_samples():
    own = together(network_of("mlp", 4), 3)
    empty = torch.empty(0, 1, 8, 8)
    assert own.one_shot(empty).shape == own.binary(empty).shape == own.exhaustive(empty).shape == (0,)


def test_units_of_other_tasks_are_excluded():
    outputs = torch.tensor([[5.0, -9.0, -1.0, 7.0], [0.0, 1.0, 2.0, 3.0]])
    closed = keep_units(outputs, torch.tensor([1, 2]))
    assert closed.tolist() == [[-39.0, -9.0, -1.0, -39.0], [-29.0, 1.0, 2.0, -29.0]]
    assert torch.equal(keep_units(outputs, torch.arange(4)), outputs)


# With a learner -----------------------------------------------------------------------------------------


def far_apart(tasks, *, samples=60, seed=0):
    """Tasks whose inputs live in different coordinates: easy to tell apart."""
    g = torch.Generator().manual_seed(seed)
    stream = []
    for task in range(tasks):
        y = torch.arange(samples) % 2
        x = 0.1 * torch.randn(samples, 6 * tasks, generator=g)
        centres = 2.0 * torch.randn(2, 6, generator=g)
        x[:, 6 * task : 6 * task + 6] += centres[y]
        stream.append((x, y))
    return stream


def wide_mlp(inputs, outputs):
    with seeded_torch(5):
        return mlp((inputs,), outputs, hidden=(64,))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_task_of_a_sample_is_inferred(objective):
    stream = far_apart(3)
    learner = make_learner("exssnet", {"density": 0.4, "objective": objective, "superfluous_units": 10})
    learning = start(learner, wide_mlp(18, 12), stream, small_units(3, shared=True))
    for task in range(3):
        fit_task(learning, stream, task, epochs=20, optimizer=ADAM)
        learning.end()
    for inference in ("one-shot", "binary", "exhaustive"):
        finder = replace(learner, inference=inference)
        learning.context.network.eval()
        right = [
            (finder.infer(learning.context, [0, 1, 2], x) == task).float().mean()
            for task, (x, _) in enumerate(stream)
        ]
        assert torch.stack(right).mean() > 0.8
        outputs = finder.predict_without_task(learning.context, learning.model(), stream[0][0])[0]
        assert outputs.shape == (60, 2)


def test_outputs_belong_to_the_inferred_task():
    stream = small_stream(3, shape=(1, 8, 8))
    learner = SupSup(density=0.3)
    learning = learn(learner, network_of("batch", 6), stream, optimizer=ADAM)
    x = torch.cat([x for x, _ in stream])
    modes = [module.training for module in learning.context.network.modules()]
    outputs = learner.predict_without_task(learning.context, learning.model(), x)[0]
    assert modes == [module.training for module in learning.context.network.modules()]
    learning.context.network.eval()
    inferred = learner.infer(learning.context, [0, 1, 2], x)
    for task in range(3):
        rows = inferred == task
        own = predict_logits(learning.model(task), x)
        torch.testing.assert_close(outputs[rows][:, list(learning.context.units[task])], own[rows])
        assert torch.isin(outputs[rows].argmax(dim=1), learning.context.units[task]).all()
    assert len(inferred.unique()) > 1 and outputs.isfinite().all()


def test_the_inferred_mask_determines_the_tasks():
    stream = small_stream(3)
    learner = SupSup(density=0.3)
    learning = start(learner, mlp((6,), 6, hidden=(16,)), stream)
    for task in (0, 2):
        fit_task(learning, stream, task)
        learning.end()
    x = torch.cat([x for x, _ in stream])
    learning.context.network.eval()
    inferred = learner.infer(learning.context, [0, 2], x)  # a position among the masks there are
    _, tasks = learner.predict_without_task(learning.context, learning.model(), x)
    assert torch.equal(tasks.int().argmax(dim=1), 2 * inferred) and torch.equal(
        tasks.sum(dim=1), torch.ones(len(x))
    )
    assert not tasks[:, 1].any()  # a task that was missed has no mask


def test_tasks_that_share_a_mask_are_inferred_together():
    first, second = far_apart(2, samples=200)
    learner, learning = unknown([first, second, first], epochs=8)
    slots = learning.context.memory["slots"].tolist()
    assert slots[0] == slots[2] != slots[1]
    _, tasks = learner.predict_without_task(
        learning.context, learning.model(), torch.cat([first[0], second[0]])
    )
    assert torch.equal(tasks[:, 0], tasks[:, 2]) and not (tasks[:, 0] & tasks[:, 1]).any()
    assert tasks[:200, 0].float().mean() > 0.8 and tasks[200:, 1].float().mean() > 0.8


def test_learners_without_inference_say_so():
    stream = small_stream(2)
    learner = make_learner("packnet", {})
    learning = learn(learner, mlp((6,), 4, hidden=(16,)), stream, optimizer=ADAM)
    outputs, tasks = learning.predict_without_task(learning.model(), stream[0][0])
    assert tasks is None and torch.equal(outputs, learning.model().outputs(stream[0][0]))


def test_tasks_without_training_are_no_candidates():
    stream = small_stream(3)
    learner = SupSup()
    learning = start(learner, mlp((6,), 6, hidden=(16,)), stream)
    x = stream[0][0]
    learning.enter(0)
    model = learning.model()
    outputs, _ = learner.predict_without_task(learning.context, model.eval(), x)
    assert torch.equal(outputs, model.outputs(x))
    fit_task(learning, stream, 2)
    assert learner.slots(learning.context) == [2]


# Unknown boundaries -------------------------------------------------------------------------------------


def unknown(stream, epochs=4, **options):
    learner = SupSup(boundaries="unknown", density=0.4, mask_lr=0.01, mask_optimizer="adam", **options)
    network = wide_mlp(stream[0][0].shape[1], 2)
    learning = start(learner, network, stream, small_units(len(stream), shared=True))
    for task in range(len(stream)):
        fit_task(learning, stream, task, epochs=epochs)
        learning.end()
    return learner, learning


def test_new_tasks_open_masks_and_old_tasks_reuse_theirs():
    first, second = far_apart(2, samples=200)
    learner, learning = unknown([first, second, first, second], epochs=8)
    slots = learning.context.memory["slots"].tolist()
    assert slots[0] != slots[1]
    assert slots[2:] == slots[:2]
    assert learner.report(learning.context)["masks"] == len(learner.slots(learning.context))
    for task, (x, y) in enumerate([first, second]):
        assert (predict_logits(learning.model(task), x).argmax(1) == y).float().mean() > 0.8
    outputs = learner.predict_without_task(learning.context, learning.model(), first[0])[0]
    assert (outputs.argmax(1) == first[1]).float().mean() > 0.8


@pytest.mark.parametrize(("tolerance", "masks"), [(1e-9, 1), (1e9, 3)])
def test_the_boundary_tolerance_determines_the_number_of_masks(tolerance, masks):
    stream = far_apart(1, samples=200)
    learner, learning = unknown(stream, epochs=3, boundary_tolerance=tolerance)
    assert len(learner.slots(learning.context)) == masks


def test_the_boundary_decision_equals_the_formula():
    stream = far_apart(2)
    learner, learning = unknown(stream[:1], epochs=3)
    context = learning.context
    opened = len(learner.slots(context))
    fresh = [learner.memory(context).masks(slot) for slot in range(max(opened, 5))]
    own = Superposition(
        context.run, learner.memory(context).weights, fresh, [{}] * len(fresh), "entropy", context.outputs
    )
    order = torch.randperm(60, generator=context.generator("boundary"))
    slopes = own.slopes(stream[0][0][order], range(len(fresh))).mean(dim=0).numpy()
    confidence = np.exp(-slopes) / np.exp(-slopes).sum()
    best = int(confidence.argmax())
    new = len(fresh) * confidence[best] < 1.125 or best >= opened
    assert learner._infer_slot(context) == (opened if new else best)


def test_unknown_boundaries_exclude_other_hints_of_the_task():
    learner = SupSup(boundaries="unknown")
    with pytest.raises(UserError, match="running statistics") as refused:
        learner.check(network_of("batch", 4))
    assert refused.value.key == "continual.boundaries"
    learner.check(network_of("group", 4))
    with pytest.raises(UserError, match="known task boundaries"):
        make_learner("supsup", {"boundaries": "unknown", "kkt": True})
    stream = far_apart(2)
    _, learning = unknown(stream)
    unmet = start(learner, wide_mlp(12, 2), stream, small_units(2, shared=True))
    assert torch.equal(unmet.model(0)(stream[0][0]), unmet.model(1)(stream[0][0]))
    assert learning.learner.report(learning.context)["stored_bits_per_weight"] == 32.0


def test_a_resumed_learner_with_unknown_boundaries_is_the_same():
    stream = far_apart(2)
    learner = SupSup(boundaries="unknown")
    units = small_units(2, shared=True)
    whole = start(learner, wide_mlp(12, 2), stream, units)
    resumed = start(learner, wide_mlp(12, 2), stream, units)
    for task in range(2):
        for epoch in range(3):
            for learning in (whole, resumed):
                fit_task(learning, stream, task, epochs=1, first=epoch, task_epochs=3, optimizer=ADAM)
            state = {name: values.copy() for name, values in resumed.state().items()}
            resumed = start(learner, wide_mlp(12, 2), stream, units)
            resumed.restore(state)
    ours, theirs = whole.state(), resumed.state()
    assert ours.keys() == theirs.keys()
    assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)
