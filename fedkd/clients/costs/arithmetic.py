"""Estimates of the arithmetic of evaluations before any training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedkd.clients.costs.model_memory import made_auxiliaries
from fedkd.clients.evaluation.common_sample import sampled_size
from fedkd.clients.local_samples import count_held_out, selection_holdout_share
from fedkd.continual import predicts_by_weights
from fedkd.data import Data, FederatedData, FederatedStream
from fedkd.fusion import (
    FORWARDS_PER_TRAINING_STEP,
    OWN_NETWORK,
    RoundExtent,
    ServerCost,
    ServerModel,
    aux_networks_of,
    trained_epochs,
)
from fedkd.models import (
    Estimator,
    architecture_names,
    blank_inputs,
    build_model,
    count_parameters,
    evaluation_mode,
    forward_flops,
)
from fedkd.plan import Plan, evaluated_clients
from fedkd.scenario import ClientGroup


@dataclass(frozen=True)
class Workload:
    """Arithmetic of an average round, in operations of forward passes.

    Attributes:
        training: Everything but evaluations, the server's training included.
        evaluation: Predictions for measurements, as if all clients were evaluated in every round.
        every: Rounds from one evaluation to the next.
        test: Samples of the common test set before the last round, of `test_set` in all.
        answered: True if asynchronous rounds evaluate the clients that they answer.
    """

    training: float
    evaluation: float
    clients: int
    evaluated: int
    every: int
    test: int
    test_set: int
    answered: bool = False

    @property
    def share(self) -> float:
        """Share of the evaluations in the whole, from 0 to 1."""
        whole = self.training + self._evaluation
        return self._evaluation / whole if whole else 0.0

    def remedies(self) -> dict[str, int]:
        """Return, for each key, the value that limits evaluations to half of the work.

        Values below 1 and present values are left out.
        """
        now = self._evaluation
        if now <= self.training:
            return {}
        allowed = self.training / now
        found = {
            "evaluate_every": -int(-self.every // allowed) if allowed and not self.answered else 0,
            "evaluate_clients": int(self.evaluated * allowed),
            "data.test_size": int(self.test * allowed),
        }
        return {key: value for key, value in found.items() if value >= 1}

    @property
    def _evaluation(self) -> float:
        every = 1 if self.answered else self.every
        return self.evaluation * self.evaluated / self.clients / every


def estimate_workload(plan: Plan, data: Data, models: Sequence[nn.Module | Estimator]) -> Workload:
    """Estimate the products and convolutions of a round from sizes alone; estimators count as 0."""
    scenario, strategy = plan.scenario, plan.strategy
    costs = _costs(plan, data, models)
    made = made_auxiliaries(plan, data, models)
    besides = {
        id(group): _besides(plan, data, own) for group, own in zip(scenario.clients, made, strict=True)
    }
    tasks = [data] if isinstance(data, FederatedData) else [task.data for task in data]
    clients, unwaiting = scenario.data.clients, scenario.asynchronous
    at_work = scenario.clients_per_round or clients if unwaiting is None else unwaiting.buffer
    sampled = at_work / clients
    answered = unwaiting is not None and not strategy.capabilities.brings_model
    # Clients whose model guidance has changed are measured before and after fusion, the others once.
    can = strategy.capabilities
    guided = 0.0 if can.sends == "nothing" or can.uses_local_loss else sampled
    moments = sampled * (1 + bool(guided)) if answered else 1 + guided
    # With common weights, the common test set is predicted once for all.
    once = 1.0 / clients if strategy.capabilities.brings_model else 1.0
    # Each step may add a batch of the other kind: private samples in distillation, transfer ones in training.
    with_private = 2 if plan.recipe.ce_weight > 0 else 1
    with_transfer = 2 if plan.recipe.kd_weight > 0 else 1
    held_out = selection_holdout_share(plan) or 0.0
    by_kept = 2 if scenario.fusion.logit_adjustment == "auto" else 0  # once for each test set
    training = evaluation = 0.0
    for client, group in enumerate(plan.groups):
        cost, (aux_training, aux_tested) = costs[id(group)], besides[id(group)]
        asked = (cost if OWN_NETWORK in aux_networks_of(strategy).evaluated_networks else 0.0) + aux_tested
        trained = tested = 0.0
        for task in tasks:
            train, test = (b[client][1] - b[client][0] for b in (task.train_bounds, task.test_bounds))
            known = len(task.transfer_x) if strategy.capabilities.uses_transfer_set else 0
            epochs = trained_epochs(strategy, scenario.training.local_epochs)
            kept = count_held_out(train, held_out)
            trained += cost * (FORWARDS_PER_TRAINING_STEP * (train - kept) * epochs * with_transfer + known)
            trained += (
                cost * FORWARDS_PER_TRAINING_STEP * known * scenario.fusion.distill_epochs * with_private
            )
            trained += aux_training * FORWARDS_PER_TRAINING_STEP * (train - kept) * epochs
            learned = strategy.capabilities.trial_share * known
            a_trial = FORWARDS_PER_TRAINING_STEP * learned * with_private + known - learned + kept
            trained += cost * strategy.capabilities.trials * a_trial
            common = sampled_size(scenario, len(task.test_y))
            both = moments * (test + by_kept * kept) + (moments - 1 + once) * common
            tested += asked * both + cost * guided * known
        training += sampled * trained / len(tasks)
        evaluation += tested / len(tasks) * _asked(plan, data)
    training += _on_server(plan, tasks, models, costs, clients if answered else at_work)
    evaluated = len(evaluated_clients(scenario))
    test_set = max(len(task.test_y) for task in tasks)
    test, every = sampled_size(scenario, test_set), scenario.evaluate_every
    return Workload(training, evaluation, clients, evaluated, every, test, test_set, answered)


def _on_server(
    plan: Plan,
    tasks: Sequence[FederatedData],
    models: Sequence[nn.Module | Estimator],
    costs: Mapping[int, float],
    fused: int,
) -> float:
    strategy, data = plan.strategy, tasks[0]
    if strategy.capabilities.by_flower or plan.graph is not None:
        return 0.0
    share, has_width = fused / len(plan.groups), "features" in strategy.capabilities.needs
    networks = dict(zip(map(id, plan.scenario.clients), models, strict=True))
    architectures: dict[str, tuple[float, float]] = {}
    for name, group in zip(architecture_names(plan.groups), plan.groups, strict=True):
        _, number = architectures.get(name, (0.0, 0.0))
        architectures[name] = costs[id(group)], number + share
    own = 0.0
    if isinstance(strategy, ServerModel) and strategy.server_model is not None:
        group = ClientGroup(model=strategy.server_model, args=dict(strategy.server_args))
        shape, path = data.input_shape, plan.scenario.plugin_path
        model = build_model(group, shape, data.classes, seed=0, plugin_path=path, kind=data.kind)
        own = _forward(model, data)
    found = 0.0
    for task in tasks:
        private = sum(stop - start for start, stop in task.train_bounds)
        extent = RoundExtent(
            clients=fused,
            samples=len(task.transfer_x),
            classes=task.classes,
            private=int(private * share),
            width=_width(networks[id(plan.groups[0])], task) if has_width else 0,
            model=own,
            architectures=architectures,
        )
        found += strategy.server_cost(extent) if isinstance(strategy, ServerCost) else 0.0
    return found / len(tasks)


def _width(model: nn.Module | Estimator, data: FederatedData) -> int:
    if not isinstance(model, nn.Module):
        return 0
    with evaluation_mode(model):
        features: Any = model.features
        return int(features(blank_inputs(2, data.input_shape, data.input_dtype)).flatten(1).shape[1])


def count_trial_operations(plan: Plan, data: FederatedData, models: Sequence[nn.Module]) -> float:
    """Return the operations of a round's transferability map (`measure.transferability`)."""
    scenario = plan.scenario
    assert scenario.measure is not None and scenario.measure.transferability is not None
    costs = _costs(plan, data, models)
    taught = scenario.clients_per_round or scenario.data.clients
    known, epochs = len(data.transfer_x), scenario.measure.transferability.epochs
    total = 0.0
    for group, (start, stop) in zip(plan.groups, data.test_bounds, strict=True):
        tested = stop - start + len(data.test_y) + known
        total += costs[id(group)] * (taught * (FORWARDS_PER_TRAINING_STEP * known * epochs + tested) + tested)
    return total * taught / scenario.data.clients


