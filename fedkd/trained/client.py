"""Trained clients of a run after a round, ready for inference."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.clients import Client, ClientFactory, EstimatorTrainer, TaskStream
from fedkd.data import (
    SHARE_MANIFEST,
    Data,
    FederatedData,
    FederatedStream,
    ProgressCallback,
    Statistics,
    TargetScale,
    Transform,
    load_data,
)
from fedkd.errors import UserError
from fedkd.federation import WEIGHTS_PREFIX, CheckpointStore, SavedClient, load_participant, newest_state
from fedkd.models import architecture_names
from fedkd.plan import Plan
from fedkd.server import model_weights
from fedkd.storage import expand_path, strip_prefix
from fedkd.tracking import read_run_plan
from fedkd.trained.network import OfUnits, with_tensors


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedClient:
    """A client's trained model with its preprocessing.

    `predict`, `probabilities` and `logits` take samples ``[n, *input_shape]`` as the data set stores them
    (uint8 images, floats, integers). They normalise samples as the run did and apply the task's change of
    pixels. They do not apply the scenario's `heterogeneity`.
    """

    index: int
    round: int  # round after which the model was saved
    architecture: str  # name of the model, with the arguments that distinguish it in the run
    model: Any
    """The module in evaluation mode, on the CPU: normalised samples ``[n, *input_shape]`` → ``[n, C]``.
    It is the client's own or the one that its strategy evaluates; or the fitted estimator."""
    classes: tuple[str, ...]  # class names in the order of the outputs
    input_shape: tuple[int, ...]
    normalisation: Statistics
    task: int | None = None  # task of the stream; None without a stream
    task_name: str | None = None
    tasks: tuple[int, ...] = ()
    """Tasks that the client has begun, in the order of their last visits; empty without a stream."""
    transform: Transform | None = None  # the task's change of normalised samples; None: no change
    _answer: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    _of_task: Callable[[int], TrainedClient] | None = field(default=None, repr=False)
    owner: str | None = None  # name of the samples' owner; None: the data name none
    scale: TargetScale | None = None  # of the targets of regression, which `classes` names; None: classes

    def normalise(self, x: np.ndarray) -> np.ndarray:
        """Return samples ``[n, *input_shape]`` of the data set, normalised as in training."""
        x = np.asarray(x)
        if x.shape[1:] != self.input_shape:
            wanted = ", ".join(map(str, ("n", *self.input_shape)))
            raise UserError(f"samples must have shape [{wanted}], got {list(x.shape)}")
        x = self.normalisation.normalise(x)
        return x if self.transform is None else self.transform(x)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return ``[n, C]`` float32: the logits that the run evaluates.

        Usually these are the model's outputs. An estimator returns log-probabilities, FedProto uses
        prototypes, iCaRL exemplars.
        """
        x = self.normalise(x)
        outputs = len(self.classes) if self.scale is None else self.scale.outputs
        return self._answer(x) if len(x) else np.zeros((0, outputs), dtype=np.float32)

    def distributions(self, x: np.ndarray) -> np.ndarray:
        """Return means and variances ``[n, 2, O]`` float64 of targets, in their unit; NaN: no variance."""
        if self.scale is None:
            raise UserError("the run has classes; use `probabilities`")
        return self.scale.distributions(self.logits(x))

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Return ``[n, C]`` float32, the softmax of `logits`."""
        if self.scale is not None:
            raise UserError("the run has no classes; use `distributions`")
        logits = self.logits(x).astype(np.float64)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the likeliest class of every sample: ``[n]`` int64, indices into `classes`.

        In regression: the mean of every target in its unit, ``[n, O]`` float64.
        """
        return self.logits(x).argmax(axis=1) if self.scale is None else self.distributions(x)[:, 0]

    def of_task(self, task: int) -> TrainedClient:
        """Return the client's model of a task that it has learned, with the task's effective weights."""
        if self._of_task is None:
            raise UserError("the run has no stream of tasks")
        if task not in self.tasks:
            choices = ", ".join(map(str, sorted(self.tasks)))
            raise UserError(f"client {self.index} has not learned task {task!r}; choose one of {choices}")
        return self._of_task(task)


class TrainedRun:
    """A run folder, opened to load its clients after a round (None: the last)."""

    def __init__(
        self, folder: str | Path, round: int | None = None, progress: ProgressCallback | None = None
    ) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise UserError(f"the run folder must be a path, got {folder!r}")
        self.folder = expand_path(folder).absolute()
        self.plan: Plan = read_run_plan(self.folder).on_device("cpu")
        self._store = CheckpointStore(self.folder)
        kept = self._store.rounds()
        if not kept:
            raise UserError("has no trained client, as it has no checkpoint yet", file=str(self.folder))
        if round is not None and round not in kept:
            why = f"no checkpoint of round {round!r}; choose one of {', '.join(map(str, kept))}"
            raise UserError(why, file=str(self.folder))
        self.round = kept[-1] if round is None else round
        self.data: Data = load_data(self.plan.scenario, progress)
        self.architectures = architecture_names(self.plan.groups)

    def client(self, index: int) -> TrainedClient:
        """Return a client; `UserError`: it is missing or its checkpoint is damaged."""
        clients = self.plan.scenario.data.clients
        if not isinstance(index, int) or not 0 <= index < clients:
            raise UserError(f"no client {index!r}; the run has 0 to {clients - 1}")
        saved = self._saved(index)
        # A factory of its own, because clients of one factory may share a model.
        client = ClientFactory(self.plan, self.data).build(index)
        with client.trainer.threads(self.plan.scenario.engine.threads_per_client):
            if saved.state is not None:
                client.restore(saved.state)
            if self.plan.capabilities.brings_model:  # clients have no model; they use the server's
                client.load_weights(strip_prefix(WEIGHTS_PREFIX, saved.server) or model_weights(saved.server))
        if isinstance(self.data, FederatedStream):
            assert client.stream is not None
            return self._of_stream(client, client.stream, client.samples.place)
        model: Any
        if isinstance(client.trainer, EstimatorTrainer):
            model = client.trainer.model.fitted
        else:
            model = (client.evaluator.predictor() or client.networks.network).eval()
        return self._trained(client, self.data, model=model, _answer=client.evaluator.answer)

    def _trained(self, client: Client, data: FederatedData, **told: Any) -> TrainedClient:
        assert data.statistics is not None
        return TrainedClient(
            index=client.index,
            round=self.round,
            architecture=self.architectures[client.index],
            classes=data.class_names if data.scale is None else data.scale.names,
            scale=data.scale,
            input_shape=self.data.input_shape,
            normalisation=data.statistics,
            owner=data.owners[client.index] if data.owners else None,
            **told,
        )

    def _saved(self, index: int) -> SavedClient:
        return self._store.client(index, self.round)

    def _of_stream(self, client: Client, stream: TaskStream, place: int) -> TrainedClient:
        assert isinstance(self.data, FederatedStream)
        order, met = self.plan.schedule.order(client.index), tuple(stream.tests.met())
        task = self.data[order[place]]
        read = stream.learning.model(place)
        network = with_tensors(copy.deepcopy(read.network), read.substitutes).eval()
        units = None if read.units is None else read.units.cpu().numpy()

        def answer(x: np.ndarray) -> np.ndarray:
            outputs = stream.tests.outputs(place, read, x)
            return outputs if units is None else outputs[:, units]

        return self._trained(
            client,
            task.data,
            model=network if read.units is None else OfUnits(network, read.units).eval(),
            task=task.index,
            task_name=task.name,
            tasks=met,
            transform=task.transform,
            _answer=answer,
            _of_task=lambda wanted: self._of_stream(client, stream, stream.tests.place_of(wanted)),
        )


class TrainedNode(TrainedRun):
    """The client of a deployed node after its newest run; a missing one raises `UserError`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        found = load_participant(str(self.folder))
        self.plan = found.plan.on_device("cpu")
        self.data = found.share.data
        self.architectures = architecture_names(self.plan.groups)
        own = found.share.client
        newest = None if own is None else newest_state(self.folder, own, found.federation)
        if newest is None or self.plan.capabilities.brings_model:
            why = "its client has not joined a run yet" if newest is None else "its model is the server's"
            raise UserError(f"has no trained client: {why}", file=str(self.folder))
        step, self._state = newest
        self.round = int(step.rpartition(" ")[2])
        self._own = own

    def _saved(self, index: int) -> SavedClient:
        if index != self._own:
            raise UserError(f"no client {index!r}; the node is client {self._own}", file=str(self.folder))
        return SavedClient(round=self.round, state=self._state, server={})


def load_client(folder: str | Path, index: int, *, round: int | None = None) -> TrainedClient:
    """Return a client of a run with its trained model after a round; Ray is not started.

    The model is that of the checkpoint, before the client loads guidance that waits for its next message.
    After a full run no guidance waits for evaluated clients. If the server averages weights, the model is the
    average, without a last private training (`end_with = "training"`).

    Args:
        folder: The run folder, or a deployed node's folder, whose newest run is taken.
        round: A round with a checkpoint (the last two are kept); absent: the last.

    Raises:
        UserError: Not a run folder, a missing checkpoint, client or data set, or a damaged file.
    """
    if isinstance(folder, str | os.PathLike) and (Path(folder) / SHARE_MANIFEST).is_file():
        if round is not None:
            raise UserError("leave out round: the folder of a deployed node has only the client's last state")
        return TrainedNode(Path(folder)).client(index)
    return TrainedRun(folder, round).client(index)
