"""Promises of a strategy that no type says, checked in the trial of a round.

`fuse` is pure: a resumed run depends on it. Targets of a loss that compares distributions are distributions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.errors import UserError
from fedkd.fusion.strategy import FusionStrategy, overrides, teaches_targets
from fedkd.fusion.views import Architecture, Arrays, ServerLoss
from fedkd.server.models import TransferSetModels
from fedkd.training.device import prepare_inputs
from fedkd.training.weights import weights_of

KEY = "fusion.strategy"
LOOKED_AT = 8
"""Samples whose targets are looked at."""


class UntrainedModels(TransferSetModels):
    """Models on the server that are not trained: a loss is computed once, on two samples."""

    def train(
        self,
        architecture: Architecture,
        weights: Arrays,
        targets: tuple[np.ndarray, ...],
        loss: ServerLoss,
        **settings: Any,
    ) -> dict[str, np.ndarray]:
        """Return the weights as they are."""
        network = self.network(architecture, weights)
        outputs = self._of_task(network.eval()(prepare_inputs(self._data.x[:2], "cpu")))
        loss(outputs, *(prepare_inputs(values[:2], "cpu") for values in targets))
        return weights_of(network)

    def fit(self, network: nn.Module, arrays: Any, loss: Callable[..., Tensor], **settings: Any) -> None:
        """Leave the network as it is."""
        training = network.training
        loss(network.eval(), *(prepare_inputs(values[:2], "cpu") for values in arrays))
        network.train(training)


@dataclass(frozen=True)
class Kept:
    """What a strategy and its classes hold, by class and attribute; hyper-parameters by their names."""

    values: Mapping[str, Any]

    @staticmethod
    def of(strategy: FusionStrategy) -> Kept:
        """Return a copy of what can change: hyper-parameters, and attributes of its classes."""
        found = {field.name: getattr(strategy, field.name, None) for field in fields(strategy)}  # type: ignore[arg-type]
        for owner in type(strategy).__mro__:
            if issubclass(owner, FusionStrategy) and owner not in (FusionStrategy, FusionStrategy):
                found |= {f"{owner.__name__}.{name}": value for name, value in vars(owner).items()}
        return Kept({name: _copied(value) for name, value in found.items() if _is_data(name, value)})

    def changed(self, later: Kept) -> str | None:
        """Return the first name whose value has changed since, or that is new; None: there is none."""
        names = dict.fromkeys([*self.values, *later.values])
        return next((n for n in names if not _equal(self.values.get(n), later.values.get(n))), None)


def check_pure(strategy: FusionStrategy, first: Arrays, second: Arrays, before: Kept) -> None:
    """Refuse a strategy that remembers outside of `Guidance.memory`.

    Args:
        strategy: As it is after two fusions of equal knowledge.
        first: State of the server after one of them.
        second: State of the server after the other.
        before: What the strategy held before both.
    """
    advice = "keep what must last in Guidance.memory, and draw from Knowledge.seed"
    changed = before.changed(Kept.of(strategy))
    if changed is not None:
        raise UserError(f"'{strategy.name}' must not change '{changed}' in a round; {advice}", key=KEY)
    for name in {**first, **second}:
        if not _equal(first.get(name), second.get(name)):
            raise UserError(
                f"'{strategy.name}' must answer equal knowledge equally, got other {name.rpartition('/')[2]}"
                f" from a second `fuse`; {advice}",
                key=KEY,
            )


def check_targets(strategy: FusionStrategy, guidance: Arrays) -> None:
    """Refuse targets that are no distributions where the loss takes them for some.

    Such a loss does not change with a constant added to all logits of a student's sample, and does with one
    added to its targets.
    """
    targets = guidance.get("targets")
    asked = not overrides(strategy, "targets_of") and teaches_targets(strategy)
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
            f"'{strategy.name}' must give probabilities as targets, which its `loss` compares with a softmax;"
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
    except Exception:  # what cannot be copied is compared by being the same
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
    try:
        return one is other or bool(one == other) or _is_opaque(one, other)
    except Exception:  # somebody else's `__eq__`
        return True


def _is_opaque(one: Any, other: Any) -> bool:
    """Return whether identity alone tells two objects of a kind apart, such as copies of a generator."""
    return type(one) is type(other) and type(one).__eq__ is object.__eq__
