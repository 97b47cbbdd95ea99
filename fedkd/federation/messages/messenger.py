"""Messages to clients and their replies, in client order; nodes' identities; failures of clients."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedkd.errors import Interrupted, RunFailed, TrainingDiverged, UserError
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.records import failure_of, first_line
from fedkd.federation.messages.server_gate import refusal
from fedkd.federation.run_control import Deployment, RunControl
from fedkd.fusion import InvalidUpload
from fedkd.scenario import Faults
from fedkd.tracking import Split

SKIPPABLE = frozenset({"train", "evaluate", "finish", "transferability"})
"""Phases that a client can miss; every client must end its task before the next."""
RECORDED: dict[str, Split] = {"train": "train", "end task": "train", "finish": "train", "evaluate": "local"}
"""Phases whose failures are recorded, and their splits."""
BEYOND_REPAIR = frozenset({UserError.__name__, TrainingDiverged.__name__})
"""Errors that end the run in any case: a retry would not help."""


class Messenger:
    """Sends messages, and counts each round's `failures` by client, split and metric."""

    def __init__(self, grid: Grid, clients: int, control: RunControl, faults: Faults | None = None) -> None:
        self._grid, self._control, self._deployment = grid, control, control.deployment
        self._faults = faults or Faults()
        self._goes_on = self._faults.on_client_error != "fail"
        self.node_of_client = identify(grid, clients, control.deployment)
        self._client_of_node = {node: client for client, node in self.node_of_client.items()}
        self._refused: set[int] = set()  # reported clients
        self.failures: Counter[tuple[int, Split, str]] = Counter()

    def send(self, round: int, phase: str, messages: Iterable[Message]) -> dict[int, Message]:
        """Send messages; return replies by client, in order, without skipped clients.

        Raises:
            RunFailed: A client failed.
            UserError: A client found a mistake in the scenario.
            Interrupted: The actors were stopped together with the run.
        """
        sent = sorted(messages, key=self.client_of)
        replies, failed, again = dict[int, Message](), dict[int, Message](), sent
        for attempt in range(1 + (self._faults.retries if self._faults.on_client_error == "retry" else 0)):
            if attempt:
                self._note(failed, round, phase, "asking once more")
                again = [_copied(message) for message in sent if self.client_of(message) in failed]
            replies |= self._exchange(round, phase, again)
            self._leave_out_diverged(round, phase, replies)
            failed = self._failed(replies, round)
            if not failed:
                return dict(sorted(replies.items()))
        if self._faults.on_client_error == "skip" and phase in SKIPPABLE:
            replied = {client: replies[client] for client in sorted(replies.keys() - failed.keys())}
            if len(replied) >= min(self._faults.min_replies, len(sent)):
                self._note(failed, round, phase, "skipped")
                return replied
            client, reply = next(iter(failed.items()))
            raise RunFailed(
                f"{len(replied)} of {len(sent)} clients have answered the {phase} message, fewer than"
                f" faults.min_replies = {self._faults.min_replies}; client {client}: {first_line(reply)}",
                round=round,
                details=reply.error.reason or "",
            )
        # A message lost with another client's actor is not the cause.
        causes = [client for client, reply in failed.items() if reply.error.code != msg.NOT_HANDLED]
        client = (causes or list(failed))[0]
        raise failure_of(failed[client], client, round)

    def _leave_out_diverged(self, round: int, phase: str, replies: dict[int, Message]) -> None:
        """Remove replies of clients whose training diverged, if the scenario goes on without them."""
        if self._faults.on_bad_upload == "fail" or phase not in SKIPPABLE:
            return
        misfits = {}
        for client in sorted(replies):
            if replies[client].has_error():
                kind, _, text = first_line(replies[client]).partition(": ")
                if kind == TrainingDiverged.__name__:
                    misfits[client] = InvalidUpload(text, diverged=True)
        if misfits:
            self.refuse(round, phase, misfits, len(replies))
        for client in misfits:
            del replies[client]

    def refuse(self, round: int, phase: str, misfits: Mapping[int, InvalidUpload], answered: int) -> None:
        """Leave out some of `answered` replies, or raise `RunFailed` (`Faults.on_bad_upload`)."""
        client = next(iter(misfits))
        if self._faults.on_bad_upload == "fail" or phase not in SKIPPABLE:
            raise refusal(misfits[client], client, round)
        left = answered - len(misfits)
        if left < min(self._faults.min_replies, answered):
            raise RunFailed(
                f"{left} of {answered} replies to the {phase} message are left, fewer than"
                f" faults.min_replies = {self._faults.min_replies}; client {client}: {misfits[client]}",
                round=round,
            )
        for client, misfit in misfits.items():
            if phase in RECORDED:
                self.failures[client, RECORDED[phase], "refused"] += 1
            if client not in self._refused:
                self._refused.add(client)
                self._control.observer.message(
                    f"client {client}, round {round}: reply refused: {misfit}; left out, like later refused"
                    " replies of this client"
                )

    def _exchange(self, round: int, phase: str, sent: Sequence[Message]) -> dict[int, Message]:
        if hasattr(self._grid, "on_answer") and hasattr(self._grid, "on_reply"):
            self._grid.on_answer = lambda reply: self._answered(round, phase, reply)
            self._grid.on_reply = lambda done, total: self._control.observer.phase(round, phase, done, total)
        self._control.observer.phase(round, phase, 0, len(sent))
        within = None if self._deployment is None else self._deployment.reply_within
        received = self._grid.send_and_receive(sent, timeout=within)
        replies = {self._client_behind(reply, sent): reply for reply in received}
        silent = [client for client in map(self.client_of, sent) if client not in replies]
        if silent and (self._goes_on or not any(reply.has_error() for reply in replies.values())):
            late = "" if within is None else f" within {within:g} s"
            raise RunFailed(f"no reply to the {phase} message{late}", client=silent[0], round=round)
        return replies

    def _client_behind(self, reply: Message, sent: Sequence[Message]) -> int:
        """Return the client of a reply; a SuperLink answers itself for a lost node."""
        node = reply.metadata.src_node_id
        if node not in self._client_of_node:
            answered = reply.metadata.reply_to_message_id
            node = next(m.metadata.dst_node_id for m in sent if m.metadata.message_id == answered)
        return self._client_of_node[node]

    def _answered(self, round: int, phase: str, reply: Message) -> None:
        if reply.has_error() or msg.IDENTITY not in reply.content:
            return
        seconds = reply.content.config_records[msg.IDENTITY].get(msg.SECONDS)
        if isinstance(seconds, float):
            client = self._client_of_node[reply.metadata.src_node_id]
            self._control.observer.answered(round, phase, client, seconds)

    def _failed(self, replies: Mapping[int, Message], round: int) -> dict[int, Message]:
        failed = {client: replies[client] for client in sorted(replies) if replies[client].has_error()}
        for client, reply in failed.items():
            if reply.error.code == msg.CLIENT_DIED and self._control.stop_requested():
                # A signal to the process group (timeout, a batch system) stops Ray's processes too.
                raise Interrupted(f"stopped in round {round}; the last checkpoint is saved")
            if self._goes_on and first_line(reply).partition(": ")[0] in BEYOND_REPAIR:
                raise failure_of(reply, client, round)
        return failed

    def _note(self, failed: Mapping[int, Message], round: int, phase: str, measure: str) -> None:
        for client, reply in failed.items():
            if phase in RECORDED:
                metric = "timed_out" if reply.error.code == msg.TIMED_OUT else "failed"
                self.failures[client, RECORDED[phase], metric] += 1
            self._control.observer.message(f"client {client}, round {round}: {first_line(reply)}; {measure}")

    def client_of(self, message: Message) -> int:
        return self._client_of_node[message.metadata.dst_node_id]


