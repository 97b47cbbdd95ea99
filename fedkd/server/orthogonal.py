"""Federated orthogonal training on the server: subspaces protected from the average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedkd.continual import find_layers, head_names, heads_are_disjoint, protected_layers
from fedkd.fusion import (
    RESIDUAL_SHARE_PREFIX,
    SKETCH_PREFIX,
    Arrays,
    InvalidUpload,
    check_weight,
    extend_basis,
    mean_residual_share,
    remove_projection,
)
from fedkd.scenario import Orthogonal
from fedkd.storage import strip_prefix
from fedkd.training import one_blas_thread


@dataclass(frozen=True)
class WeightRoles:
    """The roles of a network's weights.

    Attributes:
        fan_in: Inputs n of every protected layer, by name.
        heads: Weights and biases of each task's own outputs.
        units: Output units of every task, by task.
    """

    fan_in: Mapping[str, int]
    layer_of: Mapping[str, str]
    heads: frozenset[str]
    parameters: frozenset[str]
    units: Mapping[int, Sequence[int]]

    @classmethod
    def of(cls, network: nn.Module, order: Sequence[int], units: Sequence[Sequence[int]]) -> WeightRoles:
        """Return the roles in a network; `order` has the tasks in the clients' common order."""
        layers = find_layers(network)
        own_heads = heads_are_disjoint([torch.tensor(units[task]) for task in order])
        protected = protected_layers(layers, own_heads=own_heads)
        return cls(
            fan_in={name: layer.fan_in for name, layer in protected.items()},
            layer_of={layer.weight_name: name for name, layer in protected.items()},
            heads=frozenset(head_names(layers)) if own_heads else frozenset(),
            parameters=frozenset(name for name, _ in network.named_parameters()),
            units={task: tuple(units[task]) for task in order},
        )


def exchanged_bytes(settings: Orthogonal, fan_in: Mapping[str, int]) -> tuple[int, int]:
    """Return the bytes of a client's upload at a task's end, and the most of its download."""
    up = sum(4 * (inputs * (settings.width or inputs) + 1) for inputs in fan_in.values())
    return up, sum(4 * inputs * inputs for inputs in fan_in.values())


class OrthogonalTraining:
    """Keep an average out of the subspaces of all clients' old tasks (see `fedkd.fusion.weights.orthogonal`).

    After the first task, a step of the average may change two kinds of weights:

    - weights of linear and convolutional layers, outside of U;
    - weights and biases of the present task's own outputs.

    Other parameters (biases, scales and shifts of normalisation) stay, as they change old outputs. (The
    authors' code goes on training biases.)
    """

    def __init__(self, settings: Orthogonal, weights: WeightRoles) -> None:
        self._settings, self._weights = settings, weights
        self._ended = 0  # tasks that are over
        self.bases: dict[str, np.ndarray] = {}
        """U ``[n, r]`` float32 of every layer with protected directions, by name."""
        self._energies: dict[str, float] = {}  # of the task that has just ended

    def confined(self, before: Arrays, after: Arrays, task: int) -> dict[str, np.ndarray]:
        """Return the last average plus the allowed part of the step to the new one."""
        if not self._ended:
            return dict(after)
        with one_blas_thread():
            return {name: self._confined(name, before[name], after[name], task) for name in after}

    def _confined(self, name: str, before: np.ndarray, after: np.ndarray, task: int) -> np.ndarray:
        layer = self._weights.layer_of.get(name)
        if name not in self._weights.parameters or (layer is not None and layer not in self.bases):
            return after
        step = after.astype(np.float64) - before
        if layer is not None:
            step = remove_projection(step, self.bases[layer])
        elif name in self._weights.heads:
            own = np.zeros(len(step), dtype=bool)
            own[list(self._weights.units[task])] = True
            step[~own] = 0.0
        else:
            return before
        return (before + step).astype(before.dtype)

    def check_sketches(self, arrays: Arrays) -> None:
        """Raise `InvalidUpload` unless every protected layer has a sketch and its share of energy."""
        for layer, fan_in in self._weights.fan_in.items():
            width = self._settings.width or fan_in
            for name, shape in (
                (SKETCH_PREFIX + layer, (fan_in, width)),
                (RESIDUAL_SHARE_PREFIX + layer, ()),
            ):
                if name not in arrays:
                    raise InvalidUpload(f"array {name} is missing")
                check_weight(name, arrays[name], np.empty(shape, np.float32))

    def end_task(self, sketches: Sequence[Arrays], samples: Sequence[int]) -> None:
        """Protect the task's subspaces, from the clients' sketches and numbers of training samples."""
        self._energies.clear()
        if not sketches:
            return
        threshold = min(self._settings.threshold + self._settings.threshold_increment * self._ended, 1.0)
        self._ended += 1
        for layer, fan_in in self._weights.fan_in.items():
            left = mean_residual_share(
                [float(own[RESIDUAL_SHARE_PREFIX + layer]) for own in sketches], samples
            )
            total = np.zeros(sketches[0][SKETCH_PREFIX + layer].shape)
            for own in sketches:
                total += own[SKETCH_PREFIX + layer]
            basis = self.bases.get(layer, np.zeros((fan_in, 0), dtype=np.float32))
            basis, self._energies[layer] = extend_basis(basis, total, left, threshold, self._settings.energy)
            if basis.shape[1]:
                self.bases[layer] = basis

    def figures(self) -> dict[str, float]:
        """Return the number and share of protected directions of every layer, and their estimated energy."""
        found = {}
        for layer, fan_in in self._weights.fan_in.items():
            rank = self.bases[layer].shape[1] if layer in self.bases else 0
            found[f"rank/{layer}"] = float(rank)
            found[f"protected_share/{layer}"] = rank / fan_in
            if layer in self._energies:
                found[f"protected_energy/{layer}"] = self._energies[layer]
        return found

    def state(self) -> dict[str, np.ndarray]:
        bases = {f"basis/{layer}": basis for layer, basis in self.bases.items()}
        return bases | {"ended": np.array(self._ended, dtype=np.int64)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._ended = int(arrays["ended"])
        self.bases = strip_prefix("basis/", arrays)
