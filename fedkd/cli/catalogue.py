"""``fedkd list``: the names that a scenario can use, described by the code's docstrings."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fedkd.cli.doctor import TORCHVISION_FOLDERS, find_dataset
from fedkd.cli.families import (
    FAMILIES,
    FLOWERS,
    LEARNER_FAMILIES,
    NEEDS,
    SHORT,
    Line,
    family_of_learner,
    grouped,
    has_note,
    told_of_strategy,
)
from fedkd.errors import UserError, did_you_mean
from fedkd.plugins import HyperParameter, Outline, Registry, install_hint
from fedkd.scenario import (
    BENCH_FOLDER,
    KIND_PLURALS,
    InvalidToml,
    ShippedFile,
    ShippedKind,
    list_shipped,
    parse_toml,
    section_class,
    shipped_folder,
    toml_value,
)


def strategies() -> Iterator[str]:
    """Yield one line per fusion strategy, by family and requirements."""
    from fedkd.federation import flower_outlines
    from fedkd.fusion import STRATEGIES, capabilities_of

    families = _families(
        _parts(STRATEGIES), lambda strategy: told_of_strategy(strategy, capabilities_of(strategy))
    )
    for name, outline in flower_outlines().items():
        what = f"Flower's {_summary(outline)}"
        families.setdefault(FLOWERS, []).append((SHORT["one_architecture"], f"flwr:{name}", what))
    yield from grouped(families, FAMILIES, "strategies")
    yield ""
    aliases = (f"{alias} = {name}" for alias, name in STRATEGIES.aliases.items())
    yield f"Aliases: {', '.join(aliases)}"


def strategy_details() -> Iterator[str]:
    """Yield the details of every fusion strategy: messages, requirements, hyper-parameters, paper."""
    from fedkd.federation import flower_hyperparameters, flower_outlines
    from fedkd.fusion import (
        STRATEGIES,
        capabilities_of,
        load_strategy_class,
        strategy_hyperparameters,
        strategy_source,
    )

    for name, strategy in _parts(STRATEGIES):
        if isinstance(strategy, UserError):
            yield _row(name, f"cannot be used: {strategy}")
            continue
        can = capabilities_of(strategy)
        yield _row(name, f"{_summary(strategy)} Clients send {can.sends}.")
        if can.audience:
            yield _row("", f"  guides {can.audience}")
        needed = [text for need, text in NEEDS.items() if need in can.needs]
        needed += [f"the learner {can.learner}"] if can.learner is not None else []
        if needed:
            yield _row("", f"  needs {', '.join(needed)}")
        yield from _hyperparameter_rows(strategy_hyperparameters(name), strategy_source(strategy))
        if (own := load_strategy_class(name, gaussian=True)) is not strategy:
            yield _row("", f"  with data.task = 'regression': {_summary(own)}")
            yield from _hyperparameter_rows(strategy_hyperparameters(own), "")
    for name, outline in flower_outlines().items():
        yield _row(f"flwr:{name}", f"Flower's {_summary(outline)} Clients send parameters.")
        yield _row("", f"  needs {NEEDS['gradients']}, {NEEDS['one_architecture']}")
        for key, value in flower_hyperparameters(name).items():
            default = "required" if value is inspect.Parameter.empty else _default(value)
            yield _row("", f"  {key} = {default}")


def models() -> Iterator[str]:
    """Yield every model of the zoo with its arguments."""
    from fedkd.models import MODELS

    for name, factory in _parts(MODELS, MODELS.outline):
        if isinstance(factory, UserError):
            yield _row(name, f"cannot be used: {factory}")
            continue
        yield _row(name, _summary(factory))
        signature = factory.signature() if isinstance(factory, Outline) else inspect.signature(factory)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD][2:]
        args = [p.name + (f" = {toml_value(p.default)}" if p.default is not p.empty else "") for p in own]
        if args:
            yield _row("", f"  args: {', '.join(args)}")
    yield _row('"mod:factory"', "A plug-in: factory(input_shape, classes, **args) returns a torch.nn.Module.")


def learners() -> Iterator[str]:
    """Yield one line per continual learner, by family."""
    from fedkd.continual import LEARNERS

    families = _families(_parts(LEARNERS, LEARNERS.outline), lambda learner: (family_of_learner(learner), ""))
    yield from grouped(families, LEARNER_FAMILIES, "learners")


def _families(
    parts: Iterable[tuple[str, Any]], told: Callable[[Any], tuple[str, str]]
) -> dict[str, list[Line]]:
    families: dict[str, list[Line]] = {}
    for name, part in parts:
        if isinstance(part, UserError):
            families.setdefault("Cannot be used", []).append(("", name, str(part)))
            continue
        family, needed = told(part)
        starred = name + "*" * has_note(part)  # it differs from its paper, or has none
        families.setdefault(family, []).append((needed, starred, _summary(part)))
    return families


def details(what: str, name: str) -> Iterator[str]:
    """Yield the details of one part of a list."""
    from fedkd.continual import LEARNERS
    from fedkd.plan import canonical_strategy

    rows = {"strategies": strategy_details, "learners": learner_details}.get(what) or globals()[what]
    wanted = {"strategies": canonical_strategy, "learners": LEARNERS.canonical}.get(what, str)(name)
    names: list[str] = []
    for line in rows():
        if line and not line.startswith(" "):
            if wanted in names:
                return  # parts after it need not be imported
            names.append(line.split(maxsplit=1)[0])
        if line and wanted in names:
            yield line
    if wanted not in names:
        raise UserError(f"'{name}' is not among the {what}; {did_you_mean(name, names)}", key="NAME")


def learner_details() -> Iterator[str]:
    """Yield the details of every continual learner: restrictions, hyper-parameters, paper."""
    from fedkd.continual import LEARNERS, learner_hyperparameters
    from fedkd.fusion import STRATEGIES, capabilities_of

    found = {name: part for name, part in _parts(STRATEGIES) if not isinstance(part, UserError)}
    made_for = {capabilities_of(strategy).learner: name for name, strategy in found.items()}
    for name, learner in _parts(LEARNERS):
        if isinstance(learner, UserError):
            yield _row(name, f"cannot be used: {learner}")
            continue
        yield _row(name, _summary(learner))
        averages = "strategies that average weights refuse it"
        if learner.traits.isolates:
            but = f", except {made_for[name]}" if name in made_for else ""
            yield _row("", f"  gives each task its own weights: {averages}{but}")
        if learner.traits.scales_own_subspaces:
            yield _row("", f"  scales each client's weights differently: {averages}")
        if learner.overrides("batch"):
            yield _row("", "  trains on old tasks too: strategies that change local training refuse it")
        yield from _hyperparameter_rows(learner_hyperparameters(learner), learner.source())
    yield _row('"mod:Class"', "A plug-in: a dataclass derived from fedkd.continual.learner.Learner.")


def datasets() -> Iterator[str]:
    """Yield every data set and its folder."""
    from fedkd.data import DATASETS

    for name, source in _parts(DATASETS):
        if isinstance(source, UserError):
            yield _row(name, f"cannot be used: {source}")
            continue
        # The module of a built-in source describes it; a plug-in function has its own docstring.
        yield _row(name, _summary(sys.modules[source.__module__] if name in DATASETS.builtin else source))
        if name in TORCHVISION_FOLDERS:
            place = find_dataset(name)
            yield _row("", f"  found in {place}" if place else "  not found: downloaded on first use")
    yield _row('"mod:function"', "A plug-in: a function that returns the arrays.")


SCHEME = re.compile(r"`(?P<name>[\w-]+)`(?: \((?P<what>(?:[^()]|\([^()]*\))*)\))?")
"""A partition scheme and its explanation in the description of the key."""
LIKE_ANY = {"iid": "uniform random samples, equal sizes"}
"""Explanations that the description lacks."""


def partitions() -> Iterator[str]:
    """Yield every partition scheme, then the keys of all schemes."""
    from fedkd.data import PARTITIONS
    from fedkd.scenario import Partition

    told = " ".join((Partition.model_fields["scheme"].description or "").split())
    explained = {found["name"]: found["what"] for found in SCHEME.finditer(told) if found["what"]}
    for name, scheme in _parts(PARTITIONS):
        if name in PARTITIONS.builtin:
            what = explained.get(name) or LIKE_ANY.get(name, "")
            yield _row(name, f"{what[:1].upper()}{what[1:]}.")
        else:
            yield _row(name, _told(scheme))
    yield _row('"mod:function"', "A plug-in: function(labels, clients, generator, **args) returns indices.")
    yield ""
    for name, field in Partition.model_fields.items():
        if name != "scheme":
            default = _default(field.get_default(call_default_factory=True))
            yield _row(f"{name} = {default}", " ".join((field.description or "").split()))


def metrics() -> Iterator[str]:
    """Yield every metric in a line."""
    from fedkd.training import METRICS

    for name, function in _parts(METRICS):
        yield _row(name, _told(function))
    yield _row('"mod:function"', "Your own: function(probabilities, targets) returns a number.")


def loggers() -> Iterator[str]:
    """Yield every logger, its keys, and how to install it."""
    from fedkd.scenario import Tracking
    from fedkd.tracking import LOGGERS

    for name, kind in LOGGERS.items():
        yield _row(name, kind.summary)
        if not kind.is_there:
            how = install_hint(kind.extra) if kind.extra else f"pip install {kind.package}"
            yield _row("", f"  not installed; {how}")
        section = section_class(Tracking.model_fields[name].annotation)
        assert section is not None
        for key, field in section.model_fields.items():
            default = field.get_default(call_default_factory=True)
            yield _row("", f"  {key} = {'{}' if default == {} else _default(default)}")


def scenarios() -> Iterator[str]:
    """Yield the shipped scenarios with their durations, then those in ./scenarios."""
    yield from _shipped("scenario")
    folder = Path.cwd() / "scenarios"
    for path in sorted(folder.glob("**/*.toml")) if folder.resolve() != shipped_folder() else ():
        relative = path.relative_to(folder)
        if relative.parts[0] == BENCH_FOLDER or path.name == "pyproject.toml":
            continue
        try:
            parse_toml(path.read_text(encoding="utf-8"))
            what = ShippedFile("", path).about()[0]
        except (InvalidToml, UnicodeDecodeError, OSError):
            what = "(not valid TOML)"
        yield _row(f"scenarios/{relative}", what).rstrip()


def benches() -> Iterator[str]:
    """Return the shipped benches with their durations."""
    return _shipped("bench")


def _shipped(kind: ShippedKind) -> Iterator[str]:
    entries = list_shipped(kind)
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        what, takes = entry.about()
        yield f"{entry.name:<{width}}  {what}"
        if takes:
            yield f"{'':<{width}}    {takes[:1].lower()}{takes[1:]}"
    if not entries:
        yield f"none: the folder of shipped {KIND_PLURALS[kind]} is missing"


def _parts(registry: Registry, find: Callable[[str], Any] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield every name with its part, or what `find` returns, or with the error of loading it."""
    for name in registry.names():
        try:
            yield name, (find or registry.load)(name)
        except UserError as error:
            yield name, error


def _hyperparameter_rows(parameters: Iterable[HyperParameter], source: str) -> Iterator[str]:
    for parameter in parameters:
        yield _row("", f"  {parameter.name} = {_default(parameter.default)} ({parameter.type})")
    if source:
        yield _row("", f"  {source}")


def _row(label: str, text: str) -> str:
    return f"{label:<23} {text}"


def _told(part: Any) -> str:
    return f"cannot be used: {part}" if isinstance(part, UserError) else _summary(part)


def _summary(described: Any) -> str:
    text = " ".join((inspect.getdoc(described) or "").partition("\n\n")[0].split()).removeprefix("Return ")
    return text[:1].upper() + text[1:]


def _default(value: Any) -> str:
    return "absent" if value is None else toml_value(value)
