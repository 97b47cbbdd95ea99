"""Distillation on old tasks changes those tasks only."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_learning import SGD, learn, small_stream

from fedkd.continual.masks import masks
from fedkd.continual.masks.ssnet import ExSSNeT, SSNeT
from fedkd.continual.masks.supsup import SupSup
from fedkd.continual.registry import LEARNERS, load_learner_class
from fedkd.continual.subspace.cuber import CUBER
from fedkd.continual.subspace.layer_memory import LayerMemory
from fedkd.continual.subspace.reopened_subspace import own_directions
from fedkd.continual.traits import reopening_obstacle
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.training.executor import run_training
from fedkd.training.job import TrainJob
from fedkd.training.optimizer import OptimizerSpec

ADAM = OptimizerSpec("adam", 0.05)
USUAL = ("naive", "er", "agem", "der", "der++", "ewc", "online_ewc", "si", "mas", "lwf")
DECAYING = OptimizerSpec("sgd", 0.1, momentum=0.9, weight_decay=0.1)


def network(bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return mlp((6,), 6, hidden=[12, 10], bias=bias)


def teach(learning, task, x, optimizer=ADAM, seed=5):
    """Teach an old task targets that nobody would have guessed."""
    wanted = torch.randn(len(x), 2, generator=torch.Generator().manual_seed(seed)).mul(3.0).softmax(dim=1)
    job = TrainJob(
        learning.context.network,
        (x, wanted),
        lambda model, inputs, targets: F.cross_entropy(model(inputs), targets),
        optimizer,
        epochs=4,
        batch_size=8,
        generator=torch.Generator().manual_seed(1),
        seed=1,
    )
    return run_training(learning.teach_again(job, task))


def logits(learning, stream):
    """Return each task's logits of its samples."""
    learning.context.network.eval()
    with torch.no_grad():
        return [learning.model(task)(x).clone() for task, (x, _) in enumerate(stream)]


@pytest.mark.parametrize("optimizer", [SGD, ADAM, DECAYING])
@pytest.mark.parametrize(
    "learner", [ExSSNeT(density=0.3), SSNeT(density=0.3), SupSup(density=0.3, kkt=True, mask_lr=0.1)]
)
def test_masks_keep_the_outputs_of_other_tasks_to_the_bit(learner, optimizer):
    stream = small_stream(3)
    learning = learn(learner, network(), stream)
    for task in (0, 1):
        before = logits(learning, stream)
        assert teach(learning, task, stream[task][0], optimizer).steps > 0
        after = logits(learning, stream)
        for other, (was, now) in enumerate(zip(before, after, strict=True)):
            assert torch.equal(was, now) == (other != task), other


def test_normalisation_statistics_change_for_the_distilled_task_only():
    stream = small_stream(2, shape=(1, 8, 8), samples=12)
    learning = learn(ExSSNeT(density=0.3), resnet8((1, 8, 8), 4, norm="batch"), stream)
    before = logits(learning, stream)
    teach(learning, 0, stream[0][0])
    after = logits(learning, stream)
    assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])


def test_weights_in_a_later_mask_stay():
    """F_t alone is not a task's own: whoever comes later uses its weights."""
    stream = small_stream(3)
    learner = ExSSNeT(density=0.3)
    learning = learn(learner, network(), stream)
    memory = learner.memory(learning.context)
    before = {name: w.detach().clone() for name, w in memory.weights.items()}
    teach(learning, 0, stream[0][0])
    own, *others = (memory.masks(task) for task in range(3))
    shared = 0
    for name, weight in memory.weights.items():
        alone = own[name] & ~others[0][name] & ~others[1][name]
        moved = weight != before[name]
        assert not moved[~alone].any() and moved[alone].any()
        shared += int((own[name] & ~alone).sum())
    assert shared > 0


def test_a_distilled_mask_follows_its_scores_and_is_stored_as_bits():
    stream = small_stream(2)
    learner = SupSup(density=0.3, kkt=True, mask_lr=0.1)
    learning = learn(learner, network(), stream)
    memory = learner.memory(learning.context)
    before = memory.bits(0)
    teach(learning, 0, stream[0][0])
    for was, bits, scores in zip(before, memory.bits(0), memory.scores(0).values(), strict=True):
        assert torch.equal(bits, masks.pack(masks.mask_of(scores, "topk", 0.3)))
        assert not scores.requires_grad
        assert not torch.equal(was, bits)


def cuber_after(stream, optimizer, task=0, **options):
    learner = CUBER(threshold=0.7, relatedness=options.pop("relatedness", 0.0), related_tasks=1, **options)
    learning = learn(learner, network(bias=False), stream)
    context = learning.context
    memories = [LayerMemory(context, layer) for layer in learner.layers(context).values()]
    before = {name: p.detach().clone() for name, p in context.network.named_parameters()}
    result = teach(learning, task, stream[task][0], optimizer)
    after = {name: p.detach().clone() for name, p in context.network.named_parameters()}
    return context, memories, before, after, result


@pytest.mark.parametrize("optimizer", [SGD, ADAM])
def test_distillation_moves_weights_within_the_tasks_subspace(optimizer):
    # The last task but one: no later task but the present one may have learned a matrix for it.
    stream = small_stream(3, samples=40)
    context, memories, before, after, _ = cuber_after(stream, optimizer, task=1, correlation=-1.0)
    opened = 0
    for memory in memories:
        name = memory.layer.weight_name
        own = own_directions(memory, 1)
        moved = (after[name] - before[name]).double()
        for other in (0, 2):
            assert float((moved @ memory.basis_of(other).double()).abs().max()) < 1e-6
        outside = moved - moved @ own.double() @ own.T.double()
        assert float(outside.abs().max()) < 1e-6
        opened += bool(moved.abs().max() > 1e-4)
        if own.shape[1] == 0:
            assert torch.equal(after[name], before[name])
    assert opened > 0
    rows = context.units[1]
    moved = after["head.weight"] - before["head.weight"]
    assert moved[rows].abs().max() > 1e-4
    others = torch.ones(6, dtype=torch.bool).index_fill(0, rows, False)
    assert not moved[others].any()


@pytest.mark.parametrize("options", [{"correlation": 1.5}, {"relatedness": 1.0, "correlation": -1.0}])
def test_distillation_outside_regime_3_changes_nothing(options):
    stream = small_stream(3, samples=40)
    _, _, before, after, _ = cuber_after(stream, ADAM, task=1, **options)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", USUAL)
def test_learners_that_close_nothing_keep_their_usual_rules(name):
    stream = small_stream(2)
    learning = learn(load_learner_class(name)(), network(), stream, epochs=1)
    before = logits(learning, stream)
    teach(learning, 0, stream[0][0])
    assert not torch.equal(before[0], logits(learning, stream)[0])


def test_learners_with_closed_tasks_state_the_reason():
    closed = {name: reopening_obstacle(load_learner_class(name)()) for name in LEARNERS.builtin}
    opened = {name for name, why in closed.items() if why is None}
    assert opened == {*USUAL, "cuber", "ssnet", "exssnet"}
    assert "kkt = true" in closed["supsup"] and reopening_obstacle(SupSup(kkt=True)) is None
    assert "unknown" in reopening_obstacle(SupSup(boundaries="unknown"))
    assert "old tasks anyway" in closed["joint"] and "fresh network" in closed["single"]
