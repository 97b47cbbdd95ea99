"""The factory of clients, from a plan and the federation's data."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import nn

from fedkd.clients.client import Client
from fedkd.clients.evaluation.common_sample import draw_test_sample
from fedkd.clients.local.centralized_trainer import (
    CentralizedModel,
    CentralizedTrainer,
    all_samples_of,
    first_alike,
)
from fedkd.clients.local.estimator_trainer import EstimatorTrainer
from fedkd.clients.local.network_trainer import NetworkTrainer
from fedkd.clients.local.task_stream import TaskStream
from fedkd.clients.local_samples import LocalSamples, network_holdout_share, selection_holdout_share
from fedkd.clients.poison import poison_of
from fedkd.clients.shared_network import Measured, SharedModel
from fedkd.continual import extra_outputs
from fedkd.data import ClientData, Data, FederatedData, FederatedStream, first_task
from fedkd.fusion import overrides_hook
from fedkd.models import EstimatorModel, ModelFactory, RegressorModel, client_estimator
from fedkd.plan import Plan, evaluated_clients, make_auxiliaries
from fedkd.randomness import derive_seed
from fedkd.training import exchanged_weights, make_executor, prepare_inputs, prepare_model, resolve_device

NOT_OF_STEPS = frozenset(
    {
        *("name", "seed", "rounds", "clients_per_round", "evaluate", "evaluate_every", "evaluate_clients"),
        *("metrics", "end_with", "checkpoint_every", "data", "heterogeneity", "engine", "tracking"),
    }
)
"""Keys of a scenario that decide a training step only by its tensors, or not at all."""


def steps_key(plan: Plan) -> Hashable:
    """Return a key of all settings that a recorded step may contain."""
    engine, data = plan.scenario.engine, plan.scenario.data
    settings = plan.scenario.model_dump_json(exclude=set(NOT_OF_STEPS))
    return settings, data.task, data.head, engine.device, engine.threads_per_client


class ClientFactory:
    """Makes the clients of one process.

    If every message brings weights, clients share one model per place of joint training. Centralized clients
    share one model per architecture.
    """

    def __init__(self, plan: Plan, data: Data) -> None:
        self.plan, self.data = plan, data
        self._device = resolve_device(plan.scenario.engine.device)
        self._models = model_factories(plan, data)
        for model in {id(one): one for one in self._models}.values():
            model.load()
        training = plan.scenario.training
        self._fast = training.fast
        self._executor = make_executor(
            training.executor, training.vmap_size, fast=training.fast, steps=steps_key(plan)
        )
        self._test_sample = draw_test_sample(plan, data)
        self._evaluated = frozenset(evaluated_clients(plan.scenario))
        self._measured = Measured()
        self._shared: dict[int, SharedModel] = {}  # by place in a block
        self._place = {client: place for block in plan.blocks for place, client in enumerate(block)}
        self._centralized: dict[int, CentralizedModel] = {}  # by the first client of an architecture

    def build(self, index: int) -> Client:
        """Return client `index` as it is before the first round."""
        client = self._client(index)
        client.executor = self._executor
        client.evaluated = index in self._evaluated
        return client

    def _client(self, index: int) -> Client:
        plan, data = self.plan, self.data
        poison = poison_of(plan.scenario, index, first_task(data).label_distribution)
        model = self._model(index)
        tasks: Sequence[ClientData]
        if isinstance(data, FederatedStream):
            tasks = data.client(index)
        else:
            public = data.public_y if plan.capabilities.pretrain_epochs > 0 else None
            tasks = [replace(data.client(index), public_y=public, test_sample=self._test_sample)]
        if not isinstance(model, nn.Module | SharedModel):
            samples = LocalSamples(plan, index, tasks, poison, selection_holdout_share(plan))
            scale, make = tasks[0].scale, self._models[index].fresh
            estimator: EstimatorModel | RegressorModel = (
                client_estimator(make, tasks[0].classes)
                if scale is None
                else RegressorModel(make, len(scale.names), scale.head)
            )
            return Client(plan, index, samples, EstimatorTrainer(plan, index, samples, estimator), poison)
        samples = LocalSamples(plan, index, tasks, poison, network_holdout_share(plan))
        if isinstance(model, CentralizedModel):
            return Client(plan, index, samples, CentralizedTrainer(plan, index, samples, model), poison)
        stream = None
        if isinstance(data, FederatedStream):
            shared = model if isinstance(model, SharedModel) else None
            network = model.network if isinstance(model, SharedModel) else model
            stream = TaskStream(
                plan, index, data, samples, network, None if shared is None else shared.measured
            )
        trainer = NetworkTrainer(plan, index, samples, model, self._auxiliaries(index, model), stream)
        if isinstance(model, nn.Module):
            trainer.begin = partial(self._own_network, index)
        return Client(plan, index, samples, trainer, poison, stream)

    def _model(self, index: int) -> object:
        if self.plan.capabilities.brings_model:
            place = self._place[index]
            if place not in self._shared:
                network = prepare_model(
                    initial_network(self.plan, self._models[index]), self._device, fast=self._fast
                )
                self._shared[place] = SharedModel(network, self._measured)
            return self._shared[place]
        if self.plan.capabilities.pools:
            first = first_alike(self.plan.groups, index)
            if first not in self._centralized:
                samples = next((other.samples for other in self._centralized.values()), None)
                if samples is None:
                    assert isinstance(self.data, FederatedData)
                    x, y = all_samples_of(self.plan.scenario, self.data)
                    samples = prepare_inputs(x, self._device), prepare_inputs(y, self._device)
                network = self._own_network(first)
                self._centralized[first] = CentralizedModel(network, samples, self.plan.scenario, first)
            return self._centralized[first]
        return self._own_model(index)

    def _own_model(self, index: int) -> object:
        """Return a client's own model before any training."""
        # Averaged weights and compared masks need networks with the same initial weights.
        alike = bool(self.plan.capabilities.needs & {"weights", "masks"})
        seed = self.plan.scenario.seed
        model = self._models[index].make(
            derive_seed(seed, "initial-weights", client=None if alike else index)
        )
        return prepare_model(model, self._device, fast=self._fast) if isinstance(model, nn.Module) else model

    def _own_network(self, index: int) -> nn.Module:
        model = self._own_model(index)
        assert isinstance(model, nn.Module)
        return model

    def _auxiliaries(self, index: int, model: nn.Module | SharedModel) -> dict[str, nn.Module]:
        strategy = self.plan.strategy
        if not overrides_hook(strategy, "aux_networks") or isinstance(model, SharedModel):
            return {}
        seed = self.plan.scenario.seed
        made = make_auxiliaries(strategy, self._models[index], model, seed, index)
        return {name: prepare_model(network, self._device, fast=self._fast) for name, network in made.items()}


def model_outputs(plan: Plan, data: Data) -> int:
    """Return the number of outputs of every client's model."""
    if isinstance(data, FederatedStream):
        assert plan.learner is not None
        return data.outputs + extra_outputs(plan.learner)
    return data.classes


def model_factories(plan: Plan, data: Data) -> list[ModelFactory]:
    shape, outputs, search = data.input_shape, model_outputs(plan, data), tuple(plan.scenario.plugin_path)
    numeric = plan.scenario.data.is_regression
    made = {
        id(group): ModelFactory(group, shape, outputs, search, data.kind, numeric) for group in plan.groups
    }
    return [made[id(group)] for group in plan.groups]


def initial_network(plan: Plan, factory: ModelFactory) -> nn.Module:
    """Return the common initial network of clients whose weights are averaged."""
    network = factory.make(derive_seed(plan.scenario.seed, "initial-weights"))
    assert isinstance(network, nn.Module)
    return network


def initial_weights(plan: Plan, data: Data) -> dict[str, np.ndarray]:
    """Return the initial weights of a strategy whose messages bring the model; else nothing."""
    if not plan.capabilities.brings_model:
        return {}
    network = prepare_model(initial_network(plan, model_factories(plan, data)[0]), "cpu")
    return exchanged_weights(network)
