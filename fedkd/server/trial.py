"""What a round would send: found out from a few clients that have not learned anything yet."""

from __future__ import annotations

from itertools import groupby

import numpy as np

from fedkd.clients.factory import ClientFactory
from fedkd.clients.upload import arrive, upload_stages
from fedkd.data.load import Data, first_task
from fedkd.fusion.strategy import FusionStrategy
from fedkd.fusion.views import Arrays, FitSummary
from fedkd.plan.plan import Plan
from fedkd.server.bank import Upload
from fedkd.server.fusing import Fusing, ServerKnowledge

TRIED = 2
"""Clients of every architecture that are tried: guidance of one may lack what there is among several."""


def trial_exchange(plan: Plan, data: Data) -> tuple[int, int]:
    """Return the bytes that the first round's participants send, and those that they are sent for it.

    The latter are their guidance and what they were asked for. Where clients that have learned nothing agree
    on nothing, or where the server would have to train, guidance counts as a float for each class and sample.

    Args:
        plan: Its strategy exchanges knowledge of other kinds than weights.
        data: The federation's data; of a stream the first task's are taken.
    """
    scenario, strategy, task = plan.scenario, plan.strategy, first_task(data)
    assert isinstance(strategy, FusionStrategy)
    known = ServerKnowledge(len(task.transfer_x), task.transfer_y, seed=scenario.seed)
    fusing, factory = Fusing(strategy, known), ClientFactory(plan, data)
    stages = upload_stages(scenario.fusion.upload_dtype)
    request = fusing.request(1)
    asked = len(task.transfer_x) if request is None else len(request)
    participants = sorted(plan.schedule.participants(1), key=lambda client: id(plan.groups[client]))
    up, uploads = 0.0, {}
    for _, of_group in groupby(participants, key=lambda client: id(plan.groups[client])):
        clients = list(of_group)
        tried, sizes = clients[:TRIED], []
        for index in tried:
            client = factory.build(index)
            client.enter(1)
            client.last_fit = FitSummary({}, 0, scenario.training.lr)
            arrays = client.upload(1, request)
            sizes.append(_size(arrays))
            received = arrive(stages, arrays, strategy.kinds_of(arrays))
            uploads[index] = Upload(1, received, client.num_train_samples)
        up += len(clients) * sum(sizes) / len(tried)
    down = 0.0
    if "server" not in strategy.needs:
        down = fusing.fuse(1, dict(sorted(uploads.items())), uploads) / len(uploads)
    question = 0 if request is None else request.astype(np.int32).nbytes
    return round(up), round(((down or 4 * asked * task.classes) + question) * len(participants))


def _size(arrays: Arrays) -> int:
    return sum(values.nbytes for values in arrays.values())
