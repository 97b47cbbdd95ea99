"""Damaged files beside the checkpoints are rebuilt or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stopping import StopInRound

import fedkd
from fedkd.errors import Interrupted, UserError
from fedkd.storage.digests import read_table, write_table
from fedkd.tracking.events import RunObserver

RUN = 64 * "1"


class Listener(RunObserver):
    def __init__(self) -> None:
        self.told: list[str] = []

    def message(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run of two rounds that was stopped after the first."""
    return stop(tmp_path_factory.mktemp("stopped") / "run")


def stop(folder: Path, **changes: Any) -> Path:
    with pytest.raises(Interrupted):
        fedkd.run(SMALL | changes, out=folder, observers=[StopInRound(1)], progress=False, report=False)
    return folder


SMALL: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "rounds": 2,
    "data": {
        "clients": 3,
        "partition": {"alpha": 1.0, "samples_per_client": 30},
        "transfer": {"size": 10},
        "test_size": 20,
    },
    "clients": [{"model": "mlp", "args": {"hidden": [4]}}],
    "engine": {"kind": "inline"},
}


def resumed(folder: Path) -> list[str]:
    listener = Listener()
    fedkd.resume(folder, observers=[listener], progress=False, report=False)
    return [line for line in listener.told if line.endswith(" again")]


@pytest.fixture
def folder(stopped, tmp_path) -> Path:
    return shutil.copytree(stopped, tmp_path / "run")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def test_an_intact_folder_resumes_silently(folder):
    before = (folder / "schedule.json").read_bytes()
    assert resumed(folder) == [] and (folder / "schedule.json").read_bytes() == before


@pytest.mark.parametrize("place", [2, 30, 90, -4])
def test_a_damaged_schedule_is_reported_and_rebuilt(folder, place):
    before = (folder / "schedule.json").read_bytes()
    flip(folder / "schedule.json", place)
    assert resumed(folder) == ["schedule.json was missing, damaged or from another run; it is written again"]
    assert (folder / "schedule.json").read_bytes() == before


def test_the_schedule_of_another_run_is_rebuilt(folder, tmp_path):
    other = stop(tmp_path / "other", seed=4)
    shutil.copy(other / "schedule.json", folder / "schedule.json")
    assert len(resumed(folder)) == 1
    assert json.loads((folder / "schedule.json").read_text())["participation"]["seed"] == 3


def test_a_damaged_table_of_a_finished_round_is_refused(folder):
    table = folder / "fusion" / "round-00001.npz"
    flip(table, len(table.read_bytes()) // 2)
    with pytest.raises(UserError, match=r"round-00001\.npz: is damaged or belongs to another run"):
        resumed(folder)
    table.unlink()
    assert resumed(folder) == [], "without it the run goes on"


def test_a_table_of_another_run_is_refused(folder, tmp_path):
    other = stop(tmp_path / "other", seed=4)
    shutil.copy(other / "fusion" / "round-00001.npz", folder / "fusion")
    with pytest.raises(UserError, match=r"round-00001\.npz: is damaged"):
        resumed(folder)


def test_a_table_of_a_later_round_is_rebuilt(folder):
    shutil.copy(folder / "fusion" / "round-00001.npz", folder / "fusion" / "round-00002.npz")
    assert resumed(folder) == ["fusion/round-00002.npz was damaged; it is computed again"]
    assert read_table(folder / "fusion" / "round-00002.npz") is not None


def test_an_extended_run_keeps_its_tables(folder):
    resumed(folder)
    fedkd.resume(folder, rounds=3, progress=False, report=False)
    assert sorted(path.name for path in (folder / "fusion").iterdir()) == [
        f"round-0000{round}.npz" for round in (1, 2, 3)
    ]


def test_every_flipped_bit_of_a_table_is_noticed(tmp_path):
    path, arrays = tmp_path / "round-00001.npz", {"clients": np.arange(3), "weights": np.eye(3)}
    write_table(path, arrays, RUN)
    content, refused = path.read_bytes(), 0
    for bit in np.random.default_rng(0).choice(8 * len(content), 300, replace=False).tolist():
        spoiled = bytearray(content)
        spoiled[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoiled)
        found = read_table(path, RUN)
        refused += found is None
        if found is not None:  # such as the time that a member was written
            assert found.keys() == arrays.keys()
            assert all(np.array_equal(found[name], values) for name, values in arrays.items())
    assert refused > 150


def test_a_table_of_another_round_or_run_is_recognised(tmp_path):
    path = tmp_path / "round-00001.npz"
    write_table(path, {"clients": np.arange(3)}, RUN)
    assert read_table(path, 64 * "2") is None
    assert read_table(Path(shutil.copy(path, tmp_path / "round-00002.npz"))) is None
    np.savez(tmp_path / "round-00003.npz", clients=np.arange(3))
    assert read_table(tmp_path / "round-00003.npz", RUN) is not None, "of a release that wrote no digests"
