"""Table of incompatible pairs of a strategy's capability and a scenario's key."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fedkd.errors import UserError
from fedkd.fusion import (
    Capabilities,
    FusionStrategy,
    Kind,
    distils_targets,
    overrides_hook,
    replaces_predictor,
    varies_requests,
)
from fedkd.plan.recipe import recipe_of
from fedkd.randomness import numpy_generator
from fedkd.scenario import Scenario
from fedkd.training import Task, task_of

if TYPE_CHECKING:
    from fedkd.continual import Learner

STRATEGY = "fusion.strategy"


@dataclass(frozen=True)
class Case:
    """A scenario, its strategy, and its learner if it is bound."""

    scenario: Scenario
    strategy: FusionStrategy
    learner: Learner | None = None

    @property
    def can(self) -> Capabilities:
        """Capabilities of the strategy."""
        return self.strategy.capabilities

    @property
    def task(self) -> Task:
        """What clients learn."""
        return task_of(self.scenario.data)

    @property
    def accepted(self) -> str:
        """Predictions that the strategy takes, in words."""
        return " or ".join(FORMS[form] for form in sorted(self.can.accepts))

    @property
    def predicted(self) -> str:
        """The clients' predictions, in words."""
        return FORMS[self.task.knowledge]

    @property
    def kd_weight(self) -> float:
        """Weight of the distillation loss in local training."""
        return recipe_of(self.scenario, self.strategy).kd_weight

    @property
    def returns_knowledge(self) -> bool:
        """True if clients upload more than a received model."""
        return self.can.sends != "nothing" and not self.can.brings_model

    @property
    def asks_anew(self) -> bool:
        """True if the transfer samples differ from round to round."""
        generator = numpy_generator(self.scenario.seed, "request", round=1)
        return varies_requests(self.strategy, self.scenario.data.transfer.size, generator)


CAPABILITIES: Mapping[str, Callable[[Case], bool]] = {
    "averaged by Flower": lambda c: c.can.by_flower,
    "pools": lambda c: c.can.pools,
    "needs weights": lambda c: "weights" in c.can.needs,
    "needs weights of the round": lambda c: "weights" in c.can.needs and c.returns_knowledge,
    "uploads weights": lambda c: "weights" in c.can.needs or Kind.WEIGHTS in c.can.kinds.values(),
    "needs masks that settle": lambda c: (
        "masks" in c.can.needs and c.learner is not None and c.learner.traits.trains_masked_weights
    ),
    "needs server": lambda c: "server" in c.can.needs,
    "needs transfer_labels": lambda c: "transfer_labels" in c.can.needs,
    "needs linear_head": lambda c: "linear_head" in c.can.needs,
    "sends nothing": lambda c: c.can.sends == "nothing",
    "brings_model": lambda c: c.can.brings_model,
    "requires_sync": lambda c: c.can.requires_sync is not None,
    "needs weights, no over_graph": lambda c: "weights" in c.can.needs and c.can.over_graph is None,
    "no over_graph": lambda c: c.can.over_graph is None,
    "trials": lambda c: c.can.trials > 0,
    "infers_from_guidance": lambda c: c.can.infers_from_guidance,
    "request that varies": lambda c: c.returns_knowledge and c.asks_anew,
    "phases": lambda c: overrides_hook(c.strategy, "phases"),
    "aux_networks": lambda c: overrides_hook(c.strategy, "aux_networks"),
    "predictor": lambda c: replaces_predictor(c.strategy),
    "no targets": lambda c: not distils_targets(c.strategy),
    "other predictions": lambda c: c.task.knowledge not in c.can.accepts,
}
"""Tests of a strategy, by their names in the table."""

KEYS: Mapping[str, Callable[[Case], bool]] = {
    "asynchronous": lambda c: c.scenario.asynchronous is not None,
    "continual": lambda c: c.scenario.continual is not None,
    "data.task": lambda c: True,
    "topology.graph": lambda c: c.scenario.topology.graph != "star" and c.can.sends != "nothing",
    "training.held_out": lambda c: bool(c.scenario.training.held_out),
    "training.recipe": lambda c: c.scenario.training.recipe == "joint",
    "fusion.logit_adjustment": lambda c: c.scenario.fusion.logit_adjustment == "auto",
    "fusion.kd_weight": lambda c: c.kd_weight > 0,
    "fusion.knowledge_cache": lambda c: c.scenario.fusion.knowledge_cache is not None,
    "measure.transferability": lambda c: (
        c.scenario.measure is not None and c.scenario.measure.transferability is not None
    ),
    "faults.poison": lambda c: (
        c.scenario.faults.poisoned > 0 and c.scenario.faults.poison in ("imitation", "constant")
    ),
}
"""Tests whether a scenario sets a key, by their names in the table."""


class Row(NamedTuple):
    """An incompatible pair; `reason` is a format string, and `at` the key of the error."""

    capability: str
    key: str
    reason: str
    at: str = STRATEGY


