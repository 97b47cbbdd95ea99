"""Products with low-rank inputs equal those with the full weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_learning import SGD, fit_task, small_stream, small_units, start, train
from torch import nn
from torch.func import functional_call, vmap

from fedkd.continual.fast_steps import PLAIN as PLAIN_FORM
from fedkd.continual.fast_steps import step_form
from fedkd.continual.mixins import task_parameters_of
from fedkd.continual.subspace.cuber import CUBER
from fedkd.continual.subspace.fast.coordinate_steps import CoordinateSteps
from fedkd.continual.subspace.fast.factored_gradient import FactoredWeight, Scaling
from fedkd.continual.subspace.fast.subspace_coordinates import SubspaceCoordinates
from fedkd.continual.subspace.gpm import GPM
from fedkd.continual.subspace.layer_memory import BASIS, REGIME, SCALE
from fedkd.continual.subspace.trgp import TRGP
from fedkd.models.zoo.mlp import mlp
from fedkd.training.evaluate import predict_logits
from fedkd.training.optimizer import OptimizerSpec

MOMENTUM = OptimizerSpec("sgd", 0.05, momentum=0.9, weight_decay=0.01)
ADAM = OptimizerSpec("adam", 0.01)
CLIPPED = OptimizerSpec("sgd", 0.1, clip_norm=0.5)
LEARNERS = [
    GPM(threshold=0.8),
    TRGP(threshold=0.8, relatedness=0.0),
    CUBER(threshold=0.8, relatedness=0.0),
    CUBER(threshold=0.8, relatedness=0.0, correlation=0.2, strength=0.1),
]


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=g(seed)).double()


def layer(*, bias=True, dtype=torch.float64):
    """Return a layer 7 → 9, its scaled factored weight, its scales, and w̃ with a graph to them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Linear(7, 9, bias=bias, dtype=dtype)
    weight = linear.weight
    basis = torch.linalg.qr(draw(7, 5))[0].to(dtype)
    places = [torch.tensor([0, 1, 3]), torch.tensor([1, 2, 3, 4])]
    scales = [(torch.eye(r) + 0.3 * draw(r, r, seed=r)).to(dtype).requires_grad_() for r in (3, 4)]

    def dense():
        parts = [basis[:, place] for place in places]
        added = [
            weight.detach() @ b @ (q - torch.eye(len(q))) @ b.T for b, q in zip(parts, scales, strict=True)
        ]
        return weight + sum(added)

    scaling = Scaling(weight.detach(), basis, places, scales)
    return linear, FactoredWeight.make(weight, dense, 6, scaling), scales, dense


def is_factored(outputs):
    """Return whether outputs were computed from transformed inputs; a view of them may have been taken."""
    node = outputs.grad_fn
    names = [type(found).__name__ for found in (node, *(before for before, _ in node.next_functions))]
    return any("Factored" in name for name in names)


def gradients(value, tensors):
    return torch.autograd.grad(value.sin().sum(), tensors)


