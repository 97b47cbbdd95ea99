"""DER and DER++: the reservoir, the logits it holds, and the limits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_learning import fit_task, guide, learn, small_stream, small_units, start
from torch import nn

from fedkd.continual.baselines.baselines import Naive
from fedkd.continual.learner import Step
from fedkd.continual.replay import reservoir
from fedkd.continual.replay.der import DER, DERpp
from fedkd.continual.replay.reservoir import Kept
from fedkd.models.zoo.mlp import mlp
from fedkd.randomness import seeded_torch
from fedkd.training.optimizer import OptimizerSpec


def network(outputs=6):
    with seeded_torch(4):
        return mlp((6,), outputs, hidden=(8,))


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def numbered(first, count):
    """Return samples that carry their own numbers."""
    number = torch.arange(first, first + count)
    return Kept(number[:, None].float().expand(-1, 6), number, number, number[:, None].float().expand(-1, 6))


# The reservoir --------------------------------------------------------------------------------------------


def test_reservoir_sampling_is_uniform_for_every_batch_size():
    counts, trials, size, offered = np.zeros(21), 200, 6, 21
    net, stream = network(), small_stream(1)
    for seed in range(trials):
        learning = start(DER(), net, stream, seed=seed)
        learning.enter(0)
        for first in range(0, offered, 7):
            reservoir.offer(learning.context, numbered(first, 7), size)
        kept = learning.context.memory["reservoir/labels"]
        assert len(kept) == size == len(kept.unique())
        counts[kept.numpy()] += 1
    share = size / offered
    assert np.abs(counts - trials * share).max() < 4.5 * np.sqrt(trials * share * (1 - share))


def test_the_reservoir_follows_the_published_algorithm():
    g = torch.Generator().manual_seed(9)
    uniform = torch.rand(40, generator=torch.Generator().manual_seed(9), dtype=torch.float64).tolist()
    memory = [-1, -2, -3]  # of three offers before
    for n, u in enumerate(uniform, start=3):
        if n < 5:
            memory.append(n - 3)
        elif int(u * (n + 1)) < 5:
            memory[int(u * (n + 1))] = n - 3
    places = reservoir._places(3, 40, 5, g)
    assert [places.get(place, -1 - place) for place in range(5)] == memory


def test_stored_samples_labels_and_logits_belong_together():
    learning = start(DER(), network(), small_stream(1))
    learning.enter(0)
    for first in range(0, 64, 8):
        reservoir.offer(learning.context, numbered(first, 8), 12)
    state = reservoir.ReservoirState(learning.context).reservoir
    kept = [state[name] for name in reservoir.Kept._fields]
    for values in kept:
        assert torch.equal(values if values.dim() == 1 else values[:, 3].long(), kept[1])


# The loss -------------------------------------------------------------------------------------------------


def test_stored_logits_precede_the_step_and_cover_all_outputs():
    stream, net = small_stream(1, samples=8), network()
    before = copy.deepcopy(net)
    learning = start(DER(), net, stream, [(0, 1)])
    learning.context.outputs = 6
    fit_task(learning, stream, 0, epochs=1)
    memory = learning.context.memory
    torch.testing.assert_close(memory["reservoir/outputs"], before(memory["reservoir/samples"]).detach())
    assert memory["reservoir/outputs"].shape == (8, 6) and not torch.equal(weights(net), weights(before))


@pytest.mark.parametrize("learner", [DER(alpha=0.3), DERpp(alpha=0.3, beta=0.7)], ids=["der", "der++"])
def test_the_loss_equals_the_formula(learner):
    stream, units, net = small_stream(2, samples=12), [(0, 1), (2, 4)], nn.Linear(6, 5)
    learning = start(learner, net, stream, units, batch_size=5)
    fit_task(learning, stream, 0)
    learning.enter(1)
    x, y = stream[1][0][:4], stream[1][1][:4]
    context, model = learning.context, learning.model()
    state = learning.state()
    value = learner.penalty(context, Step(x, model, model(x).sum(), y, torch.full((4,), 1))).item()
    assert context.memory["reservoir/tasks"].tolist() == [0] * 24 + [1] * 4  # two epochs of 12, and these

    learning.restore(state)
    W, b = (p.detach().numpy().astype(np.float64) for p in (net.weight, net.bias))
    kept = reservoir.draw(context, 5)
    z = kept.samples.numpy().astype(np.float64) @ W.T + b
    expected = 0.3 * np.mean((z - kept.outputs.numpy()) ** 2)
    if learner.name == "der++":
        kept = reservoir.draw(context, 5)
        z = (kept.samples.numpy().astype(np.float64) @ W.T + b)[:, [0, 1]]
        own = np.log(np.exp(z).sum(1)) - z[np.arange(5), kept.labels.numpy()]
        expected += 0.7 * own.mean()
    assert value == pytest.approx(expected, rel=1e-5)


def test_zero_weights_or_an_empty_memory_equal_naive_training():
    stream = small_stream(2)
    plain = weights(learn(Naive(), network(), stream).context.network)
    for neutral in (DER(alpha=0), DER(memory_size=0), DERpp(alpha=0, beta=0)):
        assert torch.equal(weights(learn(neutral, network(), stream).context.network), plain)
    der, same = (learn(learner, network(), stream) for learner in (DER(), DERpp(beta=0)))
    assert torch.equal(weights(der.context.network), weights(same.context.network))
    assert not torch.equal(weights(der.context.network), plain)


def test_training_ignores_task_boundaries():
    """Two tasks under one head, told or not: the same training, as long as the draws are the same."""
    stream = small_stream(2, samples=16)
    learning = start(DERpp(), network(2), stream, small_units(2, shared=True))
    fit_task(learning, stream, 0)
    told = learning.state()
    learning.end()
    assert {name: values.tobytes() for name, values in told.items() if name != "progress"} == {
        name: values.tobytes() for name, values in learning.state().items() if name != "progress"
    }


def test_distillation_replays_the_memory_and_stores_nothing():
    stream = small_stream(2)
    learning = start(DER(), network(4), stream)
    fit_task(learning, stream, 0)
    learning.enter(1)
    free = start(Naive(), copy.deepcopy(learning.context.network), stream)
    free.enter(1)
    samples, outputs = (
        learning.context.memory[n].clone() for n in ("reservoir/samples", "reservoir/outputs")
    )
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(8))

    def astray(learning):
        guide(
            learning,
            (x,),
            lambda model, x: (model(x) - 5.0).square().mean(),
            optimizer=OptimizerSpec("sgd", 0.02),
            epochs=4,
            batch_size=8,
            seed=1,
            generator=torch.Generator().manual_seed(1),
        )
        with torch.no_grad():
            return float((learning.context.network(samples) - outputs).square().mean())

    assert astray(learning) < 0.8 * astray(free)
    assert torch.equal(learning.context.memory["reservoir/samples"], samples)


def test_replay_keeps_old_answers_against_contrary_ones():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(3))
    stream = [(x, (x[:, 0] > 0).long()), (x + 1.0, (x[:, 1] > 0).long())]

    def first_task(learner):
        learning = learn(learner, network(2), stream, small_units(2, shared=True), epochs=25)
        return float((learning.model(1)(x).argmax(1) == stream[0][1]).float().mean())

    assert first_task(Naive()) + 0.1 < first_task(DERpp(memory_size=500))
