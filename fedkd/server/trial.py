"""Try out what a round would send, on a few clients that have not learned anything yet."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import groupby

import numpy as np

from fedkd.clients.factory import ClientFactory, model_outputs
from fedkd.clients.upload import decode, upload_stages
from fedkd.data.load import Data
from fedkd.data.stream import FederatedStream
from fedkd.fusion.extent import ServerModel
from fedkd.fusion.strategy import FusionStrategy
from fedkd.fusion.views import Arrays, FitSummary
from fedkd.plan.plan import Plan
from fedkd.server.bank import Upload
from fedkd.server.contracts import Kept, UntrainedModels, check_pure, check_targets
from fedkd.server.fusing import Fusing, ServerKnowledge
from fedkd.server.models import TransferSet

TRIED = 2
"""Clients of every architecture that are tried: guidance of one may lack what there is among several."""


def trial_exchange(plan: Plan, data: Data) -> tuple[int, int]:
    """Return the bytes that the participants of the first round send, and those that they are sent for it.

    The latter are guidance and requests. Where untrained clients agree on nothing, guidance counts as a float
    for each class and sample. The server's models are untrained, and nothing is filtered.

    Args:
        plan: Its strategy exchanges knowledge of other kinds than weights.
        data: The federation's data; of a stream the first task's are taken.

    Raises:
        UserError: The strategy breaks a promise (see `fedkd.server.contracts`).
    """
    unfiltered = plan.scenario.fusion.model_copy(update={"filters": []})
    plan = replace(plan, scenario=plan.scenario.model_copy(update={"fusion": unfiltered}))
    scenario, strategy, schedule = plan.scenario, _untrained(plan.strategy), plan.schedule
    assert not strategy.capabilities.by_flower
    kept = Kept.of(strategy)
    rounds = range(1, schedule.rounds + 1)
    round = next((round for round in rounds if schedule.participants(round)), 1)
    everyone = schedule.participants(round)
    # Clients may begin with different tasks, which are not fused with each other: those of one are tried.
    at = schedule.task(everyone[0], round) if everyone else None
    task = data[at or 0].data if isinstance(data, FederatedStream) else data
    seen = TransferSet.of(data, at or 0, model_outputs(plan, data))
    known = ServerKnowledge(
        len(task.transfer_x),
        task.transfer_y,
        models=partial(UntrainedModels, plan, seen),
        seed=scenario.seed,
        rounds=scenario.rounds,
    )
    fusing, factory = Fusing(strategy, known), ClientFactory(plan, data)
    stages = upload_stages(scenario.fusion)
    request = fusing.request(round)
    asked = len(task.transfer_x) if request is None else len(request)
    alike = [client for client in everyone if schedule.task(client, round) == at]
    participants = sorted(alike, key=lambda client: id(plan.groups[client]))
    up, uploads = 0.0, {}
    for _, of_group in groupby(participants, key=lambda client: id(plan.groups[client])):
        clients = list(of_group)
        tried, sizes = clients[:TRIED], []
        for index in tried:
            client = factory.build(index)
            client.enter(round)
            client.fit = FitSummary({}, 0, scenario.training.lr)
            arrays = client.upload(round, request)
            sizes.append(_size(arrays))
            received = decode(stages, arrays, strategy.kinds_of(arrays))
            uploads[index] = Upload(round, received, client.num_train_samples)
        up += len(clients) * sum(sizes) / len(tried)
    uploads = dict(sorted(uploads.items()))
    again = Fusing(strategy, known)
    for server in (fusing, again):
        server.begin([])
        server.request(round)
    down = fusing.fuse(round, uploads, uploads) / max(len(uploads), 1)
    again.fuse(round, uploads, uploads)
    check_pure(strategy, fusing.state(), again.state(), kept)
    parcels = (fusing.mailbox.take(client) for client in uploads)
    check_targets(strategy, next((parcel.arrays for parcel in parcels if parcel), {}))
    question = 0 if request is None else request.astype(np.int32).nbytes
    each = (down or 4 * asked * task.classes) + question
    return int(up / max(len(alike), 1) * len(everyone) + 0.5), int(each * len(everyone) + 0.5)


def _untrained(strategy: FusionStrategy) -> FusionStrategy:
    """Return a strategy whose server's model, if it has one, says what it says in the beginning."""
    if not isinstance(strategy, ServerModel) or strategy.server_model is None:
        return strategy
    return replace(strategy, server_epochs=0)  # type: ignore[type-var]


def _size(arrays: Arrays) -> int:
    return sum(values.nbytes for values in arrays.values())
