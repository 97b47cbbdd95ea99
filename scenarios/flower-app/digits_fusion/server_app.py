"""The server: a fusion strategy of fedkd, run as any strategy of Flower."""

import json
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkd.federation import KnowledgeFusion
from fedkd.fusion import KnFu

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run three rounds, and keep what the clients reached in each."""
    result = KnowledgeFusion(KnFu(beta=10)).start(grid, num_rounds=3)
    reached = {round: dict(metrics) for round, metrics in result.evaluate_metrics_clientapp.items()}
    if context.run_config["out"]:
        Path(str(context.run_config["out"])).write_text(json.dumps(reached, indent=2), encoding="utf-8")
