"""One participant of the federation: a shard of data, a model, a state.

Nothing here knows of messages or engines; `fedkd.federation.client_app` puts a client behind Flower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.data.federated import ClientData
from fedkd.errors import TrainingDiverged
from fedkd.fusion.strategy import FusionStrategy
from fedkd.models.build import build_model
from fedkd.randomness import derive_seed, numpy_generator, torch_generator
from fedkd.scenario.schema import ClientGroup, Scenario
from fedkd.training.device import prepare_inputs, prepare_model
from fedkd.training.evaluate import evaluate, predict_logits
from fedkd.training.loop import FitResult, fit
from fedkd.training.losses import cross_entropy
from fedkd.training.optimizer import OptimizerSpec, round_lr

MODEL_PREFIX = "model/"
APPLIED_ROUND = "applied_round"
BASELINE = "baseline"

Split = Literal["local", "global"]


@dataclass(frozen=True)
class Score:
    """One evaluation: accuracy in [0, 1] and mean cross entropy."""

    accuracy: float
    loss: float


@dataclass
class Workspace:
    """Where the clients of one process work in turn when weights are exchanged.

    Every message brings its weights along, so one model serves them all; and as all of them evaluate the same
    fused weights, the common test set is evaluated once a round.
    """

    model: nn.Module
    global_score: tuple[int, Score] | None = None
    """Round and score of the last evaluation on the common test set."""


class Client:
    """Trains, uploads what it knows, learns from guidance, evaluates.

    Every optimiser starts afresh, and every draw derives from (seed, purpose, client, round), so the whole
    state of a client between two messages is its model and the round of the last guidance it applied. Where
    weights are exchanged every message brings them along, so that not even the model is state.

    Args:
        scenario: The resolved scenario.
        index: Client index, 0-based.
        data: The client's samples, the transfer set and the common test set.
        group: The client's model.
        strategy: The fusion strategy, whose client loss guidance is learned with; None when weights are
            exchanged.
        device: Where the model lives.
        workspace: What the clients of a process share where weights are exchanged; None elsewhere.
    """

    def __init__(
        self,
        scenario: Scenario,
        index: int,
        data: ClientData,
        group: ClientGroup,
        strategy: FusionStrategy | None,
        device: torch.device,
        workspace: Workspace | None = None,
    ) -> None:
        self.index = index
        self.applied_round = 0
        self.exchanges_weights = strategy is None
        self._baseline = (0, nan, nan)  # round, local and global accuracy before its guidance
        self._scenario = scenario
        self._strategy = strategy
        self._data = data
        self._device = device
        self._workspace = workspace
        if workspace is not None:
            self.model: nn.Module = workspace.model
        else:
            seed = derive_seed(scenario.seed, "initial-weights", client=index)
            model = build_model(
                group, data.input_shape, data.classes, seed=seed, plugin_path=scenario.plugin_path
            )
            self.model = prepare_model(model, device)

    @property
    def num_train_samples(self) -> int:
        """Number of samples the client trains on."""
        return len(self._data.train_y)

    # Local training -----------------------------------------------------------------------------------

    def train(self, round: int, proximal_mu: float = 0.0) -> FitResult:
        """Train on the client's own samples.

        Args:
            round: Round, 1-based.
            proximal_mu: μ of FedProx (Li et al. 2020): adds μ/2 · ‖w − w_received‖² to the loss.

        Raises:
            TrainingDiverged: The loss stopped being finite.
        """
        training = self._scenario.training
        x = prepare_inputs(self._data.train_x, self._device)
        y = prepare_inputs(self._data.train_y, self._device)
        received = [p.detach().clone() for p in self.model.parameters()] if proximal_mu else []

        def loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
            value = cross_entropy(model(inputs), labels)
            if received:
                drift = sum(
                    (p - start).square().sum() for p, start in zip(model.parameters(), received, strict=True)
                )
                value = value + 0.5 * proximal_mu * drift
            return value

        return fit(
            self.model,
            (x, y),
            loss,
            optimizer=self._optimizer(round, training.lr),
            epochs=training.local_epochs,
            batch_size=training.batch_size,
            generator=self._generator("train-batches", round),
            seed=self._seed("train", round),
            autocast=training.autocast,
        )

    def _optimizer(self, round: int, lr: float) -> OptimizerSpec:
        training = self._scenario.training
        return OptimizerSpec(
            name=training.optimizer,
            lr=round_lr(lr, training.schedule, round, self._scenario.rounds),
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            clip_norm=training.clip_norm,
        )

    def _seed(self, purpose: str, round: int) -> int:
        return derive_seed(self._scenario.seed, purpose, client=self.index, round=round)

    def _generator(self, purpose: str, round: int) -> torch.Generator:
        return torch_generator(self._scenario.seed, purpose, client=self.index, round=round)

    # Knowledge and guidance ---------------------------------------------------------------------------

    def knowledge(self) -> dict[str, np.ndarray]:
        """Return what the client uploads: logits [M, C] on the transfer set; label counts [C] if asked.

        Raises:
            TrainingDiverged: The model predicts nothing any more.
        """
        strategy = self._strategy
        if strategy is None or strategy.sends == "nothing":
            return {}
        logits = predict_logits(self.model, prepare_inputs(self._data.transfer_x, self._device))
        if logits.isnan().any():
            raise TrainingDiverged("predictions are not numbers (NaN); a lower training.lr may help")
        arrays = {"logits": logits.cpu().numpy().astype(self._scenario.fusion.upload_dtype)}
        if strategy.needs_label_counts:
            arrays["label_counts"] = np.bincount(self._data.train_y, minlength=self._data.classes)
        return arrays

    def learn(self, targets: np.ndarray, round: int) -> None:
        """Distil guidance into the model; guidance of a round already applied is ignored.

        Args:
            targets: What the strategy fused for this client, [M, C].
            round: Round the guidance belongs to.
        """
        if round <= self.applied_round or self._strategy is None:
            return
        fusion = self._scenario.fusion
        if fusion.distill_epochs > 0:
            self._distil(targets, round)
        self.applied_round = round

    def _distil(self, targets: np.ndarray, round: int) -> None:
        fusion, training, strategy = self._scenario.fusion, self._scenario.training, self._strategy
        assert strategy is not None
        transfer_x = prepare_inputs(self._data.transfer_x, self._device)
        arrays = [transfer_x, prepare_inputs(np.asarray(targets, dtype=np.float32), self._device)]

        def loss(model: nn.Module, inputs: Tensor, wanted: Tensor, *private: Tensor) -> Tensor:
            value = strategy.loss(model(inputs), wanted)
            if private:
                own_inputs, labels = private
                value = value + fusion.private_weight * cross_entropy(model(own_inputs), labels)
            return value

        if fusion.private_weight > 0.0:
            order = self._private_order(len(transfer_x), round)
            arrays += [
                prepare_inputs(self._data.train_x[order], self._device),
                prepare_inputs(self._data.train_y[order], self._device),
            ]
        fit(
            self.model,
            arrays,
            loss,
            optimizer=self._optimizer(round, fusion.distill_lr or training.lr),
            epochs=fusion.distill_epochs,
            batch_size=fusion.distill_batch_size or training.batch_size,
            generator=self._generator("distill-batches", round),
            seed=self._seed("distill", round),
            autocast=training.autocast,
        )

    def _private_order(self, length: int, round: int) -> np.ndarray:
        """Return `length` indices of own samples: whole shuffles of the shard, one after another."""
        generator = numpy_generator(self._scenario.seed, "distill-private", client=self.index, round=round)
        repeats = -(-length // self.num_train_samples)
        shuffles = [generator.permutation(self.num_train_samples) for _ in range(repeats)]
        return np.concatenate(shuffles)[:length]

    # Evaluation ---------------------------------------------------------------------------------------

    def evaluate(self, split: Split) -> Score:
        """Evaluate on the client's own test split (`local`) or on the common test set (`global`)."""
        if split == "local":
            x, y = self._data.test_x, self._data.test_y
        else:
            x, y = self._data.global_x, self._data.global_y
        result = evaluate(self.model, prepare_inputs(x, self._device), prepare_inputs(y, self._device))
        return Score(result.accuracy, result.loss)

    def evaluate_fused(self, split: Split, round: int) -> Score:
        """Evaluate what the fusion of a round has led to."""
        if self._workspace is None or split == "local":
            return self.evaluate(split)
        known = self._workspace.global_score
        if known is None or known[0] != round:
            known = self._workspace.global_score = (round, self.evaluate("global"))
        return known[1]

    def remember_baseline(self, round: int, splits: Sequence[Split]) -> None:
        """Evaluate now, as the accuracy that this round's guidance will be measured against."""
        scores = {split: self.evaluate(split).accuracy for split in splits}
        self._baseline = (round, scores.get("local", nan), scores.get("global", nan))

    def baseline(self, round: int) -> dict[Split, float]:
        """Return the accuracies `remember_baseline` measured in this round; NaN where it measured none."""
        measured, local, common = self._baseline
        return {"local": local, "global": common} if measured == round else {"local": nan, "global": nan}

    # State --------------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, np.ndarray]:
        """Return copies of all parameters and buffers, normalisation statistics included, by name."""
        return {
            name: np.array(tensor.detach().cpu().numpy(), order="C")
            for name, tensor in self.model.state_dict().items()
        }

    def load_parameters(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set all parameters and buffers; values are cast to each tensor's own type."""
        self.model.load_state_dict(
            {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
        )

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that `restore` needs to continue exactly here."""
        arrays = {APPLIED_ROUND: np.array(self.applied_round, dtype=np.int64)}
        if not self.exchanges_weights:
            arrays |= {MODEL_PREFIX + name: values for name, values in self.parameters().items()}
        arrays[BASELINE] = np.array(self._baseline, dtype=np.float64)
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from a state that `state` returned."""
        self.applied_round = int(arrays[APPLIED_ROUND])
        if not self.exchanges_weights:
            self.load_parameters(
                {
                    name.removeprefix(MODEL_PREFIX): values
                    for name, values in arrays.items()
                    if name.startswith(MODEL_PREFIX)
                }
            )
        round, local, common = arrays[BASELINE].tolist()
        self._baseline = (int(round), local, common)
