"""Idle clients are stored and restored exactly."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedkd.engine.grid import Blocks
from fedkd.engine.idle_states import IdleStates
from fedkd.engine.inline import InlineGrid
from fedkd.engine.room import Room
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record, record_to_arrays

# States on disk ---------------------------------------------------------------------------------------------


def test_a_stored_state_is_restored_exactly(tmp_path):
    state = {
        "z": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "a": np.array([np.nan, -0.0, np.inf]),
        "bits": np.array([True, False]),
        "nothing": np.zeros((0, 3), dtype=np.float16),
        "number": np.array(2**62 + 1),
    }
    states = IdleStates(tmp_path)
    states.put(4, {})
    states.put(3, state)
    found = states.get(3)
    assert list(found) == list(state), "in the order in which they were"
    for name, wanted in state.items():
        assert (found[name].dtype, found[name].shape) == (wanted.dtype, wanted.shape)
        assert found[name].tobytes() == wanted.tobytes()
    assert states.get(4) == {} and 5 not in states


def test_states_of_changing_size_do_not_overlap():
    draw, states, known = np.random.default_rng(0), IdleStates(), {}
    for step in range(400):
        client = int(draw.integers(8))
        if draw.random() < 0.2:
            states.drop(client)
            known.pop(client, None)
        else:
            known[client] = draw.random(int(draw.integers(1, 60)))
            states.put(client, {"x": known[client]})
        assert all(np.array_equal(states.get(c)["x"], x) for c, x in known.items()), step
    most = 8 * (60 * 8 + 80)  # eight of the largest
    assert states.size < 2 * most, "room that was given back is used again"
    for client in list(known):
        states.drop(client)
    assert states.size == 0


def test_the_file_is_unlinked_and_ends_with_the_process(tmp_path):
    states = IdleStates(tmp_path)
    states.put(0, {"x": np.ones(1000)})
    assert list(tmp_path.iterdir()) == []


# Clients ----------------------------------------------------------------------------------------------------


class Counters:
    """An app whose clients count their messages, and which counts how often they are made and asked."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.asked: list[tuple[str, int]] = []

    def context(self, client: int) -> Context:
        self.made.append(client)
        return Context(1, client + 2, {"client": client}, RecordDict(), {})

    def app(self, message: Message, context: Context) -> Message:
        kind, client = message.metadata.message_type, int(context.node_config["client"])
        self.asked.append((kind, client))
        seen = int(context.state.config_records["seen"]["n"]) if "seen" in context.state else 0
        if kind == msg.EXPORT_STATE:
            if client == 13:
                raise OSError(28, "No space left on device")
            return Message(RecordDict({msg.STATE: arrays_to_record({"n": np.array(seen)})}), reply_to=message)
        if kind == msg.IMPORT_STATE:
            seen = int(record_to_arrays(message.content.array_records[msg.STATE])["n"])
        elif kind == msg.TRAIN:
            seen += 1
        context.state["seen"] = ConfigRecord({"n": seen})
        return Message(RecordDict({"told": ConfigRecord({"seen": seen})}), reply_to=message)

    def number(self, kind: str) -> int:
        return sum(asked == kind for asked, _ in self.asked)


def grid_of(counters: Counters, room: Room | None, clients: int = 5, **options) -> InlineGrid:
    return InlineGrid(counters.app, counters.context, clients, room=room, **options)


def ask(grid: InlineGrid, clients: list[int], kind: str = msg.TRAIN, content: RecordDict | None = None):
    sent = [grid.create_message(content or RecordDict(), kind, client + 2, "") for client in clients]
    return list(grid.send_and_receive(sent))


def seen(replies) -> list[int]:
    return [int(reply.content.config_records["told"]["seen"]) for reply in replies]


