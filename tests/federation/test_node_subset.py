"""Some nodes of a federation, as a grid of their own."""

from __future__ import annotations

from flwr.app import Message, RecordDict

from fedkd.engine.inline import InlineGrid
from fedkd.federation.messages.exchange import NodeSubset


def test_a_subset_lists_its_nodes_and_sends_through_the_grid():
    def app(message, context):
        return Message(RecordDict(), reply_to=message)

    whole = InlineGrid(app, lambda client: None, 5)
    nodes = list(whole.get_node_ids())
    subset = NodeSubset(whole, [nodes[3], nodes[1]])
    assert list(subset.get_node_ids()) == [nodes[3], nodes[1]]
    message = subset.create_message(RecordDict(), "train", nodes[3], "1")
    (reply,) = subset.send_and_receive([message])
    assert reply.metadata.src_node_id == nodes[3]
    (key,) = subset.push_messages([subset.create_message(RecordDict(), "train", nodes[1], "1")])
    (pulled,) = subset.pull_messages([key])
    assert pulled.metadata.src_node_id == nodes[1]
    subset.set_run(whole.run)
    assert subset.run is whole.run
