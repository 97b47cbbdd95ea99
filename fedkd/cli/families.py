"""Families and requirements of strategies and learners, for the one-line lists."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fedkd.plugins import Outline

if TYPE_CHECKING:
    from fedkd.fusion import Capabilities

Line = tuple[str, str, str]  # requirements, name and summary of a part
FLOWERS = "Weight averaging by Flower"
BASELINES, PUBLIC, STATISTICS, WEIGHTS, SECOND, STREAMS = FAMILIES = (
    "Baselines",
    "Predictions on public data",
    "Class statistics, no public data",
    "Weight averaging",
    "A second model on each client",
    "Streams of tasks",
)
"""Families of fedkd's own strategies, in the order of the list."""
REPLAY, OWN, ONE = LEARNER_FAMILIES = (
    "Replay of old samples",
    "Task-specific weights",
    "One model for all tasks",
)
"""Families of learners, in the order of the list."""
NEEDS = {
    "gradients": "neural networks as client models",
    "adapter": "adapters of all clients, on one base",
    "one_architecture": "one architecture",
    "masks": "a stream of tasks whose learner has masks (supsup, exssnet)",
    "features": "models with penultimate features and a head",
    "plain_sgd": 'training.optimizer = "sgd" without momentum',
    "transfer_labels": "labels of the transfer set on the server",
    "server": "a server model",
    "equal_features": "the same feature width for all clients",
    "linear_head": "a linear head",
    "class_stream": "a class-incremental stream in lockstep",
    "normalised_samples": "normalised samples",
    "parts": "models with a body and a `head`",
    "like_heads": "heads of the same shape",
    "three_classes": "at least three classes",
}
"""Requirements of a strategy in words; `weights` is missing, as clients send them."""
SHORT = {
    "transfer_labels": "labelled public data",
    "server": "server model",
    "adapter": "adapters",
    "one_architecture": "one architecture",
    "masks": "a learner with masks",
    "class_stream": "class-incremental stream",
    "linear_head": "linear heads",
    "parts": "body and head",
    "equal_features": "equal feature width",
    "plain_sgd": "plain SGD",
    "graph": "no server",
}
"""Short forms for the list, of the requirements that distinguish strategies."""
WIDEST = 96  # characters of a summary in a list


def told_of_strategy(strategy: Any, can: Capabilities) -> tuple[str, str]:
    """Return a strategy's family and its further requirements."""
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
    """Return the family of a learner, a class or its outline."""
    if isinstance(learner, Outline):
        bodies = _bodies(learner)
        replays = any(name in body for name in ("memory_size", "batch") for body in bodies)
        traits = [ast.unparse(body["traits"]) for body in bodies if "traits" in body]
        isolates = any("isolates=True" in declared for declared in traits)
    else:
        names = {field.name for field in fields(learner)}
        replays = "memory_size" in names or learner.overrides("batch")
        isolates = learner.traits.isolates
    return REPLAY if replays else OWN if isolates else ONE


def has_note(part: Any) -> bool:
    """Return whether a strategy or learner, a class or its outline, notes a departure from its paper."""
    if isinstance(part, Outline):
        return any("source_note" in body for body in _bodies(part))
    return bool(part.source_note)


def _bodies(learner: Outline) -> list[Mapping[str, ast.stmt]]:
    return [base.members() for base in learner.lineage() if base.name != "Learner"]


def grouped(families: Mapping[str, Sequence[Line]], order: Sequence[str], what: str) -> Iterator[str]:
    """Yield a heading per family and a line per part, fewest requirements first."""
    for family in dict.fromkeys([*(name for name in order if name in families), *families]):
        yield family
        for needed, name, text in sorted(families[family], key=lambda line: line[0]):
            short = text if len(text) <= WIDEST else f"{text[: WIDEST - 1].rstrip()}…"
            yield f"{f'  {name}':<23} {short}" + f" [{needed}]" * bool(needed)
    yield ""
    yield "*: differs from its paper, or has none; see its details."
    yield f"[…]: requirements. Hyper-parameters and paper: fedkd list {what} NAME"
