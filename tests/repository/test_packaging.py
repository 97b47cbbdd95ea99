"""What stands around the package: citation, what is installed, what a shell completes, the build of torch."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedkd
from fedkd.cli.completion import keys_of, scenario_words, set_words
from fedkd.cli.doctor import _why_none
from fedkd.cli.main import LISTS, _parser
from fedkd.plugins import packages as installed
from fedkd.scenario.schema import Scenario

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    citation = (REPOSITORY / "CITATION.cff").read_text()
    assert project["version"] == fedkd.__version__
    assert (
        f"\nversion: {fedkd.__version__}\n" in citation and f"\nlicense: {project['license']}\n" in citation
    )


def test_the_citation_is_valid_yaml():
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version"} <= found.keys()


def test_paths_in_the_contributors_guide_exist():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"(?:scripts|tests|docs)/[\w/]+\.(?:sh|py|md)", text):
        assert (REPOSITORY / name).is_file(), name


def test_flower_leaves_no_module_out_of_an_app():
    """Its apps are packed without files that are named like tests."""
    named = [path.name for path in (REPOSITORY / "fedkd").rglob("*.py")]
    assert [name for name in named if name.startswith("test_") or name.endswith("_test.py")] == []


# Versions ---------------------------------------------------------------------------------------------------


@pytest.fixture
def unread() -> Iterator[None]:
    """Have versions be read anew."""
    installed._of_packages.cache_clear()
    yield
    installed._of_packages.cache_clear()


def test_versions_cover_all_dependencies(unread, monkeypatch):
    monkeypatch.setattr(
        installed, "requires", lambda name: ["numpy>=2.0", "wandb", 'pytest>=8; extra == "test"']
    )
    assert {"numpy", "wandb", "torch"} <= set(installed.dependencies())
    assert "pytest" not in installed.dependencies()
    found = installed.package_versions()
    assert found["numpy"] == importlib.metadata.version("numpy") and found["fedkd"] == fedkd.__version__
    assert {"python", "platform"} <= found.keys() and all(isinstance(v, str) for v in found.values())


def test_versions_without_an_installed_package(unread, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installed, "requires", missing)
    assert installed.dependencies() == sorted(installed.NEEDED, key=str.lower)
    monkeypatch.setattr(installed, "version", missing)
    assert set(installed.package_versions()) - {"cuda"} == {"fedkd", "python", "platform"}


@pytest.mark.parametrize(
    ("built_for", "driver", "told"),
    [
        (None, False, "torch is the CPU build, all that is needed"),
        (None, True, "torch is the CPU build, though there is an NVIDIA driver"),
        (
            "12.8",
            False,
            "torch is built for CUDA 12.8, and there is no NVIDIA driver; the CPU build would do",
        ),
        ("12.8", True, "torch is built for CUDA 12.8, and the driver shows it no GPU"),
    ],
)
def test_the_reason_for_a_missing_gpu_is_named(built_for, driver, told):
    assert _why_none(built_for, driver) == told


# Completion -------------------------------------------------------------------------------------------------


def test_completion_offers_names_and_files(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "split.toml").touch()
    (tmp_path / "mine" / "notes.txt").touch()
    (tmp_path / "quick.toml").touch()
    (tmp_path / ".hidden").mkdir()
    monkeypatch.chdir(tmp_path)
    assert scenario_words("quick", "scenario") == ["quickstart", "quick.toml"]
    assert scenario_words("bench/quick", "bench") == ["bench/quickstart"]
    assert scenario_words("mi", "scenario") == ["mine/"]
    assert scenario_words("mine/", "scenario") == ["mine/split.toml"]
    assert scenario_words(f"{tmp_path}/mine/s", "bench") == [f"{tmp_path}/mine/split.toml"]
    assert scenario_words("nowhere/", "scenario") == []
    assert ".hidden/" not in scenario_words("", "scenario")


def test_completion_offers_keys_at_every_depth():
    assert set_words("training.early") == [
        "training.early_stopping.validation=",
        "training.early_stopping.patience=",
    ]
    keys = list(keys_of(Scenario))
    assert {"rounds", "data.partition.alpha", "continual.tasks.kind"} <= set(keys)
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fedkd ru", {"run", "runs"}),
        ("fedkd list par", {"partitions"}),
        ("fedkd run kn", {"knfu-mnist", "knfu-fashion", "knfu-cifar10-jpeg"}),
        (
            "fedkd run quickstart --set fusion.knowledge",
            {
                "fusion.knowledge_cache.decay=",
                "fusion.knowledge_cache.megabytes=",
            },
        ),
    ],
)
def test_completion_scripts_work_in_a_shell(line, expected, tmp_path, monkeypatch, capfd):
    argcomplete = pytest.importorskip("argcomplete")
    from fedkd.cli.completion import _arguments, complete

    answers = []

    class Asked(argcomplete.CompletionFinder):
        def __call__(self, parser, **options):
            words = line.split()
            self._parser, self.always_complete_options = parser, True
            prefix = words.pop()
            answers.extend(self._get_completions(words, prefix, "", None))

    monkeypatch.setattr(argcomplete, "autocomplete", Asked())
    monkeypatch.chdir(tmp_path)
    parser = _parser()
    assert list(_arguments(parser))
    complete(parser)
    assert {answer.strip() for answer in answers} == expected


def test_completion_reads_the_environment_of_the_shell(tmp_path):
    pytest.importorskip("argcomplete")
    told = tmp_path / "told"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(told),
        "COMP_LINE": "fedkd wat",
        "COMP_POINT": "9",
        "PYTHONPATH": str(REPOSITORY),
    }
    subprocess.run([sys.executable, "-m", "fedkd"], env=os.environ | asked, timeout=120, check=True)
    assert told.read_text().strip() == "watch"


# Lists and schemas ------------------------------------------------------------------------------------------


def test_partitions_are_listed_with_their_keys(capsys):
    from fedkd.cli.main import main
    from fedkd.data.registry import PARTITIONS

    assert "partitions" in LISTS and main(["list", "partitions"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in PARTITIONS.builtin:
        (line,) = [line for line in lines if line.split(" ")[0] == name]
        assert len(line) > 40, f"{name} is explained"
    assert any(line.startswith("alpha = 0.5 ") and "Dirichlet" in line for line in lines)
    assert any(line.startswith("samples_per_client = absent ") for line in lines)


def test_the_schema_of_benches_accepts_valid_files(capsys):
    from fedkd.cli.main import main
    from fedkd.scenario.load import read_toml
    from fedkd.scenario.shipped_files import list_shipped

    assert main(["check", "--schema", "bench"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["title"] == "fedkd bench" and {"base", "grid", "seeds"} <= schema["properties"].keys()
    assert "beta" in schema["$defs"]["Fusion"]["properties"]
    for reference in set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema))):
        assert reference in schema["$defs"]
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(schema)
    for entry in list_shipped("bench"):
        assert check.is_valid(read_toml(entry.path)), entry.name
    assert not check.is_valid({"base": "quickstart", "sedes": 3})
    assert not check.is_valid({"scenario": {"rounds": 0}})
    assert main(["check", "--schema", "beach"]) == 2