# Products ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 7), (2, 3, 7), (7,), (7, 7), (0, 7)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_and_gradients_equal_those_of_the_effective_weight(shape, bias):
    linear, thin, scales, dense = layer(bias=bias)
    x = draw(*shape, seed=9).requires_grad_()
    tensors = [x, *linear.parameters(), *scales]
    ours = functional_call(linear, {"weight": thin}, (x,))
    theirs = functional_call(linear, {"weight": dense()}, (x,))
    assert type(ours) is torch.Tensor
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert is_factored(ours) == (shape != (7, 7))
    for one, other in zip(gradients(ours, tensors), gradients(theirs, tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_other_operations_use_the_effective_weight():
    linear, thin, scales, dense = layer()
    assert torch.equal(thin, dense()) and thin.shape == (9, 7)
    assert type(thin.detach()) is type(thin + 0) is torch.Tensor
    assert torch.equal(torch.cat([thin, thin]), torch.cat([dense()] * 2))
    x = draw(4, 7)
    torch.testing.assert_close(F.linear(input=x, weight=thin), x @ dense().T)
    found = gradients(x @ thin.T, [linear.weight, *scales])
    for one, other in zip(found, gradients(x @ dense().T, [linear.weight, *scales]), strict=True):
        assert torch.equal(one, other)
    over_samples = vmap(lambda row: functional_call(linear, {"weight": thin}, (row,)))(x)
    torch.testing.assert_close(over_samples, functional_call(linear, {"weight": dense()}, (x,)))


def test_reduced_precision_equals_that_of_the_effective_weight():
    _, thin, _, dense = layer(bias=False, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = F.linear(draw(4, 7).float(), thin)
        assert found.dtype == torch.bfloat16 and not is_factored(found)
        assert torch.equal(found, F.linear(draw(4, 7).float(), dense()))


# What a gradient is a product of --------------------------------------------------------------------------


def backward(linear, thin, *inputs, penalty=0.0):
    linear.weight.grad = None
    values = [functional_call(linear, {"weight": thin}, (x,)).sin().sum() for x in inputs]
    (sum(values) + penalty).backward()
    return linear.weight.grad


def test_factors_are_known_for_the_gradient_of_one_product():
    linear, thin, _, dense = layer()
    for seed in (1, 2):  # the last call's
        x = draw(5, 7, seed=seed)
        gradient = backward(linear, thin, x)
        outputs, inputs, *_ = thin.factors_of(gradient)
        assert torch.equal(inputs, x)
        torch.testing.assert_close(outputs, F.linear(x, dense(), linear.bias).cos().detach())
        torch.testing.assert_close(gradient, outputs.T @ x)
    thin.forget()
    assert thin.factors_of(gradient) is None


def test_other_gradients_have_no_known_factors():
    linear, thin, _, _ = layer()
    x = draw(5, 7)
    assert thin.factors_of(draw(9, 7)) is None  # none was met
    assert thin.factors_of(backward(linear, thin, x, draw(5, 7, seed=1))) is None
    assert thin.factors_of(backward(linear, thin, x, draw(7, 7, seed=1))) is None  # the other was too large
    assert thin.factors_of(backward(linear, thin, x, penalty=linear.weight.square().sum())) is None
    assert thin.factors_of(backward(linear, thin, x, penalty=thin.square().sum())) is None
    gradient = backward(linear, thin, x)
    assert thin.factors_of(gradient) is not None
    assert thin.factors_of(gradient.clone()) is None
    assert thin.factors_of(gradient[:8]) is None
    value = functional_call(linear, {"weight": thin}, (x,)).sin().sum()
    value.backward()  # onto what is there
    assert thin.factors_of(linear.weight.grad) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: nn.utils.clip_grad_norm_([weight], 1e-3),
        lambda weight: nn.utils.clip_grad_value_([weight], 1e-3),
        lambda weight: weight.grad.add_(torch.ones_like(weight)),
        lambda weight: weight.grad[2:3].zero_(),
    ],
    ids=["clipped", "cut", "corrected", "in part"],
)
def test_a_gradient_changed_in_place_has_no_known_factors(change):
    linear, thin, _, _ = layer()
    backward(linear, thin, draw(5, 7))
    assert thin.factors_of(linear.weight.grad) is not None
    change(linear.weight)
    assert thin.factors_of(linear.weight.grad) is None


def test_a_gradient_changed_by_a_hook_has_no_known_factors():
    linear, thin, _, _ = layer()
    for hook in (lambda gradient: 2.0 * gradient, lambda gradient: gradient.mul_(2.0)):
        handle = linear.weight.register_hook(hook)
        assert thin.factors_of(backward(linear, thin, draw(5, 7))) is None
        handle.remove()


# Learners -------------------------------------------------------------------------------------------------


def wide(*, bias=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mlp((12,), 4, hidden=[24, 20], bias=bias).double()


def double_stream(tasks):
    return [(x.double(), y) for x, y in small_stream(tasks, shape=(12,), seed=2)]


def counted(monkeypatch):
    """Return a list that gets the factors of every gradient that they are asked of."""
    known = []
    factors_of = FactoredWeight.factors_of

    def watch(weight, gradient):
        known.append(factors_of(weight, gradient))
        return known[-1]

    monkeypatch.setattr(FactoredWeight, "factors_of", watch)
    return known


def course(learner, *, optimizer, bias=False, drag=0.0, corrected=False, many=False, accumulate=1, fast=True):
    """Return a network and context after three tasks.

    Args:
        learner: How.
        optimizer: Of all steps.
        bias: Whether layers have biases.
        drag: Strength of a penalty on the way from the first weights.
        corrected: Whether something is added to the gradients.
        many: Whether the model is called for more inputs besides.
        accumulate: Batches a step.
        fast: Whether steps take their fast form.
    """
    stream = double_stream(3)
    net = wide(bias=bias)
    learning = start(learner, net, stream, small_units(3, shared=True), batch_size=4, fast=fast)
    first = {name: p.detach().clone() for name, p in net.named_parameters()}
    options = {"accumulate": accumulate}
    if corrected:
        options["correction"] = [draw(*p.shape, seed=3) * 0.1 for p in net.parameters()]

    def loss(model, x, y):
        value = F.cross_entropy(model(x), y)
        if drag:
            pairs = net.named_parameters()
            value = value + drag * sum((p - first[name]).square().sum() for name, p in pairs)
        if many:
            value = value + 0.1 * model(0.5 * x.repeat(20, 1)).square().mean()
        return value

    for task, (x, y) in enumerate(stream):
        learning.enter(task)
        train(
            learning, (x, y), loss, optimizer=optimizer, epochs=range(2), task_epochs=2, batch_size=4,
            generator=g(task), seed=task, **options,
        )  # fmt: skip
        learning.end()
    return net, learning.context


PLAIN = {
    "sgd": {"optimizer": SGD},
    "bias": {"optimizer": SGD, "bias": True},
    "momentum": {"optimizer": MOMENTUM},
    "adam": {"optimizer": ADAM},
}
OTHER = {
    "clipped": {"optimizer": CLIPPED},
    "drag": {"optimizer": SGD, "drag": 0.1},
    "corrected": {"optimizer": SGD, "corrected": True},
    "many": {"optimizer": SGD, "many": True},
    "accumulated": {"optimizer": SGD, "accumulate": 2},
}


@pytest.mark.parametrize(
    ("learner", "way"),
    # TRGP both projects and scales; the others go the same ways, and differ in what becomes of the steps.
    [
        *[pytest.param(LEARNERS[1], way, id=f"trgp-{way}") for way in (*PLAIN, *OTHER)],
        *[
            pytest.param(LEARNERS[number], way, id=f"{name}-{way}")
            for number, name in ((0, "gpm"), (2, "cuber"), (3, "cuber-bold"))
            for way in ("sgd", "momentum", "many")
        ],
    ],
)
def test_low_rank_products_leave_learning_unchanged(monkeypatch, learner, way):
    known = counted(monkeypatch)
    options = (PLAIN | OTHER)[way]
    net, context = course(learner, **options)
    used = sum(factors is not None for factors in known)
    if way in PLAIN:
        assert used
    else:  # there were others, by a penalty, a correction, ...
        assert len(known) > used
    other, others = course(learner, fast=False, **options)
    for (name, ours), theirs in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10, msg=name)
    assert context.memory.keys() == others.memory.keys()
    assert any(name.startswith(SCALE) for name in context.memory) == (learner.name != "gpm")
    for task in range(3):  # directions of either sign are the same
        theirs = task_parameters_of(learner, others, task)
        for name, weight in task_parameters_of(learner, context, task).items():
            torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-10)


