"""Families of strategies and learners, for lists of a line each: what clients send, and what is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedkd.fusion import Capabilities

Line = tuple[str, str, str]  # what a part needs, its name, and what it does
FLOWERS = "Averages of all weights, by Flower"
BASELINES, PUBLIC, STATISTICS, WEIGHTS, SECOND, STREAMS = FAMILIES = (
    "Baselines",
    "Predictions on public data",
    "Statistics of classes, no public data",
    "Weights",
    "A second model at each client",
    "Streams of tasks",
)
"""Families of fedkd's own strategies, in the order of a list."""
REPLAY, OWN, ONE = LEARNER_FAMILIES = (
    "Samples of old tasks",
    "Weights of each task's own",
    "One model, protected or not",
)
"""Families of learners, in the order of a list."""
NEEDS = {
    "gradients": "networks as client models",
    "one_architecture": "one architecture",
    "masks": "a stream of tasks whose learner has masks (supsup, exssnet)",
    "features": "penultimate features and a head",
    "plain_sgd": 'training.optimizer = "sgd" without momentum',
    "transfer_labels": "labels of the transfer set on the server",
    "server": "a server with a model of its own",
    "equal_features": "features of one width for all clients",
    "linear_head": "a head that is one linear layer",
    "class_stream": "a class-incremental stream in lockstep",
    "normalised_samples": "normalised samples",
    "parts": "models with a body and a `head`",
    "like_heads": "heads of one shape",
    "three_classes": "three classes or more",
}
"""What a strategy may need of clients and server, for people; weights are what clients send."""
SHORT = {
    "transfer_labels": "labelled public data",
    "server": "server model",
    "one_architecture": "one architecture",
    "masks": "masks of a learner",
    "class_stream": "class-incremental stream",
    "linear_head": "linear heads",
    "parts": "body and head",
    "equal_features": "features of one width",
    "plain_sgd": "plain SGD",
    "graph": "no server",
}
"""The same in a list of a line each, of those that set strategies apart."""
WIDEST = 96  # letters that a list has for what a part does


def told_of_strategy(strategy: Any, can: Capabilities) -> tuple[str, str]:
    """Return a strategy's family, by what its clients send, and what it needs besides."""
    from fedkd.fusion import overrides_hook

    in_turn = (
        (can.sends == "nothing", BASELINES),
        (can.learner is not None or {"masks", "class_stream"} & can.needs, STREAMS),
        (overrides_hook(strategy, "aux_networks"), SECOND),
        ("weights" in can.needs, WEIGHTS),
        (can.uses_transfer_set, PUBLIC),
    )
    family = next((family for fits, family in in_turn if fits), STATISTICS)
    public = ["public data"] * (can.uses_transfer_set and family != PUBLIC)
    return family, ", ".join(public + [text for need, text in SHORT.items() if need in can.needs])


def family_of_learner(learner: Any) -> str:
    """Return a learner's family, by what it keeps of old tasks."""
    names = {field.name for field in fields(learner)}
    if "memory_size" in names or learner.overrides("batch"):
        return REPLAY
    return OWN if learner.traits.isolates else ONE


def grouped(families: Mapping[str, Sequence[Line]], order: Sequence[str], what: str) -> Iterator[str]:
    """Yield parts in lines, a heading for each family; those that need least come first."""
    for family in dict.fromkeys([*(name for name in order if name in families), *families]):
        yield family
        for needed, name, text in sorted(families[family], key=lambda line: line[0]):
            short = text if len(text) <= WIDEST else f"{text[: WIDEST - 1].rstrip()}…"
            yield f"{f'  {name}':<23} {short}" + f" [{needed}]" * bool(needed)
    yield ""
    yield "*: departs from its paper, or no paper was found; the details say how."
    yield f"[…]: what it needs. Hyper-parameters and paper of one: fedkd list {what} NAME"
