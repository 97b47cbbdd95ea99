"""What a round would send: found out from a few clients that have not learned anything yet."""

from __future__ import annotations

from itertools import groupby

from fedkd.clients.factory import ClientFactory
from fedkd.data.load import Data, first_task
from fedkd.fusion.strategy import FusionStrategy
from fedkd.plan.plan import Plan
from fedkd.server.fusing import Fusing, ServerKnowledge, Upload

TRIED = 2
"""Clients of every architecture that are tried: guidance of one may lack what there is among several."""


def trial_exchange(plan: Plan, data: Data) -> tuple[int, int]:
    """Return the bytes that the first round's participants send, and those of their guidance.

    Args:
        plan: Its strategy exchanges knowledge of other kinds than weights.
        data: The federation's data; of a stream the first task's are taken.
    """
    strategy, task = plan.strategy, first_task(data)
    assert isinstance(strategy, FusionStrategy)
    known = ServerKnowledge(len(task.transfer_x), task.transfer_y, seed=plan.scenario.seed)
    fusing, factory = Fusing(strategy, known), ClientFactory(plan, data)
    request = fusing.request(1)
    participants = sorted(plan.schedule.participants(1), key=lambda client: id(plan.groups[client]))
    up, uploads = 0.0, {}
    for _, of_group in groupby(participants, key=lambda client: id(plan.groups[client])):
        clients = list(of_group)
        for index in clients[:TRIED]:
            client = factory.build(index)
            client.enter(1)
            uploads[index] = Upload(1, client.upload(1, request), client.num_train_samples)
        sizes = [sum(v.nbytes for v in uploads[index].arrays.values()) for index in clients[:TRIED]]
        up += len(clients) * sum(sizes) / len(sizes)
    # A server that would have to train is not asked, and clients that know nothing may agree on nothing.
    down = 0 if "server" in strategy.needs else fusing.fuse(1, dict(sorted(uploads.items())), uploads)
    if down == 0:
        asked = len(task.transfer_x) if request is None else len(request)
        return round(up), 4 * asked * task.classes * len(participants)
    return round(up), round(down / len(uploads) * len(participants))
