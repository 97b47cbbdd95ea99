"""The choice of an executor for ``executor = "auto"``.

The first training of a block of each group's clients runs with both executors, on throw-away clients. The
scenario takes the executor that is faster over all groups that can train together.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any

import torch

from fedkd import __version__
from fedkd.clients.factory import ClientFactory, model_outputs
from fedkd.clients.local.executor_cache import cache_step, cached_step
from fedkd.data import Data, first_task
from fedkd.plan import Plan
from fedkd.plugins import contain_plugin
from fedkd.scenario import ClientGroup
from fedkd.training import (
    ClockFunction,
    StepSeconds,
    TrainJob,
    benchmark_executors,
    limit_torch_threads,
    resolve_device,
)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class ExecutorChoice:
    """The executor ``"loop"`` or ``"vectorised"``, and the reason in words."""

    executor: str
    told: str


def select_executor(
    plan: Plan, data: Data, clock: ClockFunction = time.perf_counter, tell: Tell = lambda line: None
) -> ExecutorChoice:
    """Return the faster executor of a plan's first training on this process's device."""
    if plan.scenario.faults.goes_on:
        return ExecutorChoice("loop", "loop: clients that may be skipped or retried train one by one")
    together = plan.with_executor("vectorised")
    total = StepSeconds(0.0, 0.0)
    blocks = {id(together.groups[block[0]]): block for block in reversed(together.blocks)}
    for group in plan.scenario.clients:
        if len(blocks.get(id(group), ())) < 2:  # too few to train together
            continue
        try:
            seconds = _of_group(together, data, group, blocks[id(group)], clock, tell)
        except Exception as error:  # of a plug-in; the run reports it with its client and round
            return ExecutorChoice(
                "loop", f"loop: the trial of training together failed ({type(error).__name__})"
            )
        if seconds is None:
            continue
        training, bounds = plan.scenario.training, first_task(data).train_bounds
        sizes = [bounds[c][1] - bounds[c][0] for c, own in enumerate(together.groups) if own is group]
        steps = training.local_epochs * max(1, sum(ceil(size / training.batch_size) for size in sizes))
        total = StepSeconds(total.loop + steps * seconds.loop, total.vectorised + steps * seconds.vectorised)
    if not total.loop:
        return ExecutorChoice("loop", "loop: these clients cannot train together")
    ratio = total.loop / total.vectorised
    return ExecutorChoice(
        total.choice, f"{total.choice}: training together is {ratio:.2f} times as fast as the loop"
    )


def _of_group(
    plan: Plan, data: Data, group: ClientGroup, block: Sequence[int], clock: ClockFunction, tell: Tell
) -> StepSeconds | None:
    """Return the seconds of a step of a group's clients, from the cache if possible."""
    what = what_is_measured(plan, data, group, len(block))
    if (known := cached_step(what)) is not None:
        return StepSeconds(*known)
    tell(f"measuring whether {group.model} trains faster one by one or together")
    with contain_plugin(), limit_torch_threads(plan.scenario.engine.threads_per_client):
        factory = ClientFactory(plan, data)
        jobs: list[TrainJob] = []
        for index in block:
            client = factory.build(index)
            client.enter(1)
            jobs += islice(client.train(1), 1)
        seconds = benchmark_executors(jobs, len(block), clock, fast=plan.scenario.training.fast)
    if seconds is not None:
        cache_step(what, (seconds.loop, seconds.vectorised))
    return seconds


def what_is_measured(plan: Plan, data: Data, group: ClientGroup, together: int) -> dict[str, Any]:
    """Return the settings that decide the time of a step, as JSON."""
    scenario, device = plan.scenario, resolve_device(plan.scenario.engine.device)
    training = scenario.training
    told: dict[str, Any] = {
        "model": group.model,
        "args": group.args,
        "input": [*data.input_shape, str(data.input_dtype)],
        "outputs": model_outputs(plan, data),
        "batch_size": training.batch_size,
        "vmap_size": together,
        "optimizer": [training.optimizer, bool(training.momentum), bool(training.weight_decay)],
        "clipped": training.clip_norm is not None,
        "optimizer_state": training.optimizer_state,
        "autocast": training.autocast,
        "fast": training.fast,
        "strategy": scenario.fusion.strategy,
        "learner": None if scenario.continual is None else scenario.continual.learner,
        "threads": scenario.engine.threads_per_client,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "fedkd": __version__,
    }
    return json.loads(json.dumps(told, default=str))
