"""Two runs are compared client by client."""

from __future__ import annotations

import numpy as np
import pytest

import fedkd
from fedkd.cli.main import main
from fedkd.errors import UserError
from fedkd.simulation.comparison import _compared

pytestmark = pytest.mark.usefixtures("no_report")

T_OF_3 = 3.182446305284263
"""Student's 97.5 % quantile with three degrees of freedom, from a table."""


@pytest.fixture(scope="module")
def pair(make_digits_scenario, tmp_path_factory):
    folder, tables = tmp_path_factory.mktemp("pair"), make_digits_scenario()
    ours = fedkd.run(tables, out=folder / "a", rounds=1, progress=False)
    theirs = fedkd.run(tables, out=folder / "b", rounds=2, progress=False, fusion={"strategy": "fedmd"})
    return ours, theirs


def of_clients(result, split: str, metric: str, round: int) -> np.ndarray:
    rows = [
        (row["client"], row["value"])
        for row in result.metrics()
        if (row["split"], row["metric"], row["round"]) == (split, metric, round) and row["client"] is not None
    ]
    return np.array([value for _, value in sorted(rows)])


def test_differences_are_paired_by_client(pair):
    found = fedkd.compare(pair[0].folder, pair[1].folder)
    assert found.rounds == (1, 2) and found.alike
    assert found.changed["rounds"] == (1, 2) and found.changed["fusion.strategy"] == ("knfu", "fedmd")
    figures = {figure.label: figure for figure in found.figures}
    assert list(figures) == [
        *("local accuracy before fusion", "local accuracy after fusion"),
        *("global accuracy before fusion", "global accuracy after fusion"),
    ]
    ours = of_clients(pair[0], "global", "accuracy", 1)
    theirs = of_clients(pair[1], "global", "accuracy", 2)
    figure, difference = figures["global accuracy after fusion"], theirs - ours
    assert (figure.ours, figure.theirs) == pytest.approx((ours.mean(), theirs.mean()))
    assert figure.difference.mean == pytest.approx(difference.mean())
    assert figure.difference.half == pytest.approx(T_OF_3 * difference.std(ddof=1) / 2)
    assert (figure.better, figure.difference.seeds) == ((difference > 0).sum(), 4)


def test_the_comparison_text_states_differences(pair, capsys):
    a, b = (str(result.folder) for result in pair)
    assert main(["compare", a, b]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"A  {a}, round 1", f"B  {b}, round 2"]
    assert any(line.split() == ["fusion.strategy", '"knfu"', "→", '"fedmd"'] for line in lines)
    assert any(line.startswith("global accuracy after fusion  ") and " of 4" in line for line in lines)
    up = next(line for line in lines if line.startswith("up "))
    assert up.split()[1:] == ["9.6", "kB", "19.2", "kB"]
    assert "paired by client" in lines[-2]
    html = fedkd.compare(a, b)._repr_html_()
    assert "paired by client" in html and "<td" in html


def test_a_run_compared_with_itself_has_no_differences(pair, capsys):
    folder = str(pair[0].folder)
    main(["compare", folder, folder])
    out = capsys.readouterr().out
    assert "no key that affects results differs" in out
    assert "+0.0 pt ± 0.0 0 of 4" in " ".join(out.split())


def test_different_clients_are_not_paired(pair, make_digits_scenario, tmp_path):
    other = fedkd.run(make_digits_scenario(), out=tmp_path / "c", rounds=1, seed=8, progress=False)
    found = fedkd.compare(pair[0].folder, other.folder)
    assert not found.alike and "client n of A is not client n of B" in list(found.lines())[-1]


def test_streams_are_compared_by_continual_metrics(make_digits_scenario, tmp_path):
    tables = make_digits_scenario()
    del tables["rounds"]
    tables["data"] |= {"clients": 2, "partition": {"scheme": "iid", "samples_per_client": 40}}
    tables["continual"] = {"learner": "naive", "head": "domain", "tasks": {"kind": "split", "count": 2}}
    ours = fedkd.run(tables, out=tmp_path / "a", progress=False)
    theirs = fedkd.run(tables, out=tmp_path / "b", progress=False, continual={"learner": "er"})
    figures = {figure.label: figure for figure in fedkd.compare(ours.folder, theirs.folder).figures}
    mean = ours.summary["continual"]["forgetting_task_incremental"]["mean"]
    assert figures["forgetting task incremental"].ours == pytest.approx(mean)
    assert "bwt task incremental" in figures


def test_less_forgetting_is_better():
    assert _compared("forgetting_task_incremental", {0: 0.4, 1: 0.1}, {0: 0.2, 1: 0.3}).better == 1
    assert _compared("accuracy_local", {0: 0.4, 1: 0.1}, {0: 0.2, 2: 0.3}).difference.seeds == 1
    assert _compared("accuracy_local", {0: 0.4}, {1: 0.2}).difference is None


def test_incomparable_runs_are_refused(pair, tmp_path):
    with pytest.raises(UserError, match=r"not a run folder: it has no scenario\.toml"):
        fedkd.compare(pair[0].folder, tmp_path)
    (tmp_path / "scenario.toml").write_text("rounds = 1\n")
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="no client has been evaluated yet"):
        fedkd.compare(tmp_path, pair[0].folder)
    with pytest.raises(UserError, match="got NoneType"):
        fedkd.compare(None, pair[0].folder)
