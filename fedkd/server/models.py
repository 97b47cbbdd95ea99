"""Models on the server, for strategies that train there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.data import Data, FederatedData, SampleKind
from fedkd.errors import TrainingDiverged
from fedkd.fusion import Architecture, Arrays, ServerLoss
from fedkd.models import build_model
from fedkd.plan import Plan
from fedkd.randomness import derive_seed, numpy_generator, torch_generator
from fedkd.scenario import ClientGroup
from fedkd.training import (
    EarlyStopping,
    OptimizerSpec,
    TrainJob,
    exchanged_weights,
    fit,
    limit_torch_threads,
    load_weights,
    predict_logits,
    prepare_inputs,
    prepare_model,
    trainable_names,
)


@dataclass(frozen=True, eq=False)
class TransferSet:
    """Transfer samples `[M, *input_shape]`, and outputs of models, the task's `units` (None: all)."""

    x: np.ndarray
    outputs: int
    units: tuple[int, ...] | None = None
    kind: SampleKind | None = None  # None: inferred

    @staticmethod
    def of(data: Data, task: int, outputs: int) -> TransferSet:
        """Return that of a federation's data, or of a task of its stream."""
        if isinstance(data, FederatedData):
            return TransferSet(data.transfer_x, outputs, kind=data.kind)
        units = data[task].units
        return TransferSet(data[task].transfer_x, outputs, units if len(units) < outputs else None, data.kind)


class TransferSetModels:
    """A round's `fedkd.fusion.views.ServerModels`, on the CPU with a fixed number of threads."""

    def __init__(self, plan: Plan, data: TransferSet, round: int) -> None:
        self._scenario, self._groups = plan.scenario, plan.groups
        self._data, self._round, self._calls = data, round, 0

    @property
    def clients(self) -> int:
        return self._scenario.data.clients

    def architecture_of(self, client: int) -> Architecture:
        group = self._groups[client]
        if group.adapter is None:
            return self.architecture(group.model, group.args)
        return json.dumps(group.model_dump(exclude={"share"}), sort_keys=True)

    def clients_of(self, architecture: Architecture) -> list[int]:
        return [client for client in range(self.clients) if self.architecture_of(client) == architecture]

    def architecture(self, model: str, args: Mapping[str, Any]) -> Architecture:
        return json.dumps({"model": model, "args": dict(args)}, sort_keys=True)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._data.x.shape[1:]

    def seed(self, purpose: str) -> int:
        return derive_seed(self._scenario.seed, f"server-{purpose}", round=self._round)

    def network(self, architecture: Architecture, weights: Arrays | None = None) -> nn.Module:
        """Return a network on the CPU; without weights, a fresh one, always the same."""
        group = ClientGroup.model_validate(json.loads(architecture))
        # Adapters change a frozen base, so the server's is that of the clients.
        purpose = f"server-weights:{architecture}" if group.adapter is None else "initial-weights"
        seed = derive_seed(self._scenario.seed, purpose)
        model = build_model(
            group,
            self._data.x.shape[1:],
            self._data.outputs,
            seed=seed,
            plugin_path=self._scenario.plugin_path,
            kind=self._data.kind,
        )
        model = prepare_model(model, "cpu", fast=self._scenario.training.fast)
        if weights is not None:
            load_weights(model, weights)
        return model

    def initial_weights(self, architecture: Architecture) -> dict[str, np.ndarray]:
        return exchanged_weights(self.network(architecture))

    def trainable(self, architecture: Architecture) -> tuple[str, ...]:
        return trainable_names(self.network(architecture))

    def logits(self, architecture: Architecture, weights: Arrays) -> np.ndarray:
        """Predict the transfer set in evaluation mode: `[M, C]` float32."""
        with limit_torch_threads(1):
            x = prepare_inputs(self._data.x, "cpu")
            return self._of_task(predict_logits(self.network(architecture, weights), x)).numpy()

    def _of_task(self, outputs: Tensor) -> Tensor:
        units = self._data.units
        return outputs if units is None else outputs[:, list(units)]

    def train(
        self,
        architecture: Architecture,
        weights: Arrays,
        targets: tuple[np.ndarray, ...],
        loss: ServerLoss,
        *,
        epochs: int,
        batch_size: int,
        lr: float,
        validation: float = 0.0,
        patience: int = 0,
    ) -> dict[str, np.ndarray]:
        purpose, model = self._purpose("train"), self.network(architecture, weights)
        arrays = [prepare_inputs(values, "cpu") for values in (self._data.x, *targets)]
        generator = numpy_generator(self._scenario.seed, purpose, round=self._round)
        shuffled = generator.permutation(len(arrays[0]))
        kept_apart = int(validation * len(shuffled))
        apart = [array[torch.from_numpy(shuffled[:kept_apart])] for array in arrays]
        used = [array[torch.from_numpy(np.sort(shuffled[kept_apart:]))] for array in arrays]

        def on_task(outputs: Tensor, *wanted: Tensor) -> Tensor:
            return loss(self._of_task(outputs), *wanted)

        stopping = EarlyStopping(apart, on_task, patience) if patience > 0 and kept_apart > 0 else None
        self._run(
            purpose,
            model,
            used,
            lambda model, inputs, *wanted: on_task(model(inputs), *wanted),
            OptimizerSpec("adam", lr),
            epochs,
            batch_size,
            lr_schedule="cosine",
            early_stopping=stopping,
        )
        return exchanged_weights(model)

    def fit(
        self,
        network: nn.Module,
        arrays: Sequence[np.ndarray],
        loss: Callable[..., Tensor],
        *,
        optimizer: Literal["adam", "sgd"],
        lr: float,
        epochs: int,
        batch_size: int,
        weight_decay: float = 0.0,
    ) -> None:
        inputs = [prepare_inputs(array, "cpu") for array in arrays]
        spec = OptimizerSpec(optimizer, lr, weight_decay=weight_decay)
        self._run(self._purpose("fit"), network, inputs, loss, spec, epochs, batch_size)

    def _purpose(self, kind: str) -> str:
        """Return a new purpose for each training, so that models of a round see different batches."""
        self._calls += 1
        return f"server-{kind}-{self._calls}"

    def _run(self, purpose: str, *job: Any, **settings: Any) -> None:
        settings["generator"] = torch_generator(self._scenario.seed, purpose, round=self._round)
        settings["seed"] = derive_seed(self._scenario.seed, purpose, round=self._round)
        with limit_torch_threads(1):
            try:
                fit(TrainJob(*job, **settings))
            except TrainingDiverged as error:
                raise TrainingDiverged(
                    "the server's model diverged; a lower fusion.server_lr may help"
                ) from error
