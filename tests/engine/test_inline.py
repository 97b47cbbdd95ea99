"""The inline engine as a Flower grid."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict

from fedkd.engine.inline import InlineGrid
from fedkd.federation.messages.records import CLIENT_RAISED


def context(client: int) -> Context:
    return Context(1, client + 2, {"client": client}, RecordDict(), {})


def app(message: Message, context: Context) -> Message:
    client = context.node_config["client"]
    if message.content.config_records["ask"].get("fails", -1) == client:
        raise LookupError("lost\nin the woods")
    if message.content.config_records["ask"].get("exits", -1) == client:
        raise SystemExit(1)
    seen = int(context.state.config_records["seen"]["n"]) + 1 if "seen" in context.state else 1
    context.state["seen"] = ConfigRecord({"n": seen})
    return Message(RecordDict({"told": ConfigRecord({"client": client, "seen": seen})}), reply_to=message)


def messages(grid: InlineGrid, nodes=None, **ask: int) -> list[Message]:
    content = RecordDict({"ask": ConfigRecord(ask)})
    return [grid.create_message(content, "train", node, "1") for node in nodes or grid.get_node_ids()]


def told(replies) -> list[tuple[int, int]]:
    records = [reply.content.config_records["told"] for reply in replies]
    return [(record["client"], record["seen"]) for record in records]


def test_replies_come_in_client_order_and_contexts_persist():
    grid = InlineGrid(app, context, 4)
    nodes = list(grid.get_node_ids())
    shuffled = messages(grid, [nodes[i] for i in (2, 0, 3, 1)])
    assert told(grid.send_and_receive(shuffled)) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert told(grid.send_and_receive(messages(grid, nodes[1:2]))) == [(1, 2)]


def test_a_reply_names_the_message_it_answers():
    grid = InlineGrid(app, context, 3)
    sent = messages(grid)
    replies = list(grid.send_and_receive(sent))
    assert [r.metadata.reply_to_message_id for r in replies] == [m.metadata.message_id for m in sent]
    assert len({message.metadata.message_id for message in sent}) == 3
    assert [r.metadata.src_node_id for r in replies] == list(grid.get_node_ids())


def test_progress_is_reported_after_each_reply():
    grid = InlineGrid(app, context, 3)
    seen: list[tuple[int, int]] = []
    grid.on_reply = lambda done, total: seen.append((done, total))
    list(grid.send_and_receive(messages(grid)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_failing_client_replies_with_an_error_and_others_continue():
    grid = InlineGrid(app, context, 3)
    first, second, third = grid.send_and_receive(messages(grid, fails=1))
    assert told([first, third]) == [(0, 1), (2, 1)]
    assert isinstance(second.error, Error)
    assert second.error.code == CLIENT_RAISED
    lines = second.error.reason.splitlines()
    assert lines[0] == "LookupError: lost"
    assert "Traceback" in lines[1] + lines[2]
    assert second.metadata.src_node_id == 3


def test_an_exiting_client_leaves_the_others_running():
    grid = InlineGrid(app, context, 2)
    first, second = grid.send_and_receive(messages(grid, exits=0))
    assert first.error.reason.startswith("RuntimeError: it called sys.exit(1)")
    assert told([second]) == [(1, 1)]


def test_a_failed_context_is_an_error_of_its_client():
    def make(client: int) -> Context:
        if client == 0:
            raise OSError("no room")
        return context(client)

    first, second = (grid := InlineGrid(app, make, 2)).send_and_receive(messages(grid))
    assert first.error.reason.startswith("OSError: no room")
    assert told([second]) == [(1, 1)]


def test_ctrl_c_does_not_count_as_a_client_failure():
    def interrupted(message, context):
        raise KeyboardInterrupt

    grid = InlineGrid(interrupted, context, 1)
    with pytest.raises(KeyboardInterrupt):
        list(grid.send_and_receive(messages(grid)))


def test_pushed_messages_are_pulled_once():
    grid = InlineGrid(app, context, 3)
    keys = list(grid.push_messages(messages(grid)))
    assert told(grid.pull_messages([keys[2], keys[0]])) == [(2, 1), (0, 1)]
    assert list(grid.pull_messages([keys[0], "unknown"])) == []
    assert told(grid.pull_messages(keys)) == [(1, 1)]
    assert not grid._replies, "what was handed out must not stay"


def test_closing_drops_the_clients():
    grid = InlineGrid(app, context, 1)
    list(grid.send_and_receive(messages(grid)))
    grid.close()
    assert told(grid.send_and_receive(messages(grid))) == [(0, 1)]
