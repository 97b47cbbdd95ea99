"""The plan of a run: a resolved scenario, shared by all parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from fedkd.models import client_models
from fedkd.plan.checks.capability_table import Case, check_table
from fedkd.plan.checks.courses import check_asynchronous, check_orthogonal
from fedkd.plan.checks.cross_field import (
    check_names,
    check_one_architecture,
    check_scenario,
    check_transfer_size,
)
from fedkd.plan.checks.unread_keys import NO_OVERRIDES, OverrideLayers, without_moot_keys
from fedkd.plan.clock import VirtualClock
from fedkd.plan.graph import Graph, draw_graph
from fedkd.plan.hyperparameters import bind_learner, bind_metrics, bind_strategy, with_canonical_names
from fedkd.plan.recipe import Recipe, recipe_of
from fedkd.plan.schedule import Schedule
from fedkd.plan.schedule_builder import build_schedule
from fedkd.plugins import import_plugins
from fedkd.scenario import (
    ClientGroup,
    Clock,
    Scenario,
    Section,
    resolve_rounds,
    resolve_stream,
    scenario_from_json,
)
from fedkd.training import Task, task_of

if TYPE_CHECKING:
    from fedkd.continual import Learner
    from fedkd.fusion import Capabilities, FusionStrategy
    from fedkd.training import MetricFunction


@dataclass(frozen=True, eq=False)
class Plan:
    """A resolved scenario with its strategy, learner, schedule and graph.

    The scenario contains every default and loads back to an equal plan. Other processes get the scenario and
    resolve it again (`open_plan`). For Flower's strategies, `strategy` is the client part. `graph` is None
    with a server. `metrics` are the functions besides accuracy, by the names of their rows.
    """

    scenario: Scenario
    strategy: FusionStrategy
    learner: Learner | None
    schedule: Schedule
    groups: tuple[ClientGroup, ...]
    graph: Graph | None = None
    metrics: Mapping[str, MetricFunction] = field(default_factory=dict)

    @property
    def capabilities(self) -> Capabilities:
        """Requirements and abilities of the strategy."""
        return self.strategy.capabilities

    @property
    def task(self) -> Task:
        """Outputs, loss and metrics of the clients' models."""
        return task_of(self.scenario.data)

    def evaluates(self, round: int) -> bool:
        """Return whether a round is evaluated; the last round of a task always is."""
        return round == self.scenario.rounds or self.would_evaluate(round)

    def would_evaluate(self, round: int) -> bool:
        """Return whether a round is evaluated even if it is not the last."""
        return round % self.scenario.evaluate_every == 0 or bool(self.schedule.ending(round))

    def test_sample(self, round: int) -> int | None:
        """Return the number of common test samples of a round; None for all."""
        number = self.scenario.evaluate
        return number if isinstance(number, int) and round < self.scenario.rounds else None

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Blocks of clients that train together; single clients with the executor `loop`.

        A block has consecutive clients of one group. Blocks affect the last bits of results, so they depend
        only on the scenario.
        """
        training, clients = self.scenario.training, range(len(self.groups))
        if training.executor != "vectorised":
            return tuple((client,) for client in clients)
        of_group: dict[int, list[int]] = {}
        for client in clients:
            of_group.setdefault(id(self.groups[client]), []).append(client)
        return tuple(
            tuple(own[start : start + training.vmap_size])
            for own in of_group.values()
            for start in range(0, len(own), training.vmap_size)
        )

    @property
    def clock(self) -> VirtualClock | None:
        """Clock of simulated time, if there is one."""
        scenario = self.scenario
        return None if scenario.clock is None else VirtualClock(scenario.seed, scenario.clock)

    @property
    def recipe(self) -> Recipe:
        """Weights of the losses that clients minimise together."""
        return recipe_of(self.scenario, self.strategy)

    @property
    def last_round(self) -> int:
        """Last recorded round."""
        return self.scenario.last_round

    def with_executor(self, name: str) -> Plan:
        """Return the plan with an executor, ``"loop"`` or ``"vectorised"``."""
        return self._with("training", executor=name)

    def on_device(self, device: Literal["auto", "cpu", "cuda"]) -> Plan:
        """Return the plan with all clients on one type of device."""
        return self._with("engine", device=device)

    def with_test_sample(self, number: int | Literal["full"]) -> Plan:
        """Return the plan with a number of common test samples before the last round."""
        return replace(self, scenario=self.scenario.model_copy(update={"evaluate": number}))

    def _with(self, table: str, **values: str) -> Plan:
        changed = getattr(self.scenario, table).model_copy(update=values)
        return replace(self, scenario=self.scenario.model_copy(update={table: changed}))


def resolve_plan(scenario: Scenario, layers: OverrideLayers = NO_OVERRIDES, *, written: bool = True) -> Plan:
    """Resolve a scenario; a resolved scenario stays equal.

    A `UserError` reports unknown names, contradictions and wrong hyper-parameters. It also reports
    ineffective keys of a scenario `written` by a person.
    """
    import_plugins(scenario.plugins, scenario.plugin_path)
    scenario = with_canonical_names(scenario)
    check_names(scenario)
    if written:
        scenario = without_moot_keys(scenario, None, layers)
    scenario = resolve_stream(scenario)
    check_scenario(scenario)
    if scenario.asynchronous is not None:
        check_asynchronous(scenario)
        scenario = scenario.model_copy(update={"clock": scenario.clock or Clock()})
    schedule = build_schedule(scenario)
    graph = draw_graph(scenario)
    check_orthogonal(scenario, schedule)
    scenario = resolve_rounds(scenario, schedule.rounds)
    strategy, hyperparameters = bind_strategy(scenario)
    if written:
        scenario = without_moot_keys(scenario, strategy, layers)
    check_transfer_size(scenario, strategy)
    check_table(Case(scenario, strategy), ("asynchronous", "data.task"))
    filled_in = hyperparameters | asdict(recipe_of(scenario, strategy))
    tables: dict[str, Section] = {"fusion": scenario.fusion.model_copy(update=filled_in)}
    learner = None
    if scenario.continual is not None:
        learner, hyperparameters = bind_learner(scenario.continual, scenario.plugin_path)
        tables["continual"] = scenario.continual.model_copy(update=hyperparameters)
    if scenario.fusion.from_flower:
        check_one_architecture(scenario)
    scenario, metrics = scenario.model_copy(update=tables), bind_metrics(scenario)
    return Plan(scenario, strategy, learner, schedule, tuple(client_models(scenario)), graph, metrics)


def open_plan(scenario_json: str) -> Plan:
    """Return the plan of a scenario from ``scenario.model_dump_json()``."""
    return resolve_plan(scenario_from_json(scenario_json), written=False)
