"""A client that trains its network by gradients."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.clients.faults import Poison
from fedkd.clients.local_loss import LocalLoss, ProximalTerm
from fedkd.clients.network_client import NetworkClient
from fedkd.clients.own_samples import share_kept_apart
from fedkd.clients.rehearsal import Rehearsed
from fedkd.clients.relations import RelationLoss, told
from fedkd.clients.shared_network import SharedModel
from fedkd.clients.view import RoundView
from fedkd.data.federated import ClientData
from fedkd.fusion.auxiliary import networks_of
from fedkd.fusion.local_objective import objective_of
from fedkd.fusion.views import Arrays, FitSummary, Trial
from fedkd.namespaces import below, under
from fedkd.plan.plan import Plan
from fedkd.randomness import derive_seed, torch_generator
from fedkd.scenario.schema import Scenario
from fedkd.training.alongside import Alongside
from fedkd.training.chance import guessing_right
from fedkd.training.early_stopping import EarlyStopping
from fedkd.training.executor import Training
from fedkd.training.job import Beside, FitResult, TrainJob
from fedkd.training.known_modules import declares
from fedkd.training.losses import cross_entropy, kd_kl
from fedkd.training.optimizer import LrSchedule, OptimizerSpec, round_lr
from fedkd.training.parts import in_parts

FEATURES_BATCH = 256
OPTIMIZER = "optimizer/"
AUXILIARY = "auxiliary/"
HAS_SET_OUT = "has_set_out"
T = TypeVar("T")


def round_optimizer(scenario: Scenario, lr: float, round: int) -> OptimizerSpec:
    """Return the optimiser of a scenario's training in one round.

    Args:
        scenario: Says all but the learning rate.
        lr: Learning rate of the first round.
        round: 1-based; a training after the last round goes on at its rate.
    """
    training, within = scenario.training, min(round, scenario.rounds)
    schedule = LrSchedule(training.schedule, training.lr_decay, training.lr_step_rounds or 1)
    return OptimizerSpec(
        name=training.optimizer,
        lr=round_lr(lr, schedule, within, scenario.rounds),
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        clip_norm=training.clip_norm,
    )


def _follow(model: nn.Module, inputs: Tensor, wanted: Tensor) -> Tensor:
    return kd_kl(model(inputs), wanted, 1.0)


class TorchClient(NetworkClient):
    """Trains a torch module by gradients, on its own samples and on guidance (arguments: `NetworkClient`)."""

    def __init__(
        self,
        plan: Plan,
        index: int,
        data: ClientData,
        model: nn.Module | SharedModel,
        poison: Poison | None = None,
        auxiliaries: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> None:
        super().__init__(plan, index, data, model, poison, auxiliaries)
        self._optimizer_state: dict[str, Tensor] = {}  # empty unless it is kept
        self._has_set_out = False

    # Training -----------------------------------------------------------------------------------------

    def train(self, round: int, proximal_mu: float = 0.0) -> Training[float]:
        """Train on the client's own samples and return the mean loss."""
        if self._shared is not None:
            self._shared.measured.forget()
        yield from self.set_out()
        objective_of(self._strategy).before_training(RoundView(self, round))
        training = self._scenario.training
        x, y, epochs = self._training_work(training.local_epochs, round)
        self.effect.forget()
        optimizer = self._optimizer(round, training.lr)
        own = self._shared is None or self._strategy.capabilities.sends_steps
        sends_weights = "weights" in self._strategy.capabilities.needs and own
        start = self.weights() if sends_weights else {}
        proximal_mu = proximal_mu or objective_of(self._strategy).proximal_mu
        proximal = ProximalTerm.to_own_weights(self.model, proximal_mu) if proximal_mu else None
        rehearsed = self._rehearsal(round)
        loss = self._local_loss(proximal, rehearsed, round)
        index = () if loss.step is None else (self._on_device(self._rows_of_training(round)),)
        beside = self._beside(round)
        job = TrainJob(
            self.model,
            (self._on_device(x), self._on_device(y), *index),
            loss,
            optimizer,
            epochs,
            training.batch_size,
            generator=self._batches("train-batches", round),
            seed=self._seed("train", round),
            autocast=training.autocast,
            correction=self._gradient_correction(round),
            accumulate=training.accumulate,
            early_stopping=self._early_stopping(),
            optimizer_state=self._optimizer_state if training.optimizer_state == "kept" else None,
            scored_loss=loss.scored,
            guessing=guessing_right(y),
            kind=(
                self._kind("train", proximal_mu, loss.weight_rehearsed)
                if loss.own_alone and not beside
                else None
            ),
            replayable=loss.own_alone,
            constants=loss.constants,
            alongside=None if rehearsed is None else rehearsed.batches,
            beside=beside,
        )
        result = yield from self._in_phases(job, round, loss)
        self._optimizer_state = {**self._optimizer_state, **(result.optimizer_state or {})}
        self.last_fit = FitSummary(start, result.steps, optimizer.lr)
        self.last_hits = result.hits
        return result.loss

    def set_out(self) -> Training[None]:
        """Train on the labelled transfer set, where the strategy begins with that."""
        if self._strategy.capabilities.pretrain_epochs == 0 or self._has_set_out:
            return
        self._has_set_out = True
        training = self._scenario.training
        assert self.data.public_y is not None
        yield TrainJob(
            self.model,
            (self._on_device(self.data.transfer_x), self._on_device(self.data.public_y)),
            lambda model, inputs, labels: cross_entropy(model(inputs), labels),
            self._optimizer(1, training.lr),
            self._strategy.capabilities.pretrain_epochs,
            training.batch_size,
            generator=self._batches("pretrain-batches", 0),
            seed=self._seed("pretrain", 0),
            autocast=training.autocast,
            accumulate=training.accumulate,
            kind=self._kind("pretrain"),
            replayable=True,
        )

    @property
    def _share_kept_apart(self) -> float | None:
        return share_kept_apart(self._plan)

    def _early_stopping(self) -> EarlyStopping | None:
        """Return when training on private samples stops; None: after its last epoch."""
        wanted, kept_apart = self._scenario.training.early_stopping, self._own_samples().kept_apart
        if wanted is None or not len(kept_apart):
            return None
        arrays = (self.data.train_x[kept_apart], self.training_labels()[kept_apart])
        return EarlyStopping(tuple(map(self._on_device, arrays)), cross_entropy, wanted.patience)

    def _in_phases(self, job: TrainJob, round: int, loss: LocalLoss) -> Training[FitResult]:
        """Train on private samples in the phases of the strategy, each with a seed of its own."""
        phases = objective_of(self._strategy).phases(job.epochs, last=round > self._scenario.rounds)
        if phases is None:
            return (yield from self._private_training(job, round, loss))
        if self._straggle(round, []) is not None:
            phases = [replace(phase, epochs=min(phase.epochs, 1)) for phase in phases]
        return (
            yield from in_parts(
                job,
                [(phase.epochs, phase.trains) for phase in phases],
                lambda part: self._private_training(part, round, loss),
            )
        )

    def _private_training(self, job: TrainJob, round: int, loss: LocalLoss) -> Training[FitResult]:
        """Train on private samples and labels by a job with a loss."""
        return (yield job)

    def _guidance_training(self, job: TrainJob) -> Training[FitResult]:
        """Train on guidance."""
        return (yield job)

    def _gradient_correction(self, round: int) -> list[Tensor] | None:
        correction = objective_of(self._strategy).gradient_correction(RoundView(self, round))
        if correction is None:
            return None
        return [
            torch.from_numpy(np.asarray(correction[name])).to(parameter)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        ]

    def _rehearsal(self, round: int) -> Rehearsed | None:
        """Return what is rehearsed in a round: the last guidance, or what the strategy has sent for that."""
        last, strategy = self._last_guidance, self._strategy
        if last is not None and len(last.targets):
            decay = self._scenario.fusion.rehearse_decay
            weight = self._plan.recipe.rehearse * decay ** last.age(round)
            samples = last.of(self.data.transfer_x)
            batches = self._alongside(samples, np.asarray(last.targets, dtype=np.float32), round)
            return Rehearsed(batches, strategy.loss, weight, alike=self._computes_loss_only)
        wanted = objective_of(strategy).rehearsal(RoundView(self, round))
        if wanted is None:
            return None
        return Rehearsed(self._alongside(wanted.samples, wanted.targets, round), wanted.loss)

    def _alongside(self, samples: np.ndarray, targets: np.ndarray, round: int) -> Alongside:
        arrays = [self._on_device(samples), self._on_device(targets)]
        generator = self._batches("rehearsal-batches", round)
        return Alongside(arrays, self._scenario.training.batch_size, generator)

    @property
    def _computes_loss_only(self) -> bool:
        return declares(self._strategy, "loss")

    def _local_loss(
        self, proximal: ProximalTerm | None, rehearsed: Rehearsed | None, round: int
    ) -> LocalLoss:
        strategy = self._strategy
        taught = objective_of(strategy).local_loss(self._kept) if self._kept else None
        step = objective_of(strategy).local_step(RoundView(self, round), self._kept)
        shaped = taught is not None or step is not None
        return LocalLoss(
            proximal, taught, shaped and "features" in strategy.capabilities.needs, rehearsed, step
        )

    def distil(self, targets: np.ndarray, samples: np.ndarray | None, round: int) -> Training[None]:
        """Minimise the strategy's loss on transfer samples, plus γ · cross entropy on private batches."""
        epochs = self._scenario.fusion.distill_epochs
        number = len(self.data.transfer_x) if samples is None else len(samples)
        if epochs and number:
            yield from self._guidance_training(self._lesson_of(targets, samples, round))

    def trial(self, targets: np.ndarray, samples: np.ndarray, asked: np.ndarray, round: int) -> Trial:
        """Return what an epoch of distilling targets would lead to."""
        began = self.weights()
        if len(samples):
            job = replace(self._lesson_of(targets, samples, round), epochs=1, kind=self._kind("trial"))
            self.complete(self._guidance_training(job))
        kept_x, kept_y = self.kept_apart()
        found = Trial(self.predict(kept_x), kept_y, self.predict(self.data.transfer_x[asked]))
        self.load_weights(began)
        return found

    def _lesson_of(self, targets: np.ndarray, samples: np.ndarray | None, round: int) -> TrainJob:
        """Return the job of distilling targets `[K, C]` of transfer samples `[K]`, None: of all."""
        fusion, strategy = self._scenario.fusion, self._strategy
        gamma = self._plan.recipe.private_weight
        transfer_x = self.data.transfer_x if samples is None else self.data.transfer_x[samples]
        arrays = [self._on_device(transfer_x), self._on_device(np.asarray(targets, dtype=np.float32))]
        relate = None if fusion.relations is None else RelationLoss(fusion.relations)
        if relate is not None:
            arrays.append(self._on_device(told(strategy.probabilities(targets))))

        def loss(model: Any, inputs: Tensor, wanted: Tensor, *others: Tensor) -> Tensor:
            if relate is None:
                value, private = strategy.loss(model(inputs), wanted), others
            else:
                features, private = model.features(inputs), others[1:]
                value = strategy.loss(model.head(features), wanted)
                value = value + relate(features.flatten(1), others[0])
            if private:
                own_inputs, labels = private
                value = value + gamma * cross_entropy(model(own_inputs), labels)
            return value

        if gamma > 0.0:
            order = self._private_order(len(transfer_x), round)
            labels = self.training_labels()
            arrays += [self._on_device(self.data.train_x[order]), self._on_device(labels[order])]
        return self._distillation(arrays, loss, round)

    def _distillation(
        self, arrays: Sequence[Tensor], loss: Callable[..., Tensor], round: int, task: int | None = None
    ) -> TrainJob:
        """Return the job of minimising a loss on transfer samples.

        Args:
            arrays: What the loss wants.
            loss: As for `TrainJob`.
            round: Of the guidance.
            task: The old task that it is about; None: the present one, or there is no stream.
        """
        fusion, training, seed = self._scenario.fusion, self._scenario.training, self._scenario.seed
        client = self.index
        return TrainJob(
            self.model,
            arrays,
            loss,
            self._optimizer(round, fusion.distill_lr or training.lr),
            fusion.distill_epochs,
            fusion.distill_batch_size or training.batch_size,
            generator=torch_generator(seed, "distill-batches", client=client, round=round, task=task),
            seed=derive_seed(seed, "distill", client=client, round=round, task=task),
            autocast=training.autocast,
            accumulate=training.accumulate,
            kind=self._kind("distil") if fusion.relations is None else None,
            replayable=self._computes_loss_only and fusion.relations is None,
        )

    def trial_job(self, model: nn.Module, targets: np.ndarray, epochs: int, round: int) -> TrainJob:
        """Return the job of having another model like this one distil probabilities on the transfer set.

        By the KL divergence at temperature 1, with the rate and the batches that guidance is distilled with.

        Args:
            model: A copy of the client's.
            targets: `[M, C]` float32.
            epochs: Passes over the transfer set.
            round: 1-based.
        """
        arrays = [self._on_device(self.data.transfer_x), self._on_device(np.asarray(targets, np.float32))]
        return replace(
            self._distillation(arrays, _follow, round),
            model=model,
            epochs=epochs,
            generator=self._batches("trial-batches", round),
            seed=self._seed("trial", round),
            kind=self._kind("trial"),
            replayable=True,
        )

    def _beside(self, round: int) -> list[Beside]:
        """Return the auxiliary networks that a round's local training trains along."""
        wanted = networks_of(self._strategy).aux_networks() if self._auxiliaries else {}
        rates = {
            name: None if own.lr is None else self._optimizer(round, own.lr).lr
            for name, own in wanted.items()
            if own.trained
        }
        return [Beside(name, self._auxiliaries[name], lr) for name, lr in rates.items()]

    def _private_order(self, length: int, round: int) -> np.ndarray:
        """Return `length` indices of own samples: whole shuffles of them, one after another."""
        generator = self._generator("distill-private", round)
        own = self._own_samples().trained_on
        shuffles = [generator.permutation(len(own)) for _ in range(-(-length // len(own)))]
        return own[np.concatenate(shuffles)[:length]]

    def _kind(self, purpose: str, *details: Hashable) -> Hashable:
        """Return what names a job of all clients of the same group (see `TrainJob.kind`)."""
        return (purpose, id(self._plan.groups[self.index]), *details)

    def _optimizer(self, round: int, lr: float) -> OptimizerSpec:
        return round_optimizer(self._scenario, lr, round)

    def _batches(self, purpose: str, round: int) -> torch.Generator:
        return torch_generator(self._scenario.seed, purpose, client=self.index, round=round)

    # State --------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that `restore` needs to continue exactly here."""
        remembered = {
            name: np.array(value.cpu().numpy(), order="C") for name, value in self._optimizer_state.items()
        }
        begun = {HAS_SET_OUT: np.array(1, dtype=np.int64)} if self._has_set_out else {}
        return super().state() | under(OPTIMIZER, remembered) | begun

    def restore(self, arrays: Arrays) -> None:
        """Continue from a state that `state` returned."""
        super().restore(arrays)
        self._has_set_out = HAS_SET_OUT in arrays
        self._optimizer_state = {
            name: torch.from_numpy(np.array(value)) for name, value in below(OPTIMIZER, arrays).items()
        }