def test_a_subclass_that_overrides_a_step_uses_plain_weights():
    class Mine(GPM):
        def project(self, context, gradients):
            return super().project(context, gradients)

    class Named(GPM):
        """Overrides nothing that a form computes."""

    assert step_form(Mine()) is step_form(GPM(), fast=False) is PLAIN_FORM
    assert step_form(Named()) is step_form(GPM()) is GPM.step_form is not PLAIN_FORM


@pytest.mark.parametrize("strength", [1e3, 0.3, 0.05, 0.0])
def test_updates_in_coordinates_equal_plain_updates(monkeypatch, strength):
    """Held at the centre, let go now and then, and free; some tasks leave R3 on the way."""
    learner = CUBER(threshold=0.8, relatedness=0.0, correlation=-0.3, strength=strength)
    advanced, pending = [], []
    advance, give = SubspaceCoordinates.advance, SubspaceCoordinates.pending
    monkeypatch.setattr(SubspaceCoordinates, "advance", lambda s, inside: advanced.append(advance(s, inside)))

    def noted(self):
        pending.append(give(self))
        return pending[-1]

    monkeypatch.setattr(SubspaceCoordinates, "pending", noted)
    net, context = course(learner, optimizer=SGD)
    steps = len(advanced)
    assert steps > 20
    assert (max(float(part.norm()) for part in pending) > 1e-3) == (strength < 1e3)
    monkeypatch.setattr(CoordinateSteps, "applies", lambda self, learner, memory: False)
    other, others = course(learner, optimizer=SGD)
    assert len(advanced) == steps
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert all(
        torch.equal(values, others.memory[name])
        for name, values in context.memory.items()
        if name.startswith(REGIME)
    )


