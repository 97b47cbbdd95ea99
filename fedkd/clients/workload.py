"""What share of a run's arithmetic goes into evaluations, estimated before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fedkd.data.federated import FederatedData
from fedkd.data.load import Data
from fedkd.data.stream import FederatedStream
from fedkd.models.build import forward_flops
from fedkd.models.estimator import Estimator
from fedkd.plan.evaluated import evaluated_clients
from fedkd.plan.plan import Plan

TRAINING = 3
"""What a training step takes of a forward pass of its samples: that, and two as dear on the way back."""


@dataclass(frozen=True)
class Workload:
    """Arithmetic of a round on average, in operations of forward passes; tasks of a stream alike.

    Attributes:
        training: Own training, predictions of the transfer set, and learning from guidance.
        evaluation: What is predicted only to be measured, were all clients evaluated in every round.
        clients: Clients of the federation.
        evaluated: Those that are evaluated.
        every: Rounds from one evaluation to the next.
        test: Samples of a common test set.
    """

    training: float
    evaluation: float
    clients: int
    evaluated: int
    every: int
    test: int

    @property
    def share(self) -> float:
        """Share of the evaluations in the whole, from 0 to 1."""
        evaluation = self.evaluation * self.evaluated / self.clients / self.every
        whole = self.training + evaluation
        return evaluation / whole if whole else 0.0

    def remedies(self) -> dict[str, int]:
        """Return what each key would have to be, changed alone, for evaluations to take at most half.

        Without those that would not do: a value below 1, or the one that it has.
        """
        now = self.evaluation * self.evaluated / self.clients / self.every
        if now <= self.training:
            return {}
        allowed = self.training / now
        found = {
            "evaluate_every": -int(-self.every // allowed) if allowed else 0,
            "evaluate_clients": int(self.evaluated * allowed),
            "data.test_size": int(self.test * allowed),
        }
        return {key: value for key, value in found.items() if value >= 1}


def workload(plan: Plan, data: Data, models: Sequence[nn.Module | Estimator]) -> Workload:
    """Estimate what a round computes, from sizes alone.

    Counted are products and convolutions. Estimators without gradients count as nothing: nobody knows what
    theirs take.

    Args:
        plan: What is to be simulated.
        data: All of it.
        models: One of every group.
    """
    scenario, strategy = plan.scenario, plan.strategy
    costs = {id(group): _forward(model, data) for group, model in zip(scenario.clients, models, strict=True)}
    tasks = [data] if isinstance(data, FederatedData) else [task.data for task in data]
    clients = scenario.data.clients
    sampled = (scenario.clients_per_round or clients) / clients
    # Clients whose model guidance has changed are measured at both moments, the others at one.
    guided = 0.0 if strategy.sends == "nothing" or strategy.teaches_locally else sampled
    # Of weights that all clients are sent, the common test set is predicted once for all.
    once = 1.0 / clients if strategy.brings_model else 1.0
    # A batch of the other kind goes along with each: private ones while guidance is learned, and vice versa.
    with_private = 2 if scenario.fusion.private_weight > 0 else 1
    with_transfer = 2 if scenario.fusion.rehearse > 0 else 1
    training = evaluation = 0.0
    for client, group in enumerate(plan.groups):
        trained = tested = 0.0
        for task in tasks:
            train, test = (b[client][1] - b[client][0] for b in (task.train_bounds, task.test_bounds))
            known = len(task.transfer_x) if strategy.uses_transfer_set else 0
            epochs = strategy.trained_epochs(scenario.training.local_epochs)
            trained += TRAINING * train * epochs * with_transfer + known
            trained += TRAINING * known * scenario.fusion.distill_epochs * with_private
            tested += (1 + guided) * test + (once + guided) * len(task.test_y) + guided * known
        cost = costs[id(group)]
        training += cost * sampled * trained / len(tasks)
        evaluation += cost * tested / len(tasks) * _asked(plan, data)
    evaluated = len(evaluated_clients(scenario))
    test = max(len(task.test_y) for task in tasks)
    return Workload(training, evaluation, clients, evaluated, scenario.evaluate_every, test)


def trial_work(plan: Plan, data: FederatedData, models: Sequence[nn.Module]) -> float:
    """Return the operations of a round's transferability map, which `measure.transferability` asks for.

    Args:
        plan: What is to be simulated.
        data: All of it.
        models: One of every group.
    """
    scenario = plan.scenario
    assert scenario.measure is not None and scenario.measure.transferability is not None
    costs = {id(group): _forward(model, data) for group, model in zip(scenario.clients, models, strict=True)}
    taught = scenario.clients_per_round or scenario.data.clients
    known, epochs = len(data.transfer_x), scenario.measure.transferability.epochs
    total = 0.0
    for group, (start, stop) in zip(plan.groups, data.test_bounds, strict=True):
        tested = stop - start + len(data.test_y) + known
        total += costs[id(group)] * (taught * (TRAINING * known * epochs + tested) + tested)
    return total * taught / scenario.data.clients


def _asked(plan: Plan, data: Data) -> float:
    """Return how many tasks are tested in a round on average, each as often as it is asked about."""
    if not isinstance(data, FederatedStream) or plan.learner is None:
        return 1.0
    number = len(data)
    # After the t-th task all t are tested, and the one to come.
    met = sum(min(task + 1, number) for task in range(1, number + 1)) / number
    without = plan.scenario.continual is not None and plan.scenario.continual.evaluate_without_task
    asks = 2 if without and plan.learner.tells_tasks_apart else 1
    return met * asks


def _forward(model: nn.Module | Estimator, data: Data) -> float:
    """Return the operations of one sample's forward pass."""
    if not isinstance(model, nn.Module):
        return 0.0
    return float(forward_flops(model, data.input_shape, data.input_dtype))