def _besides(plan: Plan, data: Data, made: Mapping[str, nn.Module]) -> tuple[float, float]:
    """Return forward operations per sample of a client's auxiliary networks, in training and evaluation."""
    strategy = plan.strategy
    training = answers = 0.0
    for name, auxiliary in aux_networks_of(strategy).aux_networks().items() if made else ():
        samples = auxiliary.sees == "samples"
        cost = _forward(made[name], data) if samples else 2.0 * count_parameters(made[name])
        passes = float(auxiliary.trained) if auxiliary.passes is None else auxiliary.passes
        training += passes * cost
        if name in aux_networks_of(strategy).evaluated_networks:
            answers += cost
    return training, answers


def _asked(plan: Plan, data: Data) -> float:
    """Return the average number of task evaluations in a round."""
    if not isinstance(data, FederatedStream) or plan.learner is None:
        return 1.0
    number = len(data)
    # After the t-th task all t are tested, and the one to come.
    met = sum(min(task + 1, number) for task in range(1, number + 1)) / number
    without = plan.scenario.continual is not None and plan.scenario.continual.evaluate_without_task
    asks = 2 if without and not predicts_by_weights(plan.learner) else 1
    return met * asks


def _costs(plan: Plan, data: Data, models: Sequence[nn.Module | Estimator]) -> dict[int, float]:
    """Return the operations of a forward pass by the id of each group."""
    return {
        id(group): _forward(model, data) for group, model in zip(plan.scenario.clients, models, strict=True)
    }


def _forward(model: nn.Module | Estimator, data: Data) -> float:
    if not isinstance(model, nn.Module):
        return 0.0
    return float(forward_flops(model, data.input_shape, data.input_dtype))
