"""The trainer of a network, and of a strategy's auxiliary networks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.clients.draws import Draws
from fedkd.clients.local.local_loss import (
    LocalLoss,
    ProximalTerm,
    Rehearsed,
    log_probabilities,
    relation_loss,
)
from fedkd.clients.local.task_stream import TaskStream
from fedkd.clients.local_samples import LocalSamples
from fedkd.clients.shared_network import SharedModel
from fedkd.clients.trainer import MODEL, Trained, Trainee
from fedkd.fusion.auxiliary import OWN, networks_of
from fedkd.fusion.local_objective import objective_of
from fedkd.fusion.views import Arrays, FitSummary, PrivateGradient, Trial
from fedkd.plan.plan import Plan
from fedkd.scenario.schema import Scenario
from fedkd.storage.namespaces import below, under
from fedkd.training.device import prepare_inputs, torch_threads
from fedkd.training.early_stopping import EarlyStopping
from fedkd.training.evaluate import predict_in_batches, predict_logits
from fedkd.training.executor import Training
from fedkd.training.fast.known_modules import declares
from fedkd.training.job import AuxBatches, AuxNetwork, FitResult, TrainJob
from fedkd.training.losses import cross_entropy, kd_kl
from fedkd.training.majority_guessing import guessing_right
from fedkd.training.optimizer import LrSchedule, OptimizerSpec, round_lr
from fedkd.training.optimizer_state import of_model
from fedkd.training.phases import in_parts
from fedkd.training.weights import frozen_copy, gradient_of, load_weights, weights_of

FEATURES_BATCH = 256
OPTIMIZER = "optimizer/"
AUXILIARY = "auxiliary/"
PRETRAINED = "pretrained"


def round_optimizer(scenario: Scenario, lr: float, round: int) -> OptimizerSpec:
    """Return the optimiser of a scenario in one round, given the learning rate of the first round.

    Rounds are 1-based; a training after the last round keeps its rate.
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


