"""GDumb's sampler and what is trained on; cumulative."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from small_learning import fit_task, small_stream, start

from fedkd.continual.baselines.baselines import Cumulative
from fedkd.continual.learner import Step
from fedkd.continual.replay.gdumb import GDumb, greedily_balanced, pasted, restarted
from fedkd.errors import UserError
from fedkd.models.zoo.mlp import mlp
from fedkd.randomness import seeded_torch
from fedkd.training.optimizer import OptimizerSpec


def network():
    with seeded_torch(4):
        return mlp((6,), 6, hidden=(8,))


def sampled(classes, size, held=0):
    kept = greedily_balanced(classes, held, size, torch.Generator().manual_seed(0))
    assert len(kept) == len(set(kept)) <= max(size, held) and kept == sorted(kept)
    return kept


def test_the_sampler_equals_a_hand_count():
    # Room for 4. Class a fills it; the first b takes the place of an a, and so does the second: then b has
    # its half, and the third b is turned away. The c takes one of the largest class, the first of equal ones.
    kept = sampled("aaaabbbc", 4)
    assert Counter("aaaabbbc"[n] for n in kept) == {"a": 1, "b": 2, "c": 1}
    assert 6 not in kept and 7 in kept
    # Whoever is turned away stays away, and there is nothing to choose where everything fits.
    assert sampled("aab", 4) == [0, 1, 2]
    assert sampled("aaaaaa", 3) == [0, 1, 2]
    assert sampled("aaab", 3, held=3) == sampled("aaab", 3)


@pytest.mark.parametrize(("classes", "size"), [(3, 12), (4, 10), (7, 5)])
def test_classes_share_the_memory_evenly(classes, size):
    stream = torch.randint(classes, (400,), generator=torch.Generator().manual_seed(1)).tolist()
    counts = Counter(stream[n] for n in sampled(stream, size))
    assert sum(counts.values()) == size
    if size >= classes:
        # Strictly fewer than k / classes is enough to be taken in.
        assert len(counts) == classes and max(counts.values()) - min(counts.values()) <= 1


def test_every_task_starts_from_the_initial_weights_and_trains_on_memory():
    stream, net = small_stream(3), network()
    learning = start(GDumb(memory_size=10), net, stream)
    initial = [p.detach().clone() for p in net.parameters()]
    for task in range(3):
        learning.enter(task)
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), initial, strict=True))
        assert list(learning.learner.batch(learning.context).tasks) == []
        found = learning.learner.batch(learning.context).replayed
        pairs = Counter(zip(found.tasks.tolist(), found.labels.tolist(), strict=True))
        assert len(found.labels) == 10 and len(pairs) == 2 * (task + 1)
        assert max(pairs.values()) - min(pairs.values()) <= 1
        for sample, label, of_task in zip(*found, strict=True):
            (at,) = (stream[of_task][0] == sample).all(1).nonzero()[:, 0].tolist()
            assert stream[of_task][1][at] == label
        fit_task(learning, stream, task)
        learning.end()
    assert learning.context.memory["episodes/samples"].shape == (10, 6)


def test_cumulative_training_continues_from_its_weights():
    stream, net = small_stream(2), network()
    learning = start(Cumulative(), net, stream)
    fit_task(learning, stream, 0)
    learning.end()
    before = [p.detach().clone() for p in net.parameters()]
    learning.enter(1)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert tuple(learning.learner.batch(learning.context).tasks) == (0, 1)
    assert learning.context.stored_bytes() == 0


# The authors' training -------------------------------------------------------------------------------


def test_learning_rates_follow_a_cosine_with_warm_restarts():
    weight = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([weight], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(sgd, T_0=1, T_mult=2, eta_min=5e-4)
    expected = [0.005]  # the first epoch warms up; torch's schedule begins with the second
    for _ in range(40):
        expected.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
    assert [restarted(epoch, 0.05, 5e-4) for epoch in range(41)] == pytest.approx(expected, rel=1e-12)


def test_every_epoch_is_a_phase_with_its_own_learning_rate():
    stream, spec = small_stream(1), OptimizerSpec("adam", 0.3)
    for learner, lrs in ((GDumb(), [0.005, 0.05, 0.05]), (GDumb(schedule="training"), [0.3] * 3)):
        learning, found = start(learner, network(), stream), []
        learning.enter(0)
        for epoch in range(3):
            learning.context.phase = learner.phase_of(epoch, 3)
            found.append(learner.optimizer(learning.context, spec).lr)
        assert found == pytest.approx(lrs)
    assert learner.optimizer(learning.context, spec) == spec


def test_cutmix_replaces_a_rectangle_of_an_image():
    images = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 2, 8, 10).clone()
    shares = []
    for seed in range(20):
        mixed, order, share = pasted(images, torch.Generator().manual_seed(seed))
        inside = (mixed != images).any(dim=1)
        for own, other, mask in zip(mixed, images[order], inside, strict=True):
            assert torch.equal(own[:, mask], other[:, mask])
            rows, columns = mask.any(dim=1), mask.any(dim=0)
            assert torch.equal(mask, rows[:, None] & columns)
        moved = order != torch.arange(6)
        assert (1.0 - inside[moved].double().mean(dim=(1, 2))).tolist() == pytest.approx(
            [share] * int(moved.sum())
        )
        shares.append(share)
    assert min(shares) < 0.5 and max(shares) > 0.9


def test_the_cutmix_loss_weighs_both_labels_by_area():
    stream = small_stream(1, shape=(1, 4, 4))
    with seeded_torch(4):
        net = mlp((1, 4, 4), 2, hidden=(8,))
    learner = GDumb(cutmix=1.0)
    learning = start(learner, net, stream)
    learning.enter(0)
    x, y = stream[0]
    loss = torch.tensor(5.0)
    step = Step(x, learning.model(), loss, y, torch.zeros_like(y))
    total = loss + learner.penalty(learning.context, step)
    generator = learning.context.generator("cutmix-0")
    torch.rand((), generator=generator)
    mixed, order, share = pasted(x, generator)
    log_p = net(mixed).log_softmax(dim=1)
    rows = torch.arange(len(y))
    expected = -(share * log_p[rows, y] + (1 - share) * log_p[rows, y[order]]).mean()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    # Drawn anew for each step; never for guidance, and never where nothing is mixed.
    assert learner.penalty(learning.context, step) + loss != total
    assert learner.penalty(learning.context, Step(x, learning.model(), loss)) is None
    assert GDumb().penalty(learning.context, step) is None


def test_cutmix_needs_images():
    with pytest.raises(UserError, match="must be 0, because samples are not images") as caught:
        start(GDumb(cutmix=0.5), network(), small_stream(1))
    assert caught.value.key == "continual.cutmix"
