import copy

import numpy as np
import pytest
import torch
from small_learning import SGD, fit_task, guide, learn, small_stream, small_units, start
from torch import nn

from fedkd.continual.masks.packnet import RETRAIN, TRAIN, PackNet, PackState
from fedkd.continual.registry import make_learner
from fedkd.errors import UserError
from fedkd.models.zoo.cnn import cnn
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.training.evaluate import predict_logits
from fedkd.training.optimizer import OptimizerSpec

MOMENTUM = OptimizerSpec("sgd", 0.05, momentum=0.9, weight_decay=0.01)
ADAM = OptimizerSpec("adam", 0.01, weight_decay=0.01)
ADAMW = OptimizerSpec("adamw", 0.01, weight_decay=0.1)


def seeded(build, *args, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*args, **options)


def network(outputs, width=12):
    return seeded(mlp, (6,), outputs, hidden=(width,))


def owners(learning):
    return PackState(learning.context).owners.part()


def owned(learning, name):
    """Number of weights of every owner: the free ones first, then those of task 0, 1, …"""
    return torch.bincount(owners(learning)[name].flatten().long()).tolist()


# Ownership ------------------------------------------------------------------------------------------------


def test_tasks_get_equal_shares_of_a_layer_and_at_least_one_unit():
    learning = start(PackNet(), network(6), small_stream(3))
    assert owned(learning, "body.1.weight") == [72]
    shares = []
    for task in range(3):
        fit_task(learning, small_stream(3), task)
        learning.end()
        shares.append(learning.learner.report(learning.context)["free_weights"])
    # 72 weights: a third, half of the rest, the rest; a head of 6 × 12 weights, two units a task.
    assert owned(learning, "body.1.weight") == [0, 24, 24, 24]
    assert owned(learning, "head.weight") == [0, 24, 24, 24]
    assert shares == [pytest.approx(2 / 3), pytest.approx(1 / 3), 0.0]
    for task in range(3):
        assert bool((owners(learning)["head.weight"][2 * task : 2 * task + 2] == task + 1).all())


def test_units_shared_by_tasks_are_divided_one_by_one():
    learning = learn(PackNet(), network(2), small_stream(3), small_units(3, shared=True))
    for unit in (0, 1):
        assert torch.bincount(owners(learning)["head.weight"][unit].long()).tolist() == [0, 4, 4, 4]


def test_units_of_overlapping_tasks_are_divided_among_their_tasks():
    learning = learn(PackNet(), network(4), small_stream(3), [(0, 1), (1, 2), (2, 3)])
    rows = [torch.bincount(row.long(), minlength=4).tolist() for row in owners(learning)["head.weight"]]
    assert rows == [[0, 12, 0, 0], [0, 6, 6, 0], [0, 0, 6, 6], [0, 0, 0, 12]]


def test_each_task_takes_a_fixed_share_of_the_free_weights():
    learning = learn(PackNet(keep=0.25), network(6), small_stream(3))
    # 72 · ¼ = 18 of 54 left; 13.5, even is 14, of 40 left; 10 of 30 left.
    assert owned(learning, "body.1.weight") == [30, 18, 14, 10]
    assert owned(learning, "head.weight") == [0, 24, 24, 24]


def test_pruning_keeps_the_largest_free_weights():
    stream = small_stream(2)
    learning = start(PackNet(retrain_share=0), network(4), stream)
    fit_task(learning, stream, 0)
    before = learning.context.network.body[1].weight.detach().clone()
    learning.end()
    after = learning.context.network.body[1].weight.detach()
    kept = owners(learning)["body.1.weight"] == 1
    assert int(kept.sum()) == 36
    assert before[kept].abs().min() >= before[~kept].abs().max()
    assert torch.equal(after, torch.where(kept, before, 0.0))


def test_a_task_trains_prunes_and_retrains():
    def phases(share, epochs):
        return [PackNet(retrain_share=share).phase_of(epoch, epochs) for epoch in range(epochs)]

    assert phases(0.3, 5) == [TRAIN] * 3 + [RETRAIN] * 2  # 1.5, even is 2
    assert phases(0.3, 10) == [TRAIN] * 7 + [RETRAIN] * 3
    assert phases(0.1, 2) == phases(0.9, 2) == [TRAIN, RETRAIN]
    assert phases(0.3, 1) == [TRAIN]
    assert phases(0.0, 3) == [TRAIN] * 3


