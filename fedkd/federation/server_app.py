"""The Flower ServerApp, the same on fedkd's engines, Flower's simulation and a real SuperLink."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedkd.data.federated import FederatedData
from fedkd.data.load import first_task, task_names
from fedkd.data.stream import FederatedStream
from fedkd.federation.checkpoint import Totals
from fedkd.federation.flower_strategies import make_flower_strategy
from fedkd.federation.identity import RUN_ID, SERVER_NODE_ID
from fedkd.federation.knowledge_fusion import KnowledgeFusion, ServerKnowledge
from fedkd.federation.participant import LocalClients, clients_of, fusion_strategy, scenario_of
from fedkd.federation.rounds import Rounds
from fedkd.federation.server_side import Server
from fedkd.federation.session import Session
from fedkd.run_folder import create_run_folder, finish_run
from fedkd.scenario.schema import Scenario
from fedkd.tracking.progress import make_progress

app = ServerApp()


class ServerContext(Context):
    """The context under which one of fedkd's engines runs the ServerApp.

    Args:
        scenario: The resolved scenario.
        clients: The scenario's clients as the server knows them: their models and the transfer set.
        session: Where to write and whom to tell.
    """

    def __init__(self, scenario: Scenario, clients: LocalClients, session: Session) -> None:
        super().__init__(
            run_id=RUN_ID, node_id=SERVER_NODE_ID, node_config={}, state=RecordDict(), run_config={}
        )
        self.scenario = scenario
        self.clients = clients
        self.session = session
        self.totals: Totals | None = None


def server_knowledge(scenario: Scenario, data: FederatedData, outputs: int) -> ServerKnowledge:
    """Return what the server knows of the data of a federation, or of one of its tasks."""
    return ServerKnowledge(
        transfer_size=len(data.transfer_x),
        labels=data.transfer_y,
        server=partial(Server, scenario, data, outputs),
        seed=scenario.seed,
    )


def server_strategy(scenario: Scenario, data: FederatedData, outputs: int) -> Strategy:
    """Return the scenario's strategy as one of Flower's.

    Args:
        scenario: The resolved scenario.
        data: Of the federation, or of its first task.
        outputs: Number of outputs of every client's model.
    """
    strategy = fusion_strategy(scenario)
    if strategy is None:
        return make_flower_strategy(scenario.fusion.strategy, scenario.fusion.model_extra or {})
    return KnowledgeFusion(strategy, server_knowledge(scenario, data, outputs))


def run_rounds(scenario: Scenario, grid: Grid, clients: LocalClients, session: Session) -> Totals:
    """Run all rounds of a scenario and return what they cost."""
    data, outputs = clients.data, clients.outputs
    strategy = server_strategy(scenario, first_task(data), outputs)

    def turn_to(task: int) -> None:
        if isinstance(strategy, KnowledgeFusion) and isinstance(data, FederatedStream):
            strategy.turn_to(server_knowledge(scenario, data[task].data, outputs))

    return Rounds(scenario, grid, strategy, clients.initial_weights(), session, turn_to).run()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario on whatever grid this is."""
    if isinstance(context, ServerContext):
        context.totals = run_rounds(context.scenario, grid, context.clients, context.session)
        return
    # One of Flower's own runtimes: the scenario and the run folder come from the run configuration.
    scenario = scenario_of(context)
    out = str(context.run_config.get("out", ""))
    folder = create_run_folder(scenario, Path(out) if out else None)
    with make_progress(quiet=False) as observer:
        clients = clients_of(scenario)
        totals = run_rounds(scenario, grid, clients, Session(folder, observer))
        finish_run(scenario, folder, totals, observer, task_names(clients.data))
