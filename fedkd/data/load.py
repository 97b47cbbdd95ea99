"""The data of a scenario, or of every task of its stream."""

from pathlib import Path
from typing import Any

from fedkd.data.federated import FederatedData, load_federated_data
from fedkd.data.request import ProgressCallback, data_root_folder
from fedkd.data.streams.stream import FederatedStream, load_stream
from fedkd.scenario import Scenario
from fedkd.storage import once_for_runs

Data = FederatedData | FederatedStream

DECISIVE: dict[str, Any] = {
    **dict.fromkeys(("seed", "data", "heterogeneity", "plugins", "plugin_path"), True),
    "continual": {"tasks", "head"},
}
"""Keys of a scenario that decide its data."""


def load_data(scenario: Scenario, progress: ProgressCallback | None = None) -> Data:
    """Load all data of a scenario (see `load_federated_data` and `load_stream`)."""
    load = load_federated_data if scenario.continual is None else load_stream
    places = data_root_folder(scenario.data.root), Path.cwd()
    key = ("data", places, scenario.model_dump_json(include=DECISIVE))
    return once_for_runs(key, lambda: load(scenario, progress), _size)


def _size(data: Data) -> int:
    parts = [data] if isinstance(data, FederatedData) else [task.data for task in data]
    return sum(array.nbytes for part in parts for array in (part.x, part.transfer_x, part.test_x))


def first_task(data: Data) -> FederatedData:
    """Return the data of a federation, or of the first task of a stream."""
    return data if isinstance(data, FederatedData) else data[0].data


def task_names(data: Data) -> tuple[str, ...]:
    """Return the names of a stream's tasks; none without a stream."""
    return tuple(task.name for task in data) if isinstance(data, FederatedStream) else ()
