"""Format numbers for people: `87.1 %`, `+1.2 pt`, `2.0 MB`, `–` for missing values."""

from collections.abc import Callable, Mapping
from typing import Any

from fedkd.tracking.events import RoundReport, RunReport
from fedkd.tracking.task_matrix import TaskMatrix

MISSING_VALUE = "–"
TASKS_IN_A_LINE = 10
AVERAGE = "average_accuracy_"


def format_percent(fraction: float | None) -> str:
    """Format an accuracy in [0, 1]: `87.1 %`."""
    return MISSING_VALUE if fraction is None else f"{100 * fraction:.1f} %"


def format_before_after(before: float | None, after: float | None) -> str:
    """Format an accuracy before and after fusion: `51.6 → 34.4 %`; one number if equal."""
    if before is None or after is None or before == after:
        return format_percent(after)
    return f"{100 * before:.1f} → {format_percent(after)}"


def before_after(report: RoundReport, split: str) -> str:
    """Format the shown metric of a round on a split before and after fusion."""
    if report.metric == "accuracy":
        return format_before_after(
            getattr(report, f"accuracy_before_fusion_{split}"), getattr(report, f"accuracy_{split}")
        )
    names = (f"{split}/{report.metric}_before_fusion", f"{split}/{report.metric}")
    before, after = (report.metrics.get(name) for name in names)
    if before is None or after is None or before == after:
        return MISSING_VALUE if after is None else f"{after:.4g}"
    return f"{before:.4g} → {after:.4g}"


def format_gain(report: RoundReport) -> str:
    """Format a fusion gain: points of accuracy, or the improvement of another metric in its unit."""
    if report.metric == "accuracy" or report.fusion_gain is None:
        return format_points(report.fusion_gain)
    return f"{report.fusion_gain:+.3g}"


def format_points(difference: float | None) -> str:
    """Format a difference of accuracies in percentage points: `+1.2 pt`."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return MISSING_VALUE if difference is None else f"{round(100 * difference, 1) + 0.0:+.1f} pt"


def gain(report: RoundReport, clients: int, *, of_all: bool = True) -> str:
    """Format a fusion gain, and its clients if not all took part: `-35.0 pt (10 of 200)`."""
    text, guided = format_gain(report), report.metrics.get("train/guided_clients")
    if report.fusion_gain is None or guided is None or guided == clients:
        return text
    return f"{text} ({guided:.0f}{f' of {clients}' * of_all})"


def count(number: float | None) -> str:
    """Format a mean of counts: `3.4`."""
    return MISSING_VALUE if number is None else f"{number:.1f}"


def count_noun(number: int, noun: str, plural: str | None = None) -> str:
    """Format a count with its noun: `1 round`, `2,000 rounds`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def format_bytes(number: float) -> str:
    """Format a number of bytes with decimal prefixes: `512 B`, `2.0 MB`."""
    if number < 1000:
        return f"{number:.0f} B"
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if number < 999.95:
            return f"{number:.1f} {unit}"
    return f"{number / 1000:.1f} TB"


