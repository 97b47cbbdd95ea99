"""The learner of FedWeIT against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from small_learning import fit_task, learn, small_stream, small_units, start
from torch import nn

from fedkd.continual.adapters.fedweit import FedWeIT
from fedkd.continual.learner import Step
from fedkd.errors import UserError
from fedkd.models.zoo.mlp import mlp
from fedkd.training.optimizer import OptimizerSpec

ADAM = OptimizerSpec("adam", 0.01)
LAYERS = ("body.1.weight", "body.3.weight")
SHAPES = ((5, 6), (4, 5))
STREAM = small_stream(3)


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mlp((6,), 6, hidden=[5, 4])


def lent(client, task, stamp, *, seed=0, share=0.5) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Return a part as a server sends it, and its layers."""
    generator = np.random.default_rng([seed, client, task])
    layers = [generator.normal(size=s) * (generator.random(s) < share) for s in SHAPES]
    flat = np.concatenate([layer.ravel() for layer in layers]).astype(np.float32)
    told = {"values": flat[flat != 0], "bits": np.packbits(flat != 0), "stamp": np.array([stamp], np.int32)}
    return {f"{client}/{task}/{name}": values for name, values in told.items()}, layers


def begun(learner, told=()):
    """Return a learner within its first task, with parts that others lend."""
    learning = start(learner, network(), STREAM)
    for part in told:
        learning.import_state(part)
    fit_task(learning, STREAM, 0, epochs=1, optimizer=ADAM, task_epochs=2)
    return learning


def by_hand(learning, task, layers=None) -> dict[str, np.ndarray]:
    """Return ``B ⊙ σ(s_t) + A_t + Σ α A`` in float64."""
    memory, weights = learning.context.memory, dict(learning.context.network.named_parameters())
    found = {}
    for number, name in enumerate(LAYERS):
        base, score, part = (
            t.detach().double().numpy()
            for t in (weights[name], memory[f"mask/{task}/{name}"], memory[f"part/{task}/{name}"])
        )
        found[name] = base / (1 + np.exp(-score))[:, None] + part
        for alpha, own in zip(memory.get(f"attention/{name}", ()), layers or (), strict=True):
            found[name] = found[name] + alpha.item() * own[number]
    return found


def test_effective_weights_equal_the_formula():
    (first, one), (second, two) = lent(1, 2, 1), lent(3, 0, 1)
    learning = begun(FedWeIT(), [first, second])
    memory = learning.context.memory
    assert memory["lenders"].tolist() == [[1, 2], [3, 0]]
    assert all(memory[f"attention/{name}"].detach().abs().min() > 0 for name in LAYERS), "it learns from 0"
    effective = learning.learner.task_parameters(learning.context, 0)
    for name, expected in by_hand(learning, 0, [one, two]).items():
        assert_allclose(effective[name].detach().numpy(), expected, rtol=0, atol=1e-6)
    # Outputs of the task are its own rows of the head, which the network itself does not learn.
    units, fresh = small_units(3)[0], network()
    assert torch.equal(learning.context.network.head.weight, fresh.head.weight)
    assert not torch.equal(effective["head.weight"][list(units)], fresh.head.weight[list(units)])
    others = [unit for unit in range(6) if unit not in units]
    assert torch.equal(effective["head.weight"][others], fresh.head.weight[others])


