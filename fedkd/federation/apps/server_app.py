"""The Flower ServerApp, the same on fedkd's engines, Flower's simulation and a real SuperLink."""

from functools import partial
from math import inf
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedkd.clients import (
    initial_network,
    initial_weights,
    model_factories,
    model_outputs,
    server_filters,
    upload_stages,
)
from fedkd.data import Data, FederatedData, FederatedStream, first_task, task_names
from fedkd.errors import FedkdError, UserError, described, one_line
from fedkd.federation.apps.context import Participant, factory_of, plan_of, server_of
from fedkd.federation.apps.knowledge_fusion import KnowledgeFusion
from fedkd.federation.asynchronous import AsynchronousRounds
from fedkd.federation.compat import RUN_ID, SERVER_NODE_ID
from fedkd.federation.flower_averaging import FlowerAveraging
from fedkd.federation.rounds import Rounds
from fedkd.federation.run_control import Deployment, RunControl
from fedkd.federation.server_strategy import ServerStrategy
from fedkd.plan import Plan
from fedkd.report import finish_run
from fedkd.server import (
    OrthogonalTraining,
    PeerTopology,
    ServerKnowledge,
    TransferSet,
    TransferSetModels,
    WeightRoles,
)
from fedkd.tracking import (
    Observers,
    ProgressFile,
    RunLog,
    Totals,
    explain_disk_errors,
    make_progress,
    new_run_folder,
    write_clients,
    write_deployment,
    write_plan,
)

server_app = ServerApp()

WAIT_DEFAULTS = {"wait": 60, "reply-within": 0}
"""Keys of a deployment's run configuration: seconds for nodes' start, and a reply (0: Flower's limit)."""


class ServerContext(Context):
    """The context of the ServerApp on fedkd's engines."""

    def __init__(self, plan: Plan, data: Data, control: RunControl) -> None:
        super().__init__(RUN_ID, SERVER_NODE_ID, node_config={}, state=RecordDict(), run_config={})
        self.plan, self.data, self.control = plan, data, control
        self.totals: Totals | None = None


def server_strategy(plan: Plan, data: Data) -> ServerStrategy:
    """Return the plan's strategy at work on the server."""
    scenario, fusion = plan.scenario, plan.scenario.fusion
    stages = upload_stages(fusion)
    if not plan.capabilities.by_flower:
        topology, peers = scenario.topology, None
        if plan.graph is not None:
            peers = PeerTopology(plan.graph, topology.mixing, topology.relay)
        return KnowledgeFusion(
            plan.strategy,
            partial(_server_knowledge, plan, data),
            stages,
            fusion.knowledge_cache,
            backward=fusion.backward_transfer,
            exponent=None if scenario.asynchronous is None else scenario.asynchronous.staleness,
            peers=peers,
        )
    from fedkd.federation.flower_strategies import make_flower_strategy

    strategy = make_flower_strategy(fusion.strategy, fusion.model_extra or {})
    orthogonal = None
    if fusion.orthogonal is not None:
        assert isinstance(data, FederatedStream)
        network = initial_network(plan, model_factories(plan, data)[0])
        weights = WeightRoles.of(network, plan.schedule.order(0), [task.units for task in data])
        orthogonal = OrthogonalTraining(fusion.orthogonal, weights)
    return FlowerAveraging(strategy, plan.strategy, initial_weights(plan, data), stages, orthogonal)


def _server_knowledge(plan: Plan, data: Data, task: int) -> ServerKnowledge:
    of_task: FederatedData = data[task].data if isinstance(data, FederatedStream) else data
    seen = TransferSet.of(data, task, model_outputs(plan, data))
    return ServerKnowledge(
        transfer_size=len(of_task.transfer_x),
        labels=of_task.transfer_y,
        models=partial(TransferSetModels, plan, seen),
        seed=plan.scenario.seed,
        classes_met=partial(_classes_met, plan, data) if isinstance(data, FederatedStream) else None,
        rounds=plan.scenario.rounds,
        filters=server_filters(plan.scenario.fusion),
        classes=of_task.classes,
    )


def _classes_met(plan: Plan, data: FederatedStream, round: int) -> tuple[int, ...] | None:
    """Return the output units of the tasks so far if the round ends a task for all clients.

    None: some go on with their task, or it is the last.
    """
    schedule = plan.schedule
    begun = schedule.order(0)[: schedule.place(0, round) + 1]
    if not schedule.in_step or not schedule.ends(0, round) or len(begun) == len(schedule.order(0)):
        return None
    return tuple(sorted({unit for task in begun for unit in data[task].own_units}))


def make_rounds(plan: Plan, grid: Grid, data: Data, control: RunControl) -> Rounds:
    """Return the synchronous or asynchronous rounds of a scenario."""
    strategy = server_strategy(plan, data)
    if plan.scenario.asynchronous is None:
        return Rounds(plan, grid, strategy, control, first_task(data).transfer_y)
    assert isinstance(strategy, KnowledgeFusion)
    return AsynchronousRounds(plan, grid, strategy, control)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario on this grid."""
    if isinstance(context, ServerContext):
        context.totals = make_rounds(context.plan, grid, context.data, context.control).run()
        return
    # One of Flower's own runtimes: the scenario and the run folder come from the run configuration.
    try:
        _main(grid, context)
    except Exception as error:  # one line before the traceback in Flower's log
        said = str(error) if isinstance(error, FedkdError) else f"internal error: {described(error)}"
        print(f"error: {one_line(said)}", flush=True)
        raise


def _main(grid: Grid, context: Context) -> None:
    own = server_of(context)
    plan = plan_of(context) if own is None else own.plan
    if plan.scenario.faults.timeout is not None:
        raise UserError(
            "must be left out on Flower's runtimes, which cannot interrupt a late client; only fedkd's Ray"
            " engine can",
            key="faults.timeout",
        )
    if own is not None and plan.clock is not None:
        key = "clock" if plan.scenario.asynchronous is None else "asynchronous"
        raise UserError("must be left out: it simulates time, and deployed nodes run in real time", key=key)
    out = str(context.run_config.get("out", ""))
    with (
        new_run_folder(plan.scenario, Path(out) if out else None) as folder,
        explain_disk_errors(folder, lambda: "free disk space, then start the run again"),
        Observers([make_progress(quiet=False), ProgressFile(), RunLog()]) as observer,
    ):
        data = own.share.data if own is not None else factory_of(plan).data
        plan = own.plan if own is not None else factory_of(plan).plan
        # A missing client is reported before there is a run folder.
        control = RunControl(folder, observer, deployment=_deployment(own, context))
        rounds = make_rounds(plan, grid, data, control)
        write_plan(folder, plan)
        write_clients(folder, plan, data, counted=own is None)
        if own is not None:
            write_deployment(folder, own.federation)
        totals = rounds.run()
        finish_run(plan, folder, totals, observer, task_names(data))


def _deployment(own: Participant | None, context: Context) -> Deployment | None:
    if own is None:
        return None
    seconds = {key: context.run_config.get(key, default) for key, default in WAIT_DEFAULTS.items()}
    for key, value in seconds.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < inf:
            raise UserError(f"must be a number of seconds, got {value!r}", key=f"run-config.{key}")
    return Deployment(own.federation, float(seconds["wait"]), float(seconds["reply-within"]) or None)
