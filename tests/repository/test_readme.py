"""Examples of the README and of the page on learners work."""

from __future__ import annotations

import re
from pathlib import Path

import prose
import tomli_w
from prose import REPOSITORY

import fedkd
from fedkd.cli.main import _parser
from fedkd.continual import LEARNERS
from fedkd.plan.load import load_scenario

PAGE = REPOSITORY / "README.md"
LEARNER = REPOSITORY / "docs" / "howto" / "learner.md"
README = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [block.text for block in prose.blocks(PAGE) if block.language == language]


def python_file(name: str, page: Path = PAGE) -> str:
    (block,) = [block.text for block in prose.blocks(page) if block.file == name]
    return block


def test_readme_scenario_runs_with_the_parts_of_the_readme(tmp_path):
    for name in ("mine.toml", "parts.py"):
        (tmp_path / name).write_text(python_file(name))
    parts = [
        'clients=[{ model = "parts:tiny" }, { model = "lenet" }]',
        'fusion={ strategy = "parts:SurestClient" }',
    ]
    small = ["rounds=1", "data.transfer.size=50", 'engine.kind="inline"']
    scenario = load_scenario(tmp_path / "mine.toml", [*parts, *small])
    result = fedkd.run(scenario, out=tmp_path / "run")
    learned = [row for row in result.metrics() if row["metric"] == "agreement"]
    assert len(learned) == 7, "six clients and their mean learned from the strategy"


def test_strategy_and_learner_are_short():
    code = python_file("parts.py").splitlines()
    assert len([line for line in code if line.strip()]) <= 25
    assert len(python_file("mylearner.py", LEARNER).splitlines()) < 40


def test_learner_runs_and_retains_tasks(digits_scenario, tmp_path):
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


def test_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_stream_page_names_every_learner():
    page = (REPOSITORY / "docs" / "howto" / "stream.md").read_text(encoding="utf-8")
    assert [name for name in LEARNERS.builtin if f"`{name}`" not in page] == []


def test_commands_page_names_every_verb():
    page = (REPOSITORY / "docs" / "run-folder.md").read_text(encoding="utf-8")
    verbs = next(action.choices for action in _parser()._actions if action.choices)
    assert [verb for verb in verbs if f"`fedkd {verb}" not in page] == []


def test_named_files_exist():
    for name in set(re.findall(r"(?:scripts|scenarios)/[\w/.-]+\.(?:sh|py|toml)", README)):
        assert (REPOSITORY / name).is_file(), name
