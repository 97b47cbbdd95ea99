"""CUBER's regimes and steps against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_learning import SGD, fit_task, learn, small_stream, small_units, start, train
from torch.func import functional_call

from fedkd.continual.baselines.baselines import Naive
from fedkd.continual.registry import make_learner
from fedkd.continual.subspace.cuber import CUBER
from fedkd.continual.subspace.gpm import GPM
from fedkd.continual.subspace.layer_memory import (
    BASIS,
    COLUMNS,
    FLEXIBLE,
    GRADIENT,
    REGIME,
    SCALE,
    SCRATCH,
    LayerMemory,
)
from fedkd.continual.subspace.trgp import TRGP
from fedkd.errors import UserError
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.training.evaluate import predict_logits
from fedkd.training.optimizer import OptimizerSpec

SHARED = small_units(4, shared=True)
ADAM = OptimizerSpec("adam", 0.01, weight_decay=0.01)
MOMENTUM = OptimizerSpec("sgd", 0.05, momentum=0.9)
LAYERS = ("body.1", "body.3", "head")


def network(outputs=2, *, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mlp((12,), outputs, hidden=[9, 8], bias=False)


def cuber(**args):
    return CUBER(**{"threshold": 0.9, "relatedness": 0.1, "strength": 0.1, **args})


def alike(tasks, *, samples=24, rank=12, seed=0):
    """Return tasks of the same two classes, so that their gradients agree, each with noise of its own."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 2
    centres = 2.0 * torch.randn(2, rank, generator=g)
    spread = torch.eye(12) if rank == 12 else torch.randn(rank, 12, generator=g)
    return [((centres[y] + torch.randn(samples, rank, generator=g)) @ spread, y) for _ in range(tasks)]


def turned(task):
    """Return a task with the other labels, whose gradient disagrees."""
    return task[0], 1 - task[1]


def begun(learner, stream, task=1, **options):
    """Return a learner at the start of a task, and its network; earlier ones were trained for an epoch."""
    net = network()
    learning = start(learner, net, stream, SHARED[: len(stream)], batch_size=len(stream[0][0]), **options)
    for old in range(task):
        fit_task(learning, stream, old, epochs=1)
        learning.end()
    learning.enter(task)
    return learning, net


def step(learning, stream, task, first=0, **options):
    """Take one step with all samples."""
    fit_task(learning, stream, task, first=first, epochs=1, task_epochs=9, batch_size=24, **options)


def regimes(learning):
    return {name: learning.context.memory[REGIME + name][1].tolist() for name in LAYERS}


def basis_of(context, name, task):
    columns = context.memory[f"{COLUMNS}{task}/{name}"].long().numpy()
    return context.memory[BASIS + name].double().numpy()[:, columns]


def gradients_of(net, x, y, through=None):
    """Return the gradients for the plain weights; `through`: from them to the effective ones."""
    leaves = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    used = leaves if through is None else through(leaves)
    F.cross_entropy(functional_call(net, used, (x,)), y).backward()
    return {name: leaf.grad.double().numpy() for name, leaf in leaves.items()}


# Regimes --------------------------------------------------------------------------------------------------


def test_regimes_match_the_table_of_the_paper():
    stream = alike(4, seed=2)
    stream[1] = turned(stream[1])
    seen = set()
    for least, cosine in ((0.0, -0.3), (0.0, 0.3), (0.6, 0.0), (0.8, 0.3)):
        learning, net = begun(cuber(threshold=0.7, relatedness=least, correlation=cosine), stream, 3)
        context = learning.context
        gradients = gradients_of(net, *stream[3])
        for name in LAYERS:
            gradient = gradients[f"{name}.weight"]
            shares = []
            for old in range(3):
                b = basis_of(context, name, old)
                shares.append(np.linalg.norm(gradient @ b @ b.T) / np.linalg.norm(gradient))
            largest = np.argsort(-np.round(shares, 6), kind="stable")[:2]  # of equal ones the first
            for old in range(3):
                kept = context.memory[f"{GRADIENT}{old}/{name}"].double().numpy()
                agrees = (kept * gradient).sum() >= cosine * np.linalg.norm(kept) * np.linalg.norm(gradient)
                related = shares[old] > least and old in largest
                expected = (3 if agrees else 2) if related else 1
                assert regimes(learning)[name][old] == expected
                assert (f"{SCALE}3/{name}/{old}" in context.memory) == related
                assert (f"{FLEXIBLE}{name}/{old}" in context.memory) == (expected == 3)
                assert learning.learner.report(context)[f"regime/{name}/{old}"] == expected
                seen.add(expected)
    assert seen == {1, 2, 3}


