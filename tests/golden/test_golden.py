"""Short runs reproduce the recorded golden metrics."""

from __future__ import annotations

import golden_runs
import pytest

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.mark.parametrize("name", golden_runs.RUNS)
def test_runs_reproduce_their_golden_metrics(name):
    lines = golden_runs.differences(golden_runs.kept_figures(name), golden_runs.run_figures(name))
    if lines:
        meant = f"If the change is meant: python tests/golden/rewrite.py {name}"
        first = f"run '{name}' differs from tests/golden/metrics/{name}.json"
        pytest.fail("\n".join([first, *lines, meant]), pytrace=False)


@pytest.mark.parametrize("name", golden_runs.METHODS)
def test_methods_reproduce_their_golden_losses_and_bytes(name):
    """Losses agree to five thousandths: kernels of other processors change a thousandth at most (iCaRL)."""
    kept, got = golden_runs.kept_methods().get(name, {}), golden_runs.method_figures(name)
    meant = f"if the change is meant: python tests/golden/rewrite.py '{name}'"
    assert kept.keys() == got.keys() and kept["bytes"] == got["bytes"], meant
    for series in kept.keys() - {"bytes"}:
        assert got[series] == pytest.approx(kept[series], rel=5e-3), f"{series}; {meant}"


def test_every_method_has_a_golden_line():
    assert golden_runs.kept_methods().keys() == golden_runs.METHODS.keys()


def test_every_golden_file_belongs_to_a_run():
    assert {path.stem for path in golden_runs.FOLDER.iterdir()} == set(golden_runs.RUNS)


def test_new_missing_and_changed_values_are_listed():
    kept = {
        "global accuracy": {"round 1": 0.5, "round 2": 0.6, "client 0": 0.6, "client 10": 0.7},
        "global loss": {"round 1": 2.0},
        "summary": {"bytes_up": 100},
    }
    got = {
        "global accuracy": {"round 1": 0.52, "round 2": 0.7, "client 0": 0.5, "client 10": 0.75},
        "global loss": {"round 1": 2.001, "round 2": 1.0},
        "local accuracy": {"client 10": 0.5, "round 1": 0.5, "client 2": 0.5},
        "summary": {"bytes_down": 50, "bytes_up": 101},
    }
    assert golden_runs.differences(kept, got) == [
        "changed  global accuracy, round 2: 0.6 -> 0.7",
        "changed  global accuracy, client 0: 0.6 -> 0.5",
        "new      global loss: round 2",
        "new      local accuracy: round 1, client 2, client 10",
        "new      summary: bytes_down",
        "changed  summary, bytes_up: 100 -> 101",
    ]
    assert golden_runs.differences(got, kept)[2] == "missing  global loss: round 2"
    assert golden_runs.renewed(kept, got)["global accuracy"] == kept["global accuracy"] | {
        "round 2": 0.7,
        "client 0": 0.5,
    }
    assert golden_runs.differences(kept, kept) == []
