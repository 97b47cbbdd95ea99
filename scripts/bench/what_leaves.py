"""What the messages of a deployed federation hold, kind by kind, and what each weighs.

    python scripts/bench/what_leaves.py SCENARIO.toml [key=value …]

The scenario is dealt into a temporary folder and run by the apps that a SuperLink and SuperNodes run, in this
process, on one node per client. Every message and every reply is weighed as Flower sends it: all of its
objects, deflated, without TLS and HTTP around them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from flwr.app import Context, Message, RecordDict

from fedkd.deployment.partition import SERVER, client_folder, write_partition
from fedkd.engine.inline import InlineGrid
from fedkd.errors import FedkdError
from fedkd.federation.apps.client_app import client_app
from fedkd.federation.apps.server_app import server_app
from fedkd.federation.compat import RUN_ID, SERVER_NODE_ID, node_id_of
from fedkd.federation.messages.arrays import payload_bytes, values_of
from fedkd.plan import Plan, load_plan

Row = tuple[str, str, str]


class AnonymousGrid(InlineGrid):
    """A grid that is asked which node is which client, as a SuperLink is."""

    @property
    def node_of_client(self) -> dict[int, int]:
        raise AttributeError("node_of_client")


def weight(message: Message) -> int:
    """Return the bytes of all objects of a message, as Flower sends them."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    return sum(len(found.deflate()) for found in get_all_nested_objects(message).values())


def described(content: RecordDict) -> str:
    """Return what a message holds, in words."""
    words = []
    for name, record in content.array_records.items():
        for key, array in record.items():
            values = values_of(array)
            words.append(f"{name}/{key} {values.dtype} {list(values.shape)}")
    for name, record in (*content.metric_records.items(), *content.config_records.items()):
        if record:
            words.append(f"{name} {{{', '.join(sorted(record))}}}")
    return "; ".join(words) or "nothing"


def main(words: list[str]) -> int:
    """Print the table."""
    try:
        plan = load_plan(words[0], words[1:])
        heard = exchanged(plan)
    except FedkdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except IndexError:
        print(__doc__, file=sys.stderr)
        return 2
    print("| message | way | holds | messages | arrays, bytes | all, bytes |")
    print("| --- | --- | --- | --: | --: | --: |")
    for (kind, way, holds), sizes in heard.items():
        arrays, whole = ({size[place] for size in sizes} for place in (0, 1))
        print(f"| `{kind}` | {way} | {holds} | {len(sizes)} | {span(arrays)} | {span(whole)} |")
    return 0


def span(sizes: set[int]) -> str:
    """Return the least and the most of some sizes."""
    return f"{min(sizes):,}" if len(sizes) == 1 else f"{min(sizes):,}–{max(sizes):,}"


def exchanged(plan: Plan) -> dict[Row, list[tuple[int, int]]]:
    """Run a plan on deployed nodes and return the sizes of all messages, by what they hold."""
    heard: dict[Row, list[tuple[int, int]]] = defaultdict(list)

    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        kind = message.metadata.message_type
        for way, found in (("to the client", message), ("back", reply)):
            heard[kind, way, described(found.content)].append((payload_bytes(found.content), weight(found)))
        return reply

    with TemporaryDirectory() as temporary, redirect_stdout(StringIO()):
        folder = write_partition(plan, Path(temporary) / "dealt")

        def context_of(client: int) -> Context:
            node = {"partition-id": client, "data": str(folder / client_folder(client))}
            return Context(RUN_ID, node_id_of(client), node, RecordDict(), {})

        clients = range(plan.scenario.data.clients)
        grid = AnonymousGrid(app, context_of, len(clients))
        run = {"data": str(folder / SERVER), "out": str(Path(temporary) / "run")}
        server_app(
            grid,
            Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), run),
        )
    return heard


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