def test_task_of_one_epoch_is_pruned_after_it():
    stream = small_stream(2)
    learning = start(PackNet(), network(4), stream)
    fit_task(learning, stream, 0, epochs=1)
    assert owned(learning, "body.1.weight") == [72]
    learning.end()
    assert owned(learning, "body.1.weight") == [36, 36]
    logits = predict_logits(learning.model(0), stream[0][0])
    fit_task(learning, stream, 1, epochs=1)
    learning.end()
    assert torch.equal(predict_logits(learning.model(0), stream[0][0]), logits)


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM, ADAMW], ids=lambda spec: spec.name)
def test_each_phase_changes_only_its_own_weights(optimizer):
    stream = small_stream(3)
    learning = start(PackNet(), network(6), stream)
    weight = learning.context.network.body[1].weight
    fit_task(learning, stream, 0, optimizer=optimizer)
    learning.end()
    learning.enter(1)
    started = weight.detach().clone()
    fit_task(learning, stream, 1, epochs=2, task_epochs=4, optimizer=optimizer)
    assert learning.context.phase == TRAIN
    free = owners(learning)["body.1.weight"] == 0
    trained = weight.detach().clone()
    assert torch.equal(trained[~free], started[~free])
    assert bool((trained[free] != started[free]).any())
    fit_task(learning, stream, 1, first=2, epochs=2, optimizer=optimizer)
    assert learning.context.phase == RETRAIN
    own = owners(learning)["body.1.weight"] == 2
    assert bool((own <= free).all())
    assert torch.equal(weight[~free], started[~free])
    assert bool((weight[free & ~own] == 0).all())
    assert bool((weight[own] != trained[own]).any())


def test_free_weights_are_reinitialised_at_the_initial_scale():
    stream = small_stream(2)
    net = network(4, width=200)
    spread = float(net.body[1].weight.detach().std())
    learning = start(PackNet(), net, stream)
    fit_task(learning, stream, 0)
    learning.end()
    free = owners(learning)["body.1.weight"] == 0
    assert bool((net.body[1].weight[free] == 0).all())
    learning.enter(1)
    assert float(net.body[1].weight[free].detach().std()) == pytest.approx(spread, rel=0.15)  # of 600
    assert bool((net.body[1].weight[free] != 0).all())


# Nothing is forgotten -------------------------------------------------------------------------------------

IMAGES = {
    "cnn": lambda: seeded(cnn, (1, 8, 8), 6, features=16),
    "resnet8": lambda: seeded(resnet8, (1, 8, 8), 6, norm="batch"),
    "resnet8-group": lambda: seeded(resnet8, (1, 8, 8), 6),
}


@pytest.mark.parametrize(
    ("model", "optimizer", "biases"),
    [
        ("mlp", MOMENTUM, "task"),
        ("mlp", ADAMW, "first"),
        ("cnn", ADAM, "task"),
        ("resnet8", ADAMW, "first"),
        ("resnet8-group", MOMENTUM, "task"),
    ],
)
def test_logits_of_earlier_tasks_stay_the_same_to_the_bit(model, optimizer, biases):
    if model == "mlp":
        net, stream = network(6), small_stream(3)
    else:
        net, stream = IMAGES[model](), small_stream(3, samples=10, shape=(1, 8, 8))
    learning = start(PackNet(biases=biases), net, stream)
    logits = []
    for task in range(3):
        fit_task(learning, stream, task, epochs=2, optimizer=optimizer)
        learning.end()
        logits.append(predict_logits(learning.model(task), stream[task][0]))
        for earlier in range(task + 1):
            now = predict_logits(learning.model(earlier), stream[earlier][0])
            assert torch.equal(now, logits[earlier]), (task, earlier)
    if biases == "task":  # that something was learned with these small steps
        assert not torch.equal(logits[0], predict_logits(learning.model(1), stream[0][0]))


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM], ids=lambda spec: spec.name)
def test_old_logits_stay_the_same_with_a_shared_head(optimizer):
    stream, units = small_stream(3), small_units(3, shared=True)
    learning = start(PackNet(), network(2), stream, units)
    logits = []
    for task in range(3):
        fit_task(learning, stream, task, epochs=3, optimizer=optimizer)
        learning.end()
        logits.append(predict_logits(learning.model(task), stream[task][0]))
    for task in range(3):
        assert torch.equal(predict_logits(learning.model(task), stream[task][0]), logits[task])


def test_ten_tasks_are_learned_without_forgetting():
    tasks = 10
    stream, units = small_stream(tasks), small_units(tasks, shared=True)
    learning = start(PackNet(), network(2, width=60), stream, units)
    accuracies = []
    for task in range(tasks):
        fit_task(learning, stream, task, epochs=10)
        learning.end()
        predicted = predict_logits(learning.model(task), stream[task][0]).argmax(1)
        accuracies.append(float((predicted == stream[task][1]).float().mean()))
    assert min(accuracies) > 0.75  # half by chance
    again = [
        float((predict_logits(learning.model(t), x).argmax(1) == y).float().mean())
        for t, (x, y) in enumerate(stream)
    ]
    assert again == accuracies
    assert owned(learning, "body.1.weight") == [0] + [36] * tasks


def test_effective_weights_belong_to_tasks_so_far():
    stream = small_stream(3)
    learning = learn(PackNet(), network(6), stream)
    effective = learning.learner.task_parameters(learning.context, 1)
    weight = learning.context.network.body[1].weight.detach().numpy()
    owner = owners(learning)["body.1.weight"].numpy()
    np.testing.assert_array_equal(
        effective["body.1.weight"].detach().numpy(), np.where(owner <= 2, weight, 0.0)
    )
    assert set(effective) == {"body.1.weight", "body.1.bias", "head.weight", "head.bias"}