@pytest.mark.parametrize("most", [1, 2, 4, None])
def test_restored_clients_continue_exactly(most):
    grid = grid_of(Counters(), Room(most))
    orders = ([0, 1, 2], [3, 0, 4], [0], [1, 2, 3, 4], [0, 4])
    answers = [dict(zip(sorted(order), seen(ask(grid, order)), strict=True)) for order in orders]
    assert answers == [
        {0: 1, 1: 1, 2: 1},
        {0: 2, 3: 1, 4: 1},
        {0: 3},
        {1: 2, 2: 2, 3: 2, 4: 2},
        {0: 4, 4: 3},
    ]


def test_the_least_recently_used_client_is_stored_first():
    counters = Counters()
    grid = grid_of(counters, Room(2))
    for client in (0, 1, 0, 2, 0):
        ask(grid, [client])
    assert counters.made == [0, 1, 2], "1 was put aside for 2, not 0"


def test_unchanged_clients_are_not_written_again():
    counters = Counters()
    grid = grid_of(counters, Room(1, evaluation_changes=False))
    ask(grid, [0, 1, 2, 3], msg.EVALUATE)
    assert counters.number(msg.EXPORT_STATE) == 0, "they are what they are made as"
    ask(grid, [0])
    for _ in range(3):
        assert seen(ask(grid, [0, 1], msg.EVALUATE)) == [1, 0]
    assert counters.number(msg.EXPORT_STATE) == 1
    guided = RecordDict({msg.GUIDANCE: arrays_to_record({})})
    ask(grid, [0], msg.EVALUATE, guided)
    ask(grid, [1], msg.EVALUATE)
    assert counters.number(msg.EXPORT_STATE) == 2


def test_states_are_exchanged_without_building_a_client():
    counters = Counters()
    grid = grid_of(counters, Room(1))
    ask(grid, [0, 1])
    counters.made.clear()
    (reply,) = ask(grid, [0], msg.EXPORT_STATE)
    assert int(record_to_arrays(reply.content.array_records[msg.STATE])["n"]) == 1
    assert msg.sender(reply) == 0
    (reply,) = ask(
        grid, [4], msg.IMPORT_STATE, RecordDict({msg.STATE: arrays_to_record({"n": np.array(70)})})
    )
    assert msg.sender(reply) == 4 and counters.made == []
    assert seen(ask(grid, [4])) == [71]


def test_clients_needed_together_are_in_memory_together():
    counters = Counters()

    def together(requests):
        return [counters.app(message, context) for message, context in requests]

    grid = grid_of(counters, Room(1), 4, blocks=Blocks([(0, 1, 2), (3,)]), together=together)
    assert seen(ask(grid, [0, 1, 2, 3])) == [1, 1, 1, 1]
    assert counters.made == [0, 1, 2, 3], "none of them was put aside for another"
    assert seen(ask(grid, [0, 1, 2, 3])) == [2, 2, 2, 2]


def test_a_client_that_cannot_be_stored_is_named():
    grid = grid_of(Counters(), Room(1), 15)
    ask(grid, [13])
    (reply,) = ask(grid, [2])
    assert reply.error.reason.splitlines()[0] == (
        "RuntimeError: cannot save idle client 13: OSError: [Errno 28] No space left on device"
    )


def test_a_failed_client_is_restored():
    counters = Counters()
    real = counters.app

    def fails(message, context):
        if message.metadata.message_type == msg.TRAIN and message.content.config_records.get("fail"):
            context.state["seen"] = ConfigRecord({"n": 1000})
            raise ArithmeticError("no")
        return real(message, context)

    grid = InlineGrid(fails, counters.context, 3, room=Room(1), keeps_states=True)
    ask(grid, [0, 1, 2])
    (reply,) = ask(grid, [1], content=RecordDict({"fail": ConfigRecord({"yes": 1})}))
    assert reply.has_error()
    assert seen(ask(grid, [0, 1, 2])) == [2, 2, 2]


def test_the_folder_may_be_missing_on_another_machine(tmp_path):
    grid = grid_of(Counters(), Room(1, tmp_path / "not here"))
    assert seen(ask(grid, [0, 1])) == [1, 1] and seen(ask(grid, [0])) == [2]
    assert not (tmp_path / "not here").exists()