def _copied(message: Message) -> Message:
    data = message.metadata
    return Message(message.content, data.dst_node_id, data.message_type, group_id=data.group_id)


PATIENCE = 60.0
"""Seconds within which a simulation's nodes must start."""
POLL = 0.5
KEY = "data.clients"


def identify(grid: Grid, expected: int, deployment: Deployment | None = None) -> dict[int, int]:
    """Return the node id of each of the `expected` clients; on Flower's runtimes, ask all nodes.

    Raises:
        UserError: A client is missing, there twice, or of another federation.
        RunFailed: A node cannot name its client.
    """
    if hasattr(grid, "node_of_client"):
        return dict(grid.node_of_client)
    patience = PATIENCE if deployment is None else deployment.patience
    deadline = time.monotonic() + patience
    while len(nodes := sorted(grid.get_node_ids())) < expected and time.monotonic() < deadline:
        time.sleep(POLL)
    asked = [Message(RecordDict(), node, msg.IDENTIFY) for node in nodes]
    within = None if deployment is None else patience
    replies = list(grid.send_and_receive(asked, timeout=within)) if asked else []
    nodes_of: dict[int, list[int]] = {}
    for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
        if reply.has_error():
            raise failure_of(reply, None, None)
    for reply in replies:
        nodes_of.setdefault(msg.sender(reply), []).append(reply.metadata.src_node_id)
    _check_all_there(nodes_of, expected, len(nodes), within)
    _check_federation(replies, deployment)
    return {client: nodes_of[client][0] for client in range(expected)}


def _check_all_there(
    nodes_of: Mapping[int, list[int]], expected: int, nodes: int, patience: float | None
) -> None:
    """Refuse a missing client, or two nodes of one, after `patience` seconds (None: a simulation)."""
    for client, claimed in sorted(nodes_of.items()):
        if client >= expected:
            raise UserError(
                f"a node claims to be client {client}, but clients are numbered 0 to {expected - 1}"
                f" (Flower's simulation: num-supernodes={expected})",
                key=KEY,
            )
        if len(claimed) > 1:
            ids = " and ".join(map(str, sorted(claimed)))
            raise UserError(f"{len(claimed)} nodes claim to be client {client}: {ids}", key=KEY)
    missing = [client for client in range(expected) if client not in nodes_of]
    if missing:
        hint = f"; give it one node per client (Flower: num-supernodes={expected})"
        waited = hint if patience is None else f" after {patience:g} s"
        named = f"client{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing[:10]))}"
        more = ", …" if len(missing) > 10 else ""
        raise UserError(
            f"the federation has {nodes} nodes for {expected} clients{waited}; missing: {named}{more}",
            key=KEY,
        )


def _check_federation(replies: Iterable[Message], deployment: Deployment | None) -> None:
    for reply in sorted(replies, key=msg.sender):
        said = reply.content.config_records[msg.IDENTITY].get(msg.FEDERATION)
        client = msg.sender(reply)
        if deployment is None and said is not None:
            raise RunFailed("has a share of the data, the server has none (run-config: data)", client=client)
        if deployment is not None and said is None:
            raise RunFailed("has no share of the data (node-config: data)", client=client)
        if deployment is not None and said != deployment.federation:
            reason = "its scenario, classes or transfer set differ from the server's"
            raise UserError(f"client {client} is in another federation: {reason}", key="node-config.data")
