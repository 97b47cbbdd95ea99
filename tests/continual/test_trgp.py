"""TRGP against its formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_learning import SGD, fit_task, learn, small_stream, small_units, start
from torch import nn
from torch.func import functional_call

from fedkd.continual.baselines.baselines import Naive
from fedkd.continual.subspace.gpm import GPM
from fedkd.continual.subspace.layer_memory import BASIS, COLUMNS, SCALE, LayerMemory
from fedkd.continual.subspace.trgp import TRGP
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.training.evaluate import predict_logits
from fedkd.training.optimizer import OptimizerSpec

SHARED = small_units(4, shared=True)
ADAM = OptimizerSpec("adam", 0.01, weight_decay=0.01)
LAYERS = ("body.1", "body.3", "head")


def network(outputs=2, *, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mlp((12,), outputs, hidden=[9, 8], bias=False)


def flat_stream(tasks, *, rank=3, common=0, seed=0):
    """Return tasks whose samples lie in a subspace of `rank` dimensions each, `common` of them the same."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(common, 12, generator=g)
    stream = small_stream(tasks, shape=(rank,), seed=seed)
    return [(x @ torch.cat([shared, torch.randn(rank - common, 12, generator=g)]), y) for x, y in stream]


def trgp(**args):
    return TRGP(**{"threshold": 0.9, "relatedness": 0.1, **args})


def basis_of(context, name, task):
    columns = context.memory[f"{COLUMNS}{task}/{name}"].long().numpy()
    return context.memory[BASIS + name].double().numpy()[:, columns]


def gradients_of(net, weights, x, y):
    """Return the gradients for the weights that are put into a network."""
    leaves = {name: torch.as_tensor(w).float().requires_grad_() for name, w in weights.items()}
    F.cross_entropy(functional_call(net, leaves, (x,)), y).backward()
    return {name: leaf.grad.double().numpy() for name, leaf in leaves.items()}


def plain(net):
    return {name: p.detach().clone().double().numpy() for name, p in net.named_parameters()}


# Bases ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.6, 0.95])
def test_a_task_basis_has_the_largest_old_and_new_directions(threshold):
    stream = small_stream(3, shape=(12,))
    net = network()
    learning = start(TRGP(threshold=threshold, relatedness=2), net, stream, SHARED[:3])
    union = np.zeros((12, 0))
    for task, (x, _) in enumerate(stream):
        fit_task(learning, stream, task)
        learning.end()
        r = x.double().numpy().T
        left = r - union @ union.T @ r
        values, vectors = np.linalg.eigh(left @ left.T)
        found = values > 1e-9
        candidates = [("old", i, np.linalg.norm(union[:, i] @ r) ** 2) for i in range(union.shape[1])]
        candidates += [("new", i, values[i]) for i in np.flatnonzero(found)]
        kept, chosen = 0.0, []
        for kind, i, energy in sorted(candidates, key=lambda c: -c[2]):
            if kept >= threshold * (r**2).sum():
                break
            kept += energy
            chosen.append(union[:, i] if kind == "old" else vectors[:, i])
        fresh = sorted((c for c in candidates if c[0] == "new"), key=lambda c: -c[2])
        number = sum(any(np.array_equal(vectors[:, i], v) for v in chosen) for _, i, _ in fresh)
        union = np.concatenate([union, vectors[:, [i for _, i, _ in fresh[:number]]]], axis=1)
        expected = np.stack(chosen, axis=1)
        ours = basis_of(learning.context, "body.1", task)
        np.testing.assert_allclose(ours @ ours.T, expected @ expected.T, atol=1e-5)
        whole = learning.context.memory[BASIS + "body.1"].double().numpy()
        np.testing.assert_allclose(whole @ whole.T, union @ union.T, atol=1e-5)


def test_the_first_new_direction_of_every_task_is_protected():
    stream = flat_stream(3)
    net = network()
    learning = start(trgp(threshold=1.0), net, stream, SHARED[:3])
    for task in range(3):
        fit_task(learning, stream, task)
        learning.end()
        whole = learning.context.memory[BASIS + "body.1"]
        assert whole.shape[1] == 3 * (task + 1)
        x = stream[task][0].double()
        first = torch.linalg.svd(x, full_matrices=False)[2][0].float()
        torch.testing.assert_close((first @ whole).norm(), torch.tensor(1.0))


def test_a_repeated_task_reuses_old_columns():
    stream = flat_stream(2)
    learning = learn(trgp(threshold=1.0), network(), [stream[0], stream[1], stream[0]], SHARED[:3])
    context = learning.context
    assert (
        context.memory[f"{COLUMNS}2/body.1"].tolist()
        == context.memory[f"{COLUMNS}0/body.1"].tolist()
        == [0, 1, 2]
    )
    assert learning.learner.report(context)["rank/body.1"] == 6


