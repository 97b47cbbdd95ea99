"""Properties of every learner over tasks, phases and steps."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_learning import SGD, fit_task, guide, learn, small_stream, small_units, start, train
from torch import nn

from fedkd.continual.baselines.baselines import Naive
from fedkd.continual.learner import Batch, Learner, LearnerTraits
from fedkd.continual.mixins import Phases, TaskParameters
from fedkd.continual.registry import LEARNERS, learner_hyperparameters, make_learner
from fedkd.continual.rules import LearnerRules
from fedkd.continual.task_model import TaskModel
from fedkd.errors import UserError
from fedkd.models.zoo.cnn import cnn
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.randomness import seeded_torch
from fedkd.training.device import prepare_model
from fedkd.training.early_stopping import EarlyStopping
from fedkd.training.evaluate import predict_logits
from fedkd.training.job import TrainJob
from fedkd.training.loop import fit
from fedkd.training.losses import cross_entropy
from fedkd.training.optimizer import OptimizerSpec

ADAM = OptimizerSpec("adam", 0.01)


def network(outputs=6, **options) -> nn.Module:
    with seeded_torch(3):
        return mlp((6,), outputs, hidden=(8,), **options)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: values.clone() for name, values in module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_base_of_learners_has_few_public_names():
    public = [name for name in dir(Learner) if not name.startswith("_")]
    assert len(public) <= 20, public


@pytest.mark.parametrize(
    ("definition", "successor"),
    [
        ("def filter(self, context, gradients): ...", "`filter`, which is now `project`"),
        ("def rehearsed(self, context): ...", "`rehearsed`, which is now `batch`"),
        ("isolates = True", "`isolates`, which is now `isolates` of `traits`"),
        ("steps_only_read = True", "`steps_only_read`, which is now `recordable`"),
        ("def begin_phase(self, context): ...", "`begin_phase`, which is now a hook of the mixin `Phases`"),
    ],
)
def test_a_hook_of_an_earlier_release_is_refused_with_its_new_name(definition, successor, tmp_path):
    (tmp_path / "earlier.py").write_text(
        "from dataclasses import dataclass\nfrom fedkd.continual.learner import Learner\n"
        f"@dataclass(frozen=True)\nclass Mine(Learner):\n    name = 'mine'\n    {definition}\n"
    )
    with pytest.raises(UserError, match=re.escape(f"'earlier:Mine' defines {successor}")):
        make_learner("earlier:Mine", {}, [tmp_path])
    sys.modules.pop("earlier", None)


# Every learner ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNERS.builtin)
def test_every_learner_is_built_from_its_defaults_and_documented(name):
    learner = make_learner(name, {})
    assert learner.name == name and type(learner).__doc__
    assert learner.paper or name in ("naive", "joint", "single", "cumulative")
    for parameter in learner_hyperparameters(name):
        assert len(parameter.description) > 30 and parameter.type, parameter


@pytest.mark.parametrize("shared", [False, True], ids=["own heads", "shared head"])
@pytest.mark.parametrize("name", LEARNERS.builtin)
def test_every_learner_learns_a_stream_and_resumes(name, shared):
    units = small_units(3, shared=shared)
    stream = small_stream(3, samples=26)

    def begin(net):
        learning = start(make_learner(name, {}), net, stream, units)
        fit_task(learning, stream, 0, epochs=2, optimizer=ADAM)
        learning.end()
        fit_task(learning, stream, 1, epochs=1, task_epochs=2, optimizer=ADAM)
        return learning

    def finish(learning):
        fit_task(learning, stream, 1, epochs=1, first=1, task_epochs=2, optimizer=ADAM)
        learning.end()
        fit_task(learning, stream, 2, epochs=2, optimizer=ADAM)
        learning.end()
        return [learning.model(task).eval()(stream[task][0]) for task in range(3)]

    first = begin(network())
    saved, saved_weights = first.state(), weights(first.context.network)
    assert all(isinstance(values, np.ndarray) for values in saved.values())
    expected = finish(first)
    second = start(make_learner(name, {}), network(), stream, units)
    second.context.network.load_state_dict(saved_weights)
    second.restore(saved)
    for ours, theirs in zip(finish(second), expected, strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = first.state(), second.state()
    assert ours.keys() == theirs.keys()
    assert all(values.tobytes() == theirs[name].tobytes() for name, values in ours.items())


@pytest.mark.parametrize("name", LEARNERS.builtin)
def test_an_untrained_task_does_no_harm(name):
    stream = small_stream(3)
    learning = start(make_learner(name, {}), network(), stream)
    fit_task(learning, stream, 0, optimizer=ADAM)
    learning.enter(2)  # task 1 passes by
    assert learning.ended == 1
    fit_task(learning, stream, 2, optimizer=ADAM)
    learning.end()
    for task in range(3):
        assert torch.isfinite(learning.model(task)(stream[task][0])).all()


# The course of tasks ------------------------------------------------------------------------------------


def test_naive_equals_plain_training():
    x, y = small_stream(1, samples=26)[0]
    plain = network()
    options = {"optimizer": ADAM, "batch_size": 8, "seed": 5}

    def loss(model, inputs, labels):
        return cross_entropy(model(inputs), labels)

    generator = torch.Generator().manual_seed(4)
    result = fit(TrainJob(plain, (x, y), loss, epochs=3, generator=generator, **options))
    learning = start(Naive(), network(), [(x, y)], [tuple(range(6))])
    learning.enter(0)
    ours = train(
        learning,
        (x, y),
        loss,
        epochs=range(3),
        task_epochs=3,
        generator=torch.Generator().manual_seed(4),
        **options,
    )
    assert equal(weights(learning.context.network), weights(plain)) and ours == result


@pytest.mark.parametrize(("name", "trained_on"), [("joint", (0, 1)), ("single", (1,))])
def test_reference_learners_restart_for_every_task(name, trained_on):
    stream = small_stream(2)
    learning = start(make_learner(name, {}), network(), stream)
    untrained = weights(learning.context.network)
    fit_task(learning, stream, 0)
    assert not equal(weights(learning.context.network), untrained)
    learning.enter(1)
    assert equal(weights(learning.context.network), untrained)
    assert tuple(learning.learner.batch(learning.context).tasks) == trained_on


@dataclass(frozen=True)
class Diary(Phases, Learner):
    """Writes down when it is called."""

    name: ClassVar[str] = "diary"
    pages: ClassVar[list] = []

    def begin_task(self, context):
        self.pages.append(("begin", context.task))

    def end_task(self, context):
        self.pages.append(("end", context.task))

    def begin_phase(self, context):
        self.pages.append((context.phase, context.task))

    def phase_of(self, epoch, epochs):
        return "early" if 2 * epoch < epochs else "late"


def test_tasks_and_phases_run_in_order_over_rounds():
    Diary.pages.clear()
    stream = small_stream(3)
    learning = start(Diary(), network(), stream)
    fit_task(learning, stream, 0, epochs=1, task_epochs=4)
    fit_task(learning, stream, 0, epochs=2, first=1, task_epochs=4)
    fit_task(learning, stream, 0, epochs=1, first=3, task_epochs=4)
    learning.end()
    learning.end()
    learning.enter(2)
    learning.enter(2)
    guide(
        learning,
        stream[2][:1],
        lambda model, x: model(x).square().mean(),
        optimizer=SGD,
        epochs=1,
        batch_size=8,
        generator=torch.Generator(),
        seed=1,
    )
    assert Diary.pages == [
        ("begin", 0),
        ("early", 0),
        ("late", 0),
        ("end", 0),
        ("begin", 1),
        ("end", 1),
        ("begin", 2),
        ("early", 2),
    ]


# A step -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watch(Learner):
    """Writes down what it is told of a step."""

    name: ClassVar[str] = "watch"
    seen: ClassVar[list] = []

    def penalty(self, context, step):
        whole = step.labels is not None and torch.equal(step.labels, step.inputs[:, 0].long())
        self.seen.append(
            (context.position, whole, None if step.tasks is None else step.tasks.unique().tolist())
        )


class WatchAll(Watch):
    """The same of a learner that trains on samples of several tasks."""

    def batch(self, context):
        return Batch((0, context.task))


def test_a_step_receives_its_progress_and_its_samples():
    Watch.seen.clear()
    y = torch.arange(26) % 2
    x = y[:, None].float().expand(-1, 6).contiguous()
    learning = start(Watch(), network(), [(x, y)] * 2)
    learning.enter(1)
    options = {"optimizer": SGD, "batch_size": 8, "seed": 1, "generator": torch.Generator()}

    def loss(model, x, *_):
        return model(x).square().mean()

    train(learning, (x, y), loss, epochs=range(1), task_epochs=2, accumulate=2, **options)
    # Four batches, two steps.
    assert Watch.seen == [(0.0, True, [1])] * 2 + [(1.0, True, [1])] * 2
    assert learning.context.position is None
    Watch.seen.clear()
    of_task_0 = (x, y, torch.zeros_like(y))
    train(learning, of_task_0, loss, epochs=range(1, 2), task_epochs=2, **options)
    assert {tuple(tasks) for *_, tasks in Watch.seen} == {(1,)}, "what is third may be anything else"
    Watch.seen.clear()
    several = start(WatchAll(), network(), [(x, y)] * 2)
    several.enter(1)
    train(several, of_task_0, loss, epochs=range(1, 2), task_epochs=2, **options)
    assert Watch.seen == [(step / 3, True, [0]) for step in range(4)]
    Watch.seen.clear()
    guide(learning, (x[:8], y[:8]), loss, epochs=1, **options)
    assert Watch.seen == [(1.0, False, None)]


@dataclass(frozen=True)
class FirstInputOnly(Learner):
    """Changes only the weights of the first input, and leaves everything else where it is."""

    name: ClassVar[str] = "first-input-only"
    traits: ClassVar[LearnerTraits] = LearnerTraits(projects_updates=True)

    def project(self, context, gradients):
        kept = torch.zeros(6)
        kept[0] = 1.0
        return {name: g * kept if name == "body.1.weight" else 0 * g for name, g in gradients.items()}


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD,
        OptimizerSpec("sgd", 0.1, momentum=0.9, weight_decay=0.1),
        OptimizerSpec("adam", 0.01, weight_decay=0.1),
        OptimizerSpec("adamw", 0.01, weight_decay=0.1),
    ],
    ids=lambda spec: spec.name,
)
def test_filtered_parameters_stay_under_every_optimiser(optimizer):
    net = network()
    before = weights(net)
    learn(FirstInputOnly(), net, small_stream(2), optimizer=optimizer)
    for name, values in weights(net).items():
        moved = values != before[name]
        if name == "body.1.weight":
            assert moved[:, 0].any() and not moved[:, 1:].any()
        else:
            assert not moved.any(), name


@dataclass(frozen=True)
class Doubled(TaskParameters, Learner):
    """Sees every weight doubled, and pulls it to zero."""

    name: ClassVar[str] = "doubled"

    def task_parameters(self, context, task):
        return {name: 2.0 * p for name, p in context.network.named_parameters()}

    def penalty(self, context, step):
        assert step.model.outputs(step.inputs) is step.outputs()
        return 0.5 * sum(p.square().sum() for p in context.network.parameters())


def test_a_step_equals_the_formula():
    """One SGD step on effective weights 2w with penalty ½‖w‖²: w ← w − lr (2 ∇L(2w) + w)."""
    stream = small_stream(1, samples=8)
    net, reference = network(outputs=2), network(outputs=2)
    with torch.no_grad():
        for p in reference.parameters():
            p.mul_(2.0)
    x, y = stream[0]
    F.cross_entropy(reference(x), y).backward()
    expected = {
        name: p.detach() / 2 - 0.1 * (2.0 * p.grad + p.detach() / 2)
        for name, p in reference.named_parameters()
    }
    learning = start(Doubled(), net, stream)
    fit_task(learning, stream, 0, epochs=1)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-5, atol=1e-6)
    # The guidance of others goes through the same effective weights.
    torch.testing.assert_close(learning.model()(x), F.linear(*_doubled_body(net, x)), rtol=1e-5, atol=1e-6)


def _doubled_body(net, x) -> Sequence[torch.Tensor]:
    hidden = F.relu(F.linear(x, 2 * net.body[1].weight, 2 * net.body[1].bias))
    return hidden, 2 * net.head.weight, 2 * net.head.bias


@pytest.mark.parametrize("name", ["naive", "packnet", "supsup"])
def test_held_out_samples_are_evaluated_with_current_weights(name):
    stream = small_stream(2, samples=40)
    learning = start(make_learner(name, {}), network(), stream)
    fit_task(learning, stream, 0, optimizer=ADAM)
    learning.enter(1)
    x, y = (values[30:] for values in stream[1])
    seen, expected = [], []

    def held_out(logits, labels):
        seen.append(cross_entropy(logits, labels))
        return seen[-1]

    def look():
        expected.append(cross_entropy(predict_logits(learning.model(), x), y))

    look()
    train(
        learning, [values[:30] for values in stream[1]], lambda model, x, y: cross_entropy(model(x), y),
        optimizer=OptimizerSpec("adam", 0.1), epochs=range(8), task_epochs=99, batch_size=8, seed=1,
        generator=torch.Generator().manual_seed(1), after_epoch=look,
        early_stopping=EarlyStopping((x, y), held_out, patience=3),
    )  # fmt: skip
    assert seen == expected and 1 < len(seen) < 9
    look()
    assert expected[-1] == min(seen)


@pytest.mark.parametrize("name", ["naive", "packnet", "supsup"])
def test_a_persistent_optimiser_continues_in_the_next_round(name):
    x, y = small_stream(1)[0]
    ends = []
    for rounds in ([range(3)], [range(1), range(1, 3)]):
        learning = start(make_learner(name, {}), network(), [(x, y)], [tuple(range(6))])
        learning.enter(0)
        state, generator = {}, torch.Generator().manual_seed(1)
        for epochs in rounds:
            state = train(
                learning, (x, y), lambda model, x, y: cross_entropy(model(x), y), optimizer=ADAM,
                epochs=epochs, task_epochs=9, batch_size=8, seed=1, generator=generator,
                optimizer_state=state,
            ).optimizer_state  # fmt: skip
        ends.append((learning.model(0)(x), state))
    (whole, kept), (parts, kept_too) = ends
    assert torch.equal(whole, parts) and equal(kept, kept_too) and kept


@dataclass(frozen=True)
class ApartStatistics(Learner):
    name: ClassVar[str] = "apart"
    traits: ClassVar[LearnerTraits] = LearnerTraits(task_statistics=True)


def test_every_task_has_its_own_normalisation_statistics():
    stream = small_stream(2, samples=16, shape=(1, 8, 8))
    with seeded_torch(3):
        net = resnet8((1, 8, 8), 4, norm="batch")
    learning = start(ApartStatistics(), net, stream)
    fit_task(learning, stream, 0)
    learning.end()
    kept = weights(net)
    learning.enter(1)
    fresh = dict(net.named_buffers())
    assert not any(values.any() for name, values in fresh.items() if name.endswith("running_mean"))
    model = learning.model(0)
    for name, values in kept.items():
        if "running" in name:
            assert torch.equal(model.substitutes[name], values)
    fit_task(learning, stream, 1)
    statistics = [name for name in model.substitutes if name.endswith("running_mean")]
    assert statistics and all(torch.equal(model.substitutes[name], kept[name]) for name in statistics)


@dataclass(frozen=True)
class Rebuilt(Learner):
    """Puts equal gradients in the place of the gradients, in the plainest memory layout."""

    name: ClassVar[str] = "rebuilt"

    def project(self, context, gradients):
        return {name: gradient.contiguous().clone() for name, gradient in gradients.items()}


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=lambda spec: spec.name)
def test_a_replaced_gradient_reaches_its_weight_in_any_layout(optimizer):
    stream = small_stream(1, samples=16, shape=(3, 12, 12))
    trained = []
    for learner in (Naive(), Rebuilt()):
        with seeded_torch(3):
            net = prepare_model(cnn((3, 12, 12), 2, features=8), "cpu")
        assert not net.body[3].weight.is_contiguous(), "stored channels last"
        trained.append(weights(learn(learner, net, stream, optimizer=optimizer).context.network))
    assert equal(*trained)


@pytest.mark.parametrize("name", ["exssnet", "packnet", "supsup"])
def test_channels_last_keeps_old_outputs_to_the_bit(name):
    stream = small_stream(3, samples=24, shape=(3, 12, 12))
    with seeded_torch(3):
        net = prepare_model(cnn((3, 12, 12), 6, features=8), "cpu")
    learning = start(make_learner(name, {}), net, stream)
    expected = {}
    for task, (x, _) in enumerate(stream):
        fit_task(learning, stream, task, epochs=6, optimizer=ADAM)
        learning.end()
        expected[task] = predict_logits(learning.model(task), x)
        for old in range(task):
            assert torch.equal(predict_logits(learning.model(old), stream[old][0]), expected[old])


# A model of a task --------------------------------------------------------------------------------------


def test_a_task_model_reads_its_units_through_replaced_weights():
    net = network()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    units = torch.tensor([4, 1])
    plain = TaskModel(net, units)
    assert torch.equal(plain(x), net(x)[:, [4, 1]])
    assert torch.equal(plain.outputs(x), net(x))
    doubled = TaskModel(net, units, {"head.weight": 2.0 * net.head.weight.detach()})
    logits = net(x) * 2 - net.head.bias
    torch.testing.assert_close(doubled(x), logits[:, [4, 1]])
    torch.testing.assert_close(doubled.head(doubled.features(x)), doubled(x))
    assert torch.equal(doubled.features(x), net.features(x))
    assert torch.equal(net(x), plain.outputs(x)), "the network itself is as it was"
    doubled.substitute({"head.weight": net.head.weight})
    assert torch.equal(doubled(x), plain(x)), "nothing of the last call is remembered"


def test_trained_parameters_are_sorted_by_name():
    """An optimiser's state goes by that order, and memory that comes out of a checkpoint has none."""

    class Unordered(SimpleNamespace):
        traits = LearnerTraits()

        def trainable(self, context):
            return {name: torch.zeros(int(name)) for name in ("10", "2", "1")}

    context = SimpleNamespace(network=nn.Linear(1, 1))
    rules = LearnerRules(Unordered(), context, None, None, OptimizerSpec("sgd", lr=0.1), None)
    assert [len(tensor) for tensor in rules.parameters] == [1, 10, 2]
