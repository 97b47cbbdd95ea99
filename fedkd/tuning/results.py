"""Results of a search: a table of its trials, and the scenario that it found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedkd.benchmark import cell_tables, flatten
from fedkd.plan import parse_scenario
from fedkd.report import csv_text
from fedkd.scenario import Scenario, dump_toml
from fedkd.storage import write_json_atomically, write_text_atomically
from fedkd.tracking import format_percent
from fedkd.tuning.schema import Search
from fedkd.tuning.trials import Trial, best_of, in_words, value_labels

BEST, TABLE, TRIALS, SUMMARY = "best.toml", "table.md", "trials.csv", "search.json"
MAX_TABLE_TRIALS = 20
WORDS = {"pruned": "stopped", "diverged": "diverged", "done": ""}


def found_scenario(search: Search, trial: Trial) -> Scenario:
    """Return the base scenario with a trial's values, which trains on all training samples."""
    tables, layers = cell_tables(search.bench, {"search": flatten(trial.values)}, search.seeds[0])
    tables["data"] = {key: value for key, value in tables.get("data", {}).items() if key != "validation"}
    scenario = parse_scenario(tables, folder=search.bench.folder, layers=layers)
    return scenario.model_copy(update={"name": f"{search.spec.name}-best"})


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials by value, the best first: finished trials, then stopped ones."""
    order = {"done": 0, "pruned": 1}
    return sorted(trials, key=lambda t: (order.get(t.status, 2), -(t.value or 0.0), t.number))


def markdown_table(search: Search, trials: Sequence[Trial], most: int | None = None) -> str:
    """Return the trials as a table in Markdown, the best first, at most `most` of them."""
    keys = [dimension.key for dimension in search.space]
    titles = ["trial", *keys, f"{search.spec.metric} (%)", "rounds", ""]
    lines = ["| " + " | ".join(titles) + " |", "| --: |" + " --- |" * len(keys) + " --: | --: | --- |"]
    best, rows = best_of(trials), ranked(trials)
    for trial in rows[:most]:
        words = value_labels(trial.values)
        value = format_percent(trial.value).removesuffix(" %")
        cells = [str(trial.number), *(words[key].replace("|", "\\|") for key in keys)]
        cells += [f"**{value}**" if trial is best else value, str(trial.rounds), WORDS[trial.status]]
        lines.append("| " + " | ".join(cells) + " |")
    if most is not None and len(rows) > most:
        lines.append(f"\n… and {len(rows) - most} more, in {TABLE}")
    return "\n".join(lines) + "\n"


def legend(search: Search) -> str:
    """Return the legend of the table."""
    share = search.bench.fixed["data.validation"]
    seeds = len(search.seeds)
    of_seeds = f", the mean over {seeds} seeds" if seeds > 1 else ""
    return (
        f"On held-out samples ({100 * share:g} % of each client's training samples){of_seeds}; test samples"
        " were not looked at. *stopped*: stopped early; the value is that of its last round.\n"
    )


def write_results(search: Search, trials: Sequence[Trial], folder: Path) -> None:
    """Write the tables and, if a trial is done, the scenario of the best one."""
    write_text_atomically(folder / TABLE, f"{markdown_table(search, trials)}\n{legend(search)}")
    write_text_atomically(folder / TRIALS, _csv(search, trials, folder))
    best = best_of(trials)
    told: dict[str, Any] = {
        "name": search.spec.name,
        "metric": search.spec.metric,
        "best": None if best is None else {"trial": best.number, "value": best.value, "values": best.values},
        "trials": [
            {
                "trial": trial.number,
                "status": trial.status,
                "value": trial.value,
                "rounds": trial.rounds,
                "values": trial.values,
                "curve": sorted(trial.curve.items()),
                "runs": [str(path.relative_to(folder)) for path in trial.folders],
            }
            for trial in trials
        ],
    }
    write_json_atomically(folder / SUMMARY, told)
    if best is not None:
        header = (
            f"# The best of {len(trials)} trials, number {best.number}: {in_words(best.values, ' = ')}.\n"
            f"# {search.spec.metric} was {format_percent(best.value)} there. This scenario trains on all\n"
            "# training samples, and is tested on test samples, which the search never used.\n"
        )
        write_text_atomically(folder / BEST, header + dump_toml(found_scenario(search, best), folder))


def _csv(search: Search, trials: Sequence[Trial], folder: Path) -> str:
    keys = [dimension.key for dimension in search.space]
    rows: list[list[object]] = []
    for trial in trials:
        words = value_labels(trial.values)
        value = "" if trial.value is None else repr(trial.value)
        runs = " ".join(str(path.relative_to(folder)) for path in trial.folders)
        rows.append([trial.number, trial.status, value, trial.rounds, *(words[key] for key in keys), runs])
    return csv_text(["trial", "status", "value", "rounds", *keys, "runs"], rows)
