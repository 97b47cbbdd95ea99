"""Decorators that register your own parts by name, like built-in ones.

In ``mine.py``, beside the scenario file::

    from fedkd import register

    @register.model("tiny")
    def tiny(input_shape, classes, *, width=16):
        ...

and in the scenario::

    plugins = ["mine"]

    [[clients]]
    model = "tiny"

A name that is already taken is refused.
"""

from collections.abc import Callable
from typing import Any, TypeVar

Part = TypeVar("Part", bound=Callable[..., Any])


def strategy(name: str) -> Callable[[Part], Part]:
    """Register a dataclass derived from `fedkd.fusion.strategy.FusionStrategy`."""
    from fedkd.fusion import STRATEGIES

    return STRATEGIES.register(name)


def learner(name: str) -> Callable[[Part], Part]:
    """Register a dataclass derived from `fedkd.continual.learner.Learner`."""
    from fedkd.continual import LEARNERS

    return LEARNERS.register(name)


def model(name: str) -> Callable[[Part], Part]:
    """Register a ``factory(input_shape, classes, **args)`` that returns a `torch.nn.Module`."""
    from fedkd.models import MODELS

    return MODELS.register(name)


def partition(name: str) -> Callable[[Part], Part]:
    """Register a ``function(labels, clients, generator, **args)`` that returns index arrays, one a client."""
    from fedkd.data import PARTITIONS

    return PARTITIONS.register(name)


def metric(name: str) -> Callable[[Part], Part]:
    """Register a ``function(probabilities, targets)`` that returns a number."""
    from fedkd.training import METRICS

    return METRICS.register(name)


def dataset(name: str) -> Callable[[Part], Part]:
    """Register a ``function(**args)`` that returns ``(train_x, train_y, test_x, test_y)``."""
    from fedkd.data import DATASETS

    return DATASETS.register(name)
