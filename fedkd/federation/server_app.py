"""The Flower ServerApp, the same on fedkd's engines, Flower's simulation and a real SuperLink."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedkd.federation.checkpoint import Totals
from fedkd.federation.flower_strategies import make_flower_strategy
from fedkd.federation.identity import RUN_ID, SERVER_NODE_ID
from fedkd.federation.knowledge_fusion import KnowledgeFusion
from fedkd.federation.participant import exchanges_weights, fusion_strategy, initial_weights, scenario_of
from fedkd.federation.rounds import Rounds, Session
from fedkd.run_folder import create_run_folder, finish_run
from fedkd.scenario.schema import Scenario
from fedkd.tracking.progress import make_progress

app = ServerApp()


class ServerContext(Context):
    """The context under which one of fedkd's engines runs the ServerApp.

    Args:
        scenario: The resolved scenario.
        weights: Initial weights where a strategy averages weights, else empty.
        session: Where to write and whom to tell.
    """

    def __init__(self, scenario: Scenario, weights: dict[str, np.ndarray], session: Session) -> None:
        super().__init__(
            run_id=RUN_ID, node_id=SERVER_NODE_ID, node_config={}, state=RecordDict(), run_config={}
        )
        self.scenario = scenario
        self.weights = weights
        self.session = session
        self.totals: Totals | None = None


def server_strategy(scenario: Scenario) -> Strategy:
    """Return the scenario's strategy as one of Flower's."""
    strategy = fusion_strategy(scenario)
    if strategy is None:
        return make_flower_strategy(scenario.fusion.strategy, scenario.fusion.model_extra or {})
    return KnowledgeFusion(strategy)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario on whatever grid this is."""
    if isinstance(context, ServerContext):
        context.totals = Rounds(
            context.scenario, grid, server_strategy(context.scenario), context.weights, context.session
        ).run()
        return
    # One of Flower's own runtimes: the scenario and the run folder come from the run configuration.
    scenario = scenario_of(context)
    out = str(context.run_config.get("out", ""))
    folder = create_run_folder(scenario, Path(out) if out else None)
    weights = initial_weights(scenario) if exchanges_weights(scenario) else {}
    with make_progress(quiet=False) as observer:
        session = Session(folder, observer)
        totals = Rounds(scenario, grid, server_strategy(scenario), weights, session).run()
        finish_run(scenario, folder, totals, observer)
