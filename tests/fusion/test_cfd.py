"""CFD against votes counted by hand, and what a vote costs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydantic import ValidationError
from rounds import draw_logits, guidance_for, num_bytes
from small_views import SmallClient, SmallServer

from fedkd.errors import TrainingDiverged
from fedkd.fusion.distillation.cfd import CFD
from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.randomness import numpy_generator


def fuse(logits: np.ndarray, clients=None) -> Guidance:
    uploads = [CFD().upload(SmallClient(logits=client)) for client in logits]
    extra = {name: [upload[name] for upload in uploads] for name in uploads[0]}
    clients = tuple(range(len(logits))) if clients is None else clients
    return CFD().fuse(Knowledge(clients, None, np.full(len(clients), 10), payload=extra), {})


def test_cfd_equals_loops() -> None:
    logits = draw_logits(3, 4, 3)
    expected = np.zeros((4, 3))
    for client in logits.tolist():
        for i, row in enumerate(client):
            expected[i, row.index(max(row))] += 1 / 3
    assert_allclose(fuse(logits).targets, expected, rtol=1e-6)


def test_votes_equal_a_hand_count() -> None:
    logits = np.array([[[0, 9, 1], [2, 1, 0]], [[0, 1, 0], [0, 0, 1]], [[5, 1, 0], [0, 0, 7]]], np.float32)
    assert_allclose(fuse(logits).targets, [[1 / 3, 2 / 3, 0], [1 / 3, 0, 2 / 3]], rtol=1e-6)
    assert_allclose(fuse(logits).weights, 1 / 3)


def test_older_votes_count_less() -> None:
    votes = [np.array([0, 1], np.uint8), np.array([1, 1], np.uint8)]
    extra = {"votes": votes, "classes": [np.array([2], np.uint32)] * 2}
    knowledge = Knowledge((0, 1), None, np.full(2, 10), payload=extra, freshness=np.array([1.0, 0.25]))
    assert_allclose(CFD().fuse(knowledge, {}).targets, [[0.8, 0.2], [0, 1]], rtol=1e-6)
    assert_allclose(CFD().fuse(knowledge, {}).weights, [[0.8, 0.2]] * 2)


@pytest.mark.parametrize(("classes", "size"), [(2, 1), (10, 1), (256, 1), (257, 2), (1000, 2)])
def test_votes_use_the_smallest_integer_type(classes, size) -> None:
    logits = np.zeros((50, classes), np.float32)
    logits[:, -1] = 1
    upload = CFD().upload(SmallClient(logits=logits))
    assert upload["votes"].dtype == (np.uint8 if size == 1 else np.uint16)
    assert num_bytes(upload) == 50 * size + 4
    targets = fuse(logits[None]).targets
    assert_array_equal(targets, logits)  # the last class is not lost to a short integer


def test_votes_beyond_one_byte_are_counted() -> None:
    logits = np.zeros((300, 400, 3), np.float32)  # cells and counts above 255
    logits[:200, :, 1] = 1
    assert_allclose(fuse(logits).targets, np.tile([1 / 3, 2 / 3, 0], (400, 1)), rtol=1e-6)


def test_a_diverged_model_does_not_vote() -> None:
    logits = draw_logits(1, 4, 3)
    logits[0, 2, 1] = np.nan
    with pytest.raises(TrainingDiverged, match="not numbers"):
        fuse(logits)


# With a model on the server ---------------------------------------------------------------------------


class Federation:
    """Three clients, of whom some take part, and a linear model on the server."""

    def __init__(self, **hyperparameters) -> None:
        self.strategy = CFD(server_model="plain", **hyperparameters)
        self.x = numpy_generator(0, "transfer").normal(0, 1, (9, 5)).astype(np.float32)
        self.server = SmallServer(self.x, 4)
        self.clients = [SmallClient(logits=draw_logits(1, 9, 4, seed=n)[0]) for n in range(3)]
        self.memory: dict[str, np.ndarray] = {}

    def run(self, *present: int, stale: tuple[int, ...] = ()) -> Guidance:
        """Run a round of some clients, and of what is still known of others."""
        known = tuple(sorted(present + stale))
        uploads = [self.strategy.upload(self.clients[n]) for n in known]
        extra = {name: [upload[name] for upload in uploads] for name in uploads[0]}
        new = np.array([n in present for n in known])
        knowledge = Knowledge(
            known,
            None,
            np.full(len(known), 10),
            payload=extra,
            server=self.server,
            age=np.where(new, 1, 2),
            new=new,
        )
        guidance = self.strategy.fuse(knowledge, self.memory)
        self.memory = guidance.memory
        for row, n in enumerate(known):
            if n in present:
                self.clients[n].learn(self.strategy, guidance_for(row, guidance))
        return guidance

    def labels(self) -> np.ndarray:
        """Return the present labels of the server's model, worked out by hand."""
        weight, bias = np.split(self.memory["parameters"].astype(np.float64), [20])
        z = self.x.astype(np.float64) @ weight.reshape(4, 5).T + bias
        q = np.exp(z - z.max(axis=1, keepdims=True))
        return q / q.sum(axis=1, keepdims=True)


def test_clients_learn_labels_of_the_server_model() -> None:
    federation = Federation(bits_down=8, server_epochs=30, server_lr=0.1)
    federation.run(0, 1, 2)
    (trained,) = federation.server.trained
    votes = np.stack([client.all_logits.argmax(axis=1) for client in federation.clients])
    assert_allclose(trained["targets"][0], np.eye(4)[votes].mean(axis=0), rtol=1e-6)
    assert trained["options"][:3] == (30, 64, 0.1)
    for client in federation.clients:
        ((targets, samples),) = client.distilled
        assert samples is None and targets.dtype == np.float32
        assert_allclose(targets, federation.labels(), atol=1 / 255)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_all_participants_learn_the_newest_labels(bits) -> None:
    federation = Federation(bits_down=bits, server_epochs=2, server_lr=0.3)
    rounds = [((0,), ()), ((0, 1), ()), ((1, 2), (0,)), ((2,), (0, 1)), ((0, 1, 2), ())]
    for round, (present, stale) in enumerate(rounds, start=1):
        guidance = federation.run(*present, stale=stale)
        assert guidance.targets is None and guidance.memory["round"] == round
        newest = [federation.clients[n].distilled[-1][0] for n in present]
        for targets in newest:
            assert_array_equal(targets, newest[0])
            assert_allclose(targets, federation.labels(), atol=1 / (2**bits - 1))
    weights = [call["weights"]["weight"] for call in federation.server.trained]
    assert all(np.abs(one - other).max() > 0 for one, other in pairwise(weights)), "it lives on"


def test_unchanged_labels_are_not_sent_again() -> None:
    federation = Federation(server_epochs=0)
    first, second = federation.run(0, 1), federation.run(0, 2)
    assert num_bytes(first.personal[0]) == 2 + 9 * 4 + 8  # a bit for each of nine, four bytes each, the shape
    assert [num_bytes(own) for own in second.personal] == [2 + 8, 2 + 9 * 4 + 8]
    assert len(federation.clients[0].distilled) == 2


def test_cfd_needs_server_training_only_with_a_server_model() -> None:
    assert not CFD().capabilities.needs and CFD(server_model="plain").capabilities.needs == {"server"}


@pytest.mark.parametrize("wrong", [{"bits_down": 0}, {"bits_down": 9}, {"server_lr": 0}])
def test_wrong_hyperparameters_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        CFD(**wrong)
