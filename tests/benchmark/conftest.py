from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def make_tables(make_digits_scenario) -> Callable[[], dict[str, Any]]:
    """Return `tables` anew, for what a whole module shares."""
    return lambda: small_bench(make_digits_scenario())


@pytest.fixture
def tables(digits_scenario) -> dict[str, Any]:
    """A bench of two strategies and two seeds on the digits, a second in all."""
    return small_bench(digits_scenario)


def small_bench(digits: dict[str, Any]) -> dict[str, Any]:
    scenario = digits | {"rounds": 2, "fusion": {"strategy": "knfu", "beta": 3.0}}
    scenario["data"] = scenario["data"] | {
        "clients": 3,
        "partition": {"scheme": "dirichlet", "alpha": 1.0, "samples_per_client": 60},
        "test_size": 60,
    }
    del scenario["engine"]
    return {
        "name": "small",
        "seeds": 2,
        "baseline": {"fusion.strategy": "local"},
        "scenario": scenario,
        "grid": {"fusion.strategy": ["local", "knfu"]},
    }


@pytest.fixture
def write(tmp_path) -> Callable[[dict[str, Any]], Path]:
    """Write tables as a bench file."""
    import tomli_w

    def write_bench(tables: dict[str, Any]) -> Path:
        path = tmp_path / "bench.toml"
        path.write_text(tomli_w.dumps(tables), encoding="utf-8")
        return path

    return write_bench
