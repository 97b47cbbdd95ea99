"""The model card of an export, in Markdown."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from fedkd import __version__
from fedkd.data import FederatedStream, Rotation, first_task, task_names
from fedkd.scenario import Scenario, dump_toml
from fedkd.tracking import METRICS_FILE, format_before_after, read_metrics
from fedkd.trained.client import TrainedRun

USE = """```python
from load import load  # load.py lies beside this file

client = load({index}{task})
client.predict(x)      # class names of samples {samples}, as the data set stores them
client.model           # torch module in evaluation mode; takes client.normalise(x)
```"""


@dataclass(frozen=True)
class Entry:
    """A client in an export."""

    index: int
    architecture: str
    parameters: int  # trainable scalars
    file: str
    network: str | None  # class that takes the tensors; None: its source could not be written
    owner: str | None = None  # name of the samples' owner; None: the data name none


def model_card(run: TrainedRun, entries: Sequence[Entry], left_out: Mapping[int, str]) -> str:
    """Return the card of the exported clients; `left_out` maps the indices of others to a reason."""
    scenario = run.plan.scenario
    task = ", task=0" if isinstance(run.data, FederatedStream) else ""
    samples = ", ".join(map(str, ("n", *run.data.input_shape)))
    learner = f" Tasks are learned with `{scenario.continual.learner}`." if scenario.continual else ""
    toml = dump_toml(scenario, run.folder).strip()
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", toml)), default=0))  # longer than the scenario's
    parts = [
        f"# {_plain(scenario.name)}: {len(entries)} trained clients",
        f"Clients of a federation simulated with fedkd {__version__}: strategy `{scenario.fusion.strategy}`,"
        f" seed {scenario.seed}, after round {run.round} of {scenario.last_round}.{learner}",
        _table(run, entries),
        f"Accuracies are those of this round, before fusion → after fusion; {_tests(scenario)}",
        "## Use",
        f"`load.py` needs torch (this export was written with {version('torch')}), numpy and safetensors,"
        " but not fedkd.",
        USE.format(index=entries[0].index, task=task, samples=f"[{samples}]"),
        "## Data",
        *_data(run),
        *_notes(run, entries, left_out),
        "## Scenario",
        f"{fence}toml\n{toml}\n{fence}",
    ]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|$~&])", r"\\\1", " ".join(text.split()))


def _tests(scenario: Scenario) -> str:
    if scenario.data.validation is None:
        return "*local*: on test data distributed like the client's own, *global*: on the common test set."
    return (
        "*local*: on training samples that the client held out, *global*: on those of all clients; test"
        " samples were not looked at."
    )


def _table(run: TrainedRun, entries: Sequence[Entry]) -> str:
    rows = read_metrics(run.folder) if (run.folder / METRICS_FILE).exists() else []
    found = {
        (row["client"], row["split"], row["metric"]): row["value"]
        for row in rows
        if row["round"] == run.round and row["client"] is not None
    }
    named = any(entry.owner is not None for entry in entries)
    lines = [
        f"| client |{' owner |' * named} model | parameters | local | global | file |",
        f"| --: |{' --- |' * named} --- | --: | --: | --: | --- |",
    ]
    for entry in entries:
        before, after = "accuracy_before_fusion", "accuracy"
        own = [
            format_before_after(
                found.get((entry.index, split, before)), found.get((entry.index, split, after))
            )
            for split in ("local", "global")
        ]
        owner = f" {_plain(entry.owner or '')} |" * named
        model = f"{_plain(entry.architecture)} | {entry.parameters:,}"
        lines.append(f"| {entry.index} |{owner} {model} | {own[0]} | {own[1]} | `{entry.file}` |")
    return "\n".join(lines)


def _data(run: TrainedRun) -> list[str]:
    data, scenario = run.data, run.plan.scenario
    shape = "×".join(map(str, data.input_shape))
    names = ", ".join(map(_plain, data.class_names))
    partition = scenario.data.partition.scheme
    told = [
        f"{_plain(data.name)}, samples of {shape}, classes {names}; dealt to {scenario.data.clients}"
        f" clients by `{partition}`."
    ]
    if isinstance(data, FederatedStream):
        tasks = "; ".join(f"{n}: {_plain(name)}" for n, name in enumerate(task_names(data)))
        told.append(f"Tasks: {tasks}. A model answers with the classes of its task.")
    told.append(
        "Samples are normalised by the train split's mean and standard deviation (see `clients.json`);"
        " uint8 is divided by 255 first."
        if scenario.data.normalise and data.kind.statistics
        else "Samples are used as stored; uint8 is divided by 255."
    )
    if first_task(data).skew:
        told.append("Each client's samples were transformed differently (`heterogeneity`).")
    return told


def _notes(run: TrainedRun, entries: Sequence[Entry], left_out: Mapping[int, str]) -> list[str]:
    """Return the notes that limit the use of the figures."""
    plan, notes = run.plan, list[str]()
    notes += [f"Client {index} was not exported: {why}." for index, why in left_out.items()]
    unwritten = [str(entry.index) for entry in entries if entry.network is None]
    if unwritten:
        notes.append(
            f"Networks of clients {', '.join(unwritten)} could not be traced, so they have no source."
            " Pass yours: `load(index, network=…)`."
        )
    if plan.capabilities.infers_from_guidance:
        notes.append(
            f"The strategy `{plan.strategy.name}` predicts from guidance, not from the model's outputs. The"
            " exported networks use their outputs, so their accuracies differ."
        )
    if (kappa := plan.scenario.fusion.logit_adjustment) != 0:
        told = '"auto"' if kappa == "auto" else f"{kappa:g}"
        notes.append(
            f"Accuracies include a logit adjustment to each client's classes (`logit_adjustment = {told}`);"
            " the exported networks have none."
        )
    if plan.learner is not None and plan.learner.overrides("predict"):
        notes.append(
            f"The learner `{plan.learner.name}` predicts from its memory, not from the model's outputs. The"
            " exported networks use their outputs, so their accuracies differ."
        )
    if isinstance(run.data, FederatedStream):
        notes += [
            f"Images of task {task.index} are rotated by {_plain(task.name)}; `load.py` does not rotate them."
            for task in run.data
            if isinstance(task.transform, Rotation)
        ]
    if plan.capabilities.brings_model:
        notes.append("The server averages weights: all clients of this round have the same network.")
        if plan.scenario.end_with == "training":
            notes.append("The accuracies include a last private training; the average does not.")
    return ["## Notes", "\n".join(f"- {note}" for note in notes)] if notes else []
