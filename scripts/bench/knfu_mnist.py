"""When does fusion pay off? `knfu-mnist` over heterogeneity, strategies and seeds, as one table.

    python scripts/bench/knfu_mnist.py OUT [--rounds 10] [--seeds 1 2 3]

Runs that are already in OUT are not run again. The whole MNIST test set is the common test set.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import numpy as np

import fedkd
from fedkd.tracking.recorder import read_metrics

SCENARIO = Path(__file__).resolve().parents[2] / "scenarios" / "knfu-mnist.toml"
ALPHAS = (0.1, 0.5, 10.0)
STRATEGIES = {
    "local": ['fusion={strategy="local"}'],
    "fedmd": ['fusion={strategy="fedmd"}'],
    "knfu": ['fusion={strategy="knfu", beta=10.0}'],
}


def final_values(folder: Path, metric: str, split: str, rounds: int) -> float:
    """Return the federation's mean of a metric in the last round; NaN if it was not measured."""
    for row in read_metrics(folder):
        key = (row["round"], row["client"], row["split"], row["metric"])
        if key == (rounds, None, split, metric) and row["value"] is not None:
            return row["value"]
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], help="further overrides of the scenario")
    args = parser.parse_args()

    cells: dict[tuple[float, str], list[Path]] = {}
    for alpha, strategy, seed in product(ALPHAS, STRATEGIES, args.seeds):
        folder = args.out / f"alpha{alpha:g}-{strategy}-seed{seed}"
        cells.setdefault((alpha, strategy), []).append(folder)
        if (folder / "summary.json").exists():
            continue
        overrides = [
            f"data.partition.alpha={alpha}",
            f"rounds={args.rounds}",
            f"evaluate_every={args.rounds}",
            f"checkpoint_every={args.rounds}",
            "data.test_size=10000",
            *STRATEGIES[strategy],
            *args.set,
        ]
        scenario = fedkd.load_scenario(SCENARIO, overrides, seed=seed)
        summary = fedkd.run(scenario, out=folder).summary
        print(f"{folder.name}: {json.dumps(summary['final'])}", flush=True)

    print("\n| α | strategy | local accuracy | global accuracy | fusion gain, local | effective neighbours |")
    print("|---|---|---|---|---|---|")
    for (alpha, strategy), folders in cells.items():
        columns = []
        for metric, split, unit in (
            ("accuracy", "local", 100),
            ("accuracy", "global", 100),
            ("fusion_gain", "local", 100),
            ("effective_neighbours", "train", 1),
        ):
            values = unit * np.array([final_values(folder, metric, split, args.rounds) for folder in folders])
            known = not np.isnan(values).any()
            columns.append(f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" if known else "–")
        print(f"| {alpha:g} | `{strategy}` | " + " | ".join(columns) + " |")


if __name__ == "__main__":
    main()
