"""The data of a scenario, or of every task of its stream."""

from fedkd.data.federated import FederatedData, load_federated_data
from fedkd.data.request import ProgressCallback
from fedkd.data.streams.stream import FederatedStream, load_stream
from fedkd.scenario import Scenario

Data = FederatedData | FederatedStream


def load_data(scenario: Scenario, progress: ProgressCallback | None = None) -> Data:
    """Load all data of a scenario (see `load_federated_data` and `load_stream`)."""
    return (load_federated_data if scenario.continual is None else load_stream)(scenario, progress)


def first_task(data: Data) -> FederatedData:
    """Return the data of a federation, or of the first task of a stream."""
    return data if isinstance(data, FederatedData) else data[0].data


def task_names(data: Data) -> tuple[str, ...]:
    """Return the names of a stream's tasks; none without a stream."""
    return tuple(task.name for task in data) if isinstance(data, FederatedStream) else ()
