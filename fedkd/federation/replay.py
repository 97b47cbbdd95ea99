"""The uploads of one round of a run: its clients train that round once more.

A run keeps checkpoints, and no uploads. Every draw belongs to a client and a round, so clients that continue
from the last checkpoint before a round send the bytes that they sent in the run.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from fedkd.clients import upload_stages
from fedkd.data import Data
from fedkd.federation.apps.server_app import server_strategy
from fedkd.federation.checkpoint import CheckpointStore
from fedkd.federation.compat import client_of_node
from fedkd.federation.manifest import Checkpoint
from fedkd.federation.messages.server_gate import opened
from fedkd.federation.rounds import Rounds
from fedkd.federation.run_control import RunControl
from fedkd.plan import Plan
from fedkd.storage import Arrays
from fedkd.tracking import Recorder


def replay_uploads(
    plan: Plan, data: Data, grid: Grid, run: Path, scratch: Path, round: int, tell: Callable[[str], None]
) -> dict[int, Arrays]:
    """Return the uploads of a round's participants as the server decodes them, by client.

    Args:
        run: The run folder, which stays as it is.
        scratch: An empty folder for the records of the repeated rounds.
        round: A round of training, 1-based, before any local training after the last fusion.
        tell: Receives a line about the repeated rounds.

    Raises:
        RunFailed: A client or the fusion failed, as in `Rounds.run`.
    """
    store = CheckpointStore(run, tell)
    try:
        checkpoint = store.before(round)
    finally:
        store.close()
    first = 1 if checkpoint is None else checkpoint.round + 1
    which = f"round {round}" if first == round else f"rounds {first} to {round}"
    tell(f"training {which} once more")
    rounds = _ReplayedRounds(plan, grid, server_strategy(plan, data), RunControl(scratch))
    replies = rounds.replies_of(round, checkpoint)
    stages, kinds_of = upload_stages(plan.scenario.fusion), plan.strategy.kinds_of
    return {client: opened(reply, stages, kinds_of).arrays for client, reply in replies.items()}


class _ReplayedRounds(Rounds):
    """Rounds that end with the uploads of a round."""

    def replies_of(self, round: int, checkpoint: Checkpoint | None) -> dict[int, Message]:
        """Return a round's replies to the train message, in client order."""
        self._wanted, self._heard = round, list[Message]()
        with Recorder(self._control.folder) as recorder:
            self._record_in(recorder)
            done = 0
            if checkpoint is None:
                self._begin()
            else:
                done = checkpoint.round
                self._strategy.begin_round(self._tasks(done))
                self._restore_server(checkpoint.server)
                self._exchange.hand_back(done, checkpoint.clients)
            for earlier in range(done + 1, round):
                self._run_round(earlier)
            with self._exchange.charged_to_strategy(round):
                self._strategy.begin_round(self._tasks(round))
            self._train(round)
        return {client_of_node(reply.metadata.src_node_id): reply for reply in self._heard}

    def _fuse(self, round: int, replies: Sequence[Message]) -> None:
        if round == self._wanted:
            self._heard = list(replies)
        else:
            super()._fuse(round, replies)
