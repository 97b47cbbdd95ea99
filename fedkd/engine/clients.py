"""A scenario's clients on an engine."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, Message

from fedkd.clients import (
    Client,
    ClientFactory,
    ExecutorChoice,
    build_checked_models,
    estimate_client_bytes,
    select_executor,
    with_test_sample,
)
from fedkd.data import Data, FederatedData
from fedkd.engine.grid import Blocks, EngineGrid
from fedkd.engine.inline import InlineGrid
from fedkd.engine.live_clients import App, Together
from fedkd.engine.ray.cluster import RayCluster
from fedkd.engine.ray.node_check import ShippedFolder, check_nodes, shipped_plugin_files, with_shipped_files
from fedkd.engine.ray.placement import gpu_share, room_for_actors
from fedkd.engine.room import MemoryShare, Room
from fedkd.engine.work_assignment import client_costs
from fedkd.errors import described
from fedkd.federation import answer_batch, client_app, client_behind, local_context
from fedkd.federation.messages import records as msg
from fedkd.plan import Plan, open_plan, resolve_plan
from fedkd.scenario import scenario_from_json


class ScenarioWorkload:
    """An actor's workload: fedkd's ClientApp for a resolved scenario's clients, within `memory`."""

    def __init__(
        self,
        scenario_json: str,
        data: Data,
        memory: MemoryShare | None = None,
        folders: Sequence[ShippedFolder] = (),
    ) -> None:
        plan = resolve_plan(with_shipped_files(scenario_from_json(scenario_json), folders), written=False)
        self._clients = ClientFactory(plan, data)
        self.room = Room() if memory is None else memory.room(plan)

    app = staticmethod(client_app)
    together = staticmethod(answer_batch)

    def context(self, client: int) -> Context:
        return local_context(self._clients, client)


def inline_grid(
    plan: Plan, data: Data, folder: Path | None = None, trained: Callable[[Client], None] | None = None
) -> InlineGrid:
    """Return a grid in this process, with idle states in `folder`; an unfit model raises `UserError`.

    `trained` is called with every client that has just answered a train message.
    """
    models = build_checked_models(plan, data)
    here = on_its_device(plan, plan.scenario.engine.gpus_per_actor)
    clients = ClientFactory(here, data)
    app, together = (client_app, answer_batch) if trained is None else _watched(trained)
    return InlineGrid(
        app,
        lambda client: local_context(clients, client),
        plan.scenario.data.clients,
        blocks=Blocks(plan.blocks),
        together=together,
        keeps_states=plan.scenario.faults.goes_on,
        room=MemoryShare(estimate_client_bytes(plan, data, models), folder=folder).room(here),
    )


def _watched(trained: Callable[[Client], None]) -> tuple[App, Together]:
    def tell(message: Message, context: Context) -> None:
        if message.metadata.message_type == msg.TRAIN:
            with client_behind(context) as client:
                trained(client)

    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        tell(message, context)
        return reply

    def together(requests: Sequence[tuple[Message, Context]]) -> list[Message | Exception]:
        outcomes = answer_batch(requests)
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, Message):
                tell(*request)
        return outcomes

    return app, together


def ray_grid(
    plan: Plan,
    data: Data,
    cluster: RayCluster,
    folder: Path | None = None,
    spares: Sequence[Any] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> EngineGrid:
    """Return a grid that runs the plan's clients on Ray actors, `spares` first.

    Idle clients' states lie in `folder` on machines that have it, else among temporary files. `tell` receives
    a line if others use the cluster too. An unfit model or cluster raises `UserError`, a late actor
    `EngineLost`.
    """
    from fedkd.engine.ray.grid import RayGrid

    engine, number = plan.scenario.engine, len(plan.blocks)
    share = gpu_share(engine, cluster, number)
    models = build_checked_models(plan, data)
    actors, costs = room_for_actors(engine, cluster, number, tell), client_costs(plan, data, models)
    memory = MemoryShare(estimate_client_bytes(plan, data, models), actors, share, folder)
    folders = () if cluster.alone else shipped_plugin_files(plan.scenario)
    check_nodes(plan.scenario, cluster, share, folders)
    with cluster.watch.guard():
        grid = RayGrid(
            ScenarioWorkload,
            (on_its_device(plan, share).scenario.model_dump_json(), data, memory, folders),
            costs,
            actors=actors,
            cpus_per_actor=engine.cpus_per_actor,
            gpus_per_actor=share,
            blocks=Blocks(plan.blocks),
            timeout=plan.scenario.faults.timeout,
            keeps_states=plan.scenario.faults.goes_on,
            spares=spares,
            watch=cluster.watch,
        )
    try:
        grid.wait_until_ready(engine.start_timeout)
    except BaseException:
        grid.close()
        raise
    return grid


def on_its_device(plan: Plan, gpus_per_actor: float | None) -> Plan:
    """Return the plan, on the CPU if clients reserve no GPU: Ray does not hide GPUs from them."""
    if plan.scenario.engine.device != "auto" or gpus_per_actor != 0:
        return plan
    return plan.on_device("cpu")


WAIT_SECONDS = 0.5


def measured_plan(
    plan: Plan, data: Data, tell: Callable[[str], None], cluster: RayCluster | None = None
) -> Plan:
    """Return a plan with an executor and a part of the test set, where the scenario leaves them open."""
    plan = with_test_sample(plan, data)
    if isinstance(plan.scenario.evaluate, int) and isinstance(data, FederatedData):
        told = f"{plan.scenario.evaluate:,} of {len(data.test_y):,} common test samples"
        tell(f"rounds before the last are evaluated on {told} (evaluate = 'full': on all)")
    return with_selected_executor(plan, data, tell, cluster)


def with_selected_executor(
    plan: Plan, data: Data, tell: Callable[[str], None], cluster: RayCluster | None = None
) -> Plan:
    """Return a plan with an executor; ``auto`` is measured on the cluster (None: in this process)."""
    if plan.scenario.training.executor != "auto":
        return plan
    engine = plan.scenario.engine
    share = engine.gpus_per_actor if cluster is None else gpu_share(engine, cluster, len(plan.blocks))
    placed = on_its_device(plan, share)
    if cluster is None or cluster.alone:  # this process is like an actor
        choice = select_executor(placed, data, tell=tell)
    else:
        tell("measuring on the cluster whether clients train faster one by one or together")
        choice = _choose_on_cluster(placed, data, cluster, share or 0.0)
    tell(f"executor {choice.told}")
    return plan.with_executor(choice.executor)


def _choose_on_cluster(plan: Plan, data: Data, cluster: RayCluster, gpus: float) -> ExecutorChoice:
    import ray

    cpus = plan.scenario.engine.cpus_per_actor
    work = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_choose)
    with cluster.watch.guard():
        waiting = [work.remote(plan.scenario.model_dump_json(), ray.put(data))]
        while not ray.wait(waiting, timeout=WAIT_SECONDS)[0]:
            cluster.watch.check()
        cluster.watch.check()
        try:
            return ray.get(waiting[0])
        except Exception as error:  # actors will report it
            return ExecutorChoice("loop", f"loop: the measurement on the cluster failed ({described(error)})")


def _choose(scenario_json: str, data: Any) -> ExecutorChoice:
    return select_executor(open_plan(scenario_json), data)
