"""``fedkd check``: everything that can be wrong before the first round, found without training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedkd.catalogue import toml_value
from fedkd.tracking.wording import size

if TYPE_CHECKING:
    from fedkd.data.federated import FederatedData
    from fedkd.data.heterogeneity import Skew
    from fedkd.scenario.schema import Scenario


def check(scenario: Scenario, progress: Callable[[str], None] | None = None) -> Iterator[str]:
    """Load the data and deal it out, build every model and the strategy; yield what was found, a line each.

    Args:
        scenario: What to check.
        progress: Told what takes long, such as a download.

    Raises:
        UserError: The first thing that would stop a run.
    """
    from fedkd.data.federated import load_federated_data

    sampled = scenario.clients_per_round or scenario.data.clients
    yield _row("scenario", f"{scenario.name}, {_counted(scenario.rounds, 'round')}, seed {scenario.seed}")
    data = load_federated_data(scenario, progress)
    yield from _data_rows(scenario, data)
    parameters = []
    for text, count in _models(scenario, data):
        parameters.append(count)
        yield _row("model", text)
    hyperparameters = _pairs(scenario.fusion.model_extra or {})
    yield _row("strategy", f"{scenario.fusion.strategy}{': ' * bool(hyperparameters)}{hyperparameters}")
    yield _row("engine", scenario.engine.kind)
    yield _row("clients", f"{sampled} of {scenario.data.clients} train in a round")
    yield _row("traffic", _traffic(scenario, data, max(parameters)))


def _row(label: str, text: str) -> str:
    return f"{label:<10}{text}"


def _data_rows(scenario: Scenario, data: FederatedData) -> Iterator[str]:
    shape = "×".join(map(str, data.input_shape))
    testing = f"{len(data.test_y):,} in the common test set"
    yield _row("data", f"{data.name}: {data.classes} classes, samples of {shape}, {testing}")
    partition = scenario.data.partition
    drawn = partition.scheme in ("dirichlet", "dirichlet-per-client", "quantity")
    alpha = f", alpha = {partition.alpha:g}" if drawn else ""
    yield _row("partition", f"{partition.scheme}{alpha}, {_counted(data.num_clients, 'client')}")
    for split, bounds in (("train", data.train_bounds), ("local test", data.test_bounds)):
        yield _row("", f"{split} samples per client: {_spread([stop - start for start, stop in bounds])}")
    yield _row("", f"label skew: {_skew(data.label_distribution())}")
    if data.skew:
        yield _row("", f"clients differ by {_differences(data.skew)}")
    yield _row("transfer", f"{_counted(len(data.transfer_x), 'sample')} from {scenario.data.transfer.source}")


def _skew(shares: np.ndarray) -> str:
    """Word how far clients are from seeing all classes equally.

    Args:
        shares: Share of every class among each client's training labels, [N, C].
    """
    seen = np.median((shares > 0).sum(axis=1))
    # The exponential of the entropy: the number of equally frequent classes that would be as varied.
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    effective = np.median(np.exp(-(shares * logs).sum(axis=1)))
    return f"a client sees {seen:g} of {shares.shape[1]} classes, effectively {effective:.1f} (medians)"


def _differences(skews: Sequence[Skew]) -> str:
    """Word what was drawn for the clients, from the least to the most."""
    columns = {
        "rotation {:+.0f}° to {:+.0f}°": [skew.angle for skew in skews],
        "noise {:.2f} to {:.2f}": [skew.noise for skew in skews],
        "colour ×{:.2f} to ×{:.2f}": [factor for skew in skews for factor in skew.colour],
        "wrong training labels {:.0%} to {:.0%}": [skew.label_noise for skew in skews],
    }
    return ", ".join(text.format(min(drawn), max(drawn)) for text, drawn in columns.items() if any(drawn))


def _spread(sizes: Sequence[int]) -> str:
    return f"min {min(sizes):,}, median {np.median(sizes):,.0f}, max {max(sizes):,}"


def _models(scenario: Scenario, data: FederatedData) -> Iterator[tuple[str, int]]:
    """Build one model of every group; yield its line and its number of parameters."""
    from torch import nn

    from fedkd.federation.requirements import check_requirements
    from fedkd.models.build import build_group_models, client_models, count_parameters

    clients = Counter(map(id, client_models(scenario)))
    models = build_group_models(scenario, data.input_shape, data.classes)
    check_requirements(scenario, data, models)
    for group, model in zip(scenario.clients, models, strict=True):
        if not isinstance(model, nn.Module):
            yield f"{group.model}: {_counted(clients[id(group)], 'client')}, {type(model).__name__}", 0
            continue
        count = count_parameters(model)
        args = f" ({_pairs(group.args)})" if group.args else ""
        yield f"{group.model}{args}: {_counted(clients[id(group)], 'client')}, {count:,} parameters", count


def _pairs(values: dict) -> str:
    return ", ".join(f"{name} = {toml_value(value)}" for name, value in values.items())


def _traffic(scenario: Scenario, data: FederatedData, parameters: int) -> str:
    """Estimate the payload of a round that is evaluated, all clients together."""
    from fedkd.federation.participant import fusion_strategy

    everyone = scenario.data.clients
    sampled = scenario.clients_per_round or everyone
    strategy = fusion_strategy(scenario)
    if strategy is None:
        # Those that train receive parameters and send theirs; everyone receives the new ones for evaluation.
        up, down = sampled * parameters * 4, (sampled + everyone) * parameters * 4
        return f"about {size(up)} up, {size(down)} down in a round (parameters)"
    if strategy.sends == "nothing":
        return "none"
    if "weights" in strategy.needs:
        return f"at least {size(sampled * parameters * 4)} up and as much down in a round ({strategy.sends})"
    values = sampled * len(data.transfer_x) * data.classes
    up, down = values * np.dtype(scenario.fusion.upload_dtype).itemsize, values * 4
    return f"about {size(up)} up, {size(down)} down in a round (logits up, guidance down)"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