@pytest.mark.parametrize("way", ["momentum", "adam", *OTHER])
def test_plain_updates_are_used_with_other_gradient_terms(monkeypatch, way):
    """By momentum and Adam from the beginning; else from where the first step of an epoch has shown it."""
    learner = CUBER(threshold=0.8, relatedness=0.0, correlation=-1.0, strength=0.05)
    advanced = []
    advance = SubspaceCoordinates.advance
    monkeypatch.setattr(SubspaceCoordinates, "advance", lambda s, inside: advanced.append(advance(s, inside)))
    options = (PLAIN | OTHER)[way]
    net, _ = course(learner, **options)
    assert not advanced
    monkeypatch.setattr(CoordinateSteps, "applies", lambda self, learner, memory: False)
    other, _ = course(learner, **options)
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_a_failed_step_leaves_the_weight_complete(monkeypatch):
    """Whoever goes on with a client whose loss raised finds in its weights what steps have made of them."""
    stream = double_stream(2)
    learner = CUBER(threshold=0.8, relatedness=0.0, correlation=-1.0, strength=0.0)
    nets = [wide(), wide()]
    for net in nets:
        learning = start(learner, net, stream, small_units(2, shared=True), batch_size=4)
        fit_task(learning, stream, 0)
        learning.enter(1)
        begun = net.body[1].weight.detach().clone()
        left = iter(range(3))

        def loss(model, x, y, left=left):
            if next(left, None) is None:
                raise ZeroDivisionError
            return F.cross_entropy(model(x), y)

        with pytest.raises(ZeroDivisionError):
            train(
                learning, stream[1], loss, optimizer=SGD, epochs=range(1), task_epochs=1, batch_size=4,
                generator=g(), seed=0,
            )  # fmt: skip
        monkeypatch.setattr(CoordinateSteps, "applies", lambda self, learner, memory: False)
    assert (nets[0].body[1].weight - begun).norm() > 1e-2
    for ours, theirs in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("learner", LEARNERS[:3], ids=["gpm", "trgp", "cuber"])
