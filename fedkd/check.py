"""``fedkd check``: everything that can be wrong before the first round, found without training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedkd.catalogue import toml_value
from fedkd.errors import UserError

if TYPE_CHECKING:
    from fedkd.data.federated import FederatedData
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
    yield _row("scenario", f"{scenario.name}, {scenario.rounds} rounds, seed {scenario.seed}")
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
    yield _row("traffic", _traffic(scenario, data, sampled, max(parameters)))


def _row(label: str, text: str) -> str:
    return f"{label:<10}{text}"


def _data_rows(scenario: Scenario, data: FederatedData) -> Iterator[str]:
    shape = "×".join(map(str, data.input_shape))
    testing = f"{len(data.test_y):,} in the common test set"
    yield _row("data", f"{data.name}: {data.classes} classes, samples of {shape}, {testing}")
    partition = scenario.data.partition
    drawn = partition.scheme in ("dirichlet", "dirichlet-per-client", "quantity")
    alpha = f", alpha = {partition.alpha:g}" if drawn else ""
    yield _row("partition", f"{partition.scheme}{alpha}, {data.num_clients} clients")
    for split, bounds in (("train", data.train_bounds), ("local test", data.test_bounds)):
        yield _row("", f"{split} samples per client: {_spread([stop - start for start, stop in bounds])}")
    yield _row("transfer", f"{len(data.transfer_x):,} samples from {scenario.data.transfer.source}")


def _spread(sizes: Sequence[int]) -> str:
    return f"min {min(sizes):,}, median {np.median(sizes):,.0f}, max {max(sizes):,}"


def _models(scenario: Scenario, data: FederatedData) -> Iterator[tuple[str, int]]:
    """Build one model of every group; yield its line and its number of parameters."""
    from fedkd.models.build import build_model, client_models, count_parameters

    clients = Counter(map(id, client_models(scenario)))
    for index, group in enumerate(scenario.clients):
        try:
            model = build_model(
                group, data.input_shape, data.classes, seed=0, plugin_path=scenario.plugin_path
            )
        except UserError as error:
            key = (error.key or "clients.model").replace("clients.", f"clients.{index}.", 1)
            raise UserError(error.message, key=key, file=error.file) from error
        count = count_parameters(model)
        args = f" ({_pairs(group.args)})" if group.args else ""
        yield f"{group.model}{args}: {clients[id(group)]} clients, {count:,} parameters", count


def _pairs(values: dict) -> str:
    return ", ".join(f"{name} = {toml_value(value)}" for name, value in values.items())


def _traffic(scenario: Scenario, data: FederatedData, sampled: int, parameters: int) -> str:
    """Estimate the payload of one round, all clients together."""
    from fedkd.fusion.registry import load_strategy_class
    from fedkd.scenario.hyperparameters import FLOWER_PREFIX

    strategy = scenario.fusion.strategy
    if strategy.startswith(FLOWER_PREFIX):
        return f"about {_size(sampled * parameters * 4)} up and down in a round (parameters)"
    if load_strategy_class(strategy, scenario.plugin_path).sends == "nothing":
        return "none"
    values = sampled * len(data.transfer_x) * data.classes
    up = values * np.dtype(scenario.fusion.upload_dtype).itemsize
    return f"about {_size(up)} up, {_size(values * 4)} down in a round (logits, guidance)"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
