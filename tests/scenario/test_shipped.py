"""Scenarios and benches that are shipped are found by name, in the repository and in a wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedkd.benchmark.schema import load_bench
from fedkd.errors import UserError
from fedkd.plan.load import load_scenario
from fedkd.scenario import shipped_files as module
from fedkd.scenario.shipped_files import (
    ShippedFile,
    find_shipped,
    list_shipped,
    shipped_folder,
    shipped_names,
)

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind", "path"),
    [
        ("quickstart", "scenario", "quickstart.toml"),
        ("continual/quickstart", "scenario", "continual/quickstart.toml"),
        ("split-mnist", "scenario", "continual/split-mnist.toml"),
        ("quickstart", "bench", "bench/quickstart.toml"),
        ("bench/quickstart", "bench", "bench/quickstart.toml"),
        ("bench/quickstart", "scenario", "bench/quickstart.toml"),  # whose error says how benches are run
    ],
)
def test_a_name_refers_to_a_shipped_file(name, kind, path, elsewhere):
    assert find_shipped(name, kind) == REPOSITORY / "scenarios" / path


def test_a_local_file_of_that_name_takes_precedence(elsewhere):
    (elsewhere / "quickstart").write_text("seed = 1\n")
    assert find_shipped("quickstart", "scenario") == Path("quickstart")


def test_a_local_folder_of_that_name_is_ignored(elsewhere):
    (elsewhere / "quickstart").mkdir()
    assert find_shipped("quickstart", "scenario").name == "quickstart.toml"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "quikstart",
            "quikstart: no such file, and no shipped scenario of this name; did you mean 'quickstart'?",
        ),
        ("scenarios/quickstart.toml", "the shipped scenario runs by its name: fedkd run quickstart"),
        ("nothing-like-it", "of this name (see: fedkd list scenarios)"),
    ],
)
def test_unknown_files_and_names_are_refused(given, told, elsewhere):
    with pytest.raises(UserError) as caught:
        load_scenario(given)
    assert told in str(caught.value)


def test_an_ambiguous_short_name_is_refused(tmp_path, monkeypatch):
    for name in ("a/same", "b/same", "b/other"):
        path = tmp_path / f"{name}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text("# What.\nseed = 1\n")
    monkeypatch.setattr(module, "shipped_folder", lambda: tmp_path)
    assert shipped_names("scenario").keys() == {"a/same", "b/same", "b/other", "other"}


def test_every_shipped_file_states_purpose_and_duration():
    for entry in (*list_shipped("scenario"), *list_shipped("bench")):
        what, takes = entry.about()
        assert len(what) > 15 and takes.endswith(" on 2 cores") and not takes.startswith("…"), entry.name


def test_a_comment_may_state_no_duration(tmp_path):
    (tmp_path / "a.toml").write_text("# One. Two.\nseed = 1\n")
    assert ShippedFile("a", tmp_path / "a.toml").about() == ("One.", "")


def test_a_local_bench_may_extend_a_shipped_scenario(elsewhere):
    path = elsewhere / "mine.toml"
    path.write_text('base = "quickstart"\ngrid = { "fusion.beta" = [1.0, 2.0] }\n')
    assert load_bench(path).base["name"] == "quickstart"
    path.write_text('base = "quickstrt"\n')
    with pytest.raises(UserError, match="base: no such file"):
        load_bench(path)


def test_an_installed_package_contains_the_shipped_files(tmp_path, monkeypatch):
    """Laid out as a wheel is; benches find their bases, scenarios what lies beside them."""
    package = tmp_path / "site-packages" / "fedkd"
    shutil.copytree(REPOSITORY / "scenarios", package / "shipped")
    (package / "shipped" / "own.toml").write_text('# Own.\n[fusion]\nstrategy = "boldest:Boldest"\n')
    (package / "shipped" / "boldest.py").write_text(
        "from dataclasses import dataclass\nfrom fedkd.fusion.distillation.fedmd import FedMD\n\n\n"
        "@dataclass(frozen=True)\nclass Boldest(FedMD):\n    name = 'boldest'\n"
    )
    monkeypatch.setattr(module, "__file__", str(package / "scenario" / "shipped.py"))
    monkeypatch.chdir(tmp_path)
    assert shipped_folder() == package / "shipped"
    assert load_scenario("own").plugin_path == [str(package / "shipped")]
    for entry in list_shipped("bench"):
        assert load_bench(entry.name).base, entry.name


def test_a_wheel_includes_shipped_files_and_an_editable_one_does_not():
    pytest.importorskip("hatchling", reason="builds a wheel's list of files")
    from hatchling.builders.wheel import WheelBuilder

    builder = WheelBuilder(str(REPOSITORY))
    for version, taken in (("standard", {"scenarios": "fedkd/shipped"}), ("editable", {})):
        build_data = {**builder.get_default_build_data(), "force_include": {}}
        builder.get_build_hooks(version)["custom"].initialize(version, build_data)
        assert build_data["force_include"] == taken