@pytest.mark.parametrize("rounding", [1.0 - 1e-7, 1.0, 1.0 + 1e-7])
def test_columns_without_energy_belong_to_no_task(rounding):
    """Columns are kept in float32. Their rounding must not make others part of a task's basis."""
    learning = start(trgp(threshold=1.0), network(), flat_stream(2), SHARED[:2])
    memory = LayerMemory(learning.context, learning.context.layers["body.1"])
    span = torch.linalg.qr(torch.randn(12, 6, generator=torch.Generator().manual_seed(3)).double())[0]
    memory.append(rounding * span)
    learning.context.task = 1
    learning.learner.extend(memory, span[:, :3] @ torch.randn(3, 20).double(), 1.0)
    assert memory.columns(1).tolist() == [0, 1, 2] and memory.basis.shape[1] == 6


# Related tasks ----------------------------------------------------------------------------------------------


def test_the_two_most_related_tasks_above_the_threshold_are_chosen():
    stream = small_stream(4, shape=(12,), seed=5)
    for least in (0.0, 0.5, 0.8, 2.0):
        net = network()
        learning = start(TRGP(threshold=0.7, relatedness=least), net, stream, SHARED)
        for task in range(3):
            fit_task(learning, stream, task)
            learning.end()
        gradients = gradients_of(net, plain(net), *stream[3])
        learning.enter(3)
        for name in LAYERS:
            gradient = gradients[f"{name}.weight"]
            shares = []
            for old in range(3):
                b = basis_of(learning.context, name, old)
                shares.append(np.linalg.norm(gradient @ b @ b.T) / np.linalg.norm(gradient))
            expected = {j for j in np.argsort(shares)[-2:] if shares[j] > least}
            found = {j for j in range(3) if f"{SCALE}3/{name}/{j}" in learning.context.memory}
            assert found == expected
            assert learning.learner.report(learning.context)[f"related/{name}"] == len(expected)


# The effective weight -------------------------------------------------------------------------------------


def test_identity_scales_give_the_plain_weight():
    stream = flat_stream(2, common=2)
    net = network()
    learning = start(trgp(), net, stream, SHARED[:2])
    fit_task(learning, stream, 0)
    learning.enter(1)
    found = learning.learner.task_parameters(learning.context, 1)
    assert found
    for name, weight in found.items():
        assert torch.equal(weight, net.get_parameter(name))


def test_steps_of_weights_and_scales_equal_the_formulas():
    stream = small_stream(3, shape=(12,))
    net = network()
    learning = start(trgp(threshold=0.8), net, stream, SHARED[:3], batch_size=24)
    context = learning.context
    for task in range(2):
        fit_task(learning, stream, task)
        learning.end()
    learning.enter(2)
    w = plain(net)
    q = {
        (name, j): np.eye(basis_of(context, name, j).shape[1])
        for name in LAYERS
        for j in range(2)
        if f"{SCALE}2/{name}/{j}" in context.memory
    }
    assert len(q) > 3
    x, y = stream[2]
    start_w = {name: values.copy() for name, values in w.items()}

    def effective():
        out = {}
        for name, values in w.items():
            out[name] = values.copy()
            for (layer, j), scale in q.items():
                if name == f"{layer}.weight":
                    b = basis_of(context, layer, j)
                    out[name] += values @ b @ scale @ b.T - values @ b @ b.T
        return out

    for step in range(5):
        gradients = gradients_of(net, effective(), x, y)
        new_q = {}
        for (name, j), scale in q.items():
            b = basis_of(context, name, j)
            new_q[name, j] = scale - 0.1 * (w[f"{name}.weight"] @ b).T @ gradients[f"{name}.weight"] @ b
        for name in LAYERS:
            u = context.memory[BASIS + name].double().numpy()
            shifted = gradients[f"{name}.weight"]
            for (layer, j), scale in q.items():  # the whole gradient of w, through Q
                if layer == name:
                    b = basis_of(context, name, j)
                    shifted = shifted + gradients[f"{name}.weight"] @ b @ (scale - np.eye(len(scale))).T @ b.T
            w[f"{name}.weight"] = w[f"{name}.weight"] - 0.1 * (shifted - shifted @ u @ u.T)
        q = new_q
        fit_task(learning, stream, 2, first=step, epochs=1, task_epochs=5, batch_size=24)
    for name, values in w.items():
        np.testing.assert_allclose(net.get_parameter(name).detach(), values, atol=2e-5)
    for (name, j), scale in q.items():
        np.testing.assert_allclose(context.memory[f"{SCALE}2/{name}/{j}"].detach(), scale, atol=2e-5)
        assert np.abs(scale - np.eye(len(scale))).max() > 1e-3
    for name, values in effective().items():
        found = learning.learner.task_parameters(context, 2)
        np.testing.assert_allclose(found[name].detach(), values, atol=2e-5)
    assert any(np.abs(w[name] - start_w[name]).max() > 1e-3 for name in w)


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=lambda o: o.name)
def test_all_old_tasks_keep_their_outputs(optimizer):
    stream = flat_stream(4, rank=3, common=2)
    net = network()
    learning = start(trgp(threshold=1.0), net, stream, SHARED)
    ends = []
    for task in range(4):
        fit_task(learning, stream, task, optimizer=optimizer, epochs=4)
        learning.end()
        ends.append(predict_logits(learning.model(task), stream[task][0]))
        assert task == 0 or any(name.startswith(f"{SCALE}{task}/") for name in learning.context.memory)
    for task, before in enumerate(ends):
        now = predict_logits(learning.model(task), stream[task][0])
        torch.testing.assert_close(now, before, atol=1e-4, rtol=1e-4)
    # A task read with another's scales is another.
    assert (predict_logits(learning.model(3), stream[2][0]) - ends[2]).abs().max() > 1e-2