def test_no_loss_moves_weights_within_old_subspaces(learner):
    """Two calls of the model, a penalty on the weights themselves, a correction and clipping."""
    stream = double_stream(2)
    if learner.name == "cuber":
        learner = CUBER(threshold=0.8, relatedness=0.0, correlation=1.1)
    net = wide()
    learning = start(learner, net, stream, small_units(2, shared=True), batch_size=4)
    fit_task(learning, stream, 0)
    learning.enter(1)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    losses = [
        lambda model, x, y: F.cross_entropy(model(x), y),
        lambda model, x, y: F.cross_entropy(model(x), y) + 0.1 * model(x.flip(0)).square().mean(),
        lambda model, x, y: F.cross_entropy(model(x), y) + 0.1 * model(x.repeat(20, 1)).square().mean(),
        lambda model, x, y: F.cross_entropy(model(x), y) + 0.1 * net.body[1].weight.square().sum(),
    ]
    corrections = [None, [0.1 * draw(*p.shape, seed=3) for p in net.parameters()]]
    for number, loss in enumerate(losses):
        for clip in (None, 0.1):
            for correction in corrections:
                train(
                    learning, stream[1], loss, optimizer=OptimizerSpec("sgd", 0.05, clip_norm=clip),
                    epochs=range(1), task_epochs=1, batch_size=4, generator=g(number), seed=number,
                    correction=correction,
                )  # fmt: skip
    for name, old in before.items():
        change = net.get_parameter(name).detach() - old
        basis = learning.context.memory[BASIS + name.removesuffix(".weight")]
        assert change.norm() > 1e-2
        assert (change @ basis).norm() < 1e-12 * change.norm() + 1e-12


@pytest.mark.parametrize("learner", LEARNERS, ids=["gpm", "trgp", "cuber", "cuber-bold"])
def test_a_restored_learner_continues_to_the_bit(monkeypatch, learner):
    known = counted(monkeypatch)
    stream = [(x.float(), y) for x, y in double_stream(3)]
    nets = [wide().float(), wide().float()]
    learning, other = (start(learner, net, stream, small_units(3, shared=True), batch_size=4) for net in nets)
    for task in range(3):
        fit_task(learning, stream, task, epochs=1, task_epochs=2, batch_size=4)
        nets[1].load_state_dict(nets[0].state_dict())
        other.restore({name: values.copy() for name, values in learning.state().items()})
        for either in (learning, other):
            fit_task(either, stream, task, first=1, epochs=1, task_epochs=2, batch_size=4)
            either.end()
        assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets), strict=True))
        kept = learning.context.memory
        assert kept.keys() == other.context.memory.keys()
        assert all(torch.equal(values, other.context.memory[name]) for name, values in kept.items())
    assert any(known)


def test_the_cache_lives_for_one_epoch():
    stream = double_stream(2)
    seen = []
    nets = [wide(), wide()]
    for net, look in zip(nets, (False, True), strict=True):
        learner = TRGP(threshold=0.8, relatedness=0.0)
        learning = start(learner, net, stream, small_units(2, shared=True), batch_size=4)
        fit_task(learning, stream, 0)
        learning.enter(1)

        def loss(model, x, y, context=learning.context):
            seen.append(dict(context.step_cache))
            return F.cross_entropy(model(x), y)

        def evaluate(learning=learning):
            assert learning.context.step_cache is None
            found = learning.learner.task_parameters(learning.context, 1)
            assert found and not any(isinstance(weight, FactoredWeight) for weight in found.values())
            predict_logits(learning.model(1), stream[1][0])
            learning.context.network.train()

        train(
            learning, stream[1], loss, optimizer=SGD, epochs=range(3), task_epochs=3, batch_size=4,
            generator=g(), seed=0, after_epoch=evaluate if look else None,
        )  # fmt: skip
        assert learning.context.step_cache is None
        with pytest.raises(ZeroDivisionError):
            train(
                learning, stream[1], lambda model, x, y: 1 / 0, optimizer=SGD, epochs=range(1), task_epochs=1,
                batch_size=4, generator=g(), seed=0,
            )  # fmt: skip
        assert learning.context.step_cache is None
    assert all(isinstance(found["body.1"], FactoredWeight) for found in seen)
    assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets), strict=True))