@pytest.mark.parametrize("learner", [GPM, TRGP, CUBER])
def test_bases_ignore_order_and_repetition_of_samples(learner):
    """Samples of each task span three of twelve dimensions, one of which it shares with the last task."""
    generator = torch.Generator().manual_seed(3)
    span, mix = (torch.linalg.qr(torch.randn(n, n, generator=generator).double())[0] for n in (12, 24))
    tasks = [span[:, 2 * task : 2 * task + 3] @ mix[:3] for task in range(3)]

    def bases(inputs):
        learning = start(learner(threshold=0.99), network(), alike(3), SHARED[:3])
        context = learning.context
        memory = LayerMemory(context, context.layers["body.1"])
        for context.task in range(3):
            learning.learner.extend(memory, inputs(tasks[context.task]), 0.99)
        memory.hold()
        chosen = [memory.columns(task) for task in range(3)]
        return memory.basis, memory.projection(torch.eye(12)), [c.tolist() for c in chosen if c is not None]

    basis, projector, chosen = bases(lambda own: own)
    assert basis.shape == (12, 7)
    for seed in range(3):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        for inputs in (
            lambda own, o=order: own[:, o],
            lambda own, o=order: torch.cat([own, own[:, o]], dim=1),
        ):
            found = bases(inputs)
            torch.testing.assert_close(found[0], basis, atol=1e-6, rtol=0)
            torch.testing.assert_close(found[1], projector, atol=1e-6, rtol=0)
            assert found[2] == chosen


def test_the_gradient_at_the_end_of_a_task_is_stored():
    stream = alike(3)
    learning, net = begun(cuber(), stream)
    context = learning.context
    for first in range(3):
        step(learning, stream, 1, first)

    def through(weights):
        out = dict(weights)
        for name in LAYERS:
            b = torch.from_numpy(basis_of(context, name, 0)).float()
            q = context.memory[f"{SCALE}1/{name}/0"].detach()
            w = weights[f"{name}.weight"]
            out[f"{name}.weight"] = w + w @ b @ q @ b.T - w @ b @ b.T
        return out

    expected = gradients_of(net, *stream[1], through)
    learning.end()
    for name in LAYERS:
        kept = context.memory[f"{GRADIENT}1/{name}"]
        np.testing.assert_allclose(kept, expected[f"{name}.weight"], atol=1e-6)
        assert not np.allclose(kept, gradients_of(net, *stream[1])[f"{name}.weight"], atol=1e-4)


def test_stored_state_is_bases_columns_scales_gradients_and_regimes():
    stream = alike(3)
    learning = learn(cuber(), network(), stream, SHARED[:3])
    memory = learning.context.memory
    kinds = {name.partition("/")[0] + "/" for name in memory}
    assert kinds == {BASIS, COLUMNS, SCALE, GRADIENT, REGIME}
    assert learning.context.stored_bytes() == sum(
        values.numel() * (1 if name.startswith(REGIME) else 4) for name, values in memory.items()
    )
    assert all(regime in (1.0, 2.0, 3.0) for regime in (
        learning.learner.report(learning.context)[f"regime/{name}/{old}"]
        for name in LAYERS for old in range(2)
    ))  # fmt: skip