def test_scales_are_learned_and_then_frozen():
    stream = flat_stream(3, common=2)
    learning = learn(trgp(), network(), stream, SHARED[:3])
    memory = learning.context.memory
    second = {name: values.clone() for name, values in memory.items() if name.startswith(f"{SCALE}1/")}
    assert second and all(not values.requires_grad for values in memory.values())
    assert any((values - torch.eye(len(values))).abs().max() > 1e-3 for values in second.values())
    assert {name.partition("/")[0] + "/" for name in memory} == {BASIS, COLUMNS, SCALE}
    assert learning.context.stored_bytes() == 4 * sum(values.numel() for values in memory.values())
    fit_task(learning, [*stream[:2], stream[2]], 2)
    assert all(torch.equal(memory[name], values) for name, values in second.items())


# Limits ---------------------------------------------------------------------------------------------------


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=lambda o: o.name)
def test_trgp_equals_gpm_without_related_tasks(optimizer):
    """Of two tasks always; of more where both protect the same, since only GPM counts weak old directions."""
    for stream, threshold in ((small_stream(2, shape=(12,)), 0.8), (flat_stream(4), 1.0)):
        nets = [network(), network()]
        units = SHARED[: len(stream)]
        learn(TRGP(threshold=threshold, relatedness=1.0), nets[0], stream, units, optimizer=optimizer)
        learn(GPM(threshold=threshold), nets[1], stream, units, optimizer=optimizer)
        assert same(*nets)


def test_trgp_protects_no_less_than_gpm():
    stream = small_stream(3, shape=(12,))
    ranks = [
        learner.report(learn(learner, network(), stream, SHARED[:3]).context)["rank/body.1"]
        for learner in (TRGP(threshold=0.8, relatedness=1.0), GPM(threshold=0.8))
    ]
    assert ranks[0] >= ranks[1]


def test_one_task_equals_plain_training():
    stream = small_stream(1, shape=(12,))
    nets = [network(), network()]
    learn(trgp(), nets[0], stream, [(0, 1)])
    learn(Naive(), nets[1], stream, [(0, 1)])
    assert same(*nets)


def test_trgp_handles_convolutions_heads_and_missed_tasks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = resnet8((1, 8, 8), 8, norm="batch")
    stream = small_stream(4, shape=(1, 8, 8))
    stream[1] = (stream[1][0][:0], stream[1][1][:0])
    learning = start(trgp(samples=12, relatedness=0.0), net, stream)
    fit_task(learning, stream, 0)
    learning.enter(3)  # 1 has no samples, 2 was missed
    memory = learning.context.memory
    assert not any(name.startswith((f"{SCALE}1/", f"{SCALE}2/", f"{COLUMNS}2/")) for name in memory)
    assert learning.learner.task_parameters(learning.context, 2) == {}
    fit_task(learning, stream, 3)
    learning.end()
    assert f"{SCALE}3/body.0/0" in memory and f"{SCALE}3/head/0" not in memory
    assert (
        learning.learner.task_parameters(learning.context, 3)["body.0.weight"].shape
        == net.body[0].weight.shape
    )
    assert predict_logits(learning.model(0), stream[0][0]).isfinite().all()


def test_a_single_layer_can_be_trained():
    stream = flat_stream(2, common=2)
    net = nn.Linear(12, 2)
    learning = learn(trgp(), net, stream, SHARED[:2])
    assert f"{SCALE}1//0" in learning.context.memory
    assert learning.learner.task_parameters(learning.context, 1).keys() == {"weight"}
