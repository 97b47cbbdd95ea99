"""The training jobs of a client with a network: local training, distillation, pretraining."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
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
from fedkd.clients.local_samples import LocalSamples
from fedkd.clients.trainer import Trainee
from fedkd.fusion import Arrays, aux_networks_of, objective_of
from fedkd.plan import Plan
from fedkd.scenario import Scenario
from fedkd.training import (
    AuxBatches,
    AuxNetwork,
    EarlyStopping,
    LrSchedule,
    OptimizerSpec,
    TrainJob,
    declares_recordable,
    kd_kl,
    majority_class_count,
    prepare_inputs,
    round_lr,
)


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


class TrainJobs:
    """Make training jobs of a client's `network` and its strategy; rounds are 1-based."""

    def __init__(
        self,
        plan: Plan,
        index: int,
        samples: LocalSamples,
        network: nn.Module,
        auxiliaries: Mapping[str, nn.Module],
    ) -> None:
        self._plan, self._index, self._samples = plan, index, samples
        self._scenario, self._strategy = plan.scenario, plan.strategy
        self._network, self._auxiliaries = network, auxiliaries
        self._draws = Draws(plan.scenario.seed, index)
        self._group = plan.groups[index].model_dump_json()
        self._device = next(network.parameters()).device
        self._task = plan.task

    def on_device(self, array: np.ndarray) -> Tensor:
        return prepare_inputs(array, self._device)

    def local_training(
        self, client: Trainee, proximal_mu: float, optimizer_state: Mapping[str, Tensor] | None
    ) -> tuple[TrainJob, LocalLoss]:
        """Return the job of training on private samples, and its loss."""
        round, training = client.round, self._scenario.training
        x, y, epochs = self._samples.work(training.local_epochs, round)
        loss = self._local_loss(client, proximal_mu)
        index = () if loss.step is None else (self.on_device(self._samples.rows_of_work(round)),)
        aux_networks, rehearsed = self._aux_networks(round), loss.rehearsed
        weight = 0.0 if rehearsed is None else rehearsed.weight
        alike = loss.own_alone and not aux_networks
        job = TrainJob(
            self._network,
            (self.on_device(x), self.on_device(y), *index),
            loss,
            round_optimizer(self._scenario, training.lr, round),
            epochs,
            training.batch_size,
            generator=self._draws.torch("train-batches", round),
            seed=self._draws.seed_of("train", round),
            autocast=training.autocast,
            correction=self._gradient_correction(client),
            accumulate=training.accumulate,
            early_stopping=self._early_stopping(),
            optimizer_state=optimizer_state,
            scored_loss=loss.scored if self._task.counts else None,
            guessing=majority_class_count(y) if self._task.counts else 0,
            kind=self._kind("train", proximal_mu, weight) if alike else None,
            replayable=loss.own_alone,
            constants=loss.constants,
            aux_batches=None if rehearsed is None else rehearsed.batches,
            aux_networks=aux_networks,
        )
        return job, loss

    def _local_loss(self, client: Trainee, proximal_mu: float) -> LocalLoss:
        strategy, kept = self._strategy, client.kept
        proximal, rehearsed = None, self._rehearsal(client)
        if proximal_mu:
            weights = [parameter.detach().clone() for parameter in self._network.parameters()]
            proximal = ProximalTerm(proximal_mu, weights)
        taught = objective_of(strategy).local_loss(kept) if kept else None
        step = objective_of(strategy).local_step(client, kept)
        shaped = taught is not None or step is not None
        with_features = shaped and "features" in strategy.capabilities.needs
        return LocalLoss(proximal, taught, with_features, rehearsed, step, self._task.loss)

    def _rehearsal(self, client: Trainee) -> Rehearsed | None:
        """Return the rehearsed batches of a round: the last guidance, or samples of the strategy."""
        last, strategy, round = client.last_guidance, self._strategy, client.round
        if last is not None and len(last.targets):
            decay = self._scenario.fusion.kd_weight_decay
            weight = self._plan.recipe.kd_weight * decay ** last.age(round)
            x = client.data.transfer_x
            samples = x if last.samples is None else x[last.samples]
            batches = self._aux_batches(samples, np.asarray(last.targets, dtype=np.float32), round)
            return Rehearsed(
                batches, strategy.loss, weight, alike=declares_recordable(self._strategy, "loss")
            )
        wanted = objective_of(strategy).rehearsal(client)
        if wanted is None:
            return None
        return Rehearsed(self._aux_batches(wanted.samples, wanted.targets, round), wanted.loss)

    def _aux_batches(self, samples: np.ndarray, targets: np.ndarray, round: int) -> AuxBatches:
        arrays = [self.on_device(samples), self.on_device(targets)]
        generator = self._draws.torch("rehearsal-batches", round)
        return AuxBatches(arrays, self._scenario.training.batch_size, generator)

    def _gradient_correction(self, client: Trainee) -> list[Tensor] | None:
        correction = objective_of(self._strategy).gradient_correction(client)
        if correction is None:
            return None
        return [
            torch.from_numpy(np.asarray(correction[name])).to(parameter)
            for name, parameter in self._network.named_parameters()
            if parameter.requires_grad
        ]

    def _aux_networks(self, round: int) -> list[AuxNetwork]:
        wanted = aux_networks_of(self._strategy).aux_networks() if self._auxiliaries else {}
        rates = {
            name: None if own.lr is None else round_optimizer(self._scenario, own.lr, round).lr
            for name, own in wanted.items()
            if own.trained
        }
        return [AuxNetwork(name, self._auxiliaries[name], lr) for name, lr in rates.items()]

    def _early_stopping(self) -> EarlyStopping | None:
        """Return the rule that stops training on private samples; None: it runs all epochs."""
        wanted = self._scenario.training.early_stopping
        if wanted is None:
            return None
        x, y = self._samples.kept_apart()
        arrays = (self.on_device(x), self.on_device(y))
        return EarlyStopping(arrays, self._task.loss, wanted.patience) if len(y) else None

    def pretraining(self) -> TrainJob:
        """Return the job of training on the labelled transfer set."""
        training, data, task = self._scenario.training, self._samples.data, self._task
        assert data.public_y is not None
        return TrainJob(
            self._network,
            (self.on_device(data.transfer_x), self.on_device(data.public_y)),
            lambda model, inputs, labels: task.loss(model(inputs), labels),
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

    def distillation(self, targets: np.ndarray, samples: np.ndarray | None, round: int) -> TrainJob:
        """Return the job of distilling targets `[K, C]` of transfer samples `[K]`; None: of all."""
        fusion, strategy, data = self._scenario.fusion, self._strategy, self._samples.data
        gamma, task = self._plan.recipe.ce_weight, self._task
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
                value = value + gamma * task.loss(model(own_inputs), labels)
            return value

        if gamma > 0.0:
            order = self.private_order(len(transfer_x), round)
            labels = self._samples.labels()
            arrays += [self.on_device(data.train_x[order]), self.on_device(labels[order])]
        return self._on_transfer_set(arrays, loss, round)

    def trial_of_guidance(self, targets: np.ndarray, samples: np.ndarray, round: int) -> TrainJob:
        return replace(self.distillation(targets, samples, round), epochs=1, kind=self._kind("trial"))

    def old_task(self, task: int, guidance: Arrays, round: int) -> TrainJob | None:
        """Return the job of distilling guidance of an old task; None: there are no samples to learn."""
        strategy, x = self._strategy, self._samples.tasks[task].transfer_x
        if "samples" in guidance:
            x = x[guidance["samples"]]
        if self._scenario.fusion.distill_epochs == 0 or len(x) == 0:
            return None

        def loss(model: nn.Module, inputs: Tensor, wanted: Tensor) -> Tensor:
            return strategy.loss(model(inputs), wanted)

        arrays = [self.on_device(x), self.on_device(np.asarray(guidance["targets"], dtype=np.float32))]
        return self._on_transfer_set(arrays, loss, round, task)

    def trial_of_sender(self, model: nn.Module, targets: np.ndarray, epochs: int, round: int) -> TrainJob:
        """Return the job of distilling probabilities `[M, C]` into another such model.

        It lowers the KL divergence at temperature 1, with the rate and the batches of distillation.
        """
        data = self._samples.data
        arrays = [self.on_device(data.transfer_x), self.on_device(np.asarray(targets, np.float32))]
        return replace(
            self._on_transfer_set(arrays, _probabilities_kl, round),
            model=model,
            epochs=epochs,
            generator=self._draws.torch("trial-batches", round),
            seed=self._draws.seed_of("trial", round),
            kind=self._kind("trial"),
            replayable=True,
        )

    def _on_transfer_set(
        self, arrays: Sequence[Tensor], loss: Callable[..., Tensor], round: int, task: int | None = None
    ) -> TrainJob:
        """Return the job of minimising a loss on transfer samples; `task` is an old one, or None."""
        fusion, training = self._scenario.fusion, self._scenario.training
        return TrainJob(
            self._network,
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
            replayable=declares_recordable(self._strategy, "loss") and fusion.relations is None,
        )

    def private_order(self, length: int, round: int) -> np.ndarray:
        """Return `length` indices of private samples: whole shuffles, one after another."""
        generator = self._draws.numpy("distill-private", round)
        own = self._samples.split().trained_on
        shuffles = [generator.permutation(len(own)) for _ in range(-(-length // len(own)))]
        return own[np.concatenate(shuffles)[:length]]

    def _kind(self, purpose: str, *details: Hashable) -> Hashable:
        """Return the key of a job of all clients of the same group (see `TrainJob.kind`)."""
        return (purpose, self._group, *details)


def _probabilities_kl(model: nn.Module, inputs: Tensor, wanted: Tensor) -> Tensor:
    return kd_kl(model(inputs), wanted, 1.0)
