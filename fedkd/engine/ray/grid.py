"""The Ray engine: a Flower grid over a pool of actors that own the clients."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from flwr.app import Error, Message
from ray.exceptions import RayError, RayTaskError

from fedkd.engine.grid import Blocks, EngineGrid
from fedkd.engine.live_clients import changed_by
from fedkd.engine.ray.actor import ClientActor, WorkNotes
from fedkd.engine.ray.batch import Batch, lend_idle, shared_records, without_shared
from fedkd.engine.ray.nodes import lost_node
from fedkd.engine.ray.process_watch import RayWatch
from fedkd.engine.work_assignment import assign_work
from fedkd.errors import ActorsLost, EngineLost
from fedkd.federation import assume_identity, client_of_node
from fedkd.federation.messages import records as msg

POLL_SECONDS = 0.1


class RayGrid(EngineGrid):
    """Run a ClientApp on Ray actors; each owns clients and starts with the most expensive.

    Args:
        make_workload: Called in every actor with `arguments`, which are put into the object store once.
        costs: Cost of every client's round, in any unit.
        cpus_per_actor: CPUs that each actor reserves, as `gpus_per_actor`; fractions share a GPU.
        blocks: Clients that one actor handles together, whose replies come together; None: each alone.
        timeout: Seconds that a client has for a message; None: no limit.
        keeps_states: True if the object store keeps every client's state after each message. A client that
            fails then returns to its last state, and a lost actor is replaced.
        spares: Actors started by `start_spares`, which are taken first.
    """

    def __init__(
        self,
        make_workload: Any,
        arguments: Sequence[Any],
        costs: Sequence[float],
        *,
        actors: int,
        cpus_per_actor: float = 1.0,
        gpus_per_actor: float = 0.0,
        blocks: Blocks | None = None,
        timeout: float | None = None,
        keeps_states: bool = False,
        spares: Sequence[Any] = (),
        watch: RayWatch | None = None,
    ) -> None:
        super().__init__(len(costs))
        assume_identity()
        self._watch, self._blocks = watch or RayWatch(), blocks or Blocks.alone(len(costs))
        of_blocks = [sum(costs[client] for client in block) for block in self._blocks]
        owned = assign_work(of_blocks, actors)
        actor_of = {block: actor for actor, own in enumerate(owned) for block in own}
        self._owner = {client: actor_of[n] for n, block in enumerate(self._blocks) for client in block}
        self._priority = {block: place for own in owned for place, block in enumerate(own)}
        self._timeout = timeout
        self._keeps_states, self._patience = keeps_states, 120.0
        self._states: dict[int, Any] = {}  # references to clients' states after their last messages
        self._arguments: tuple[Any, ...] = (make_workload, *(self._put(argument) for argument in arguments))
        self._actor_class = _actor_class(cpus_per_actor, gpus_per_actor)
        self._spares = list(spares)
        self._opening: dict[int, Any] = {}
        self._nodes: dict[int, str] = {}  # of each actor
        self._notes = WorkNotes(actors)
        self._actors: list[Any] = [self._start(actor) for actor in range(actors)]

    def _start(self, actor: int) -> Any:
        started = self._spares.pop() if self._spares else self._actor_class.remote()
        self._opening[actor] = started.open.remote(self._notes.paths[actor], *self._arguments)
        return started

    def wait_until_ready(self, patience: float = 120.0) -> None:
        """Return when every actor is up, each within `patience` seconds after the one before.

        A late actor raises `EngineLost`; a workload that fails raises its own exception.
        """
        self._patience = patience
        self._wait_for(range(len(self._actors)))

    def _wait_for(self, actors: Sequence[int]) -> None:
        opening = {self._opening.pop(actor): actor for actor in actors}
        waiting = list(opening)
        deadline = time.monotonic() + self._patience
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_SECONDS)
            self._watch.check()
            for reference in done:
                self._nodes[opening[reference]] = self._join(reference)
                deadline = time.monotonic() + self._patience
            if waiting and time.monotonic() > deadline:
                free, cpus = (
                    found.get("CPU", 0.0) for found in (ray.available_resources(), ray.cluster_resources())
                )
                raise EngineLost(
                    f"{len(waiting)} of {len(actors)} Ray actors did not come up within {self._patience:g} s"
                    f" (engine.start_timeout); {free:g} of the cluster's {cpus:g} CPUs are free"
                )

    def _join(self, reference: Any) -> str:
        try:
            node: str = ray.get(reference)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            self._watch.check_after_failure()
            raise ActorsLost(f"a Ray actor died while it started: {_cause(error)}") from error
        return node

    def _execute(self, messages: list[Message]) -> Iterator[Message]:
        with self._watch.guard():
            lend_idle(messages, self._owner, self._nodes)
            batch = Batch({key: self._put(record) for key, record in shared_records(messages).items()})
            self._hand_out(batch, list(self._calls(messages)))
            while batch.waiting:
                done, _ = ray.wait(list(batch.waiting), num_returns=len(batch.waiting), timeout=POLL_SECONDS)
                for reference in sorted(done, key=lambda reference: batch.waiting[reference].number):
                    if reference in batch.waiting:  # its actor may have been replaced meanwhile
                        yield from self._receive(batch, reference)
                self._watch.check()
                if self._timeout is not None:
                    yield from self._stop_late(batch, self._timeout)

    def _hand_out(self, batch: Batch, calls: Sequence[tuple[int, Sequence[Message]]]) -> None:
        """Send each actor its messages' shared records once, and then the messages."""
        uses: dict[int, Counter[int]] = {}
        parts = [[without_shared(message, batch.shared) for message in own] for _, own in calls]
        for (actor, _), own in zip(calls, parts, strict=True):
            uses.setdefault(actor, Counter()).update(key for _, places in own for key in places.values())
        for actor, counted in uses.items():
            if counted:
                self._watch.check()
                references = [batch.shared[key] for key in counted]
                # An actor works through its calls in their order: it has them when the messages come.
                self._actors[actor].hold.remote(list(counted.items()), *references)
        for (actor, messages), own in zip(calls, parts, strict=True):
            self._watch.check()
            remote = self._actors[actor]
            if self._keeps_states:
                replies, states = remote.handle_keeping.options(num_returns=2).remote(own)
                batch.add(replies, actor, messages, states)
            else:
                batch.add(remote.handle.remote(own), actor, messages)

    def _renew(self, batch: Batch, client: int) -> None:
        actor = self._owner[client]
        batch.add(self._actors[actor].renew.remote(client, self._states.get(client)), actor, ())

    def _receive(self, batch: Batch, reference: Any) -> Iterator[Message]:
        call = batch.waiting[reference]
        self._watch.check()
        try:
            replies = ray.get(reference)
        except RayError as error:
            if not call.messages:
                self._check_node(call.actor, error)
                raise EngineLost(f"a Ray actor could not take a client over: {_cause(error)}") from error
            yield from self._bury(batch, call.actor, error)
            return
        del batch.waiting[reference]
        batch.since[call.actor] = time.monotonic()
        for message, reply in zip(call.messages, replies or (), strict=True):
            client = client_of_node(message.metadata.dst_node_id)
            if self._keeps_states and changed_by(message, reply):
                self._states[client] = call.states
            elif self._keeps_states and reply.has_error():
                self._renew(batch, client)
            yield reply

    def _stop_late(self, batch: Batch, timeout: float) -> Iterator[Message]:
        for actor in {call.actor for call in batch.waiting.values()}:
            number = len(batch.of(actor)[0].messages)
            if number and time.monotonic() - batch.since[actor] > number * timeout:
                ray.kill(self._actors[actor])
                first, *others = self._suspects(batch, actor)
                failure = Error(msg.TIMED_OUT, f"gave no answer within {timeout:g} s (faults.timeout)")
                reason = f"its Ray actor was stopped while it worked for client {_one_of([first, *others])}"
                yield from self._give_up(batch, actor, first, failure, reason)

    def _bury(self, batch: Batch, actor: int, error: RayError) -> Iterator[Message]:
        self._check_node(actor, error)
        first, *others = self._suspects(batch, actor)
        doubt = f" while it worked for this client or client {_one_of(others)}" if others else ""
        failure = Error(msg.CLIENT_DIED, f"its Ray actor died{doubt}: {_cause(error)}")
        reason = f"its Ray actor died while it worked for client {_one_of([first, *others])}"
        yield from self._give_up(batch, actor, first, failure, reason)

    def _check_node(self, actor: int, error: RayError) -> None:
        """Raise `EngineLost` if Ray is lost, `ActorsLost` if the actor's node is."""
        self._watch.check_after_failure()
        node = lost_node(self._actors[actor], error)
        if node is not None:
            raise ActorsLost(f"node {node} was lost")

    def _give_up(
        self, batch: Batch, actor: int, culprit: int, failure: Error, reason: str
    ) -> Iterator[Message]:
        """Yield a dead actor's error replies; with known states, only the culprit fails."""
        lost = [message for call in batch.of(actor) for message in call.messages]
        blamed = [message for message in lost if client_of_node(message.metadata.dst_node_id) == culprit]
        others = [message for message in lost if client_of_node(message.metadata.dst_node_id) != culprit]
        batch.forget(actor)
        if self._keeps_states:
            self._replace(batch, actor)
            self._hand_out(batch, [(actor, [message]) for message in others])
        yield from (Message(failure, reply_to=message) for message in blamed)
        if not self._keeps_states:
            yield from (Message(Error(msg.NOT_HANDLED, reason), reply_to=message) for message in others)

    def _replace(self, batch: Batch, actor: int) -> None:
        self._notes.clear(actor)
        self._actors[actor] = self._start(actor)
        self._wait_for([actor])
        for client, owner in self._owner.items():
            if owner == actor and client in self._states:
                self._renew(batch, client)
        batch.since[actor] = time.monotonic()

    def _suspects(self, batch: Batch, actor: int) -> list[int]:
        """Return the client of an actor's last work, or all candidates."""
        noted = self._notes.read(actor)
        unanswered = {
            message.metadata.message_id: client_of_node(message.metadata.dst_node_id)
            for call in batch.of(actor)
            for message in call.messages
        }
        return [unanswered[noted]] if noted in unanswered else list(unanswered.values())

    def _calls(self, messages: Sequence[Message]) -> Iterator[tuple[int, list[Message]]]:
        by_priority = sorted(messages, key=lambda message: self._priority[self._blocks.of(message)])
        for own in self._blocks.split(by_priority):
            yield self._owner[client_of_node(own[0].metadata.dst_node_id)], own

    def _put(self, value: Any) -> ray.ObjectRef[Any]:
        self._watch.check()
        return ray.put(value)

    def close(self) -> None:
        if not self._watch.lost:
            for actor in [*self._actors, *self._spares]:
                ray.kill(actor)
        self._actors, self._spares = [], []
        self._arguments, self._states = (), {}  # frees the object store for another grid
        self._notes.close()


def start_spares(number: int, module: str, cpus_per_actor: float, gpus_per_actor: float) -> list[Any]:
    """Start actors that import `module`, the workload's, for a later grid; return at once."""
    make = _actor_class(cpus_per_actor, gpus_per_actor)
    return [make.remote(module) for _ in range(number)]


def _actor_class(cpus: float, gpus: float) -> Any:
    return ray.remote(ClientActor).options(num_cpus=cpus, num_gpus=gpus)


def _cause(error: RayError) -> str:
    return str(error).strip().rpartition("Worker exit detail: ")[-1].splitlines()[0]


def _one_of(clients: Sequence[int]) -> str:
    """Return clients as alternatives: ``2``, ``2 or 4``, ``2, 4 or 6``."""
    *others, last = map(str, clients)
    return f"{', '.join(others)} or {last}" if others else last