def _rows(key: str, at: str, frame: str, reasons: Mapping[str, str]) -> list[Row]:
    return [Row(capability, key, frame.format(reason=reason), at) for capability, reason in reasons.items()]


FORMS = {"classes": "class probabilities", "gaussian": "Gaussian predictions"}
ANEW = "requests other transfer samples every round, so old predictions do not apply"
TABLE: Sequence[Row] = (
    Row(
        "other predictions",
        "data.task",
        "'{name}' needs {case.accepted}, but data.task = '{case.task.name}' has"
        " {case.predicted}; use 'knfu', 'fedmd', 'local' or 'flwr:FedAvg'",
    ),
    *_rows(
        "asynchronous",
        "asynchronous",
        "not allowed: '{{name}}' {reason}",
        {
            "averaged by Flower": "averages the uploads of all clients of a round; use 'fedbuff' or"
            " 'fedasync'",
            "pools": "trains on all clients' samples in one place",
            "needs weights of the round": "exchanges weights that start from those of the round; use"
            " 'fedbuff' or 'fedasync'",
            "requires_sync": "{case.can.requires_sync}",
            "request that varies": ANEW,
        },
    ),
    *_rows(
        "continual",
        STRATEGY,
        "'{{name}}' {reason}",
        {
            "pools": "does not support streams of tasks; use the learner 'joint', which trains on all tasks",
            "phases": "trains parts of a model in phases, but in a stream of tasks the learner sets the"
            " phases; use 'fedper', which trains both parts together",
            "trials": "lets clients compare targets in trials, which learners do not support; use 'knfu'",
            "aux_networks": "trains further networks on clients, which learners do not support; use a"
            " strategy that exchanges predictions",
            "needs linear_head": "sets the heads of clients, but in a stream of tasks the learner sets them;"
            " use 'fedproto' or a strategy that exchanges predictions",
        },
    ),
    Row(
        "infers_from_guidance",
        "continual",
        'must be "model" in a stream of tasks, which evaluates the learner\'s outputs',
        "fusion.inference",
    ),
    Row(
        "predictor",
        "continual",
        "'{name}' evaluates another model than the client's, but a stream of tasks evaluates the learner's"
        " outputs; use a strategy that exchanges predictions",
    ),
    *(
        Row(
            "pools",
            key,
            "'{name}' trains on all samples of all clients and holds out none",
            key,
        )
        for key in ("training.held_out", "fusion.logit_adjustment")
    ),
    *_rows(
        "topology.graph",
        STRATEGY,
        "'{{name}}' {reason}; topology.graph is '{{case.scenario.topology.graph}}', which has no server",
        {
            "averaged by Flower": "averages weights on a server (use 'gossip' to mix them on clients)",
            "needs server": "trains a model on the server",
            "needs transfer_labels": "needs the labels of the transfer set, which only a server has",
            "needs weights, no over_graph": "averages the weights of all clients into one model (use 'gossip'"
            " to mix them on clients)",
            "no over_graph": "needs a server (it has no `over_graph`)",
        },
    ),
    Row(
        "no targets",
        "training.recipe",
        "must be 'alternating' with '{name}', which has no targets of transfer samples, got 'joint'",
        "training.recipe",
    ),
    Row(
        "no targets",
        "fusion.kd_weight",
        "must be 0 with '{name}', which has no targets of transfer samples, got {case.kd_weight:g}",
        "fusion.kd_weight",
    ),
    *_rows(
        "fusion.knowledge_cache",
        "fusion.knowledge_cache",
        "not allowed: '{{name}}' {reason}",
        {
            "needs weights": "exchanges weights, which belong to no task and soon become stale",
            "sends nothing": "sends nothing to cache",
            "needs masks that settle": "stops sending a mask once '{case.learner.name}' has fixed it",
            "request that varies": ANEW,
        },
    ),
    *_rows(
        "measure.transferability",
        "measure.transferability",
        "with '{{name}}' {reason}",
        {
            "pools": "clients have no personalised models",
            "brings_model": "clients keep no model between messages; use a strategy that exchanges"
            " predictions, or 'local'",
        },
    ),
    Row(
        "uploads weights",
        "faults.poison",
        "'{case.scenario.faults.poison}' needs clients that upload predictions; with '{name}' use 'random'"
        " or 'flipped'",
        "faults.poison",
    ),
)
"""All pairs, in the order of the checks."""


def check_table(case: Case, keys: Collection[str] = tuple(KEYS)) -> None:
    """Raise a `UserError` if the strategy is incompatible with a key of the scenario."""
    for row in TABLE:
        if row.key in keys and KEYS[row.key](case) and CAPABILITIES[row.capability](case):
            told = row.reason.format(name=case.scenario.fusion.strategy, case=case)
            raise UserError(told, key=row.at)
