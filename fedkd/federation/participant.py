"""From a Flower context to the client behind it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from flwr.app import Context, RecordDict
from torch import nn

from fedkd.continual.learner import Learner
from fedkd.continual.registry import make_learner
from fedkd.data.load import Data, load_data
from fedkd.data.stream import FederatedStream
from fedkd.errors import UserError
from fedkd.federation.client import Client
from fedkd.federation.estimator_client import EstimatorClient
from fedkd.federation.faults import faults_of
from fedkd.federation.identity import RUN_ID, node_id_of
from fedkd.federation.stream_client import StreamClient
from fedkd.federation.torch_client import TorchClient, Workspace
from fedkd.fusion.registry import make_strategy
from fedkd.fusion.strategy import FusionStrategy
from fedkd.models.build import build_model, client_models, make_estimator
from fedkd.models.estimator import Estimator
from fedkd.models.incremental import client_estimator
from fedkd.plugins import import_plugins
from fedkd.randomness import derive_seed
from fedkd.scenario.load import load_scenario
from fedkd.scenario.schema import ClientGroup, Scenario
from fedkd.training.device import prepare_model, resolve_device


class LocalContext(Context):
    """The context of a client that lives in this process for the whole run.

    Args:
        client: Client index.
        threads: Threads of the client's arithmetic.
        build: Makes the live client, on first use.
    """

    def __init__(self, client: int, threads: int, build: Callable[[], Client]) -> None:
        super().__init__(
            run_id=RUN_ID,
            node_id=node_id_of(client),
            node_config={"partition-id": client},
            state=RecordDict(),
            run_config={},
        )
        self.threads = threads
        self._build = build
        self._client: Client | None = None

    def client(self) -> Client:
        """Return the live client."""
        if self._client is None:
            self._client = self._build()
        return self._client


def fusion_strategy(scenario: Scenario) -> FusionStrategy | None:
    """Return the scenario's fusion strategy, or None where weights are exchanged."""
    if scenario.fusion.from_flower:
        return None
    return make_strategy(
        scenario.fusion.strategy, dict(scenario.fusion.model_extra or {}), scenario.plugin_path
    )


def learner_of(scenario: Scenario) -> Learner | None:
    """Return the scenario's learner, or None without a stream of tasks."""
    if scenario.continual is None:
        return None
    hyperparameters = dict(scenario.continual.model_extra or {})
    return make_learner(scenario.continual.learner, hyperparameters, scenario.plugin_path)


def model_outputs(data: Data, learner: Learner | None) -> int:
    """Return the number of outputs of every client's model."""
    if isinstance(data, FederatedStream):
        assert learner is not None
        return data.outputs + learner.superfluous
    return data.classes


class LocalClients:
    """The clients of one process, each made on first use.

    Where weights are exchanged, all of them work in one model: every message brings the weights along.

    Args:
        scenario: The resolved scenario.
        data: The federation's data, or those of all its tasks.
    """

    def __init__(self, scenario: Scenario, data: Data) -> None:
        import_plugins(scenario)  # in a process that only received the scenario nobody has yet
        self._scenario = scenario
        self.data = data
        self._groups = client_models(scenario)
        self._strategy = fusion_strategy(scenario)
        self._device = resolve_device(scenario.engine.device)
        self._workspace: Workspace | None = None
        self._estimators: dict[str, Callable[[], Estimator] | None] = {}
        self._learner = learner_of(scenario)
        self.outputs = model_outputs(data, self._learner)
        if self._strategy is None:
            model = self._torch_model(self._groups[0], derive_seed(scenario.seed, "initial-weights"))
            self._workspace = Workspace(prepare_model(model, self._device))

    def context(self, index: int) -> LocalContext:
        """Return the context under which one of fedkd's engines runs client `index`."""
        return LocalContext(index, self._scenario.engine.threads_per_client, lambda: self.build(index))

    def build(self, index: int) -> Client:
        """Return client `index` as it is before the first round."""
        scenario, group, data = self._scenario, self._groups[index], self.data
        make = partial(self._torch_model, group)
        if isinstance(data, FederatedStream):
            assert self._learner is not None
            faults = faults_of(scenario, index, data[0].data.label_distribution)
            return StreamClient(
                scenario,
                index,
                data,
                self._learner,
                self._strategy,
                self._device,
                make,
                self._workspace,
                faults,
            )
        faults = faults_of(scenario, index, data.label_distribution)
        own = data.client(index)
        estimator = self._estimator(group)
        if estimator is not None:
            model = client_estimator(estimator, own.classes)
            return EstimatorClient(scenario, index, own, self._strategy, model, faults)
        return TorchClient(scenario, index, own, self._strategy, self._device, make, self._workspace, faults)

    def _estimator(self, group: ClientGroup) -> Callable[[], Estimator] | None:
        key = group.model_dump_json()
        if key not in self._estimators:
            shape, search = self.data.input_shape, self._scenario.plugin_path
            self._estimators[key] = make_estimator(group, shape, self.outputs, search)
        return self._estimators[key]

    def _torch_model(self, group: ClientGroup, seed: int) -> nn.Module:
        shape, search = self.data.input_shape, self._scenario.plugin_path
        return build_model(group, shape, self.outputs, seed=seed, plugin_path=search)

    def initial_weights(self) -> dict[str, np.ndarray]:
        """Return the weights that a strategy of Flower starts from, before any client has worked here."""
        return self.build(0).weights() if self._workspace is not None else {}


def scenario_of(context: Context) -> Scenario:
    """Return the scenario that a Flower run configuration names.

    Keys: ``scenario`` (a file; relative to the working folder, else to the app's folder), ``set``
    (overrides separated by spaces).
    """
    path = Path(os.path.expanduser(str(context.run_config.get("scenario", ""))))
    if not path.is_absolute() and not path.exists():
        path = Path(__file__).resolve().parents[2] / path
    if not path.is_file():
        raise UserError(f"no such scenario: {path}", key="run-config.scenario")
    return _load_once(str(path), str(context.run_config.get("set", "")))


@lru_cache(maxsize=8)
def _load_once(path: str, overrides: str) -> Scenario:
    return load_scenario(path, overrides.split())


@lru_cache(maxsize=1)
def _clients_once(scenario_json: str) -> LocalClients:
    scenario = Scenario.model_validate_json(scenario_json)
    return LocalClients(scenario, load_data(scenario))


def client_from_context(context: Context) -> tuple[Client, int]:
    """Return the client of one of Flower's own nodes as it is before the first round, and its threads."""
    scenario = scenario_of(context)
    partition = int(context.node_config["partition-id"])
    if partition >= scenario.data.clients:
        raise UserError(
            f"the federation has more nodes than the scenario's {scenario.data.clients} clients;"
            f" run it with num-supernodes={scenario.data.clients}",
            key="data.clients",
        )
    return clients_of(scenario).build(partition), scenario.engine.threads_per_client


def clients_of(scenario: Scenario) -> LocalClients:
    """Return the clients of a scenario in a process that no engine of fedkd's has given its data."""
    return _clients_once(scenario.model_dump_json())
