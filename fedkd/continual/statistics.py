"""Running statistics of normalisation layers, one set per task; the network holds the present set."""

import torch
from torch import Tensor, nn

from fedkd.continual.context import LearnerContext
from fedkd.continual.state import LearnerState, TableField
from fedkd.training import NormWithStatistics


class StatisticsState(LearnerState):
    """Running statistics of learned tasks, by task and buffer."""

    statistics = TableField()


def statistics_names(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the running statistics of all normalisation layers."""
    return tuple(
        f"{name}.{buffer}" if name else buffer
        for name, module in network.named_modules()
        if isinstance(module, NormWithStatistics)
        for buffer, values in module.named_buffers(recurse=False)
        if isinstance(values, torch.Tensor)
    )


def present_statistics(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's present running statistics: the buffers themselves."""
    buffers = dict(network.named_buffers())
    return {name: buffers[name] for name in statistics_names(network)}


def reset_statistics(network: nn.Module) -> None:
    """Reset to the statistics of an untrained network."""
    for module in network.modules():
        if isinstance(module, NormWithStatistics):
            module.reset_running_stats()


def keep_statistics(context: LearnerContext) -> None:
    """Store the network's statistics for the present task."""
    copies = {name: values.detach().clone() for name, values in present_statistics(context.network).items()}
    StatisticsState(context).statistics.put(copies, context.task)


def recall_statistics(context: LearnerContext, task: int) -> dict[str, Tensor]:
    """Return the statistics of a learned task, by the names of the buffers."""
    statistics = StatisticsState(context).statistics
    return {name: statistics[task, name] for name in statistics_names(context.network)}