# Steps in R3 ------------------------------------------------------------------------------------------------


# At 0.99 bases are wide: without R3, gradients would be projected with their complements.
@pytest.mark.parametrize(("strength", "threshold"), [(0.0, 0.8), (0.3, 0.8), (0.02, 0.99)])
def test_steps_in_regime_3_are_proximal(strength, threshold):
    stream = alike(2, seed=4)
    learning, net = begun(cuber(strength=strength, threshold=threshold, correlation=-1.0), stream)
    context = learning.context
    assert all(found == [3] for found in regimes(learning).values())
    bases = {name: basis_of(context, name, 0) for name in LAYERS}
    first = {name: p.detach().double().numpy().copy() for name, p in net.named_parameters()}
    w = {name: values.copy() for name, values in first.items()}
    q = {name: np.eye(basis.shape[1]) for name, basis in bases.items()}
    rate = 0.1
    for number in range(4):
        leaves = {
            name: [torch.from_numpy(values).requires_grad_() for values in (w[f"{name}.weight"], q[name])]
            for name in LAYERS
        }
        used = {}
        for name, (weight, scale) in leaves.items():
            b = torch.from_numpy(bases[name])
            used[f"{name}.weight"] = weight + weight @ b @ scale @ b.T - weight @ b @ b.T
        logits = functional_call(network().double(), used, (stream[1][0].double(),))
        F.cross_entropy(logits, stream[1][1]).backward()
        for name, (weight, scale) in leaves.items():
            b = bases[name]
            # Nothing is projected out: the only old task is in R3. The change within S_j shrinks by lr · λ.
            moved = w[f"{name}.weight"] - rate * weight.grad.numpy() - first[f"{name}.weight"]
            within = moved @ b @ b.T
            length = np.linalg.norm(within)
            shrunk = within * max(0.0, 1.0 - rate * strength / length)
            w[f"{name}.weight"] = first[f"{name}.weight"] + moved - within + shrunk
            q[name] = q[name] - rate * scale.grad.numpy()
        step(learning, stream, 1, number)
    for name in LAYERS:
        np.testing.assert_allclose(
            net.get_parameter(f"{name}.weight").detach(), w[f"{name}.weight"], atol=3e-6
        )
        np.testing.assert_allclose(context.memory[f"{SCALE}1/{name}/0"].detach(), q[name], atol=3e-6)


def movement(learning, net, before, name, old):
    """Return how far a layer's weight moved within an old task's subspace."""
    change = net.get_parameter(f"{name}.weight").detach() - before[f"{name}.weight"]
    return float((change.double() @ torch.from_numpy(basis_of(learning.context, name, old))).norm())


@pytest.mark.parametrize("tasks", [2, 3])
def test_a_stronger_penalty_moves_weights_less_within_regime_3(tasks):
    stream = alike(tasks, seed=4)
    found = {}
    for strength in (0.0, 0.02, 0.1, 1e6):
        learner = cuber(strength=strength, threshold=0.8, correlation=-1.0)
        learning, net = begun(learner, stream, tasks - 1)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        for first in range(8):
            step(learning, stream, tasks - 1, first)
        assert all(found == [3] * (tasks - 1) for found in regimes(learning).values())
        found[strength] = [movement(learning, net, before, name, 0) for name in LAYERS]
        assert sum(float((net.get_parameter(n) - w).detach().norm()) for n, w in before.items()) > 1e-2
    for free, weak, strong, infinite in zip(*found.values(), strict=True):
        assert free > weak > strong >= infinite
        assert free > 1e-2
        assert infinite < 1e-6


