"""Fixtures of a federation of deployed nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from deployed_nodes import SMALL, Deployed

import fedkd
from fedkd.plan.load import parse_plan


@pytest.fixture(scope="module")
def dealt(tmp_path_factory) -> Callable[..., Deployed]:
    """Return a function that deals a small scenario, with some of its tables changed; each is dealt once."""
    kept: dict[str, Deployed] = {}

    def make(**tables: Any) -> Deployed:
        key = repr(sorted(tables.items()))
        if key not in kept:
            scenario = {name: value for name, value in (SMALL | tables).items() if value is not None}
            kept[key] = Deployed(parse_plan(scenario), tmp_path_factory.mktemp("federation") / "dealt")
        return kept[key]

    return make


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Callable[[Deployed], bytes]:
    """Return a function from what is deployed to the metrics of its simulation, which is run once."""
    kept: dict[int, bytes] = {}

    def metrics(found: Deployed) -> bytes:
        if id(found) not in kept:
            out = tmp_path_factory.mktemp("simulated") / "run"
            fedkd.run(found.plan, out=out, progress=False, report=False)
            kept[id(found)] = (out / "metrics.jsonl").read_bytes()
        return kept[id(found)]

    return metrics
