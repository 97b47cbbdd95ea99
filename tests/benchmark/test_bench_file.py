"""Malformed bench files are one line on standard error, with status 2, before anything runs."""

from __future__ import annotations

import pytest

from fedkd.cli.main import main

MALFORMED = {
    "unknown key": ({"sedes": 3}, "sedes: unknown key; did you mean 'seeds'?"),
    "seeds": ({"seeds": 0}, "seeds: must be a list of integers ≥ 0, or a number of seeds ≥ 1, got 0"),
    "no seeds": ({"seeds": []}, "seeds: must be"),
    "seed twice": ({"seeds": [1, 1]}, "seeds: must be different, got [1, 1]"),
    "seed is a word": ({"seeds": ["a"]}, "seeds: must be"),
    "two bases": ({"base": "a.toml"}, "base: needs one base scenario, as base or as [scenario]; both"),
    "no base": ({"scenario": None}, "base: needs one base scenario, as base or as [scenario]; neither"),
    "base is missing": ({"scenario": None, "base": "nowhere.toml"}, "base: no such file"),
    "misspelt metric": ({"metrics": ["acuracy_local"]}, "metrics: no metric 'acuracy_local'; did you mean"),
    "no such metric": ({"metrics": ["speed"]}, "metrics: no metric 'speed'; allowed: METRIC_local"),
    "name": ({"name": "a b"}, "name: must match"),
    "axis is no list": ({"grid": {"rounds": 3}}, "grid.rounds: must be a list of values, got 3"),
    "empty axis": ({"grid": {"rounds": []}}, "grid.rounds: must be a list of values"),
    "baseline": ({"baseline": {"rounds": 3}}, "baseline: no axis 'rounds'"),
    "parallel": ({"parallel": "no"}, "parallel: must be true or false, got 'no'"),
    "a cell": ({"set": {"rounds": 0}}, "cell 'strategy=local seed=1': rounds: must be ≥ 1, got 0"),
}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry-run"])
@pytest.mark.parametrize(("changes", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_bench_files_are_refused_in_one_line(
    changes, message, dry, write, tables, tmp_path, capsys
):
    tables = {key: value for key, value in (tables | changes).items() if value is not None}
    path = write(tables)
    status = main(["bench", str(path), "--out", str(tmp_path / "out"), *dry])
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {path}: ") and message in err
    assert not (tmp_path / "out").exists()


def test_an_unknown_data_set_is_refused_before_any_run(write, tables, tmp_path, capsys):
    tables["grid"]["data.partition.min_samples"] = [10, 60]
    tables["grid"]["data.partition.samples_per_client"] = [60, 5000]
    path = write(tables)
    assert main(["bench", str(path), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1 and "cell 'strategy=local min_samples=10 samples_per_client=5000 seed=1'" in err
    )
    assert not any((tmp_path / "out" / "runs").iterdir())


def test_other_files_are_refused_as_bench_files(tmp_path, capsys):
    assert main(["bench", str(tmp_path / "nowhere.toml")]) == 2
    assert "no such file" in capsys.readouterr().err
