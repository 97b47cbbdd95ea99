"""SupSup, SSNeT and ExSSNeT keep old tasks unchanged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_learning import fit_task, guide, learn, small_stream, small_units, start
from torch import nn

from fedkd.continual.learner import Step
from fedkd.continual.masks import masks
from fedkd.continual.masks.ssnet import ExSSNeT, SSNeT
from fedkd.continual.masks.supsup import SupSup
from fedkd.continual.registry import LEARNERS, learner_hyperparameters, make_learner
from fedkd.errors import UserError
from fedkd.models.zoo.cnn import cnn
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.randomness import seeded_torch
from fedkd.training.evaluate import predict_logits
from fedkd.training.optimizer import OptimizerSpec

ADAM = OptimizerSpec("adam", 0.01)
MOMENTUM = OptimizerSpec("sgd", 0.05, momentum=0.9, weight_decay=1e-2)
ADAMW = OptimizerSpec("adamw", 0.01, weight_decay=0.1, clip_norm=1.0)
NAMES = ["supsup", "ssnet", "exssnet"]
ISOLATING = ["supsup", "exssnet"]


def network_of(kind, outputs, shape):
    with seeded_torch(3):
        if kind == "mlp":
            return mlp(shape, outputs, hidden=(20, 16), dropout=0.2)
        if kind == "cnn":
            return cnn(shape, outputs, features=12)
        return resnet8(shape, outputs, norm="batch")


def small_mlp(outputs, hidden=(20, 16)):
    with seeded_torch(3):
        return mlp((6,), outputs, hidden=hidden)


def bits_of(learning, kind, task):
    prefix = f"{kind}/{task}/"
    return [v for name, v in learning.context.memory.items() if name.startswith(prefix)]


# Isolation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shape", "optimizer"),
    [("mlp", (6,), MOMENTUM), ("cnn", (1, 8, 8), ADAM), ("resnet8", (1, 8, 8), ADAMW)],
    ids=["mlp", "cnn", "resnet8"],
)
@pytest.mark.parametrize("name", ISOLATING)
def test_old_tasks_keep_their_outputs_to_the_bit(name, kind, shape, optimizer):
    stream = small_stream(3, shape=shape, samples=12)
    learning = start(make_learner(name, {"density": 0.3}), network_of(kind, 6, shape), stream)
    kept = []
    for task in range(3):
        fit_task(learning, stream, task, optimizer=optimizer)
        before = predict_logits(learning.model(task), stream[task][0])
        learning.end()
        kept.append(predict_logits(learning.model(task), stream[task][0]))
        assert torch.equal(kept[-1], before)
        for old in range(task + 1):
            now = predict_logits(learning.model(old), stream[old][0])
            assert now.numpy().tobytes() == kept[old].numpy().tobytes()


@pytest.mark.parametrize(("name", "rule", "tasks"), [("supsup", "threshold", 20), ("exssnet", "topk", 100)])
def test_many_later_tasks_keep_the_first_one_unchanged(name, rule, tasks):
    stream = small_stream(tasks, samples=4)
    learner = make_learner(name, {"rule": rule, "density": 0.02})
    learning = start(learner, small_mlp(2, hidden=(40,)), stream, small_units(tasks, shared=True))
    x, first = stream[0][0], None
    for task in range(tasks):
        fit_task(learning, stream, task, epochs=1, optimizer=ADAM)
        learning.end()
        first = predict_logits(learning.model(0), x) if first is None else first
    assert torch.equal(predict_logits(learning.model(0), x), first)
    assert len(learner.slots(learning.context)) == tasks
    outputs = learner.predict_without_task(learning.context, learning.model(), x)[0]
    assert outputs.shape == (4, 2) and outputs.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_biases_scales_and_shifts_are_constants(name):
    stream = small_stream(2, shape=(1, 8, 8), samples=8)
    network = network_of("resnet8", 4, (1, 8, 8))
    with torch.no_grad():  # as if it had been trained before
        for parameter in network.parameters():
            parameter.add_(0.1)
    learn(make_learner(name, {}), network, stream, optimizer=ADAM)
    for parameter_name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            assert torch.all(parameter == (0.0 if parameter_name.endswith("bias") else 1.0)), parameter_name


def test_the_weights_of_supsup_never_change():
    stream = small_stream(2)
    network = small_mlp(4)
    signs = [p.detach().sign() for p in network.parameters() if p.dim() > 1]
    learning = start(SupSup(), network, stream)
    weights = [p.detach().clone() for p in network.parameters() if p.dim() > 1]
    for sign, weight in zip(signs, weights, strict=True):
        assert torch.equal(weight, sign * (2 / weight.shape[1]) ** 0.5)
    for task in range(2):
        fit_task(learning, stream, task, optimizer=MOMENTUM)
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights, (p for p in network.parameters() if p.dim() > 1), strict=True)
    )


# The course of a task -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_training_improves_the_accuracy(name):
    stream = small_stream(3, samples=40)
    learning = learn(make_learner(name, {"density": 0.5}), small_mlp(6), stream, epochs=10, optimizer=ADAM)
    for task, (x, y) in enumerate(stream):
        assert (predict_logits(learning.model(task), x).argmax(1) == y).float().mean() > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_only_the_mask_of_a_finished_task_is_stored(name):
    stream = small_stream(2)
    learning = start(make_learner(name, {"density": 0.25}), small_mlp(4), stream)
    fit_task(learning, stream, 0)
    learning.end()
    sizes = [6 * 20, 20 * 16, 16 * 4]
    assert [masks.ones(bits) for bits in bits_of(learning, "bits", 0)] == [n // 4 for n in sizes]
    # A bit a weight, and two figures: the free share and the overlap with each of no earlier masks.
    assert learning.context.stored_bytes() == sum(n // 8 for n in sizes) + 8
    assert not bits_of(learning, "scores", 0)


@pytest.mark.parametrize("name", NAMES)
def test_an_unlearned_task_uses_its_initial_mask(name):
    stream = small_stream(3)
    learning = start(make_learner(name, {"mask_lr": 1e-9}), small_mlp(6), stream)
    unseen = predict_logits(learning.model(1), stream[1][0])
    assert not learning.context.memory
    fit_task(learning, stream, 1, epochs=1, task_epochs=2)  # task 0 had no training at all
    assert torch.equal(predict_logits(learning.model(1), stream[1][0]), unseen)
    assert not bits_of(learning, "bits", 0)
    assert not torch.equal(unseen, predict_logits(learning.model(2), stream[1][0]))


@pytest.mark.parametrize("name", NAMES)
def test_supermasks_handle_tasks_of_different_and_zero_size(name):
    empty = (torch.empty(0, 6), torch.empty(0, dtype=torch.int64))
    stream = [small_stream(1, classes=3)[0], empty, small_stream(1)[0]]
    learning = learn(make_learner(name, {"kkt": True}), small_mlp(7), stream, [(0, 1, 2), (3, 4), (5, 6)])
    assert predict_logits(learning.model(0), stream[0][0]).shape == (24, 3)
    assert learning.learner.report(learning.context)["density"] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_a_single_task_needs_no_inference(name):
    stream = small_stream(1)
    learning = learn(make_learner(name, {}), small_mlp(2), stream)
    outputs = learning.learner.predict_without_task(learning.context, learning.model(0), stream[0][0])[0]
    assert torch.equal(outputs, predict_logits(learning.model(0), stream[0][0]))


@pytest.mark.parametrize("name", NAMES)
def test_the_mask_has_its_own_optimiser(name):
    learner = make_learner(name, {"mask_lr": 0.5, "mask_optimizer": "sgd"})
    learning = start(learner, small_mlp(4), small_stream(2))
    fit_task(learning, small_stream(2), 0, epochs=1, task_epochs=2)
    spec = learner.optimizer(learning.context, ADAMW)
    assert spec == OptimizerSpec("sgd", 0.5, weight_decay=0.1, clip_norm=1.0)
    assert make_learner(name, {}).optimizer(learning.context, ADAMW) == ADAMW


@pytest.mark.parametrize("name", NAMES)
def test_reported_metrics_survive_the_end_of_a_task(name):
    stream = small_stream(3)
    learner = make_learner(name, {"density": 0.2})
    learning = start(learner, small_mlp(6), stream)
    assert learner.report(learning.context) == {}
    for task in range(3):
        fit_task(learning, stream, task)
        before = learner.report(learning.context)
        learning.end()
        assert learner.report(learning.context) == before
    memory, shapes = learning.context.memory, [(20, 6), (16, 20), (6, 16)]
    own, *others = (
        [
            masks.unpack(bits, shape)
            for bits, shape in zip(bits_of(learning, "bits", task), shapes, strict=True)
        ]
        for task in (2, 0, 1)
    )
    size = sum(int(mask.sum()) for mask in own)
    free = sum(int((m & ~a & ~b).sum()) for m, a, b in zip(own, *others, strict=True))
    shared = [sum(int((m & o).sum()) for m, o in zip(own, other, strict=True)) for other in others]
    assert before["free_share"] == pytest.approx(free / size)
    assert before["overlap"] == pytest.approx(sum(shared) / (2 * size))
    assert before["density"] == pytest.approx(0.2, abs=0.002)
    assert before["stored_bits_per_weight"] == pytest.approx(1.0, abs=0.01)
    assert before["coded_bits_per_weight"] == pytest.approx(0.722, abs=0.005)
    assert float(memory["free_share/2"]) == pytest.approx(free / size)
    assert memory["overlap/2"].tolist() == pytest.approx([count / size for count in shared])
    assert float(memory["free_share/0"]) == 1.0


# Weights under masks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "epochs", "expected"),
    [
        (0.5, 4, 2),
        (0.5, 5, 3),
        (0.5, 1, 1),
        (0.0, 1, 1),
        (0.0, 3, 1),
        (0.9, 2, 1),
        (1.0, 3, 3),
        (0.25, 10, 3),
    ],
)
def test_mask_epochs_follow_the_setting(share, epochs, expected):
    learner = SSNeT(mask_share=share)
    phases = [learner.phase_of(epoch, epochs) for epoch in range(epochs)]
    assert phases == ["mask"] * expected + ["weights"] * (epochs - expected)


@pytest.mark.parametrize("name", ["ssnet", "exssnet"])
def test_without_weight_epochs_learners_equal_supsup(name):
    stream = small_stream(3, shape=(1, 8, 8), samples=8)
    ours, supsup = (
        learn(learner, network_of("resnet8", 6, (1, 8, 8)), stream, optimizer=MOMENTUM)
        for learner in (make_learner(name, {"mask_share": 1.0}), SupSup())
    )
    assert_same(ours, supsup)


def assert_same(ours, theirs):
    states = ours.state(), theirs.state()
    assert states[0].keys() == states[1].keys()
    for key, values in states[0].items():
        assert values.tobytes() == states[1][key].tobytes(), key
    for a, b in zip(ours.context.network.parameters(), theirs.context.network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("disjoint", [True, False])
def test_ssnet_with_disjoint_masks_equals_exssnet(disjoint):
    stream = small_stream(3)
    learned = []
    for learner in (SSNeT(density=0.3, mask_lr=1e-9), ExSSNeT(density=0.3, mask_lr=1e-9)):
        learning = start(learner, small_mlp(6), stream)
        for task in range(3):
            fit_task(learning, stream, task, epochs=1, task_epochs=3, optimizer=ADAM)
            memory = learner.memory(learning.context)
            for scores in memory.scores(task).values():
                with torch.no_grad():
                    flat = scores.view(-1)
                    flat.copy_(0.5 + torch.arange(len(flat)) / (10 * len(flat)))
                    if disjoint:
                        flat[task::3] += 1.0
            fit_task(learning, stream, task, epochs=2, first=1, task_epochs=3, optimizer=ADAM)
            learning.end()
        learned.append(learning)
    if disjoint:
        assert learned[0].learner.report(learned[0].context)["free_share"] == 1.0
        assert_same(*learned)
    else:
        with pytest.raises(AssertionError):
            assert_same(*learned)


def test_ssnet_changes_weights_of_old_tasks():
    stream = small_stream(2)
    learning = start(SSNeT(density=0.5), small_mlp(4), stream)
    fit_task(learning, stream, 0, optimizer=ADAM)
    learning.end()
    before = predict_logits(learning.model(0), stream[0][0])
    fit_task(learning, stream, 1, optimizer=ADAM)
    assert not torch.equal(predict_logits(learning.model(0), stream[0][0]), before)


def test_weights_owned_by_tasks_are_disjoint_and_cover_the_masks():
    tasks = 4
    stream = small_stream(tasks)
    learning = start(ExSSNeT(density=0.3), small_mlp(2 * tasks), stream)
    memory = learning.learner.memory(learning.context)
    owned, changed = [], []
    for task in range(tasks):
        fit_task(learning, stream, task, epochs=1, task_epochs=2, optimizer=ADAM)
        before = {name: weight.detach().clone() for name, weight in memory.weights.items()}
        fit_task(learning, stream, task, epochs=1, first=1, task_epochs=2, optimizer=ADAM)
        owned.append(
            {
                name: masks.unpack(learning.context.memory[f"free/{name}"], weight.shape)
                for name, weight in memory.weights.items()
            }
        )
        changed.append({name: weight != before[name] for name, weight in memory.weights.items()})
        learning.end()
    for name in memory.names:
        own = torch.stack([free[name] for free in owned])
        every = torch.stack([memory.masks(task)[name] for task in range(tasks)])
        assert own.sum(dim=0).max() == 1  # F_s ∧ F_t = ∅
        assert torch.equal(own.any(dim=0), every.any(dim=0))  # ∪F = ∪M
        moved = torch.stack([change[name] for change in changed])
        assert moved.any() and not (moved & ~own).any()
    assert not any(name.startswith("free/") for name in learning.context.memory)


def test_weight_training_under_a_mask_equals_the_formula():
    stream = small_stream(2, samples=8)
    learning = start(ExSSNeT(density=0.4), nn.Linear(6, 4), stream)
    learner, context = learning.learner, learning.context
    fit_task(learning, stream, 0, optimizer=ADAM)
    learning.end()
    fit_task(learning, stream, 1, epochs=1, task_epochs=2, optimizer=ADAM)
    w = context.network.weight.detach().double().numpy().copy()
    optimizer = OptimizerSpec("sgd", 0.1, momentum=0.9, weight_decay=0.5)
    fit_task(learning, stream, 1, epochs=1, first=1, task_epochs=2, optimizer=optimizer)

    mask, first = (learner.memory(context).masks(task)["weight"].numpy() for task in (1, 0))
    x, y = stream[1][0].double().numpy(), stream[1][1].numpy()
    z = (x @ (w * mask).T)[:, 2:]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    slope = np.zeros_like(w)
    slope[2:] = (p - np.eye(2)[y]).T @ x / len(x)
    expected = w - 0.1 * slope * (mask & ~first)
    np.testing.assert_allclose(context.network.weight.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert learner.optimizer(context, optimizer).weight_decay == 0.0


@pytest.mark.parametrize("name", ["ssnet", "exssnet"])
def test_a_client_without_mask_epochs_trains_under_its_initial_mask(name):
    stream = small_stream(2)
    learning = start(make_learner(name, {}), small_mlp(4), stream)
    fit_task(learning, stream, 1, epochs=1, first=3, task_epochs=4, optimizer=ADAM)
    learning.end()
    memory = learning.learner.memory(learning.context)
    fresh = {n: masks.mask_of(s, "topk", 0.1) for n, s in memory.fresh_scores(1).items()}
    assert all(torch.equal(mask, fresh[n]) for n, mask in memory.masks(1).items())


@pytest.mark.parametrize("name", NAMES)
def test_distillation_follows_the_phase(name):
    stream = small_stream(2)
    learning = start(make_learner(name, {"density": 0.3}), small_mlp(4), stream)
    fit_task(learning, stream, 0, optimizer=ADAM)
    learning.end()
    kept = predict_logits(learning.model(0), stream[0][0])
    fit_task(learning, stream, 1, optimizer=ADAM)
    guide(
        learning,
        (stream[1][0], torch.randn(24, 2, generator=torch.Generator().manual_seed(1))),
        lambda model, x, target: (model(x) - target).square().mean(),
        optimizer=MOMENTUM,
        epochs=2,
        batch_size=8,
        generator=torch.Generator().manual_seed(1),
        seed=1,
    )
    if name in ISOLATING:
        assert torch.equal(predict_logits(learning.model(0), stream[0][0]), kept)


# Interruption -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "interrupted", "kind", "shape"),
    [
        ("supsup", 1, "mlp", (6,)),
        ("ssnet", 3, "mlp", (6,)),
        ("exssnet", 1, "mlp", (6,)),
        ("exssnet", 3, "resnet8", (1, 8, 8)),
    ],
)
def test_continuing_from_a_checkpoint_changes_nothing(name, interrupted, kind, shape):
    stream = small_stream(2, shape=shape, samples=12)
    learner = make_learner(name, {"kkt": True, "density": 0.2})

    def run(stop):
        learning = start(learner, network_of(kind, 4, shape), stream)
        for task in range(2):
            for epoch in range(4):
                fit_task(learning, stream, task, epochs=1, first=epoch, task_epochs=4, optimizer=ADAM)
                if stop and (task, epoch) == (1, interrupted):
                    state = {name: values.copy() for name, values in learning.state().items()}
                    weights = {n: v.clone() for n, v in learning.context.network.state_dict().items()}
                    learning = start(learner, network_of(kind, 4, shape), stream)
                    learning.context.network.load_state_dict(weights)
                    learning.restore(dict(reversed(state.items())))  # whatever the order on disk
            learning.end()
        return learning

    whole, resumed = run(False), run(True)
    for task in range(2):
        x = stream[task][0]
        assert torch.equal(predict_logits(whole.model(task), x), predict_logits(resumed.model(task), x))
    ours, theirs = whole.state(), resumed.state()
    assert ours.keys() == theirs.keys()
    assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)


# What they work with ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_networks_that_cannot_be_masked_are_refused(name):
    learner = make_learner(name, {})
    with pytest.raises(UserError, match="but this network has none") as refused:
        learner.check(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)))
    assert refused.value.key == "continual.learner"
    with pytest.raises(UserError, match=r"has '0\.weight'"):
        learner.check(nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2)))
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(UserError, match="shares"):
        learner.check(tied)
    with pytest.raises(UserError, match="features"):
        make_learner(name, {"kkt": True}).check(nn.Linear(2, 2))


def test_a_plain_module_can_be_masked():
    stream = small_stream(2)
    learning = learn(SupSup(), nn.Linear(6, 4), stream, optimizer=ADAM)
    assert predict_logits(learning.model(0), stream[0][0]).shape == (24, 2)


@pytest.mark.parametrize("name", NAMES)
def test_hyperparameters_are_documented_and_checked(name):
    assert name in LEARNERS.names()
    for parameter in learner_hyperparameters(name):
        assert len(parameter.description) > 30, parameter.name
    with pytest.raises(UserError, match="density"):
        make_learner(name, {"densty": 0.1})
    with pytest.raises(UserError):
        make_learner(name, {"density": 0.0})
    with pytest.raises(UserError, match="superfluous"):
        make_learner(name, {"objective": "superfluous", "superfluous_units": 0})


def test_the_initial_weights_of_the_network_can_be_kept():
    network = small_mlp(4)
    before = [p.detach().clone() for p in network.parameters() if p.dim() > 1]
    learn(SupSup(initial_weights="network"), network, small_stream(2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, (p for p in network.parameters() if p.dim() > 1), strict=True)
    )


def test_unused_units_are_trained_by_one_cross_entropy():
    stream = small_stream(2)
    learner = SupSup(objective="superfluous", superfluous_units=3)
    learning = start(learner, small_mlp(7), stream)
    learning.enter(1)
    x, y = stream[1]
    model = learning.model()
    outputs = model.outputs(x)
    loss = nn.functional.cross_entropy(model(x), y)
    penalty = learner.penalty(learning.context, Step(x, model, loss))
    whole = nn.functional.cross_entropy(outputs[:, [2, 3, 4, 5, 6]], y)
    torch.testing.assert_close(loss + penalty, whole)
    assert SupSup().penalty(learning.context, Step(x, model, loss)) is None
