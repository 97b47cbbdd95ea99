"""A trial of a round's exchange, on a few untrained clients."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.clients import ClientFactory, decode_upload, model_outputs, upload_stages
from fedkd.data import Data, FederatedStream
from fedkd.errors import UserError
from fedkd.fusion import (
    Architecture,
    Arrays,
    FitSummary,
    FusionStrategy,
    ServerLoss,
    ServerModel,
    distils_targets,
    overrides_hook,
)
from fedkd.plan import Plan
from fedkd.server.fusing import Fusing, ServerKnowledge
from fedkd.server.knowledge_cache import Upload
from fedkd.server.models import TransferSet, TransferSetModels
from fedkd.training import exchanged_weights, prepare_inputs

KEY = "fusion.strategy"
LOOKED_AT = 8
"""Samples whose targets are checked."""


class UntrainedModels(TransferSetModels):
    """Untrained models on the server: a loss is computed once, on two samples."""

    def train(
        self,
        architecture: Architecture,
        weights: Arrays,
        targets: tuple[np.ndarray, ...],
        loss: ServerLoss,
        **settings: Any,
    ) -> dict[str, np.ndarray]:
        network = self.network(architecture, weights)
        outputs = self._of_task(network.eval()(prepare_inputs(self._data.x[:2], "cpu")))
        loss(outputs, *(prepare_inputs(values[:2], "cpu") for values in targets))
        return exchanged_weights(network)

    def fit(self, network: nn.Module, arrays: Any, loss: Callable[..., Tensor], **settings: Any) -> None:
        training = network.training
        loss(network.eval(), *(prepare_inputs(values[:2], "cpu") for values in arrays))
        network.train(training)


def attributes_of(strategy: FusionStrategy) -> dict[str, Any]:
    """Return copies of hyper-parameters by name, and of class attributes by class and name."""
    found = {field.name: getattr(strategy, field.name, None) for field in fields(strategy)}
    for owner in type(strategy).__mro__:
        if issubclass(owner, FusionStrategy) and owner is not FusionStrategy:
            found |= {f"{owner.__name__}.{name}": value for name, value in vars(owner).items()}
    return {name: _copied(value) for name, value in found.items() if _is_data(name, value)}


def check_pure(strategy: FusionStrategy, first: Arrays, second: Arrays, before: Mapping[str, Any]) -> None:
    """Refuse a strategy with state outside `Guidance.memory`, after two fusions of equal knowledge.

    `first` and `second` are the server's states after each, `before` are its `attributes_of` before both.
    """
    advice = "keep what must last in Guidance.memory, and draw from Knowledge.seed"
    after = attributes_of(strategy)
    for name in {**before, **after}:
        if not _equal(before.get(name), after.get(name)):
            raise UserError(f"'{strategy.name}' must not change '{name}' in a round; {advice}", key=KEY)
    for name in {**first, **second}:
        if not _equal(first.get(name), second.get(name)):
            raise UserError(
                f"'{strategy.name}' must return the same guidance for the same knowledge, but a second `fuse`"
                f" returned other {name.rpartition('/')[2]}; {advice}",
                key=KEY,
            )


def check_targets(strategy: FusionStrategy, guidance: Arrays) -> None:
    """Refuse targets other than distributions if the loss compares them with a softmax."""
    targets = guidance.get("targets")
    asked = not overrides_hook(strategy, "targets_of") and distils_targets(strategy)
    if targets is None or not asked or not len(targets):
        return
    rows = np.asarray(targets[:LOOKED_AT], dtype=np.float32)
    sums = rows.sum(axis=1)
    if rows.min() >= -1e-4 and np.abs(sums - 1.0).max() <= 1e-2:
        return
    wanted = torch.from_numpy(rows)
    student = torch.linspace(-1.0, 1.0, rows.size).reshape(rows.shape).sin()
    plain, shifted, moved = (
        float(strategy.loss(z, t))
        for z, t in ((student, wanted), (student + 3.0, wanted), (student, wanted + 3.0))
    )
    sees_softmax = np.isnan(plain) or np.isclose(plain, shifted, rtol=1e-3, atol=1e-4)
    if sees_softmax and not np.isclose(plain, moved, rtol=1e-3, atol=1e-4):
        raise UserError(
            f"targets of '{strategy.name}' must be probabilities, as its `loss` compares them with a softmax;"
            f" got rows from {rows.min():.3g} to {rows.max():.3g} that sum to {sums[0]:.3g}",
            key=KEY,
        )


def _is_data(name: str, value: Any) -> bool:
    last = name.rpartition(".")[2]
    described = callable(value) or isinstance(value, property | classmethod | staticmethod | cached_property)
    return not described and not last.startswith(("__", "_abc_"))


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # objects that cannot be copied are compared by identity
        return value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray | Tensor) or isinstance(other, np.ndarray | Tensor):
        if type(one) is not type(other) or one.shape != other.shape:
            return False
        values = (np.asarray(one), np.asarray(other))
        return np.array_equal(*values, equal_nan=values[0].dtype.kind == "f")
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    # Only identity tells some objects apart, such as copies of a generator: these count as equal.
    plain: Any = object.__eq__
    opaque = type(one) is type(other) and type(one).__eq__ is plain
    try:
        return one is other or bool(one == other) or opaque
    except Exception:  # a foreign `__eq__`
        return True


TRIED = 2
"""Clients of every architecture in the trial: a single one may get less guidance."""


def trial_exchange(plan: Plan, data: Data) -> tuple[int, int]:
    """Return the first round's bytes of uploads, and of guidance and requests.

    If untrained clients agree on nothing, guidance counts as a float for each class and sample. The
    server's models are untrained, and nothing is filtered. In a stream, the first task's data are used. A
    strategy that breaks a contract (see `check_pure` and `check_targets`) raises `UserError`.
    """
    unfiltered = plan.scenario.fusion.model_copy(update={"filters": []})
    plan = replace(plan, scenario=plan.scenario.model_copy(update={"fusion": unfiltered}))
    scenario, strategy, schedule = plan.scenario, plan.strategy, plan.schedule
    if isinstance(strategy, ServerModel) and strategy.server_model is not None:
        strategy = replace(strategy, server_epochs=0)
    assert not strategy.capabilities.by_flower
    kept = attributes_of(strategy)
    round = next((one for one in range(1, schedule.rounds + 1) if schedule.participants(one)), 1)
    everyone = schedule.participants(round)
    # Clients may begin with different tasks, which are not fused with each other: those of one are tried.
    at = schedule.task(everyone[0], round) if everyone else None
    task = data[at or 0].data if isinstance(data, FederatedStream) else data
    seen = TransferSet.of(data, at or 0, model_outputs(plan, data))
    models, size = partial(UntrainedModels, plan, seen), len(task.transfer_x)
    known = ServerKnowledge(size, task.transfer_y, models, scenario.seed, rounds=scenario.rounds)
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
            sizes.append(sum(values.nbytes for values in arrays.values()))
            received = decode_upload(stages, arrays, strategy.kinds_of(arrays))
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
