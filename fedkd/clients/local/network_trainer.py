"""The trainer of a network, and of a strategy's auxiliary networks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.clients.local.local_loss import LocalLoss
from fedkd.clients.local.task_stream import TaskStream
from fedkd.clients.local.train_jobs import TrainJobs
from fedkd.clients.local_samples import LocalSamples
from fedkd.clients.shared_network import SharedModel
from fedkd.clients.trainer import MODEL, Trained, Trainee
from fedkd.fusion import OWN_NETWORK, Arrays, FitSummary, TrialLogits, objective_of
from fedkd.plan import Plan
from fedkd.storage import add_prefix, strip_prefix
from fedkd.training import (
    FitResult,
    Training,
    TrainJob,
    exchanged_weights,
    limit_torch_threads,
    load_weights,
    model_optimizer_state,
    predict_in_batches,
    predict_logits,
    train_in_phases,
    weights_of,
)

FEATURES_BATCH = 256
OPTIMIZER = "optimizer/"
AUXILIARY = "auxiliary/"
PRETRAINED = "pretrained"


class NetworkTrainer:
    """Train a network by gradients, on private samples and on guidance.

    Args:
        model: The client's own network, on its device; or the one that the clients of a process share.
        auxiliaries: Auxiliary networks of its strategy by name, on the same device.

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
        self._index = index
        self._scenario, self._strategy = plan.scenario, plan.strategy
        self._samples, self._stream = samples, stream
        self.shared = model if isinstance(model, SharedModel) else None
        self.network: nn.Module = model.network if isinstance(model, SharedModel) else model
        self.begin: Callable[[], nn.Module] | None = None
        self._auxiliaries = dict(auxiliaries)
        self.jobs = TrainJobs(plan, index, samples, self.network, self._auxiliaries)
        self._lanes = 1
        self._optimizer_state: dict[str, Tensor] = {}  # empty unless it is kept
        self._pretrained = False

    def threads(self, number: int) -> AbstractContextManager[None]:
        return limit_torch_threads(number)

    # Networks -----------------------------------------------------------------------------------------

    def network_of(self, name: str) -> nn.Module:
        """Return the client's own network or an auxiliary one; unknown names raise `KeyError`."""
        if name != OWN_NETWORK and name not in self._auxiliaries:
            known = ", ".join([OWN_NETWORK, *self._auxiliaries])
            raise KeyError(f"'{self._strategy.name}' uses a network '{name}'; clients have {known}")
        return self.network if name == OWN_NETWORK else self._auxiliaries[name]

    def fresh(self) -> nn.Module:
        """Return the client's initial network; raise `TypeError` if it has none of its own."""
        if self.begin is None:
            raise TypeError(f"client {self._index} has no initial network of its own")
        return self.begin()

    def predictor(self) -> nn.Module:
        """Return the module whose logits and features are the client's predictions."""
        return self.network if self._stream is None else self._stream.learning.model()

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.logits_of(self.predictor(), x)

    def logits_of(self, network: nn.Module, x: np.ndarray) -> np.ndarray:
        """Return the logits `[n, C]` float32 of a network on the client's device, in evaluation mode."""
        return predict_logits(network, self.jobs.on_device(x), lanes=self._lanes).cpu().numpy()

    def features(self, x: np.ndarray) -> np.ndarray:
        """Return penultimate features `[n, F]` float32 in evaluation mode."""
        model: Any = self.predictor()
        found = predict_in_batches(
            model, lambda batch: model.features(batch).flatten(1), self.jobs.on_device(x), FEATURES_BATCH
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

    def as_seen(self, network: nn.Module) -> nn.Module:
        """Return a network as losses of the present task see it."""
        return network if self._stream is None else self._stream.as_seen(network)

    # Training -----------------------------------------------------------------------------------------

    def train(self, client: Trainee, proximal_mu: float = 0.0) -> Training[Trained]:
        """Train on private samples; `fedkd.training.step` takes the gradient steps of the jobs."""
        if self.shared is not None:
            self.shared.measured.forget()
        can, kept = self._strategy.capabilities, self._scenario.training.optimizer_state == "kept"
        own = self.shared is None or can.sends_steps
        start = exchanged_weights(self.network) if "weights" in can.needs and own else {}
        proximal_mu = proximal_mu or objective_of(self._strategy).proximal_mu
        job, loss = self.jobs.local_training(client, proximal_mu, self._optimizer_state if kept else None)
        result = yield from self._in_phases(client, job, loss)
        self._optimizer_state = {**self._optimizer_state, **(result.optimizer_state or {})}
        return Trained(result.loss, result.hits, FitSummary(start, result.steps, job.optimizer.lr))

    def pretrain(self) -> Training[None]:
        """Train on the labelled transfer set, if the strategy begins with it."""
        if self._strategy.capabilities.pretrain_epochs > 0 and not self._pretrained:
            self._pretrained = True
            yield self.jobs.pretraining()

    def catch_up(self, round: int) -> Training[None]:
        """Train before a round's evaluation without a message; nothing by default."""
        yield from ()

    def _in_phases(self, client: Trainee, job: TrainJob, loss: LocalLoss) -> Training[FitResult]:
        """Train on private samples in the phases of the strategy, each with its own seed."""
        phases = objective_of(self._strategy).phases(job.epochs, last=client.round > self._scenario.rounds)
        if phases is None:
            return (yield from self._private_training(client, job, loss))
        slow = self._samples.straggle(client.round, []) is not None
        parts = [(min(phase.epochs, 1) if slow else phase.epochs, phase.trains) for phase in phases]
        return (
            yield from train_in_phases(job, parts, lambda part: self._private_training(client, part, loss))
        )

    def _private_training(self, client: Trainee, job: TrainJob, loss: LocalLoss) -> Training[FitResult]:
        if self._stream is None:
            return (yield job)
        return (yield from self._stream.fit(job, client.round, loss))

    def _guidance_training(self, job: TrainJob) -> Training[FitResult]:
        if self._stream is None:
            return (yield job)
        return (yield from self._stream.learning.distil(job))

    # Guidance -----------------------------------------------------------------------------------------

    def distil(self, client: Trainee, targets: np.ndarray, samples: np.ndarray | None) -> Training[None]:
        """Minimise the strategy's loss on transfer samples, plus γ · cross entropy on private batches."""
        number = len(client.data.transfer_x) if samples is None else len(samples)
        if self._scenario.fusion.distill_epochs and number:
            yield from self._guidance_training(self.jobs.distillation(targets, samples, client.round))

    def trial(
        self, client: Trainee, targets: np.ndarray, samples: np.ndarray, asked: np.ndarray
    ) -> TrialLogits:
        """Return the answers after one epoch of distillation, and restore the weights."""
        began = weights_of(self.network)
        if len(samples):
            job = self.jobs.trial_of_guidance(targets, samples, client.round)
            client.complete(self._guidance_training(job))
        kept_x, kept_y = self._samples.kept_apart()
        found = TrialLogits(self.predict(kept_x), kept_y, self.predict(client.data.transfer_x[asked]))
        load_weights(self.network, began)
        return found

    def learn_old_task(self, task: int, guidance: Arrays, round: int) -> Training[None]:
        """Distil guidance of an old task as that task, if the learner reopens it.

        There is no cross entropy on private samples: those of old tasks are gone.
        """
        stream = self._stream
        if stream is None or (place := stream.reopens(task, round)) is None:
            return
        job = self.jobs.old_task(task, guidance, round)
        if job is not None:
            yield from stream.learning.teach_again(job, place)

    # State --------------------------------------------------------------------------------------------

    def enter_task(self) -> None:
        """Forget the optimiser's state of a learner's own tensors, such as scores of a task."""
        self._optimizer_state = model_optimizer_state(self._optimizer_state)

    def model_state(self) -> dict[str, np.ndarray]:
        """Return the weights; nothing if every message contains them."""
        return {} if self.shared is not None else weights_of(self.network)

    def restore_model(self, arrays: Arrays) -> None:
        if self.shared is None:
            load_weights(self.network, arrays)

    def state(self) -> dict[str, np.ndarray]:
        arrays = add_prefix(MODEL, self.model_state())
        for name, network in self._auxiliaries.items():
            arrays |= add_prefix(f"{AUXILIARY}{name}/", weights_of(network))
        kept = {n: np.array(value.cpu().numpy(), order="C") for n, value in self._optimizer_state.items()}
        arrays |= add_prefix(OPTIMIZER, kept)
        return arrays | ({PRETRAINED: np.array(1, dtype=np.int64)} if self._pretrained else {})

    def restore(self, arrays: Arrays) -> None:
        self.restore_model(strip_prefix(MODEL, arrays))
        for name, network in self._auxiliaries.items():
            load_weights(network, strip_prefix(f"{AUXILIARY}{name}/", arrays))
        self._pretrained = PRETRAINED in arrays
        self._optimizer_state = {
            name: torch.from_numpy(np.array(value)) for name, value in strip_prefix(OPTIMIZER, arrays).items()
        }