class NetworkTrainer:
    """Trains a network by gradients, on private samples and on guidance.

    Args:
        plan: What to simulate.
        index: Client index, 0-based.
        samples: The client's samples.
        model: The client's own network, on its device; or the one that the clients of a process share.
        auxiliaries: Auxiliary networks of its strategy by name, on the same device.
        stream: The client's tasks and their learner; None: there is no stream.

    Attributes:
        begin: Makes the client's initial network once more; None: it has none of its own.
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        samples: LocalSamples,
        model: nn.Module | SharedModel,
        auxiliaries: Mapping[str, nn.Module] = MappingProxyType({}),
        stream: TaskStream | None = None,
    ) -> None:
        self._plan, self._index = plan, index
        self._scenario, self._strategy = plan.scenario, plan.strategy
        self._samples, self._stream = samples, stream
        self._draws = Draws(plan.scenario.seed, index)
        self.shared = model if isinstance(model, SharedModel) else None
        self.network: nn.Module = model.network if isinstance(model, SharedModel) else model
        self.begin: Callable[[], nn.Module] | None = None
        self._auxiliaries = dict(auxiliaries)
        self._device = next(self.network.parameters()).device
        self._lanes = 1
        self._optimizer_state: dict[str, Tensor] = {}  # empty unless it is kept
        self._pretrained = False

    def threads(self, number: int) -> AbstractContextManager[None]:
        """Compute on this number of threads while the block runs."""
        return torch_threads(number)

    def on_device(self, array: np.ndarray) -> Tensor:
        """Return an array as a tensor where the network is."""
        return prepare_inputs(array, self._device)

    # Networks -----------------------------------------------------------------------------------------

    def network_of(self, name: str) -> nn.Module:
        """Return the client's own network, or an auxiliary one; a `KeyError` for unknown names."""
        if name != OWN and name not in self._auxiliaries:
            known = ", ".join([OWN, *self._auxiliaries])
            raise KeyError(f"'{self._strategy.name}' asks for a network '{name}'; clients have {known}")
        return self.network if name == OWN else self._auxiliaries[name]

    def fresh(self) -> nn.Module:
        """Return the client's initial network; a `TypeError` if it has none of its own."""
        if self.begin is None:
            raise TypeError(f"client {self._index} has no network of its own that it began with")
        return self.begin()

    def predictor(self) -> nn.Module:
        """Return the module whose logits and features are the client's predictions."""
        return self.network if self._stream is None else self._stream.learning.model()

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return logits `[n, C]` float32 in evaluation mode."""
        return self.logits_of(self.predictor(), x)

    def logits_of(self, network: nn.Module, x: np.ndarray) -> np.ndarray:
        """Return the logits `[n, C]` float32 of a network on the client's device, in evaluation mode."""
        return predict_logits(network, self.on_device(x), lanes=self._lanes).cpu().numpy()

    def features(self, x: np.ndarray) -> np.ndarray:
        """Return penultimate features `[n, F]` float32 in evaluation mode."""
        model: Any = self.predictor()
        found = predict_in_batches(
            model, lambda batch: model.features(batch).flatten(1), self.on_device(x), FEATURES_BATCH
        )
        return found.cpu().numpy()

    @contextmanager
    def prediction_threads(self, lanes: int) -> Iterator[None]:
        """Predict on this number of threads while the block runs, if processors are idle."""
        self._lanes = lanes
        try:
            yield
        finally:
            self._lanes = 1

    def frozen(self, weights: Arrays, of: str = OWN) -> nn.Module:
        """Return a copy of a network with other weights, without gradients."""
        return self._as_seen(frozen_copy(self.network_of(of), weights))

    def private_gradient(self, weights: Arrays, of: Sequence[str]) -> PrivateGradient:
        """Return a function to the gradient of private samples' cross entropy in some weights."""
        network = frozen_copy(self.network, weights)
        x, y = self.on_device(self._samples.data.train_x), self.on_device(self._samples.labels())
        return gradient_of(network, self._as_seen(network), of, x, y)

    def _as_seen(self, network: nn.Module) -> nn.Module:
        """Return a network in the form for losses of the present task."""
        return network if self._stream is None else self._stream.as_seen(network)

    # Training -----------------------------------------------------------------------------------------

    def train(self, client: Trainee, proximal_mu: float = 0.0) -> Training[Trained]:
        """Train on private samples."""
        round, strategy, training = client.round, self._strategy, self._scenario.training
        if self.shared is not None:
            self.shared.measured.forget()
        x, y, epochs = self._samples.work(training.local_epochs, round)
        optimizer = round_optimizer(self._scenario, training.lr, round)
        own = self.shared is None or strategy.capabilities.sends_steps
        start = weights_of(self.network) if "weights" in strategy.capabilities.needs and own else {}
        proximal_mu = proximal_mu or objective_of(strategy).proximal_mu
        proximal = ProximalTerm.to_own_weights(self.network, proximal_mu) if proximal_mu else None
        rehearsed = self._rehearsal(client)
        loss = self._local_loss(client, proximal, rehearsed)
        index = () if loss.step is None else (self.on_device(self._samples.rows_of_work(round)),)
        beside = self._aux_networks(round)
        alike = loss.own_alone and not beside
        job = TrainJob(
            self.network,
            (self.on_device(x), self.on_device(y), *index),
            loss,
            optimizer,
            epochs,
            training.batch_size,
            generator=self._draws.torch("train-batches", round),
            seed=self._draws.seed_of("train", round),
            autocast=training.autocast,
            correction=self._gradient_correction(client),
            accumulate=training.accumulate,
            early_stopping=self._early_stopping(),
            optimizer_state=self._optimizer_state if training.optimizer_state == "kept" else None,
            scored_loss=loss.scored,
            guessing=guessing_right(y),
            kind=self._kind("train", proximal_mu, loss.weight_rehearsed) if alike else None,
            replayable=loss.own_alone,
            constants=loss.constants,
            aux_batches=None if rehearsed is None else rehearsed.batches,
            aux_networks=beside,
        )
        result = yield from self._in_phases(client, job, loss)
        self._optimizer_state = {**self._optimizer_state, **(result.optimizer_state or {})}
        return Trained(result.loss, result.hits, FitSummary(start, result.steps, optimizer.lr))

    def pretrain(self) -> Training[None]:
        """Train on the labelled transfer set, if the strategy begins with it."""
        if self._strategy.capabilities.pretrain_epochs == 0 or self._pretrained:
            return
        self._pretrained = True
        training, data = self._scenario.training, self._samples.data
        assert data.public_y is not None
        yield TrainJob(
            self.network,
            (self.on_device(data.transfer_x), self.on_device(data.public_y)),
            lambda model, inputs, labels: cross_entropy(model(inputs), labels),
            round_optimizer(self._scenario, training.lr, 1),
            self._strategy.capabilities.pretrain_epochs,
            training.batch_size,
            generator=self._draws.torch("pretrain-batches", 0),
            seed=self._draws.seed_of("pretrain", 0),
            autocast=training.autocast,
            accumulate=training.accumulate,
            kind=self._kind("pretrain"),
            replayable=True,
        )

    def catch_up(self, round: int) -> Training[None]:
        """Train for a round's evaluation what no message has asked for: nothing of a client's own."""
        yield from ()

    def _early_stopping(self) -> EarlyStopping | None:
        """Return the rule that stops training on private samples; None: it runs all epochs."""
        wanted = self._scenario.training.early_stopping
        if wanted is None:
            return None
        x, y = self._samples.kept_apart()
        arrays = (self.on_device(x), self.on_device(y))
        return EarlyStopping(arrays, cross_entropy, wanted.patience) if len(y) else None

    def _in_phases(self, client: Trainee, job: TrainJob, loss: LocalLoss) -> Training[FitResult]:
        """Train on private samples in the phases of the strategy, each with its own seed."""
        phases = objective_of(self._strategy).phases(job.epochs, last=client.round > self._scenario.rounds)
        if phases is None:
            return (yield from self._private_training(client, job, loss))
        slow = self._samples.straggle(client.round, []) is not None
        parts = [(min(phase.epochs, 1) if slow else phase.epochs, phase.trains) for phase in phases]
        return (yield from in_parts(job, parts, lambda part: self._private_training(client, part, loss)))

    def _private_training(self, client: Trainee, job: TrainJob, loss: LocalLoss) -> Training[FitResult]:
        """Train on private samples, under the learner of a stream."""
        if self._stream is None:
            return (yield job)
        return (yield from self._stream.fit(job, client.round, loss))

    def _guidance_training(self, job: TrainJob) -> Training[FitResult]:
        """Train on guidance, under the learner of a stream."""
        if self._stream is None:
            return (yield job)
        return (yield from self._stream.learning.distil(job))

    def _gradient_correction(self, client: Trainee) -> list[Tensor] | None:
        correction = objective_of(self._strategy).gradient_correction(client)
        if correction is None:
            return None
        return [
            torch.from_numpy(np.asarray(correction[name])).to(parameter)
            for name, parameter in self.network.named_parameters()
            if parameter.requires_grad
        ]

    def _rehearsal(self, client: Trainee) -> Rehearsed | None:
        """Return the rehearsed batches of a round: the last guidance, or samples of the strategy."""
        last, strategy, round = client.last_guidance, self._strategy, client.round
        if last is not None and len(last.targets):
            decay = self._scenario.fusion.kd_weight_decay
            weight = self._plan.recipe.kd_weight * decay ** last.age(round)
            samples = last.of(client.data.transfer_x)
            batches = self._aux_batches(samples, np.asarray(last.targets, dtype=np.float32), round)
            return Rehearsed(batches, strategy.loss, weight, alike=declares(self._strategy, "loss"))
        wanted = objective_of(strategy).rehearsal(client)
        if wanted is None:
            return None
        return Rehearsed(self._aux_batches(wanted.samples, wanted.targets, round), wanted.loss)

    def _aux_batches(self, samples: np.ndarray, targets: np.ndarray, round: int) -> AuxBatches:
        arrays = [self.on_device(samples), self.on_device(targets)]
        generator = self._draws.torch("rehearsal-batches", round)
        return AuxBatches(arrays, self._scenario.training.batch_size, generator)

    def _local_loss(
        self, client: Trainee, proximal: ProximalTerm | None, rehearsed: Rehearsed | None
    ) -> LocalLoss:
        strategy, kept = self._strategy, client.kept
        taught = objective_of(strategy).local_loss(kept) if kept else None
        step = objective_of(strategy).local_step(client, kept)
        shaped = taught is not None or step is not None
        return LocalLoss(
            proximal, taught, shaped and "features" in strategy.capabilities.needs, rehearsed, step
        )

    def _aux_networks(self, round: int) -> list[AuxNetwork]:
        """Return the auxiliary networks that local training trains too."""
        wanted = networks_of(self._strategy).aux_networks() if self._auxiliaries else {}
        rates = {
            name: None if own.lr is None else round_optimizer(self._scenario, own.lr, round).lr
            for name, own in wanted.items()
            if own.trained
        }
        return [AuxNetwork(name, self._auxiliaries[name], lr) for name, lr in rates.items()]

    # Guidance -----------------------------------------------------------------------------------------

    def distil(self, client: Trainee, targets: np.ndarray, samples: np.ndarray | None) -> Training[None]:
        """Minimise the strategy's loss on transfer samples, plus γ · cross entropy on private batches."""
        number = len(client.data.transfer_x) if samples is None else len(samples)
        if self._scenario.fusion.distill_epochs and number:
            yield from self._guidance_training(self.distillation(targets, samples, client.round))

    def trial(self, client: Trainee, targets: np.ndarray, samples: np.ndarray, asked: np.ndarray) -> Trial:
        """Return the answers after one epoch of distillation, and restore the weights."""
        began = weights_of(self.network)
        if len(samples):
            job = self.distillation(targets, samples, client.round)
            client.complete(self._guidance_training(replace(job, epochs=1, kind=self._kind("trial"))))
        kept_x, kept_y = self._samples.kept_apart()
        found = Trial(self.predict(kept_x), kept_y, self.predict(client.data.transfer_x[asked]))
        load_weights(self.network, began)
        return found

    def distillation(self, targets: np.ndarray, samples: np.ndarray | None, round: int) -> TrainJob:
        """Return the job of distilling targets `[K, C]` of transfer samples `[K]`; None: of all."""
        fusion, strategy, data = self._scenario.fusion, self._strategy, self._samples.data
        gamma = self._plan.recipe.ce_weight
        transfer_x = data.transfer_x if samples is None else data.transfer_x[samples]
        arrays = [self.on_device(transfer_x), self.on_device(np.asarray(targets, dtype=np.float32))]
        relations = fusion.relations
        if relations is not None:
            arrays.append(self.on_device(log_probabilities(strategy.probabilities(targets))))

        def loss(model: Any, inputs: Tensor, wanted: Tensor, *others: Tensor) -> Tensor:
            if relations is None:
                value, private = strategy.loss(model(inputs), wanted), others
            else:
                features, private = model.features(inputs), others[1:]
                value = strategy.loss(model.head(features), wanted)
                value = value + relation_loss(relations, features.flatten(1), others[0])
            if private:
                own_inputs, labels = private
                value = value + gamma * cross_entropy(model(own_inputs), labels)
            return value

        if gamma > 0.0:
            order = self.private_order(len(transfer_x), round)
            labels = self._samples.labels()
            arrays += [self.on_device(data.train_x[order]), self.on_device(labels[order])]
        return self._on_transfer_set(arrays, loss, round)

    def _on_transfer_set(
        self, arrays: Sequence[Tensor], loss: Callable[..., Tensor], round: int, task: int | None = None
    ) -> TrainJob:
        """Return the job of minimising a loss on transfer samples; `task` is an old one, or None."""
        fusion, training = self._scenario.fusion, self._scenario.training
        return TrainJob(
            self.network,
            arrays,
            loss,
            round_optimizer(self._scenario, fusion.distill_lr or training.lr, round),
            fusion.distill_epochs,
            fusion.distill_batch_size or training.batch_size,
            generator=self._draws.torch("distill-batches", round, task),
            seed=self._draws.seed_of("distill", round, task),
            autocast=training.autocast,
            accumulate=training.accumulate,
            kind=self._kind("distil") if fusion.relations is None else None,
            replayable=declares(self._strategy, "loss") and fusion.relations is None,
        )

    def trial_job(self, model: nn.Module, targets: np.ndarray, epochs: int, round: int) -> TrainJob:
        """Return the job of distilling probabilities `[M, C]` float32 into another model like this one.

        It lowers the KL divergence at temperature 1, with the rate and the batches of distillation.
        """
        data = self._samples.data
        arrays = [self.on_device(data.transfer_x), self.on_device(np.asarray(targets, np.float32))]
        return replace(
            self._on_transfer_set(arrays, _follow, round),
            model=model,
            epochs=epochs,
            generator=self._draws.torch("trial-batches", round),
            seed=self._draws.seed_of("trial", round),
            kind=self._kind("trial"),
            replayable=True,
        )

    def learn_old_task(self, task: int, guidance: Arrays, round: int) -> Training[None]:
        """Distil guidance of an old task as that task, if the learner reopens it.

        There is no cross entropy on private samples: those of old tasks are gone.
        """
        strategy, stream = self._strategy, self._stream
        if stream is None or (place := stream.reopens(task, round)) is None:
            return
        x = self._samples.tasks[task].transfer_x
        if "samples" in guidance:
            x = x[guidance["samples"]]
        if self._scenario.fusion.distill_epochs == 0 or len(x) == 0:
            return

        def loss(model: nn.Module, inputs: Tensor, wanted: Tensor) -> Tensor:
            return strategy.loss(model(inputs), wanted)

        arrays = [self.on_device(x), self.on_device(np.asarray(guidance["targets"], dtype=np.float32))]
        yield from stream.learning.teach_again(self._on_transfer_set(arrays, loss, round, task), place)

    def private_order(self, length: int, round: int) -> np.ndarray:
        """Return `length` indices of private samples: whole shuffles, one after another."""
        generator = self._draws.numpy("distill-private", round)
        own = self._samples.split().trained_on
        shuffles = [generator.permutation(len(own)) for _ in range(-(-length // len(own)))]
        return own[np.concatenate(shuffles)[:length]]

    def _kind(self, purpose: str, *details: Hashable) -> Hashable:
        """Return the key of a job of all clients of the same group (see `TrainJob.kind`)."""
        return (purpose, id(self._plan.groups[self._index]), *details)

    # State --------------------------------------------------------------------------------------------

    def enter_task(self) -> None:
        """Forget the optimiser's state of a learner's own tensors, such as scores of a task."""
        self._optimizer_state = of_model(self._optimizer_state)

    def model_state(self) -> dict[str, np.ndarray]:
        """Return the weights; nothing where every message brings them."""
        return {} if self.shared is not None else weights_of(self.network)

    def restore_model(self, arrays: Arrays) -> None:
        """Put the weights back."""
        if self.shared is None:
            load_weights(self.network, arrays)

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that `restore` needs to continue exactly here."""
        arrays = under(MODEL, self.model_state())
        for name, network in self._auxiliaries.items():
            arrays |= under(f"{AUXILIARY}{name}/", weights_of(network))
        kept = {n: np.array(value.cpu().numpy(), order="C") for n, value in self._optimizer_state.items()}
        arrays |= under(OPTIMIZER, kept)
        return arrays | ({PRETRAINED: np.array(1, dtype=np.int64)} if self._pretrained else {})

    def restore(self, arrays: Arrays) -> None:
        """Continue from a state that `state` returned."""
        self.restore_model(below(MODEL, arrays))
        for name, network in self._auxiliaries.items():
            load_weights(network, below(f"{AUXILIARY}{name}/", arrays))
        self._pretrained = PRETRAINED in arrays
        self._optimizer_state = {
            name: torch.from_numpy(np.array(value)) for name, value in below(OPTIMIZER, arrays).items()
        }
