"""Strategies, learners, models, data sets and partitions: one section each, made of their own docstrings."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from fedkd.cli.catalogue import LIKE_ANY, NEEDS, SCHEME
from fedkd.continual.registry import LEARNERS, learner_hyperparameters
from fedkd.data.registry import DATASETS, PARTITIONS
from fedkd.data.request import SourceRequest
from fedkd.federation.flower_strategies import flower_hyperparameters, flower_strategy_names
from fedkd.fusion.capabilities import capabilities_of
from fedkd.fusion.registry import STRATEGIES, strategy_hyperparameters, strategy_source
from fedkd.models.registry import MODELS
from fedkd.plugins.schema import HyperParameter
from fedkd.scenario.schema import Partition
from reference import results
from reference.markdown import code, default, docstring, page, prose, table


def strategies_page() -> str:
    """Return the page of fusion strategies."""
    return page(
        "Strategies",
        "What `[fusion] strategy` may name. Hyper-parameters stand beside it in the same table; below are"
        " their defaults. What each upload holds, and how many bytes it has: [what leaves a"
        " client](uploads.md). A strategy of your own: [how to](../howto/strategy.md).",
        *(_strategy(name) for name in STRATEGIES.builtin),
        *_flower(),
    )


def learners_page() -> str:
    """Return the page of continual learners."""
    return page(
        "Learners",
        "What `[continual] learner` may name: how every client learns a stream of tasks. Hyper-parameters"
        " stand beside it in the same table. A learner of your own: [how to](../howto/learner.md).",
        *(_learner(name) for name in LEARNERS.builtin),
    )


def models_page() -> str:
    """Return the page of the zoo of models."""
    return page(
        "Models",
        "What `model` of an entry of `[[clients]]` may name; arguments go into `args`. A model of your own:"
        " [how to](../howto/model.md).",
        *(_model(name) for name in MODELS.builtin),
    )


def datasets_page() -> str:
    """Return the page of data sets."""
    return page(
        "Data sets",
        "What `[data] dataset` may name; arguments go into `data.args`. Files are looked for in `[data]"
        " root`, else `$FEDKD_DATA`, else the user's cache, which downloads go to. A data set of your own:"
        " [how to](../howto/dataset.md).",
        *(_dataset(name) for name in DATASETS.builtin),
    )


def partitions_page() -> str:
    """Return the page of partition schemes."""
    told = " ".join((Partition.model_fields["scheme"].description or "").split())
    explained = {found["name"]: found["what"] for found in SCHEME.finditer(told) if found["what"]}
    rows = [[code(name), explained.get(name) or LIKE_ANY.get(name, "")] for name in PARTITIONS.builtin]
    keys = [
        [code(name), default(field.get_default(call_default_factory=True)), prose(field.description or "")]
        for name, field in Partition.model_fields.items()
        if name != "scheme"
    ]
    return page(
        "Partitions",
        "How `[data.partition] scheme` deals the private samples to clients. A partition of your own:"
        " [how to](../howto/partition.md); what is dealt, and what is kept apart: [data](../data.md).",
        table(("scheme", "what a client gets"), rows),
        "What schemes can be told, in the same table of the scenario:",
        table(("key", "default", "what it is"), keys),
    )


def _strategy(name: str) -> str:
    strategy = STRATEGIES.load(name)
    can = capabilities_of(strategy)
    facts = [f"**Clients send** {prose(can.sends)}."]
    if can.audience:
        facts.append(f"**Guides** {prose(can.audience)}.")
    needed = [text for need, text in NEEDS.items() if need in can.needs]
    if can.learner is not None:
        needed.append(f"the learner `{can.learner}`")
    if needed:
        facts.append(f"**Needs** {', '.join(needed)}.")
    return _part(
        name,
        strategy,
        facts,
        strategy_hyperparameters(name),
        strategy_source(strategy),
        results.of_strategy(name),
    )


def _learner(name: str) -> str:
    learner = LEARNERS.load(name)
    facts = []
    if learner.traits.isolates:
        facts.append("Gives each task its own weights: strategies that average weights refuse it.")
    if learner.traits.scales_own_subspaces:
        facts.append("Scales each client's weights differently: strategies that average weights refuse it.")
    if learner.overrides("batch"):
        facts.append("Trains on old tasks too: strategies that change local training refuse it.")
    return _part(
        name, learner, facts, learner_hyperparameters(learner), learner.source(), results.of_learner(name)
    )


def _part(
    name: str, part: type, facts: list[str], parameters: list[HyperParameter], paper: str, found: str
) -> str:
    rows = [[code(p.name), p.type, default(p.default), prose(p.description)] for p in parameters]
    parts = [
        f"## {name}",
        docstring(part),
        "\n".join(f"- {fact}" for fact in facts),
        table(("hyper-parameter", "type and limits", "default", "what it is"), rows),
        f"*Paper:* {prose(paper)}" if paper else "",
        found,
    ]
    return "\n\n".join(text for text in parts if text)


def _flower() -> Iterator[str]:
    from flwr.serverapp import strategy as flower

    yield (
        '## Flower\'s own\n\nWith the prefix `flwr:`, as in `strategy = "flwr:FedAdam"`: those of the'
        " installed Flower that average a network's weights. Clients send their weights; all of them need"
        " networks of one architecture."
    )
    rows = []
    for name in flower_strategy_names():
        keys = [
            f"`{key}` (required)" if value is inspect.Parameter.empty else f"`{key} = {_plain(value)}`"
            for key, value in flower_hyperparameters(name).items()
        ]
        told = " ".join((inspect.getdoc(getattr(flower, name)) or "").partition("\n\n")[0].split())
        rows.append([code(f"flwr:{name}"), prose(told), ", ".join(keys) or "none"])
    yield table(("strategy", "what it is", "hyper-parameters"), rows)


def _plain(value: Any) -> str:
    return default(value).strip("`")


def _model(name: str) -> str:
    factory = MODELS.load(name)
    parameters = [p for p in inspect.signature(factory).parameters.values() if p.kind is not p.VAR_KEYWORD]
    described = _arguments(factory)
    rows = [
        [
            code(p.name),
            "required" if p.default is p.empty else default(p.default),
            prose(described.get(p.name, "")),
        ]
        for p in parameters[2:]
    ]
    return "\n\n".join(
        text
        for text in (
            f"## {name}",
            docstring(factory),
            table(("argument", "default", "what it is"), rows) or "No arguments.",
        )
        if text
    )


def _dataset(name: str) -> str:
    source = DATASETS.load(name)
    rows = [
        [
            code(key),
            "absent" if isinstance(value, type) else default(value),
            (value if isinstance(value, type) else type(value)).__name__,
        ]
        for key, value in _source_arguments(source, name).items()
    ]
    module = docstring(sys.modules[source.__module__])
    return "\n\n".join(
        text
        for text in (
            f"## {name}",
            module,
            docstring(source),
            table(("argument", "default", "type"), rows) or "No arguments.",
        )
        if text
    )


class _Asked(Exception):
    """Carries the arguments that a source asks for."""


class _Listener(SourceRequest):
    """A request that learns which arguments a source knows, instead of giving it any."""

    def arguments(self, **defaults: Any) -> NoReturn:
        """Tell who listens."""
        raise _Asked(defaults)


def _source_arguments(source: Any, name: str) -> dict[str, Any]:
    from pathlib import Path

    try:
        source(_Listener(name, Path()))
    except _Asked as asked:
        found: dict[str, Any] = asked.args[0]
        return found
    raise LookupError(f"data set '{name}' reads nothing of data.args, so it would take any argument")


def _arguments(function: Any) -> dict[str, str]:
    """Return what a docstring says of each argument."""
    found: dict[str, str] = {}
    lines = (inspect.getdoc(function) or "").partition("Args:\n")[2].splitlines()
    current = ""
    for line in lines:
        if not line.strip() or not line.startswith("    "):
            break
        if not line.startswith("        "):
            current, _, text = line.strip().partition(": ")
            found[current] = text
        elif current:
            found[current] += " " + line.strip()
    return found