def test_the_penalty_equals_the_formula():
    learner = FedWeIT(sparsity=0.01, mask_sparsity=0.02, retention=3.0, decay=0.1)
    learning = learn(learner, network(), STREAM[:2], small_units(3), optimizer=ADAM)
    fit_task(learning, STREAM, 2, epochs=1, optimizer=ADAM)
    context = learning.context
    expected = 0.0
    for name in LAYERS:
        score, part = (
            context.memory[f"{kind}/2/{name}"].detach().double().numpy() for kind in ("mask", "part")
        )
        expected += 0.02 * (1 / (1 + np.exp(-score))).sum()
        expected += 0.05 * (np.square(score).sum() + np.square(part).sum())
        for task in range(3):
            expected += 0.01 * np.abs(context.memory[f"part/{task}/{name}"].detach().double().numpy()).sum()
        for task in range(2):
            target = context.memory[f"target/{task}/{name}"].double().numpy()
            expected += 3.0 * np.square(by_hand(learning, task)[name] - target).sum()
    loss = torch.zeros(())
    got = learner.penalty(context, Step(STREAM[2][0], learning.model(), loss))
    assert_allclose(got.item(), expected, rtol=1e-5)


def test_task_parameters_start_at_their_share_of_the_base():
    learner = FedWeIT(sparsity=0.0, decay=0.1)
    learning = start(learner, network(), STREAM)
    learning.enter(0)
    unmet = learner.task_parameters(learning.context, 0)
    learner.begin_phase(learning.context)
    effective, squares = learner.task_parameters(learning.context, 0), 0.0
    for name in LAYERS:
        base = network().get_parameter(name).detach()
        assert_allclose(effective[name].detach(), base * (0.5 + 1 / 3), rtol=1e-6)
        assert_allclose(unmet[name].detach(), base * (0.5 + 1 / 3), rtol=1e-6)
        squares += float(base.double().square().sum()) * (1 + 1 / 9)  # the scores of masks are 0
    got = learner.penalty(learning.context, Step(STREAM[0][0], learning.model(), torch.zeros(())))
    assert_allclose(got.item(), 0.05 * squares, rtol=1e-5)


def moved(learning, task) -> float:
    memory = learning.context.memory
    return sum(
        float(np.square(w - memory[f"target/{task}/{name}"].numpy()).sum())
        for name, w in by_hand(learning, task).items()
    )


def test_a_stronger_drift_penalty_preserves_old_tasks_more():
    way = {}
    for retention in (0.0, 100.0):
        learner = FedWeIT(retention=retention, threshold=0.0, sparsity=0.0)
        learning = learn(learner, network(), STREAM[:1], small_units(3), optimizer=ADAM, epochs=4)
        before = learning.context.network.get_parameter(LAYERS[0]).detach().clone()
        fit_task(learning, STREAM, 1, epochs=10, optimizer=ADAM)
        way[retention] = moved(learning, 0)
        assert (learning.context.network.get_parameter(LAYERS[0]) - before).abs().max() > 0.01
    assert way[100.0] < 0.02 * way[0.0], way

    # What the penalty asks for is there in closed form: ΔA = −ΔB ⊙ m.
    memory = learning.context.memory
    for name in LAYERS:
        kept = memory[f"target/0/{name}"] - by_hand(learning, 0)[name]
        memory[f"part/0/{name}"] = memory[f"part/0/{name}"].detach() + kept.float()
    assert moved(learning, 0) < 1e-10


def test_weights_are_the_masked_base_without_adaptive_parts():
    learning = begun(FedWeIT(borrow="nothing", initial_mask=0.25, initial_part=0.0), [lent(1, 0, 1)[0]])
    context = learning.context
    assert len(context.memory["lenders"]) == 0 and not any(
        name.startswith("known/") for name in context.memory
    )
    for name in LAYERS:
        context.memory[f"part/0/{name}"].data.zero_()
        gate = torch.sigmoid(context.memory[f"mask/0/{name}"])
        base = context.network.get_parameter(name)
        assert torch.equal(learning.learner.task_parameters(context, 0)[name], base * gate[:, None])
        # A task that has not been met, too, under the mask that it will begin with.
        assert torch.equal(learning.learner.task_parameters(context, 1)[name], base * 0.25)


