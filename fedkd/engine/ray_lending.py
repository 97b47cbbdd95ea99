"""Processors of actors that have nothing to do, lent to those that evaluate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from flwr.app import Message

from fedkd.federation import messages as msg
from fedkd.federation.identity import client_of


def lend_idle(messages: Sequence[Message], owner: Mapping[int, int], nodes: Mapping[int, str]) -> None:
    """Let clients that are to be evaluated know how many threads may predict.

    So it is where few are evaluated, such as one for all whose weights are averaged: their actors share the
    processors that actors of their node have and do not need.

    Args:
        messages: All that are under way.
        owner: Client index to its actor.
        nodes: Actor to its node.
    """
    actor_of = [owner[client_of(message.metadata.dst_node_id)] for message in messages]
    busy = Counter(nodes[actor] for actor in set(actor_of))
    there = Counter(nodes.values())
    for message, actor in zip(messages, actor_of, strict=True):
        lanes = there[nodes[actor]] // busy[nodes[actor]]
        if lanes > 1 and message.metadata.message_type == msg.EVALUATE and msg.CONFIG in message.content:
            message.content.config_records[msg.CONFIG][msg.LANES] = lanes