def format_duration(seconds: float) -> str:
    """Format a wall-clock time: `1.2 s`, `45 s`, `3 min 05 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_time_left(seconds: float | None) -> str:
    """Format an estimated time, without decimals: `8 s`."""
    if seconds is None:
        return MISSING_VALUE
    return f"{max(1, round(seconds))} s" if seconds < 9.95 else format_duration(seconds)


def phase_text(phase: str, done: int, total: int) -> str:
    """Format a phase, with a count of several clients: `train 7/10 clients`."""
    return f"{phase} {done}/{total} clients" if total > 1 else phase


def share(fraction: float | None) -> str:
    """Format an accuracy in [0, 1] for a table of percentages: `87.1`."""
    return MISSING_VALUE if fraction is None else f"{100 * fraction:.1f}"


def protocol_name(protocol: str) -> str:
    """Return the display name of a protocol: `task-incremental`."""
    return protocol.replace("_", "-")


def learned_line(matrix: TaskMatrix, task: int) -> str:
    """Return the line at the end of a task: accuracies on all tasks so far."""
    accuracies = matrix.rows().get(task, [])[: task + 1]
    first = max(0, len(accuracies) - TASKS_IN_A_LINE)
    where = f"tasks {first + 1}–{task + 1}" if task > first else f"task {task + 1}"
    shown = "  ".join(map(share, accuracies[first:]))
    test = protocol_name(matrix.protocol)
    return f"end of task {task + 1}/{matrix.tasks}, {test} accuracy (%) on {where}:  {shown}"


def closing_lines(report: RunReport) -> list[str]:
    """Return the last lines of a run: folder, accuracies and costs."""
    final = report.summary.get("final") or {}
    lines = [_line("results", str(report.folder))]
    for split in ("local", "global"):
        if report.summary.get("metric") is not None:
            break  # in regression there is no accuracy
        found, before = (final.get(f"accuracy{moment}_{split}") for moment in ("", "_before_fusion"))
        lines.append(_line(f"{split} accuracy", _spread(found)))
        if before is not None and before != found:
            lines.append(_line("before fusion", _spread(before)))
        lines += _model_lines(final, split)
    lines += _metric_lines(final)
    lines += _architecture_lines(final.get("by_architecture") or {}, report.summary.get("metric"))
    lines += _continual_lines(report.summary.get("continual"))
    lines += _transferability_lines(report.summary.get("transferability"))
    up, down = final.get("bytes_up"), final.get("bytes_down")
    if up is not None and down is not None:
        lines.append(_line("traffic", f"up {format_bytes(up)}, down {format_bytes(down)}"))
    if (simulated := final.get("virtual_seconds")) is not None:
        lines.append(_line("simulated time", format_duration(simulated)))
        lines += _reached_lines(final)
    if (seconds := report.summary.get("seconds")) is not None:
        lines.append(_line("time", format_duration(seconds)))
    return lines


def _line(label: str, text: str) -> str:
    return f"{label:<15}  {text}"


def _transferability_lines(table: Mapping[str, Any] | None) -> list[str]:
    """Return the line about the best predictor of gains between clients."""
    if table is None:
        return []
    split = next((split for split in ("global", "local") if table[split]["predictors"]), None)
    if split is None:
        return [f"transferability  round {table['round']}: no ranking (equal gains or too few clients)"]
    predictors = table[split]["predictors"]
    name = max(predictors, key=lambda name: predictors[name]["rank"])
    best = predictors[name]
    half = "" if best["half"] is None else f" ± {best['half']:.2f}"
    return [
        f"transferability  round {table['round']}: best predictor of {split} gains is '{name}', Spearman"
        f" {best['rank']:+.2f}{half}, best sender found {format_percent(best['hit'])}"
        f" (by chance {format_percent(table[split]['chance'])})"
    ]


def _reached_lines(final: Mapping[str, Any]) -> list[str]:
    """Return the times to target accuracies, a line per split: `50 %: 3.2 s, 70 %: –`."""
    lines = []
    for split in ("local", "global"):
        names = [name for name in final if name.startswith("seconds_to_") and name.endswith(f"_{split}")]
        told = sorted((int(name.split("_")[2]), final[name]) for name in names)
        words = [f"{target} %: {MISSING_VALUE if at is None else format_duration(at)}" for target, at in told]
        if words:
            lines.append(_line(f"{split} reached", ", ".join(words)))
    return lines


def _model_lines(final: Mapping[str, Any], split: str) -> list[str]:
    """Return the accuracies of each client model on a split, if several are measured."""
    lines = []
    for key, found in final.items():
        name = key.removeprefix("accuracy_").removesuffix(f"_{split}")
        if key != f"accuracy_{name}_{split}" or name.startswith("before_fusion"):
            continue
        trained = final.get(f"accuracy_before_fusion_{name}_{split}")
        before = "" if trained in (None, found) else f", before fusion {format_percent(trained['mean'])}"
        lines.append(f"  {name:<13}  {_spread(found)}{before}")
    return lines


def _metric_lines(final: Mapping[str, Any]) -> list[str]:
    """Return the listed metrics besides accuracy as recorded, before and after fusion."""
    lines = []
    for key, found in final.items():
        name, _, split = key.rpartition("_")
        before = final.get(f"{name}_before_fusion_{split}")
        if name.startswith("accuracy") or f"{name}_before_fusion_{split}" not in final:
            continue
        text = MISSING_VALUE
        if found is not None:
            text = f"{found['mean']:.3f}, over {_clients(found['n']).strip()}: sd {found['std']:.3f},"
            text += f" {found['min']:.3f} to {found['max']:.3f}"
        if before not in (None, found):
            text += f", before fusion {before['mean']:.3f}"
        lines.append(_line(f"{split} {name}", text))
    return lines


def format_mean(over_clients: Mapping[str, Any] | None, metric: str | None) -> str:
    """Format a mean over clients of accuracy (None), or of another metric."""
    mean = (over_clients or {}).get("mean")
    return format_percent(mean) if metric is None or mean is None else f"{mean:.4g}"


def _architecture_lines(architectures: Mapping[str, Any], metric: str | None) -> list[str]:
    """Return the mean accuracies, or the means of another metric, of several architectures."""
    if len(architectures) < 2:
        return []
    width, lines = max(map(len, architectures)), list[str]()
    for name, of in architectures.items():
        local, common = (
            format_mean(of.get(f"{metric or 'accuracy'}_{s}"), metric) for s in ("local", "global")
        )
        told = f"{name:<{width}}  {_clients(of['clients'])}  local {local:>7}  global {common:>7}"
        lines.append(_line("" if lines else "architectures", told))
    return lines


def _clients(number: int) -> str:
    return f"{number:>3} {'client' if number == 1 else 'clients':<7}"


def _spread(over_clients: Mapping[str, Any] | None) -> str:
    if over_clients is None or over_clients.get("mean") is None:
        return MISSING_VALUE
    text = format_percent(over_clients["mean"])
    if over_clients.get("std") is not None:
        text += f", over clients: sd {100 * over_clients['std']:.1f}"
    if over_clients.get("min") is not None and over_clients.get("max") is not None:
        text += f", {100 * over_clients['min']:.1f} to {100 * over_clients['max']:.1f}"
    return text


def _continual_lines(table: Mapping[str, Any] | None) -> list[str]:
    """Return the lines about a stream: accuracies with and without the task given, and storage."""
    if table is None:
        return []
    tests = [name.removeprefix(AVERAGE) for name in table if name.startswith(AVERAGE)]
    tests = [test for test in tests if test.endswith("incremental")]
    tasks = table["tasks"]
    clients = max((of["n"] for of in table.values() if isinstance(of, Mapping) and "n" in of), default=0)
    rows = [(f"{tasks} task{'s' * (tasks != 1)}", [protocol_name(test) for test in tests])]
    for label, name, word in (
        ("avg. accuracy", "average_accuracy", format_percent),
        ("BWT", "bwt", format_points),
        ("forgetting", "forgetting", format_points),
    ):
        rows.append((label, [_with_worst(table.get(f"{name}_{test}"), word, clients) for test in tests]))
    width = max(len(cells[0]) for _, cells in rows)
    lines = [_line(label, "  ".join(f"{cell:<{width}}" for cell in cells)).rstrip() for label, cells in rows]
    if (rate := table.get("task_inference_rate")) is not None:
        lines.append(_line("task inference", _with_worst(rate, format_percent, clients)))
    stored, most = table.get("stored_bytes_per_task"), table.get("peak_bytes")
    if stored is not None and most is not None:
        lines.append(
            _line(
                "stored",
                f"{format_bytes(stored['mean'])} per task and client, at most {format_bytes(most['max'])}",
            )
        )
    given, unknown = (table.get(AVERAGE + test) for test in tests)
    if given is not None and unknown is not None and given["mean"] < unknown["mean"] - 1e-9:
        lines.append(
            "warning: accuracy is lower with the task given than without it; please report this error"
        )
    return lines


def _with_worst(over_clients: Mapping[str, Any] | None, word: Callable[[float], str], clients: int) -> str:
    """Format a mean over clients with its worst: `-0.8 pt (worst -1.7 pt, 2 of 5 clients)`."""
    if over_clients is None:
        return MISSING_VALUE
    notes = [f"worst {word(over_clients['worst'])}"] if over_clients["std"] else []
    if (n := over_clients.get("n", clients)) < clients:
        notes.append(f"{n} of {_clients(clients).strip()}")
    return word(over_clients["mean"]) + (f" ({', '.join(notes)})" if notes else "")