def test_regime_3_improves_an_agreeing_old_task():
    stream = alike(2, samples=24, seed=1)
    losses = {}
    for name, learner in (("cuber", cuber(strength=0.0, threshold=0.99)), ("trgp", TRGP(threshold=0.99))):
        learning, _ = begun(learner, stream)
        for first in range(8):
            step(learning, stream, 1, first)
        logits = predict_logits(learning.model(0), stream[0][0])
        losses[name] = float(F.cross_entropy(logits, stream[0][1]))
        if name == "cuber":
            assert all(found == [3] for found in regimes(learning).values())
    assert losses["cuber"] < losses["trgp"] - 0.01


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM], ids=lambda o: f"{o.name}{o.momentum}")
def test_a_failed_correlation_moves_a_task_to_regime_2_permanently(optimizer):
    stream = alike(2, seed=4)
    learning, net = begun(cuber(strength=0.0), stream)
    step(learning, stream, 1, optimizer=optimizer)
    assert all(found == [3] for found in regimes(learning).values())
    step(learning, [stream[0], turned(stream[1])], 1, 1, optimizer=optimizer)
    assert all(found == [2] for found in regimes(learning).values())
    assert not any(name.startswith(FLEXIBLE) for name in learning.context.memory)
    # That step did not move within S_0 any more, nor do later ones that would agree.
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    fit_task(learning, stream, 1, first=2, epochs=2, task_epochs=9, optimizer=optimizer)
    assert all(found == [2] for found in regimes(learning).values())
    for name in LAYERS:
        assert movement(learning, net, before, name, 0) < 1e-5
        assert not torch.equal(learning.context.memory[f"{SCALE}1/{name}/0"].detach(), torch.eye(
            len(learning.context.memory[f"{SCALE}1/{name}/0"])))  # fmt: skip
    report = learning.learner.report(learning.context)
    assert [report[f"regime/{name}/0"] for name in LAYERS] == [2.0] * 3
    assert [report[f"regime_at_start/{name}/0"] for name in LAYERS] == [3.0] * 3


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM], ids=lambda o: o.name)
def test_momentum_from_regime_3_does_not_act_in_regime_2(optimizer):
    stream = alike(2, seed=4)
    both = [stream[0], (torch.cat([stream[1][0]] * 2), torch.cat([stream[1][1], 1 - stream[1][1]]))]
    learning, net = begun(cuber(strength=0.0), stream)
    seen = []

    def watch(model, x, y):
        seen.append(({name: p.detach().clone() for name, p in net.named_parameters()}, regimes(learning)))
        return F.cross_entropy(model(x), y)

    train(
        learning, both[1], watch, optimizer=optimizer, epochs=range(8), task_epochs=8, batch_size=4,
        generator=torch.Generator().manual_seed(0), seed=0,
    )  # fmt: skip
    later = [weights for weights, found in seen if found["body.1"] == [2]]
    assert len(seen) > len(later) > 3
    assert seen[0][1]["body.1"] == [3]
    basis = torch.from_numpy(basis_of(learning.context, "body.1", 0))
    change = (later[-1]["body.1.weight"] - later[0]["body.1.weight"]).double()
    assert change.norm() > 1e-2
    assert (change @ basis).norm() < 1e-5


def test_directions_that_another_task_protects_stay_protected():
    # Samples along the axes, so that these are the directions: eight a task, and four that both have.
    axes = torch.diag(torch.linspace(4.0, 2.0, 12))
    y = torch.arange(24) % 2
    stream = [(axes[:8].repeat(3, 1), y), (axes[4:].repeat(3, 1), 1 - y), (axes.repeat(2, 1), y)]
    learning, net = begun(cuber(strength=0.0, threshold=1.0), stream, 2)
    assert regimes(learning)["body.1"] == [3, 2]
    assert [len(learning.context.memory[f"{COLUMNS}{old}/body.1"]) for old in range(2)] == [8, 8]
    before = net.body[1].weight.detach().clone()
    step(learning, stream, 2)
    change = net.body[1].weight.detach() - before
    assert change[:, :4].norm() > 1e-3
    assert change[:, 4:].norm() < 1e-8


