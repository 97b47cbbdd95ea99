"""A scenario's clients on an engine."""

from __future__ import annotations

from flwr.app import Context, Message
from torch import nn

from fedkd.data.load import Data, first_task
from fedkd.engine.inline import InlineGrid
from fedkd.engine.ray_pool import RayCluster, count_actors, gpu_share
from fedkd.federation.client_app import app
from fedkd.federation.participant import LocalClients, learner_of, model_outputs
from fedkd.federation.requirements import check_requirements
from fedkd.models.build import build_group_models, client_models, forward_flops
from fedkd.models.estimator import Estimator
from fedkd.scenario.schema import Scenario

ESTIMATOR_FLOPS = 1_000_000
"""What a sample is taken to cost a model that is not a network: about as much as a small one."""


class ScenarioWorkload:
    """What one actor runs: fedkd's ClientApp for the clients of a scenario.

    Args:
        scenario_json: The resolved scenario.
        data: The federation's data; its arrays lie in shared memory.
    """

    def __init__(self, scenario_json: str, data: Data) -> None:
        self._clients = LocalClients(Scenario.model_validate_json(scenario_json), data)

    def app(self, message: Message, context: Context) -> Message:
        """Handle a message."""
        return app(message, context)

    def context(self, client: int) -> Context:
        """Return the context that a client keeps for the whole run."""
        return self._clients.context(client)


def inline_grid(scenario: Scenario, data: Data) -> InlineGrid:
    """Return a grid that runs the scenario's clients in this process.

    Raises:
        UserError: A client model cannot be built.
    """
    _checked_models(scenario, data)
    clients = LocalClients(_on_its_device(scenario, scenario.engine.gpus_per_actor), data)
    return InlineGrid(app, clients.context, scenario.data.clients)


def ray_grid(scenario: Scenario, data: Data, cluster: RayCluster):
    """Return a grid that runs the scenario's clients on Ray actors.

    Raises:
        UserError: A client model cannot be built, or the actors do not fit the cluster.
    """
    from fedkd.engine.ray_grid import RayGrid

    engine = scenario.engine
    share = gpu_share(engine, cluster, scenario.data.clients)
    grid = RayGrid(
        ScenarioWorkload,
        (_on_its_device(scenario, share).model_dump_json(), data),
        client_costs(scenario, data),
        actors=count_actors(engine, cluster, scenario.data.clients),
        cpus_per_actor=engine.cpus_per_actor,
        gpus_per_actor=share,
    )
    grid.wait_until_ready()
    return grid


def _on_its_device(scenario: Scenario, gpus_per_actor: float | None) -> Scenario:
    """Return the scenario on the CPU where clients shall have no GPU: Ray does not hide one from them."""
    if scenario.engine.device != "auto" or gpus_per_actor != 0:
        return scenario
    engine = scenario.engine.model_copy(update={"device": "cpu"})
    return scenario.model_copy(update={"engine": engine})


def _checked_models(scenario: Scenario, data: Data) -> list[nn.Module | Estimator]:
    """Build one model of every group: what is wrong with one, or with its strategy, is told of now."""
    models = build_group_models(scenario, data.input_shape, model_outputs(data, learner_of(scenario)))
    check_requirements(scenario, data, models)
    return models


def client_costs(scenario: Scenario, data: Data) -> list[float]:
    """Return an estimate of each client's work in a round, in floating-point operations.

    A training step costs about three forward passes. The estimate only decides which actor owns a client.
    """
    models = _checked_models(scenario, data)
    flops = {
        id(group): forward_flops(model, data.input_shape) if isinstance(model, nn.Module) else ESTIMATOR_FLOPS
        for group, model in zip(scenario.clients, models, strict=True)
    }
    first = first_task(data)
    distilled = len(first.transfer_x) * (3 * scenario.fusion.distill_epochs + 1)
    evaluated = 2 * len(first.test_y)
    costs = []
    for client, group in enumerate(client_models(scenario)):
        start, stop = first.train_bounds[client]
        trained = 3 * (stop - start) * scenario.training.local_epochs
        costs.append(float(flops[id(group)] * (trained + distilled + evaluated)))
    return costs