# The course of things -------------------------------------------------------------------------------------


@pytest.mark.parametrize("paused", [1, 3], ids=[TRAIN, RETRAIN])
def test_a_learner_restored_within_a_task_continues_exactly(paused):
    stream = small_stream(3, shape=(1, 4, 4))
    net = seeded(resnet8, (1, 4, 4), 6, norm="batch")
    learning = start(PackNet(), net, stream)
    fit_task(learning, stream, 0, optimizer=ADAM)
    learning.end()
    fit_task(learning, stream, 1, epochs=paused, task_epochs=4, optimizer=ADAM)
    state, copied = learning.state(), copy.deepcopy(net)

    def finish(learning):
        fit_task(learning, stream, 1, first=paused, epochs=4 - paused, optimizer=ADAM)
        learning.end()
        fit_task(learning, stream, 2, optimizer=ADAM)
        learning.end()
        return learning

    finish(learning)
    restored = start(PackNet(), copied, stream)
    restored.restore(state)
    finish(restored)
    for name, values in net.state_dict().items():
        assert torch.equal(values, copied.state_dict()[name]), name
    assert learning.context.memory.keys() == restored.context.memory.keys()
    for name, values in learning.context.memory.items():
        assert torch.equal(values, restored.context.memory[name]), name


def test_an_untrained_task_owns_no_weights():
    stream = small_stream(3)
    learning = start(PackNet(), network(6), stream)
    fit_task(learning, stream, 0)
    learning.end()
    first = predict_logits(learning.model(0), stream[0][0])
    fit_task(learning, stream, 2)  # task 1 is begun and ended on the way
    learning.end()
    assert owned(learning, "body.1.weight") == [0, 24, 0, 48]
    assert torch.equal(predict_logits(learning.model(0), stream[0][0]), first)
    assert predict_logits(learning.model(1), stream[1][0]).shape == (24, 2)


def test_a_task_without_retraining_is_pruned_at_its_end():
    stream = small_stream(2)
    learning = start(PackNet(), network(4), stream)
    fit_task(learning, stream, 0, epochs=1, task_epochs=5)
    assert owned(learning, "body.1.weight") == [72]
    learning.end()
    assert owned(learning, "body.1.weight") == [36, 36]
    logits = predict_logits(learning.model(0), stream[0][0])
    fit_task(learning, stream, 1)
    assert torch.equal(predict_logits(learning.model(0), stream[0][0]), logits)


def test_distillation_before_the_first_epoch_trains_free_weights():
    stream = small_stream(2)
    learning = start(PackNet(), network(4), stream)
    learning.enter(0)
    guide(
        learning,
        stream[0],
        lambda model, x, y: nn.functional.cross_entropy(model(x), y),
        optimizer=SGD,
        epochs=1,
        batch_size=8,
        generator=torch.Generator().manual_seed(0),
        seed=0,
    )
    fit_task(learning, stream, 0, epochs=1, task_epochs=3)
    assert learning.context.phase == TRAIN
    assert owned(learning, "body.1.weight") == [72]
    fit_task(learning, stream, 0, first=1, epochs=2)
    assert owned(learning, "body.1.weight") == [36, 36]


def test_single_task_keeps_every_weight():
    learning = learn(PackNet(), network(2), small_stream(1))
    assert owned(learning, "body.1.weight") == [0, 72]


def test_a_full_network_stops_learning():
    stream = small_stream(3)
    learning = learn(PackNet(keep=1.0), network(6), stream)
    assert owned(learning, "body.1.weight") == [0, 72]
    assert owned(learning, "head.weight") == [0, 24, 24, 24]


def test_memory_is_one_byte_per_weight_plus_biases_per_task():
    net = network(6)
    for biases, vectors in (("task", 3 * 4 * (12 + 6)), ("first", 0)):
        learning = learn(PackNet(biases=biases), copy.deepcopy(net), small_stream(3))
        assert learning.context.stored_bytes() == 144 + 2 * 4 + vectors  # 4 bytes of scale a layer


def test_owners_of_more_than_255_tasks_are_stored():
    tasks = 300
    stream, units = small_stream(tasks, samples=4), small_units(tasks, shared=True)
    learning = start(PackNet(), network(2, width=100), stream, units)
    for task in (0, 254, 255, 299):
        fit_task(learning, stream, task, epochs=1)
        learning.end()
    assert set(owners(learning)["body.1.weight"].unique().tolist()) == {1, 255, 256, 300}


def test_network_without_layers_is_refused():
    with pytest.raises(UserError, match="the model has none"):
        start(PackNet(), nn.BatchNorm1d(6), small_stream(1))


def test_packnet_is_built_from_its_defaults():
    assert make_learner("packnet", {}) == PackNet()