# Limits ---------------------------------------------------------------------------------------------------


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=lambda o: o.name)
def test_cuber_equals_trgp_if_gradients_never_agree(optimizer):
    stream = alike(4)
    nets = [network(), network()]
    one = learn(cuber(correlation=1.1), nets[0], stream, SHARED, optimizer=optimizer)
    other = learn(TRGP(threshold=0.9, relatedness=0.1), nets[1], stream, SHARED, optimizer=optimizer)
    assert same(*nets)
    assert all(torch.equal(one.context.memory[name], values) for name, values in other.context.memory.items())
    assert any(name.startswith(f"{SCALE}3/") for name in other.context.memory)


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=lambda o: o.name)
def test_cuber_equals_gpm_without_related_tasks(optimizer):
    for stream, threshold in ((alike(2), 0.8), (alike(4, rank=3), 1.0)):
        nets = [network(), network()]
        units = SHARED[: len(stream)]
        learning = learn(
            cuber(threshold=threshold, relatedness=1.0), nets[0], stream, units, optimizer=optimizer
        )
        learn(GPM(threshold=threshold), nets[1], stream, units, optimizer=optimizer)
        assert same(*nets)
        assert all(set(found) == {1} for found in regimes(learning).values())


def test_one_task_equals_plain_training():
    stream = alike(1)
    nets = [network(), network()]
    learn(cuber(), nets[0], stream, [(0, 1)])
    learn(Naive(), nets[1], stream, [(0, 1)])
    assert same(*nets)


def test_cuber_handles_convolutions_heads_and_missed_tasks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = resnet8((1, 8, 8), 8, norm="batch")
    stream = small_stream(4, shape=(1, 8, 8))
    stream[1] = (stream[1][0][:0], stream[1][1][:0])
    learning = start(cuber(samples=12, relatedness=0.0, correlation=-1.0), net, stream)
    fit_task(learning, stream, 0)
    learning.enter(3)  # 1 has no samples, 2 was missed
    memory = learning.context.memory
    assert memory[REGIME + "body.0"].tolist() == [[3, 1, 1]] * 2
    assert not any(name.startswith((f"{GRADIENT}1/", f"{GRADIENT}2/")) for name in memory)
    assert REGIME + "head" not in memory
    fit_task(learning, stream, 3, optimizer=ADAM)
    learning.end()
    assert not any(name.startswith(SCRATCH) for name in memory)
    assert predict_logits(learning.model(0), stream[0][0]).isfinite().all()


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=lambda o: o.name)
def test_a_restored_learner_continues_to_the_bit(optimizer):
    stream = alike(3, seed=4)
    nets = [network(), network()]
    learning = start(cuber(), nets[0], stream, SHARED[:3])
    for task in (0, 1):
        fit_task(learning, stream, task)
        learning.end()
    learning.enter(2)
    step(learning, stream, 2, optimizer=optimizer)
    assert any(name.startswith(FLEXIBLE) for name in learning.context.memory)
    nets[1].load_state_dict(nets[0].state_dict())
    other = start(cuber(), nets[1], stream, SHARED[:3])
    other.restore({name: values.copy() for name, values in learning.state().items()})
    for either in (learning, other):
        fit_task(either, stream, 2, epochs=2, task_epochs=9, first=1, optimizer=optimizer)
        either.end()
    assert same(*nets)
    assert learning.context.memory.keys() == other.context.memory.keys()
    assert all(
        torch.equal(values, other.context.memory[name]) for name, values in learning.context.memory.items()
    )


def test_wrong_hyperparameters_are_refused():
    learner = make_learner(
        "cuber", {"relatedness": 0.2, "correlation": 0.1, "strength": 1.0, "threshold": 0.95}
    )
    assert (learner.relatedness, learner.correlation, learner.strength) == (0.2, 0.1, 1.0)
    for wrong in ({"strength": -1}, {"correlation": -2}, {"related_tasks": 0}):
        with pytest.raises(UserError):
            make_learner("cuber", wrong)
