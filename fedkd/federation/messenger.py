"""Messages to clients, and their replies, in client order; what is done about a client that fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from fedkd.errors import Interrupted, RunFailed, TrainingDiverged, UserError
from fedkd.federation import messages as msg
from fedkd.federation.gate import refusal
from fedkd.federation.introduction import identify
from fedkd.federation.messages import failure_of, first_line
from fedkd.federation.run_control import RunControl
from fedkd.fusion.forms import Unfit
from fedkd.scenario.schema import Faults
from fedkd.tracking.recorder import Split

SKIPPABLE = frozenset({"train", "evaluate", "finish", "transferability"})
"""Phases of a round that a client can be absent from. Every client ends its task, or there is no next one."""
RECORDED: dict[str, Split] = {"train": "train", "end task": "train", "finish": "train", "evaluate": "local"}
"""Phases whose failures are recorded, and under which split."""
BEYOND_REPAIR = frozenset({UserError.__name__, TrainingDiverged.__name__})
"""Errors that end the run however the scenario has others dealt with: another try would not help."""


class Messenger:
    """Sends messages to clients, and turns a client's failure into the run's.

    Args:
        control: Whom to tell of the progress, and when the run is being stopped.
        faults: What is done about a client that fails.

    Attributes:
        node_of_client: Client index to node id, in client order.
        failures: How often clients have failed in a round that went on, by client, split and metric.
    """

    def __init__(self, grid: Grid, clients: int, control: RunControl, faults: Faults | None = None) -> None:
        self._grid = grid
        self._control = control
        self._faults = faults or Faults()
        self._deployment = control.deployment
        self.node_of_client = identify(grid, clients, control.deployment)
        self._client_of_node = {node: client for client, node in self.node_of_client.items()}
        self._refused: set[int] = set()  # clients that were told of
        self.failures: Counter[tuple[int, Split, str]] = Counter()

    def send(self, round: int, phase: str, messages: Iterable[Message]) -> dict[int, Message]:
        """Send messages and return the replies by client, in client order.

        Of a client that failed and is skipped (see `Faults.on_client_error`) there is none.

        Raises:
            RunFailed: A client failed, or did not answer.
            Interrupted: The actors were stopped together with the run.
            UserError: A client found that the scenario is to blame.
        """
        sent = sorted(messages, key=lambda message: self._client_of_node[message.metadata.dst_node_id])
        replies = self._exchange(round, phase, sent)
        self._leave_out_diverged(round, phase, replies)
        failed = self._failed(replies, round)
        for _ in range(self._faults.retries if self._faults.on_client_error == "retry" else 0):
            if not failed:
                break
            self._note(failed, round, phase, "asking once more")
            again = [_anew(message) for message in sent if self.client_of(message) in failed]
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
            raise RunFailed(
                f"{len(replied)} of {len(sent)} clients have answered the {phase} message, fewer than"
                f" faults.min_replies = {self._faults.min_replies}; {_first_failure(failed)}",
                round=round,
                details=next(iter(failed.values())).error.reason or "",
            )
        # What was lost because another client took its actor down is not where the trouble lies.
        causes = [client for client, reply in failed.items() if reply.error.code != msg.NOT_HANDLED]
        client = (causes or list(failed))[0]
        raise failure_of(failed[client], client, round)

    def _leave_out_diverged(self, round: int, phase: str, replies: dict[int, Message]) -> None:
        """Take out replies of clients whose training led to no numbers, where the scenario goes on then."""
        if self._faults.on_bad_upload == "fail" or phase not in SKIPPABLE:
            return
        misfits = {
            client: Unfit(first_line(replies[client]).partition(": ")[2], diverged=True)
            for client in sorted(replies)
            if replies[client].has_error() and _diverged(replies[client])
        }
        if misfits:
            self.refuse(round, phase, misfits, len(replies))
        for client in misfits:
            del replies[client]

    def refuse(self, round: int, phase: str, misfits: Mapping[int, Unfit], answered: int) -> None:
        """Leave replies out that were refused, or end the run (see `Faults.on_bad_upload`).

        Args:
            round: 1-based.
            phase: "train" or the like.
            misfits: What is wrong, by client, ascending.
            answered: Number of replies, these included.

        Raises:
            RunFailed: The scenario has the run end, or too few replies are left.
        """
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
                    f"client {client}, round {round}: reply refused: {misfit}; left out, as later ones are"
                    " that are refused"
                )

    def _exchange(self, round: int, phase: str, sent: Sequence[Message]) -> dict[int, Message]:
        """Send messages in client order; return the reply of each, errors included."""
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
        """Return the client of a reply; a SuperLink answers in its own name for a node that is gone."""
        node = reply.metadata.src_node_id
        if node not in self._client_of_node:
            answered = reply.metadata.reply_to_message_id
            node = next(m.metadata.dst_node_id for m in sent if m.metadata.message_id == answered)
        return self._client_of_node[node]

    def _answered(self, round: int, phase: str, reply: Message) -> None:
        """Tell how long a client has worked for its reply, where it says so."""
        if reply.has_error() or msg.IDENTITY not in reply.content:
            return
        seconds = reply.content.config_records[msg.IDENTITY].get(msg.SECONDS)
        if isinstance(seconds, float):
            client = self._client_of_node[reply.metadata.src_node_id]
            self._control.observer.answered(round, phase, client, seconds)

    @property
    def _goes_on(self) -> bool:
        return self._faults.on_client_error != "fail"

    def _failed(self, replies: Mapping[int, Message], round: int) -> dict[int, Message]:
        """Return the error replies, in client order, unless one ends the run."""
        failed = {client: replies[client] for client in sorted(replies) if replies[client].has_error()}
        for client, reply in failed.items():
            if reply.error.code == msg.CLIENT_DIED and self._control.stop_requested():
                # Whoever signals the whole process group (timeout, a batch system) stops Ray's processes too.
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
        """Return the client that a message is for."""
        return self._client_of_node[message.metadata.dst_node_id]


def _anew(message: Message) -> Message:
    """Return a message that says the same."""
    return Message(
        message.content,
        message.metadata.dst_node_id,
        message.metadata.message_type,
        group_id=message.metadata.group_id,
    )


def _diverged(reply: Message) -> bool:
    return first_line(reply).partition(": ")[0] == TrainingDiverged.__name__


def _first_failure(failed: Mapping[int, Message]) -> str:
    client, reply = next(iter(failed.items()))
    return f"client {client}: {first_line(reply)}"
