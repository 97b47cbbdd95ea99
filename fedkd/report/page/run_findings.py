"""Three sentences on a run: the effect of fusion, the clients that gained, and the cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from statistics import fmean

from fedkd.continual import StreamOutcome
from fedkd.plan import poisoned_clients
from fedkd.report.metrics import Metric
from fedkd.report.page.cost import known
from fedkd.report.page.record import RunRecord, main_metric
from fedkd.tracking import count_noun, format_bytes, format_duration, format_percent, protocol_name

ACCURACY = main_metric("accuracy")
CENTRALIZED = "centralized"
SPLITS = ("global", "local")  # the first one measured is the main one
EPSILON = 1e-9  # points; less is a rounding error


@dataclass(frozen=True)
class Change:
    """The main metric of the same clients before and after the fusion of one round."""

    split: str
    model: str  # a separately measured one; empty: the evaluated model
    round: int
    before: dict[int, float]  # by client
    after: dict[int, float]
    main: Metric = ACCURACY

    @property
    def gains(self) -> dict[int, float]:
        """Value after fusion minus value before it, by client: points of accuracy."""
        scale = self.main.scale
        return {client: scale * (after - self.before[client]) for client, after in self.after.items()}

    @property
    def mean(self) -> float:
        """Mean change over the clients."""
        return fmean(self.gains.values())


def run_findings(record: RunRecord, outcome: StreamOutcome | None = None) -> list[str]:
    """Return the sentences; fewer, if something was not measured.

    Args:
        record: The run, finished or not.
        outcome: Of a stream of tasks.
    """
    found = [change for split in SPLITS if (change := last_change(record, split)) is not None]
    if not found:
        effect, clients = _without_fusion(record)
    elif _moved(record):
        effect, clients = _effect(record, found), _clients(found[0])
    else:
        effect, clients = _unmoved(record, found[0])
    if outcome is not None and record.done:
        clients = _stream(outcome) or clients
    return [sentence for sentence in (effect, clients, _cost(record)) if sentence] if effect else []


def last_change(record: RunRecord, split: str, model: str = "") -> Change | None:
    """Return the last fusion that was measured on a split, of the clients that it reached."""
    of_model = f"_{model}" if model else ""
    gains, before, after = (
        record.series(split, metric).clients
        for metric in ("fusion_gain", *(f"{name}{of_model}" for name in record.moments.values()))
    )
    for round in sorted(gains, reverse=True):
        known_before, known_after = before.get(round, {}), after.get(round, {})
        reached = gains[round].keys() & known_before.keys() & known_after.keys() & record.counted
        if reached:
            clients = sorted(reached)
            earlier, later = ({c: known[c] for c in clients} for known in (known_before, known_after))
            return Change(split, model, round, earlier, later, record.main)
    return None


def _moved(record: RunRecord) -> bool:
    """Return whether any fusion changed an accuracy of the evaluated model at once."""
    measured = (record.series(split, "fusion_gain").clients for split in SPLITS)
    return any(gain for rounds in measured for gains in rounds.values() for gain in gains.values())


def _unmoved(record: RunRecord, main: Change) -> tuple[str, str]:
    """Return the sentences if fusion touches another model, or acts in the next training alone."""
    after, n = _shown(fmean(main.after.values()), main.main), len(main.gains)
    what = _accuracy(record, main.split, n)
    for model in record.models_told_apart:
        other = [change for split in SPLITS if (change := last_change(record, split, model)) is not None]
        if any(gain for change in other for gain in change.gains.values()):
            told = "Fusion leaves the evaluated model as it is until the next local training"
            return _effect(record, other), f"{told}: {what} is {after}."
    effect = f"{what[0].upper()}{what[1:]} is {after} before and after fusion in round {main.round}"
    told = f"Fusion changed no measured {main.main.title} at once;"
    told += " effects can only show after the next local training."
    return f"{effect} ({_of(record, n)}).", told


def _effect(record: RunRecord, found: list[Change]) -> str:
    """Return the sentence on the mean change, on both splits if the same fusion was measured."""
    main, points = found[0], _points(found[0].mean, record.main)
    what = _accuracy(record, main.split, len(main.gains))
    what += f" of the {main.model} model" if main.model else ""
    reached, everyone = len(main.gains), len(record.counted)
    of_all = f"the {reached} of {everyone} {_noun(record)} that took part"
    who = _of(record, reached) if reached == everyone else of_all
    before, after = (_shown(fmean(values.values()), record.main) for values in (main.before, main.after))
    if points == 0:
        told = f"Fusion left {what} unchanged in round {main.round} ({after}, {who})"
    else:
        told = f"Fusion {_verb(points)} {what} by {_size(points, record.main)} in round {main.round}"
        told += f" ({before} before, {after} after, {who})"
    if len(found) > 1 and found[1].round == main.round and found[1].after.keys() == main.after.keys():
        points = _points(found[1].mean, record.main)
        changed = f"it {_verb(points)} the {found[1].split} one by {_size(points, record.main)}"
        told += f"; {changed}" if points else f"; the {found[1].split} one is unchanged"
    return f"{told}."


def _clients(change: Change) -> str:
    """Return the sentence on the clients that gained, and the one that lost or gained most."""
    sign, main = -1.0 if change.main.better == "lower" else 1.0, change.main
    gains, n = {client: sign * gain for client, gain in change.gains.items()}, len(change.gains)
    if n == 1:
        return ""
    gained, lost = (
        sum(gain > EPSILON for gain in gains.values()),
        sum(gain < -EPSILON for gain in gains.values()),
    )
    if not gained and not lost:
        return f"The {change.split} {main.title} of every client is unchanged."
    worst, best = min(gains, key=lambda c: (gains[c], c)), max(gains, key=lambda c: (gains[c], -c))
    told = f"{_share(gained, n)} gained in {change.split} {main.title}"
    if lost:
        return f"{told}; client {worst} lost most ({signed(sign * gains[worst], main)})."
    most = f"client {best} gained most ({signed(sign * gains[best], main)})"
    return f"{told}{', and none lost' if gained < n else ''}; {most}."


def _share(number: int, n: int) -> str:
    return f"All {n} clients" if number == n else f"{number} of {n} clients" if number else "No client"


def _without_fusion(record: RunRecord) -> tuple[str, str]:
    """Return the sentences on accuracy and its range over clients, without a measured fusion."""
    split = next((split for split in SPLITS if record.series(split, record.main.name).means), None)
    if split is None:
        return "", ""
    series, strategy = record.series(split, record.main.name), record.scenario.fusion.strategy
    round = series.rounds[-1]
    values = {c: value for c, value in series.clients.get(round, {}).items() if c in record.counted}
    n = len(values) or len(record.counted)
    why = "Without fusion" if not _total(record, "bytes_up") else "Without a measurement before fusion"
    if strategy == CENTRALIZED:
        why = "With one model on the samples of all clients"
    reached = _shown(series.means[round], record.main)
    told = f"{why} (strategy {strategy}), {_accuracy(record, split, n)} is {reached} in round {round}"
    told += f" ({_of(record, n)})."
    if len(set(values.values())) < 2:
        return told, ""
    worst, best = min(values, key=lambda c: (values[c], c)), max(values, key=lambda c: (values[c], -c))
    ends = (f"{_shown(values[client], record.main)} (client {client})" for client in (worst, best))
    return told, f"Clients range from {' to '.join(ends)}."


def _stream(outcome: StreamOutcome) -> str:
    """Return the sentence on average accuracy and backward transfer of a stream, over clients."""
    figures = outcome.figures()
    accuracy, transfer = (
        [value for value in figures.get(name, {}).values() if not isnan(value)]
        for name in ("average_accuracy", "bwt")
    )
    if not accuracy:
        return ""
    told = f"After {count_noun(outcome.tasks, 'task')}, the average accuracy is"
    told += f" {format_percent(fmean(accuracy))}"
    if transfer:
        told += f" and backward transfer is {signed(100 * fmean(transfer))}"
    return f"{told} ({protocol_name(outcome.evaluation)}, {count_noun(len(accuracy), 'client')})."


def _cost(record: RunRecord) -> str:
    """Return the sentence on bytes of a client and the time of the run."""
    if not record.timings:
        return ""
    up, down = (_total(record, key) / len(record.models) for key in ("bytes_up", "bytes_down"))
    sent, received = format_bytes(up), format_bytes(down)
    rounds = f"In {count_noun(record.last_round, 'round')}, a client"
    if record.scenario.fusion.strategy == CENTRALIZED:
        told = "All samples are in one place"
    elif not up and not down:
        told = "Clients sent nothing"
    elif record.topology:
        told = f"{rounds} sent {sent} to its neighbours on average"
    elif sent == received:
        told = f"{rounds} sent and received {sent} on average"
    else:
        told = f"{rounds} sent {sent} and received {received} on average"
    final = {} if record.summary is None else record.summary["final"]
    simulated = final.get("virtual_seconds")
    clock = "" if simulated is None else f", {format_duration(simulated)} of simulated time"
    if record.summary is not None:
        return f"{told}; the run took {format_duration(record.summary['seconds'])}{clock}."
    return f"{told}; the run took {format_duration(_total(record, 'seconds'))} so far."


def _total(record: RunRecord, key: str) -> float:
    return sum(known(row.get(key)) for row in record.timings if isinstance(row, Mapping))


def signed(points: float, main: Metric = ACCURACY) -> str:
    """Format a difference of accuracies: `−2.1 points`; or of another metric."""
    told = f"{_points(points, main):+.{main.decimals}f} {main.difference_unit}"
    return told.rstrip().replace("-", "−")


def _shown(value: float, main: Metric) -> str:
    return f"{main.scale * value:.{main.decimals}f} {main.unit}".rstrip()


def _size(points: float, main: Metric) -> str:
    return f"{abs(points):.{main.decimals}f} {main.difference_unit}".rstrip()


def _points(value: float, main: Metric = ACCURACY) -> float:
    # Adding 0.0 turns a rounded -0.0 into 0.0: "−0.0" would claim a loss.
    return round(value, main.decimals) + 0.0


def _verb(points: float) -> str:
    return "raised" if points > 0 else "lowered"


def _accuracy(record: RunRecord, split: str, clients: int) -> str:
    samples = "test" if record.scenario.data.validation is None else "validation"
    of_stream = " over the tasks so far" if record.scenario.continual is not None else ""
    return f"the {'mean ' * (clients > 1)}{split} {samples} {record.main.title}{of_stream}"


def _noun(record: RunRecord) -> str:
    """Return the word for the clients that count in means."""
    if len(record.counted) == len(record.models):
        return "clients"
    return "honest clients" if poisoned_clients(record.scenario) else "evaluated clients"


def _of(record: RunRecord, number: int) -> str:
    return f"1 {_noun(record)[:-1]}" if number == 1 else f"{number:,} {_noun(record)}"
