"""A scenario's clients on an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flwr.app import Context, Message
from torch import nn

from fedkd.clients.factory import ClientFactory
from fedkd.clients.memory import checked_models
from fedkd.data.load import Data, first_task
from fedkd.engine.blocks import Blocks
from fedkd.engine.inline import InlineGrid
from fedkd.engine.ray_check import check_nodes
from fedkd.engine.ray_pool import RayCluster, gpu_share
from fedkd.engine.ray_room import room_for_actors
from fedkd.engine.shipped import ShippedFolder, placed, shipped
from fedkd.federation.client_app import answer_together, app
from fedkd.federation.context import local_context
from fedkd.models.build import forward_flops
from fedkd.plan.plan import Plan, resolve
from fedkd.scenario.load import scenario_from_json

ESTIMATOR_FLOPS = 1_000_000
"""What a sample is taken to cost a model that is not a network: about as much as a small one."""


class ScenarioWorkload:
    """What one actor runs: fedkd's ClientApp for the clients of a scenario.

    Args:
        scenario_json: The resolved scenario.
        data: The federation's data; its arrays lie in shared memory.
        folders: Files of the scenario's plug-ins, where the actor may be on another machine.
    """

    def __init__(self, scenario_json: str, data: Data, folders: Sequence[ShippedFolder] = ()) -> None:
        scenario = placed(scenario_from_json(scenario_json), folders)
        self._clients = ClientFactory(resolve(scenario), data)

    def app(self, message: Message, context: Context) -> Message:
        """Handle a message."""
        return app(message, context)

    def together(self, requests: Sequence[tuple[Message, Context]]) -> list[Message | Exception]:
        """Handle messages of one kind to several clients, whose jobs of training run together."""
        return answer_together(requests)

    def context(self, client: int) -> Context:
        """Return the context that a client keeps for the whole run."""
        return local_context(self._clients, client)


def inline_grid(plan: Plan, data: Data) -> InlineGrid:
    """Return a grid that runs the plan's clients in this process.

    Raises:
        UserError: A client model cannot be built.
    """
    checked_models(plan, data)
    clients = ClientFactory(_on_its_device(plan, plan.scenario.engine.gpus_per_actor), data)
    return InlineGrid(
        app,
        lambda client: local_context(clients, client),
        plan.scenario.data.clients,
        blocks=Blocks(plan.blocks),
        together=answer_together,
        keeps_states=_keeps_states(plan),
    )


def ray_grid(plan: Plan, data: Data, cluster: RayCluster, tell: Callable[[str], None] = lambda line: None):
    """Return a grid that runs the plan's clients on Ray actors.

    Args:
        plan: What to simulate.
        data: The federation's data.
        cluster: Where.
        tell: Told a line where others work on the cluster too.

    Raises:
        UserError: A client model cannot be built, the actors do not fit the cluster, or a node lacks what
            they need.
        EngineLost: They do not come up.
    """
    from fedkd.engine.ray_grid import RayGrid

    engine, number = plan.scenario.engine, len(plan.blocks)
    share = gpu_share(engine, cluster, number)
    actors, costs = room_for_actors(engine, cluster, number, tell), client_costs(plan, data)
    folders = () if cluster.alone else shipped(plan.scenario)
    check_nodes(plan.scenario, cluster, share, folders)
    with cluster.watch.guard():
        grid = RayGrid(
            ScenarioWorkload,
            (_on_its_device(plan, share).scenario.model_dump_json(), data, folders),
            costs,
            actors=actors,
            cpus_per_actor=engine.cpus_per_actor,
            gpus_per_actor=share,
            blocks=Blocks(plan.blocks),
            timeout=plan.scenario.faults.timeout,
            keeps_states=_keeps_states(plan),
            watch=cluster.watch,
        )
    try:
        grid.wait_until_ready(engine.start_timeout)
    except BaseException:
        grid.close()
        raise
    return grid


def _keeps_states(plan: Plan) -> bool:
    """Return whether a run goes on after a client has failed."""
    return plan.scenario.faults.on_client_error != "fail"


def _on_its_device(plan: Plan, gpus_per_actor: float | None) -> Plan:
    """Return the plan on the CPU where clients shall have no GPU: Ray does not hide one from them."""
    if plan.scenario.engine.device != "auto" or gpus_per_actor != 0:
        return plan
    return plan.on_device("cpu")


def client_costs(plan: Plan, data: Data) -> list[float]:
    """Return an estimate of each client's work in a round, in floating-point operations.

    A training step costs about three forward passes. The estimate only decides which actor owns a client.
    """
    scenario, models = plan.scenario, checked_models(plan, data)
    flops = {
        id(group): forward_flops(model, data.input_shape, data.input_dtype)
        if isinstance(model, nn.Module)
        else ESTIMATOR_FLOPS
        for group, model in zip(scenario.clients, models, strict=True)
    }
    first = first_task(data)
    distilled = len(first.transfer_x) * (3 * scenario.fusion.distill_epochs + 1)
    evaluated = 2 * len(first.test_y)
    costs = []
    for client, group in enumerate(plan.groups):
        start, stop = first.train_bounds[client]
        trained = 3 * (stop - start) * scenario.training.local_epochs
        costs.append(float(flops[id(group)] * (trained + distilled + evaluated)))
    return costs
