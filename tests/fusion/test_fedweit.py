"""FedWeIT's exchange against a hand computation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from rounds import num_bytes

from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.fusion.streams.fedweit import FedWeIT, averaged

SHAPES = {"body.weight": (4, 3), "body.bias": (4,), "conv.weight": (2, 1, 2, 2), "head.weight": (2, 4)}
SPLIT = ("body.weight", "conv.weight")
SIZE, UNITS = 20, 6
FAN_IN = np.array([3, 3, 3, 3, 4, 4])


class Server:
    clients = 4

    def architecture_of(self, client):
        return "one"

    def clients_of(self, architecture):
        return list(range(self.clients))

    def initial_weights(self, architecture):
        return weights_of(0.0)

    def trainable(self, architecture):
        return tuple(SHAPES)


class Client:
    """A client whose learner has masks and parts that are given."""

    def __init__(self, weights, masks=None, parts=None, learned=()):
        self.own, self.masks, self.parts, self.learned = dict(weights), masks or {}, parts or {}, learned
        self.memory, self.told = {}, {}

    def weights(self):
        return dict(self.own)

    def load_weights(self, weights):
        self.own = dict(weights)

    def trainable(self):
        return tuple(SHAPES)

    def learner_tells(self, tasks):
        told = {f"mask/{name}": self.masks.get(name, np.ones(SHAPES[name][0])) for name in SPLIT}
        for task in tasks:
            told |= {f"part/{task}/{name}": part for name, part in self.parts.get(task, {}).items()}
        return told

    def tell_learner(self, arrays):
        self.told |= arrays


def weights_of(offset) -> dict[str, np.ndarray]:
    return {
        name: (offset + np.arange(np.prod(shape))).reshape(shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def part_of(value) -> dict[str, np.ndarray]:
    """Return a part that is zero but for one number of each weight."""
    parts = {name: np.zeros(SHAPES[name], np.float32) for name in SPLIT}
    for part in parts.values():
        part.flat[value % part.size] = value
    return parts


def dense(part) -> np.ndarray:
    flat = np.zeros(SIZE)
    flat[np.unpackbits(part["bits"], count=SIZE).astype(bool)] = part["values"]
    return flat


def knowledge_of(uploads, clients) -> Knowledge:
    arrays = {name: [upload[name] for upload in uploads] for name in uploads[0]}
    return Knowledge(
        clients=tuple(clients), logits=None, samples=np.ones(len(uploads)), payload=arrays, server=Server()
    )


def parts_in(table) -> dict[tuple[int, int], np.ndarray]:
    keys = {tuple(name.split("/")[1:3]) for name in table if name.startswith("known/")}
    return {
        (int(c), int(t)): dense({what: table[f"known/{c}/{t}/{what}"] for what in ("values", "bits")})
        for c, t in keys
    }


def start() -> tuple[FedWeIT, Guidance]:
    strategy = FedWeIT()
    return strategy, strategy.prepare(Server())


def test_units_are_averaged_over_their_senders():
    generator = np.random.default_rng(0)
    base, weights = generator.normal(size=SIZE).astype(np.float32), generator.normal(size=(3, SIZE))
    sent = np.array([[1, 1, 0, 0, 1, 0], [1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0]], bool)
    starts = np.cumsum([0, *FAN_IN])
    expected = base.astype(np.float64)
    for unit in range(UNITS):
        own = [weights[n, starts[unit] : starts[unit + 1]] for n in range(3) if sent[n, unit]]
        if own:
            expected[starts[unit] : starts[unit + 1]] = sum(own) / len(own)
    rows = [w[np.repeat(s, FAN_IN)] for w, s in zip(weights, sent, strict=True)]
    got, told = averaged(base, rows, [np.packbits(s) for s in sent], FAN_IN)
    assert_allclose(got, expected, rtol=1e-6)
    assert_array_equal(told, [True, True, False, True, True, False])


def test_a_client_uploads_masked_units_and_nonzero_parts():
    masks = {"body.weight": np.array([0.1, 0.9, 0.8, 0.2]), "conv.weight": np.array([0.4, 0.4])}
    client = Client(weights_of(1.0), masks, {0: part_of(7), 1: part_of(9)}, learned=(3,))
    upload = FedWeIT(keep=0.5).upload(client)
    assert_array_equal(np.unpackbits(upload["units"], count=UNITS), [0, 1, 1, 0, 1, 0])
    rows = [client.own["body.weight"][1:3].ravel(), client.own["conv.weight"][:1].ravel()]
    assert_array_equal(upload["base"], np.concatenate(rows))
    assert upload["tasks"].tolist() == [3] and upload["parts"].tolist() == [7.0, 7.0]
    # 10 of 20 numbers and a byte for which units; 2 numbers of a part, 20 bits for where, and its task.
    assert num_bytes(upload) == 40 + 1 + 8 + 3 + 4
    again = FedWeIT(keep=0.5).upload(client)
    assert num_bytes(again) == 40 + 1, "a part is sent once"


def test_a_delayed_part_is_sent_with_the_next_upload():
    client = Client(weights_of(0.0), parts={0: part_of(3), 2: part_of(5)}, learned=(2, 0, 1))
    upload = FedWeIT().upload(client)
    assert upload["tasks"].tolist() == [2, 1] and upload["part_bits"].shape == (2, 3)  # place 1 never trained
    strategy, first = start()
    guidance = strategy.fuse(knowledge_of([upload], [1]), first.memory)
    got = parts_in(guidance.absent[0])
    assert got.keys() == {(1, 2), (1, 1)}
    for (_, task), value in zip(sorted(got), (5, 3), strict=True):
        layers = part_of(value)
        assert_array_equal(got[1, task], np.concatenate([layers[name].ravel() for name in SPLIT]))


def test_each_part_reaches_every_other_client_once():
    strategy, guidance = start()
    seen: dict[int, list] = {n: [] for n in range(4)}
    learned = {n: Client(weights_of(n), parts={0: part_of(n + 1)}, learned=(n,)) for n in range(4)}
    waiting: dict[int, dict] = {}
    for present in ([0, 1], [1, 2], [0, 1], [0, 1, 2, 3]):
        for n in present:  # what was missed comes along with the next training
            seen[n] += list(parts_in(waiting.pop(n, {})))
        uploads = [strategy.upload(learned[n]) for n in present]
        guidance = strategy.fuse(knowledge_of(uploads, present), guidance.memory)
        for n, table in zip(present, guidance.personal, strict=True):
            seen[n] += list(parts_in(table))
        waiting |= guidance.absent
        for table in guidance.absent.values():
            assert_array_equal(table["base"], guidance.memory["base"])
    for n in range(4):
        assert sorted(seen[n]) == [(m, m) for m in range(4) if m != n]
    assert {tuple(name.split("/")[1:3]) for name in guidance.memory if name.startswith("known/")} == {
        (str(n), str(n)) for n in range(4)
    }


def test_newer_guidance_replaces_waiting_guidance():
    strategy, first = start()
    client = Client(weights_of(100.0))
    strategy.apply(client, first.shared)
    units = np.array([0, 1, 0, 0, 0, 1], bool)
    newer = {"base": np.full(7, -1.0, np.float32), "units": np.packbits(units)}
    strategy.apply(client, newer | {"known/2/0/values": np.ones(1, np.float32)})
    assert_array_equal(client.own["body.weight"], weights_of(100.0)["body.weight"])
    strategy.before_training(client)
    expected = weights_of(0.0)
    expected["body.weight"][1], expected["conv.weight"][1] = -1.0, -1.0
    for name in SPLIT:
        assert_array_equal(client.own[name], expected[name])
    for name in ("body.bias", "head.weight"):
        assert_array_equal(client.own[name], weights_of(100.0)[name])
    assert client.told.keys() == {"2/0/values"} and client.memory == {}
    strategy.before_training(client)  # nothing has come since
    assert_array_equal(client.own["body.weight"], expected["body.weight"])


@pytest.mark.parametrize("keep", [0.0, 1.1])
def test_an_invalid_share_is_refused(keep):
    with pytest.raises(ValueError, match="keep"):
        FedWeIT(keep=keep)
