"""Table of incompatible pairs: a strategy's capability, a scenario's key, the reason."""

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

if TYPE_CHECKING:
    from fedkd.continual import Learner

STRATEGY = "fusion.strategy"


@dataclass(frozen=True)
class Case:
    """A scenario, its strategy, and its learner if bound already."""

    scenario: Scenario
    strategy: FusionStrategy
    learner: Learner | None = None

    @property
    def can(self) -> Capabilities:
        """Capabilities of the strategy."""
        return self.strategy.capabilities

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
}
"""Capabilities by their names in the table."""

KEYS: Mapping[str, Callable[[Case], bool]] = {
    "asynchronous": lambda c: c.scenario.asynchronous is not None,
    "continual": lambda c: c.scenario.continual is not None,
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
"""True if a scenario sets a key that a capability may rule out."""


class Row(NamedTuple):
    """An incompatible pair; the error is at key `at`, `reason` a format string."""

    capability: str
    key: str
    reason: str
    at: str = STRATEGY


def _rows(key: str, at: str, frame: str, reasons: Mapping[str, str]) -> list[Row]:
    return [Row(capability, key, frame.format(reason=reason), at) for capability, reason in reasons.items()]


ANEW = "asks for other transfer samples every round, so old predictions do not apply"
TABLE: Sequence[Row] = (
    *_rows(
        "asynchronous",
        "asynchronous",
        "not allowed: '{{name}}' {reason}",
        {
            "averaged by Flower": "averages what all clients of a round send; use 'fedbuff' or 'fedasync'",
            "pools": "trains on all clients' samples in one place",
            "needs weights of the round": "exchanges weights that build on the round's; use 'fedbuff' or"
            " 'fedasync'",
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
            "phases": "trains parts of a model in phases, which the learner decides in a stream of tasks;"
            " use 'fedper', which trains both parts together",
            "trials": "lets clients try out guidance, which learners of a stream of tasks cannot; use 'knfu'",
            "aux_networks": "trains further networks on clients, which learners of a stream of tasks do not"
            " support; use a strategy that exchanges predictions",
            "needs linear_head": "sets the heads of clients, which the learner does in a stream of tasks;"
            " use 'fedproto' or a strategy that exchanges predictions",
        },
    ),
    Row(
        "infers_from_guidance",
        "continual",
        'must be "model" in a stream of tasks, whose accuracies are those of the learner\'s outputs',
        "fusion.inference",
    ),
    Row(
        "predictor",
        "continual",
        "'{name}' evaluates another model than the client's, and a stream of tasks evaluates the learner's"
        " outputs; use a strategy that exchanges predictions",
    ),
    *(
        Row(
            "pools",
            key,
            "'{name}' trains on all samples of all clients, and keeps none apart",
            key,
        )
        for key in ("training.held_out", "fusion.logit_adjustment")
    ),
    *_rows(
        "topology.graph",
        STRATEGY,
        "'{{name}}' {reason}; topology.graph is '{{case.scenario.topology.graph}}', in which there is no"
        " server",
        {
            "averaged by Flower": "averages weights on a server: take 'gossip', which has clients mix them",
            "needs server": "trains a model on the server",
            "needs transfer_labels": "needs the labels of the transfer set, which a server alone has",
            "needs weights, no over_graph": "makes one model of all clients' weights: take 'gossip', which"
            " has clients mix them",
            "no over_graph": "needs a server (it has no `over_graph`)",
        },
    ),
    Row(
        "no targets",
        "training.recipe",
        "must be 'alternating' with '{name}', whose clients distil no targets of transfer samples, got"
        " 'joint'",
        "training.recipe",
    ),
    Row(
        "no targets",
        "fusion.kd_weight",
        "must be 0 with '{name}', whose guidance has no targets of transfer samples to rehearse, got"
        " {case.kd_weight:g}",
        "fusion.kd_weight",
    ),
    *_rows(
        "fusion.knowledge_cache",
        "fusion.knowledge_cache",
        "not allowed: '{{name}}' {reason}",
        {
            "needs weights": "exchanges weights, which are of no task and soon out of date",
            "sends nothing": "sends nothing that could be kept",
            "needs masks that settle": "sends no more of a mask once '{case.learner.name}' has settled it",
            "request that varies": ANEW,
        },
    ),
    *_rows(
        "measure.transferability",
        "measure.transferability",
        "with '{{name}}' {reason}",
        {
            "pools": "clients have no models of their own",
            "brings_model": "every message contains the model, and clients keep none; use a strategy that"
            " exchanges predictions, or 'local'",
        },
    ),
    Row(
        "uploads weights",
        "faults.poison",
        "'{case.scenario.faults.poison}' is for clients that upload predictions; with '{name}' use 'random'"
        " or 'flipped'",
        "faults.poison",
    ),
)
"""All pairs, in the order in which they are checked."""


def check_table(case: Case, keys: Collection[str] = tuple(KEYS)) -> None:
    """Refuse a strategy that cannot do what a scenario's keys ask for."""
    for row in TABLE:
        if row.key in keys and KEYS[row.key](case) and CAPABILITIES[row.capability](case):
            told = row.reason.format(name=case.scenario.fusion.strategy, case=case)
            raise UserError(told, key=row.at)
