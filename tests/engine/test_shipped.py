"""Plug-ins are sent to other machines."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from fedkd.engine.ray import node_check as module
from fedkd.engine.ray.node_check import ShippedFolder, shipped_plugin_files, with_shipped_files
from fedkd.errors import UserError
from fedkd.plugins.loading import load_object
from fedkd.scenario.schema import Scenario


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with plug-ins, and other files; temporary files go elsewhere, and modules are forgotten."""
    folder = tmp_path / "here"
    (folder / "travelling_pack" / "deep").mkdir(parents=True)
    (folder / "elsewhere").mkdir()
    (folder / "travelling.py").write_text(
        "import sibling_of_travelling\nClass = sibling_of_travelling.Class\n"
    )
    (folder / "sibling_of_travelling.py").write_text("class Class:\n    pass\n")
    (folder / "travelling_pack" / "__init__.py").write_text("")
    (folder / "travelling_pack" / "part.py").write_text("Class = int\n")
    (folder / "travelling_pack" / "deep" / "lazy.py").write_text("")
    (folder / "elsewhere" / "other.py").write_text("")
    (folder / "notes.txt").write_text("nothing")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if "travelling" in name:
            del sys.modules[name]


def test_imported_modules_travel_with_neighbours_and_packages(folder):
    scenario = Scenario(plugin_path=[str(folder)])
    assert shipped_plugin_files(scenario) == ()
    load_object("travelling:Class", [folder])
    [sent] = shipped_plugin_files(scenario)
    assert (sent.path, sorted(sent.files)) == (str(folder), ["sibling_of_travelling.py", "travelling.py"])
    assert sent.files["travelling.py"] == (folder / "travelling.py").read_bytes()
    load_object("travelling_pack.part:Class", [folder])
    [sent] = shipped_plugin_files(scenario)
    assert sorted(file for file in sent.files if "/" in file) == [
        "travelling_pack/__init__.py",
        "travelling_pack/deep/lazy.py",
        "travelling_pack/part.py",
    ]


def test_existing_plug_in_files_are_used_in_place(folder):
    scenario = Scenario(plugin_path=[str(folder)])
    sent = ShippedFolder(str(folder), {"travelling.py": (folder / "travelling.py").read_bytes()})
    assert with_shipped_files(scenario, [sent]) == scenario


@pytest.mark.parametrize("there", ["nothing", "another"])
def test_plug_in_files_are_written_once_and_equal_those_sent(there, folder):
    load_object("travelling:Class", [folder])
    scenario = Scenario(plugin_path=[str(folder), "/somewhere"])
    sent = shipped_plugin_files(scenario)
    if there == "nothing":
        shutil.rmtree(folder)
    else:
        (folder / "travelling.py").write_text("Class = None\n")
    first, second = with_shipped_files(scenario, sent), with_shipped_files(scenario, sent)
    place = Path(first.plugin_path[0])
    assert first == second and first.plugin_path[1] == "/somewhere" and place != folder
    assert {path.name: path.read_bytes() for path in place.iterdir()} == dict(sent[0].files)
    assert place.stat().st_mode & 0o077 == 0 and [place] == list(place.parent.iterdir())


def test_foreign_files_are_not_trusted(folder):
    load_object("travelling:Class", [folder])
    sent = shipped_plugin_files(Scenario(plugin_path=[str(folder)]))
    shutil.rmtree(folder)
    scenario = Scenario(plugin_path=[str(folder)])
    place = Path(with_shipped_files(scenario, sent).plugin_path[0])
    (place / "travelling.py").write_text("Class = None\n")
    assert with_shipped_files(scenario, sent).plugin_path != [str(place)]
    (place / "travelling.py").write_bytes(sent[0].files["travelling.py"])
    assert with_shipped_files(scenario, sent).plugin_path == [str(place)]
    place.chmod(0o777)
    assert with_shipped_files(scenario, sent).plugin_path != [str(place)]


def test_files_too_large_for_source_code_are_refused(folder, monkeypatch):
    load_object("travelling:Class", [folder])
    monkeypatch.setattr(module, "MOST_BYTES", 20)
    with pytest.raises(UserError) as caught:
        shipped_plugin_files(Scenario(plugin_path=[str(folder)]))
    assert caught.value.key == "plugin_path.0" and "a folder of their own" in caught.value.message
