"""The state of a node is restored exactly or refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedkd.errors import UserError
from fedkd.federation.apps.node_state import BEFORE, NOW, NodeState, newest_state

FEDERATION = 64 * "a"
STATE = {"applied_round": np.array(3), "model/weight": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)}


def kept(
    folder: Path, run: int = 1, client: int = 2, federation: str = FEDERATION, shift: float = 0.0
) -> Path:
    state = {name: values + values.dtype.type(shift) for name, values in STATE.items()}
    NodeState(folder, run, client, federation)._folder.mkdir(parents=True)
    NodeState(folder, run, client, federation).keep("train 3", state)
    return folder / "runs" / str(run) / NOW


def read(folder: Path) -> dict[str, np.ndarray] | None:
    found = NodeState(folder, 1, 2, FEDERATION).at("evaluate 3")
    return None if found is None else dict(found)


def test_every_flipped_bit_is_noticed(tmp_path):
    path = kept(tmp_path)
    content, generator = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for bit in generator.choice(8 * len(content), 300, replace=False).tolist():
        spoiled = bytearray(content)
        spoiled[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoiled)
        try:
            found = read(tmp_path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:  # such as blanks of the header
            assert found is not None and found.keys() == STATE.keys()
            assert all(found[name].tobytes() == values.tobytes() for name, values in STATE.items())
    assert refused > 200


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"client": 1}, "belongs to another client: 1, not 2"),
        ({"run": 5}, "belongs to another run: 5, not 1"),
        ({"federation": 64 * "b"}, "belongs to another federation: bbb"),
    ],
)
def test_a_state_of_another_client_run_or_federation_is_refused(tmp_path, other, told):
    path = kept(tmp_path / "own")
    shutil.copy(kept(tmp_path / "elsewhere", **other), path)
    with pytest.raises(UserError, match=told):
        read(tmp_path / "own")
    with pytest.raises(UserError, match=told):
        newest_state(tmp_path / "own", 2, FEDERATION)


def test_the_previous_state_is_checked(tmp_path):
    state, path = NodeState(tmp_path, 1, 2, FEDERATION), kept(tmp_path)
    state.keep("evaluate 3", STATE)
    before = path.with_name(BEFORE)
    before.write_bytes(before.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match=r"before\.safetensors: is damaged: its contents differ"):
        state.at("evaluate 3")


def test_a_file_of_an_earlier_release_is_refused_with_advice(tmp_path):
    path = kept(tmp_path)
    save_file(load_file(path), path, metadata={"step": "train 3"})
    with pytest.raises(
        UserError, match=r"has no digest: .* earlier release .* remove the folder to start again"
    ):
        read(tmp_path)
