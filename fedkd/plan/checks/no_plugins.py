"""Check a scenario without importing its plug-ins.

Opening a scenario imports the modules that it names, and checking it calls their code: ``dataset =
"os:system"`` runs a command. This check is safe for scenarios from other people.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedkd.continual import LEARNERS
from fedkd.data import DATASETS, PARTITIONS
from fedkd.errors import blaming
from fedkd.fusion import STRATEGIES
from fedkd.models import MODELS
from fedkd.plan.checks.courses import check_orthogonal
from fedkd.plan.checks.cross_field import (
    DRAWN_TRANSFERS,
    check_one_architecture,
    check_scenario,
    check_transfer_size,
)
from fedkd.plan.checks.unread_keys import NO_OVERRIDES, OverrideLayers, without_moot_keys
from fedkd.plan.hyperparameters import bind_learner, bind_strategy
from fedkd.plan.schedule_builder import build_schedule
from fedkd.plugins import Registry
from fedkd.scenario import Scenario, resolve_rounds, resolve_stream
from fedkd.training import METRICS

OF_DATA = ("data.", "continual.tasks.")


@dataclass(frozen=True, eq=False)
class WithoutPlugins:
    """A scenario without imports, and its plug-ins by dotted key."""

    scenario: Scenario
    plug_ins: Mapping[str, str]

    @property
    def knows_data(self) -> bool:
        """True if the data need no plug-in and can be loaded."""
        return not any(key.startswith(OF_DATA) for key in self.plug_ins)


def find_plug_ins(scenario: Scenario) -> dict[str, str]:
    """Return a scenario's plug-ins by key: its modules and plug-in names."""
    modules = {f"plugins.{index}": module for index, module in enumerate(scenario.plugins)}
    return modules | {key: name for key, (_, name) in _foreign(scenario).items()}


def foreign_modules(scenario: Scenario) -> list[str]:
    """Return the plug-in modules of clients, without those of data sets and partitions."""
    modules = list(scenario.plugins)
    for key, (registry, name) in _foreign(scenario).items():
        if not key.startswith(OF_DATA):
            module, colon, _ = name.partition(":")
            modules.append(module if colon else registry.load(name, scenario.plugin_path).__module__)
    return list(dict.fromkeys(modules))


def open_without_plugins(scenario: Scenario, layers: OverrideLayers = NO_OVERRIDES) -> WithoutPlugins:
    """Check a scenario as far as possible without its plug-ins (see `resolve_plan`)."""
    foreign = _foreign(scenario)
    if not scenario.plugins:  # modules in `plugins` may register any name
        for key, (registry, name) in foreign.items():
            with blaming(key=key):
                registry.check(name)
    scenario = resolve_stream(without_moot_keys(scenario, None, layers))
    check_scenario(scenario)
    schedule = build_schedule(scenario)
    check_orthogonal(scenario, schedule)
    scenario = resolve_rounds(scenario, schedule.rounds)
    if "fusion.strategy" not in foreign:
        strategy, _ = bind_strategy(scenario)
        scenario = without_moot_keys(scenario, strategy, layers)
        check_transfer_size(scenario, strategy)
    if scenario.continual is not None and "continual.learner" not in foreign:
        bind_learner(scenario.continual)
    if scenario.fusion.from_flower:
        check_one_architecture(scenario)
    return WithoutPlugins(scenario, find_plug_ins(scenario))


def _foreign(scenario: Scenario) -> dict[str, tuple[Registry, str]]:
    """Return the plug-in names of a scenario by key, each with its registry."""
    data, continual = scenario.data, scenario.continual
    named = {"data.dataset": (DATASETS, data.dataset)}
    named["data.partition.scheme"] = (PARTITIONS, data.partition.scheme)
    if data.transfer.source not in DRAWN_TRANSFERS:
        named["data.transfer.source"] = (DATASETS, data.transfer.source)
    named |= {f"metrics.{index}": (METRICS, name) for index, name in enumerate(scenario.metrics)}
    for index, group in enumerate(scenario.clients):
        named[f"clients.{index}.model"] = (MODELS, group.model)
    if not scenario.fusion.from_flower:
        named["fusion.strategy"] = (STRATEGIES, scenario.fusion.strategy)
    if continual is not None:
        named["continual.learner"] = (LEARNERS, continual.learner)
        for index, name in enumerate(continual.tasks.datasets):
            named[f"continual.tasks.datasets.{index}"] = (DATASETS, name)
    return {key: (registry, name) for key, (registry, name) in named.items() if name not in registry.builtin}
