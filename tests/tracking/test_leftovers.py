"""The next lock holder removes files of killed processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import numpy as np

from fedkd.federation.apps.node_state import NodeState
from fedkd.tracking.leftovers import TemporaryFolder, remove_leftovers
from fedkd.tracking.run_folder import lock_run_folder

LEFT = (
    "fusion/.round-00001.npz.4711.tmp",
    ".report.html.4711.tmp",
    ".export.4711.partial/load.py",
    "checkpoints/.round-00003.partial/manifest.json",
    "checkpoints/server/.array.partial",
)
KEPT = ("fusion/round-00001.npz", "notes.tmp", ".mine", "checkpoints/round-00002/manifest.json")


def test_the_lock_holder_removes_unfinished_files(tmp_path):
    for name in (*LEFT, *KEPT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with lock_run_folder(tmp_path):
        remove_leftovers(tmp_path / "checkpoints")  # a store does so before it writes
        assert not [name for name in LEFT if (tmp_path / name).exists()]
    assert all((tmp_path / name).exists() for name in KEPT)


def test_a_node_removes_its_unfinished_model_file(tmp_path):
    state = NodeState(tmp_path, 1, 0, "f")
    with state.held():
        state.keep("train 1", {"weights": np.ones(3)})
    [now] = tmp_path.rglob("now.safetensors")
    now.with_name(".now.safetensors.4711.tmp").touch()
    with state.held():
        assert list(now.parent.glob(".*.tmp")) == []
    assert now.exists()


def test_without_a_lock_only_files_of_one_name_are_removed(tmp_path):
    for name in (".page.html.4711.tmp", ".other.html.4711.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "page.html")
    assert [path.name for path in tmp_path.iterdir()] == [".other.html.4711.tmp"]


KILLED = """
import os, signal
from fedkd.tracking.leftovers import TemporaryFolder
folder = TemporaryFolder("fedkd-test-")
print(folder.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_only_temporary_folders_of_dead_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "fedkd-test-strange").touch()
    held = TemporaryFolder("fedkd-test-")
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True)
    left = killed.stdout.strip()
    assert os.path.isdir(left) and held.path.is_dir()
    another = TemporaryFolder("fedkd-test-")
    assert not os.path.exists(left) and held.path.is_dir()
    for folder in (held, another):
        folder.close()
    assert [path.name for path in tmp_path.iterdir()] == ["fedkd-test-strange"]


def test_a_folder_can_be_closed_twice(tmp_path):
    folder = TemporaryFolder("fedkd-closed-")
    folder.close()
    with (tmp_path / "file").open("w") as other:  # which may now have the descriptor of the folder
        folder.close()
        other.write("open")
    assert not folder.path.exists()