def test_zero_attention_gives_no_transfer():
    alone, taught = begun(FedWeIT()), begun(FedWeIT(), [lent(1, 0, 1)[0]])
    taught.context.network.load_state_dict(alone.context.network.state_dict())
    for name, values in alone.context.memory.items():
        if name != "lenders":
            taught.context.memory[name] = values
    x = STREAM[0][0]
    assert not torch.equal(alone.model()(x), taught.model()(x))
    for name in LAYERS:
        taught.context.memory[f"attention/{name}"].data.zero_()
    assert torch.equal(alone.model()(x), taught.model()(x))


def test_a_finished_task_keeps_its_borrowed_parts():
    learning = begun(FedWeIT(threshold=0.0), [lent(1, 0, 1)[0]])
    x = STREAM[0][0]
    before = learning.model(0)(x)
    learning.import_state(lent(1, 1, 2)[0])
    learning.end()
    assert [name for name in learning.context.memory if name.startswith("known/")] == [
        f"known/1/1/{what}" for what in ("values", "bits", "stamp")
    ]
    learning.enter(1)
    assert torch.equal(learning.model(0)(x), before)
    assert 0 < learning.learner.report(begun(FedWeIT(), [lent(1, 0, 1)[0]]).context)["borrowed_share"] < 1


@pytest.mark.parametrize(
    ("borrow", "lenders"),
    [("latest", [[1, 0], [4, 2]]), ("all", [[1, 0], [1, 1], [4, 2]]), ("nothing", [])],
)
def test_lenders_are_fixed_when_a_task_begins(borrow, lenders):
    # Client 1 learned task 1 before task 0.
    told = [lent(1, 1, 1)[0] | lent(4, 2, 1)[0], lent(1, 0, 2)[0]]
    learning = begun(FedWeIT(borrow=borrow), told)
    assert learning.context.memory["lenders"].tolist() == lenders
    learning.import_state(lent(4, 1, 3)[0])
    fit_task(learning, STREAM, 0, first=1, epochs=1, optimizer=ADAM)
    assert learning.context.memory["lenders"].tolist() == lenders


def test_small_weights_of_parts_are_pruned_at_the_end_of_a_task():
    learning = learn(FedWeIT(sparsity=0.01), network(), STREAM, optimizer=ADAM, epochs=6)
    parts = torch.cat(
        [values.flatten() for name, values in learning.context.memory.items() if name.startswith("part/")]
    )
    assert parts[parts != 0].abs().min() > 0.01 and 0.1 < (parts != 0).double().mean() < 0.9
    share = torch.cat([learning.context.memory[f"part/2/{name}"].flatten() for name in LAYERS]) != 0
    assert learning.learner.report(learning.context)["part_density"] == pytest.approx(share.double().mean())
    told = learning.export_state([0, 2])
    assert told.keys() == {
        *(f"mask/{name}" for name in LAYERS),
        *(f"part/{t}/{name}" for t in (0, 2) for name in LAYERS),
    }


def test_a_restored_learner_continues_with_its_borrowed_parts():
    told = [lent(1, 0, 1)[0], lent(2, 0, 1)[0]]

    def finish(learning):
        fit_task(learning, STREAM, 0, first=1, epochs=1, optimizer=ADAM)
        learning.end()
        fit_task(learning, STREAM, 1, epochs=2, optimizer=ADAM)
        learning.end()
        return [learning.model(task)(STREAM[task][0]) for task in range(2)]

    unbroken = begun(FedWeIT(), told)
    resumed = start(FedWeIT(), network(1), STREAM)
    resumed.context.network.load_state_dict(unbroken.context.network.state_dict())
    resumed.restore(unbroken.state())
    for one, other in zip(finish(unbroken), finish(resumed), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(6, 6)), "splits the weights below a head"),
        (nn.Sequential(nn.Linear(6, 6), nn.Embedding(3, 6)), "last linear layer"),
    ],
)
def test_networks_without_weights_below_the_head_are_refused(module, words):
    with pytest.raises(UserError, match=words) as caught:
        start(FedWeIT(), module, STREAM)
    assert caught.value.key == "continual.learner"
