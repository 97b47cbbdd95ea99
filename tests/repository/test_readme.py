"""What the README, and the page on learners, show works as it stands there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import prose
import tomli_w
from prose import REPOSITORY

import fedkd
from fedkd.cli.main import _parser
from fedkd.continual.registry import LEARNERS
from fedkd.plan.load import load_scenario, parse_scenario
from fedkd.scenario.load import read_toml

PAGE = REPOSITORY / "README.md"
LEARNER = REPOSITORY / "docs" / "howto" / "learner.md"
README = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [block.text for block in prose.blocks(PAGE) if block.language == language]


def python_file(name: str, page: Path = PAGE) -> str:
    (block,) = [block.text for block in prose.blocks(page) if block.file == name]
    return block


def test_the_explained_scenario_is_valid():
    (block,) = [block for block in blocks("toml") if "[data]" in block]
    scenario = parse_scenario(tomllib.loads(block))
    assert (scenario.name, scenario.data.clients, scenario.fusion.strategy) == ("my-mnist", 10, "knfu")


def test_the_example_strategy_and_models_run(digits_scenario, tmp_path):
    (tmp_path / "mine.py").write_text(python_file("mine.py"))
    (tmp_path / "mymodels.py").write_text(python_file("mymodels.py"))
    (mix,) = [tomllib.loads(block) for block in blocks("toml") if block.startswith("[[clients]]")]
    tables = digits_scenario | mix | {"fusion": {"strategy": "mine:Boldest"}}
    path = tmp_path / "scenario.toml"
    path.write_text(tomli_w.dumps(tables))
    result = fedkd.run(load_scenario(path, ["rounds=1"]), out=tmp_path / "run")
    gains = [row for row in result.metrics() if row["metric"] == "agreement"]
    assert len(gains) == 5, "four clients and their mean learned from the strategy"


def test_the_example_strategy_and_learner_are_short():
    code = python_file("mine.py").splitlines()
    assert len([line for line in code if line.strip()]) <= 25
    assert len(python_file("mylearner.py", LEARNER).splitlines()) < 40


def test_the_explained_stream_equals_the_shipped_scenario():
    (block,) = [tomllib.loads(block) for block in blocks("toml") if block.startswith("[continual]")]
    shipped = read_toml(REPOSITORY / "scenarios" / "continual" / "quickstart.toml")
    assert block["continual"] == shipped["continual"]


def test_the_example_learner_runs_and_remembers(digits_scenario, tmp_path):
    (tmp_path / "mylearner.py").write_text(python_file("mylearner.py", LEARNER))
    stream = {"learner": "mylearner:Anchored", "head": "domain"}
    tables = digits_scenario | {"fusion": {"strategy": "fedmd"}, "continual": stream}
    del tables["rounds"]
    tables["data"] = tables["data"] | {"partition": {"scheme": "iid", "samples_per_client": 40}}
    tables["training"] = {"lr": 0.003, "batch_size": 20, "local_epochs": 5}
    path = tmp_path / "scenario.toml"
    path.write_text(tomli_w.dumps(tables))
    forgotten = {}
    for strength in (0.0, 1.0):
        scenario = load_scenario(path, [f"continual.strength={strength}"])
        summary = fedkd.run(scenario, out=tmp_path / f"run-{strength}").summary["continual"]
        assert summary["stored_bytes"]["mean"] > 0
        forgotten[strength] = summary["forgetting"]["mean"]
    assert forgotten[1.0] < forgotten[0.0] / 2


def test_every_learner_is_named():
    section = README[README.index("## A stream of tasks") : README.index("## Plug in your own")]
    assert [name for name in LEARNERS.builtin if f"`{name}`" not in section] == []


def test_every_verb_is_named():
    verbs = next(action.choices for action in _parser()._actions if action.choices)
    for verb in verbs:
        assert f"fedkd {verb}" in README


def test_named_files_exist():
    for name in set(re.findall(r"(?:scripts|scenarios)/[\w/.-]+\.(?:sh|py|toml)", README)):
        assert (REPOSITORY / name).is_file(), name
