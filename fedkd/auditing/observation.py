"""The view of a curious server: the uploads of a round, and answers on samples of its choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedkd.clients import Client, EstimatorTrainer, decode_upload, upload_stages
from fedkd.data import FederatedData, load_data
from fedkd.engine import inline_grid
from fedkd.errors import UserError, refuse_if
from fedkd.federation import CheckpointStore, replay_uploads
from fedkd.fusion import Kind
from fedkd.plan import Plan, poisoned_clients
from fedkd.storage import Arrays
from fedkd.tracking import TemporaryFolder, read_run_plan, refuse_deployed
from fedkd.training import exchanged_weights

Tell = Callable[[str], None]
CERTAIN = 20.0
"""Logit of a class that a client votes for; the others have 0."""


@dataclass(frozen=True, eq=False)
class Observation:
    """The uploads of a round, and the honest clients that sent them, as they were at that moment."""

    plan: Plan
    data: FederatedData
    round: int
    uploads: Mapping[int, Arrays]
    clients: Mapping[int, Client]
    weights: Mapping[int, Arrays]  # of clients that share one network

    def kinds(self, client: int) -> Mapping[str, Kind]:
        return self.plan.strategy.kinds_of(self.uploads[client])

    def of_kind(self, client: int, kind: Kind) -> np.ndarray | None:
        """Return the first array of a kind in a client's upload."""
        kinds = self.kinds(client)
        return next((values for name, values in self.uploads[client].items() if kinds[name] is kind), None)

    def predictions(self, client: int) -> np.ndarray | None:
        """Return the logits `[M, C]` that the server has of the transfer set; None: it has none."""
        found = predictions_in(self.uploads[client], self.kinds(client), self.data.classes)
        if found is None and self.holds_model(client):
            return self._at(client).predict(self.data.transfer_x)
        return found

    def holds_model(self, client: int) -> bool:
        """Return whether an upload contains all the trained parameters of the client's network."""
        if isinstance(self.clients[client].trainer, EstimatorTrainer):
            return False
        kinds, network = self.kinds(client), self.clients[client].networks.network
        sent = sum(v.size for n, v in self.uploads[client].items() if kinds[n] is Kind.WEIGHTS)
        return sent >= sum(p.numel() for p in network.parameters() if p.requires_grad) > 0

    def answers(self, client: int, x: np.ndarray) -> np.ndarray | None:
        """Return the logits `[S, C]` that the server gets of samples; None: it gets none.

        It holds the model, or slips the samples into the transfer set. Then they pass the strategy's `upload`
        and all upload stages.
        """
        if self.holds_model(client):
            return self._at(client).predict(x)
        if predictions_in(self.uploads[client], self.kinds(client), self.data.classes) is None:
            return None
        asked, own = self._at(client), self.clients[client].samples.data
        memory = dict(asked.memory)
        try:
            asked.samples.data = replace(own, transfer_x=x)
            sent = asked.upload(self.round)
        finally:
            asked.samples.data = own
            asked.memory.clear()
            asked.memory.update(memory)
        kinds = self.plan.strategy.kinds_of(sent)
        received = decode_upload(upload_stages(self.plan.scenario.fusion), sent, kinds)
        found = predictions_in(received, kinds, self.data.classes)
        return found if found is not None and len(found) == len(x) else None

    def _at(self, client: int) -> Client:
        found = self.clients[client]
        if client in self.weights:
            found.load_weights(self.weights[client])
        return found


def predictions_in(upload: Arrays, kinds: Mapping[str, Kind], classes: int) -> np.ndarray | None:
    """Return the logits `[M, C]` in an upload, those of votes too; None: it has neither."""
    for name, values in upload.items():
        if kinds[name] is Kind.TRANSFER_LOGITS:
            return values.astype(np.float64)
        if kinds[name] is Kind.VOTES:
            return CERTAIN * np.eye(classes)[values.astype(np.int64)]
    return None


def observe(folder: Path, round: int | None, tell: Tell) -> Observation:
    """Return the observation of a round (None: the last); raise `UserError` if there is none to be had."""
    plan = read_run_plan(folder).on_device("cpu")
    refuse_deployed(folder)
    scenario, file = plan.scenario, str(folder)
    refuse_if(
        scenario.data.is_regression, "an audit needs classes; the run has numeric targets", None, file=file
    )
    refuse_if(scenario.continual, "an audit needs a run without a stream of tasks", None, file=file)
    refuse_if(scenario.asynchronous, "an audit needs synchronous rounds", None, file=file)
    silent = plan.capabilities.sends == "nothing"
    refuse_if(silent, f"clients of '{scenario.fusion.strategy}' upload nothing", None, file=file)
    saved = CheckpointStore(folder).rounds()
    refuse_if(not saved, "has no checkpoint yet", None, file=file)
    last = min(saved[-1], scenario.rounds)
    wanted = last if round is None else round
    refuse_if(not 1 <= wanted <= last, f"must be 1 to {last}, got {wanted}", "--round", file=None)
    data = load_data(scenario, tell)
    assert isinstance(data, FederatedData)
    seen: dict[int, Client] = {}
    weights: dict[int, Arrays] = {}

    def trained(client: Client) -> None:
        seen[client.index] = client
        if client.workplace is not client:
            weights[client.index] = exchanged_weights(client.networks.network)

    scratch = TemporaryFolder("fedkd-audit-")
    try:
        with closing(inline_grid(plan, data, scratch.path, trained)) as grid:
            uploads = replay_uploads(plan, data, grid, folder, scratch.path, wanted, tell)
    finally:
        scratch.close()
    honest = sorted(uploads.keys() - poisoned_clients(scenario))
    if not honest:
        raise UserError(f"no honest client took part in round {wanted}", file=file)
    return Observation(
        plan,
        data,
        wanted,
        {client: uploads[client] for client in honest},
        {client: seen[client] for client in honest},
        weights,
    )
