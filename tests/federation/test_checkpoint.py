"""Checkpoints are exact, complete, small and robust to damage."""

from __future__ import annotations

import json
import pickletools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd.federation import checkpoint as module
from fedkd.federation.checkpoint import CheckpointStore
from fedkd.federation.manifest import Checkpoint, digest_of
from fedkd.storage import saved_arrays
from fedkd.tracking import Totals

EVERY_TYPE = {
    "f64": np.array([1 / 3, np.nan, np.inf, -0.0]),
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "f16": np.array([0.1, 65504.0], dtype=np.float16),
    "i64": np.array([2**62 + 1, -1]),
    "i32": np.array([[7]], dtype=np.int32),
    "u8": np.arange(256, dtype=np.uint8),
    "bool": np.array([True, False]),
    "scalar": np.array(5, dtype=np.int64),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "with/slash|and.dots": np.ones(1, dtype=np.float32),
}


def at(round: int, clients: dict[int, float], **server: np.ndarray) -> Checkpoint:
    """Return a checkpoint in which client n's whole state is one number."""
    return Checkpoint(
        round=round,
        totals=Totals(bytes_up=10 * round, bytes_down=20 * round, seconds=round / 3),
        offsets={"metrics.jsonl": 100 * round, "timings.jsonl": 50 * round},
        digests={"metrics.jsonl": f"{round:064d}"},
        digests_if_longer={"metrics.jsonl": f"{round:063d}a"},
        offsets_if_longer={"metrics.jsonl": 90 * round, "timings.jsonl": 40 * round},
        scenario={"rounds": 9},
        server=server or {"round": np.array(round)},
        clients={client: {"w": np.full(4, value)} for client, value in clients.items()},
    )


def written(folder: Path, *checkpoints: Checkpoint) -> CheckpointStore:
    store = CheckpointStore(folder)
    for checkpoint in checkpoints:
        store.save(checkpoint)
    store.close()
    return store


def latest(folder: Path) -> Checkpoint:
    found = CheckpointStore(folder).latest()
    assert found is not None
    return found


def states(checkpoint: Checkpoint) -> dict[int, float]:
    return {client: float(arrays["w"][0]) for client, arrays in checkpoint.clients.items()}


def folders(folder: Path) -> list[str]:
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    return sorted(names - {"clients", "server"})


def replace_bytes(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def test_a_checkpoint_reads_back_as_written(tmp_path):
    before = replace(at(3, {}), server=EVERY_TYPE, clients={0: EVERY_TYPE, 41: {}})
    written(tmp_path, before)
    after = latest(tmp_path)
    for name in ("round", "totals", "offsets", "offsets_if_longer", "scenario"):
        assert getattr(after, name) == getattr(before, name)
    assert CheckpointStore(tmp_path).began() == ({"rounds": 9}, 3)
    assert sorted(after.clients) == [0, 41]
    for arrays in (after.server, after.clients[0]):
        assert set(arrays) == set(EVERY_TYPE)
        for name, wanted in EVERY_TYPE.items():
            assert arrays[name].dtype == wanted.dtype
            assert arrays[name].shape == wanted.shape
            assert arrays[name].tobytes() == np.ascontiguousarray(wanted).tobytes()


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert CheckpointStore(tmp_path).latest() is None


def state_files(folder: Path) -> dict[str, int]:
    """Return the clients' files by name, with what tells whether one was written anew."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "checkpoints" / "clients").iterdir()}


def test_only_changed_states_are_written(tmp_path):
    written(tmp_path, at(1, {0: 1.0, 1: 1.0, 2: 1.0}))
    before = state_files(tmp_path)
    store = CheckpointStore(tmp_path)
    store.latest()
    store.save(at(2, {1: 2.0}))
    store.close()
    after = state_files(tmp_path)
    assert set(after) - set(before) == {"client-00001@00002.safetensors"}
    assert before.items() <= after.items()
    assert states(latest(tmp_path)) == {0: 1.0, 1: 2.0, 2: 1.0}


def test_unreferenced_states_are_removed(tmp_path):
    written(tmp_path, at(1, {0: 1.0, 1: 1.0}), at(2, {0: 2.0}), at(3, {0: 3.0}), at(4, {}))
    assert set(state_files(tmp_path)) == {"client-00000@00003.safetensors", "client-00001@00001.safetensors"}
    store = CheckpointStore(tmp_path)
    store.latest()
    store.add(5, {0: {"w": np.ones(1)}})  # and the run was killed
    store.close()
    assert states(latest(tmp_path)) == {0: 3.0, 1: 1.0}
    store = CheckpointStore(tmp_path)
    store.latest()
    store.save(at(6, {1: 6.0}))
    store.close()
    assert states(latest(tmp_path)) == {0: 3.0, 1: 6.0}
    assert set(state_files(tmp_path)) == {
        "client-00000@00003.safetensors",
        "client-00001@00001.safetensors",
        "client-00001@00006.safetensors",
    }


def test_clients_may_be_saved_in_portions(tmp_path):
    store = CheckpointStore(tmp_path)
    store.add(1, at(1, {0: 1.0}).clients)
    store.add(1, at(1, {5: 5.0}).clients)
    store.save(at(1, {7: 7.0}))
    store.close()
    assert states(latest(tmp_path)) == {0: 1.0, 5: 5.0, 7: 7.0}


def waiting(round: int, arrays: dict[str, np.ndarray], **others: np.ndarray) -> Checkpoint:
    """Return a checkpoint whose server has arrays that wait, and others."""
    server = {"round": np.array(round), **arrays, **others}
    return replace(at(round, {0: float(round)}), server=server, lasting=arrays.keys())


def arrays_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("server/*"))


def test_waiting_messages_are_written_once(tmp_path):
    """New in one checkpoint, in a file of its own from the next on, by whatever name, and gone with the
    last."""
    one, two = np.full(4096, 1.0), np.full(4096, 2.0)
    small = np.zeros(2)
    store = CheckpointStore(tmp_path)

    def size_after(checkpoint: Checkpoint) -> int:
        store.save(checkpoint)
        store.wait()
        folder = tmp_path / "checkpoints" / f"round-{checkpoint.round:05d}"
        return (folder / "server.safetensors").stat().st_size

    assert size_after(waiting(1, {"a": one, "s": small})) > one.nbytes and not arrays_of(tmp_path)
    assert size_after(waiting(2, {"b": one, "a": two, "s": small})) < 1.5 * one.nbytes
    (first,) = arrays_of(tmp_path)
    assert size_after(waiting(3, {"a": one, "b": two, "s": small})) < 1000
    assert len(arrays_of(tmp_path)) == 2
    found = latest(tmp_path).server
    assert np.array_equal(found["a"], one) and np.array_equal(found["b"], two)
    assert list(found) == sorted(found)
    size_after(waiting(4, {"b": two}))
    size_after(waiting(5, {"b": two}))
    assert len(arrays_of(tmp_path)) == 1 and first not in arrays_of(tmp_path)
    store.close()


def test_a_writable_array_is_written_again(tmp_path):
    moments = np.zeros(4096)
    store = CheckpointStore(tmp_path)
    for round in (1, 2, 3):
        moments += 1.0
        store.save(waiting(round, {}, moments=moments))
        store.wait()
    store.close()
    assert latest(tmp_path).server["moments"][0] == 3.0 and not arrays_of(tmp_path)


def test_waiting_messages_are_recognised_after_a_resume(tmp_path):
    one = np.full(4096, 1.0)
    written(tmp_path, waiting(1, {"a": one}), waiting(2, {"a": one}))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints" / "server").iterdir()}
    store = CheckpointStore(tmp_path)
    found = store.latest()
    assert found is not None
    store.save(waiting(3, {"x": found.server["a"]}))
    store.close()
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(arrays_of(tmp_path)) == 1
    assert np.array_equal(latest(tmp_path).server["x"], one)
    (path,) = before
    replace_bytes(path, path.read_bytes()[:-1])
    told: list[str] = []
    assert CheckpointStore(tmp_path, told.append).latest() is None
    assert (
        all("array-" in line and "was changed after it was written" in line for line in told)
        and len(told) == 2
    )


def test_a_checkpoint_of_an_earlier_release_is_refused(tmp_path):
    written(tmp_path, at(1, {0: 1.0}))
    (path,) = (tmp_path / "checkpoints").glob("round-*/manifest.json")
    manifest = json.loads(path.read_text())
    manifest["files"] = manifest.pop("clients")
    del manifest["digest"]
    replace_bytes(path, json.dumps(manifest | {"digest": digest_of(manifest)}).encode())
    told: list[str] = []
    assert CheckpointStore(tmp_path, told.append).latest() is None
    assert told == ["checkpoint round-00001 is damaged and ignored: an earlier release of fedkd wrote it"]


def test_the_last_two_checkpoints_are_stored_completely(tmp_path):
    written(tmp_path, at(1, {0: 1.0, 1: 1.0}), at(2, {1: 2.0}), at(3, {1: 3.0}), at(4, {}))
    assert folders(tmp_path) == ["round-00003", "round-00004"]
    assert states(latest(tmp_path)) == {0: 1.0, 1: 3.0}


def test_half_written_checkpoints_are_ignored_and_removed(tmp_path):
    written(tmp_path, at(1, {0: 1.0}))
    partial = tmp_path / "checkpoints" / ".round-00002.partial"
    partial.mkdir()
    (partial / "server.safetensors").write_bytes(b"half")
    assert latest(tmp_path).round == 1
    store = CheckpointStore(tmp_path)
    store.latest()
    store.save(at(3, {0: 3.0}))
    store.close()
    assert folders(tmp_path) == ["round-00001", "round-00003"]


def state_of(folder: Path, client: int) -> Path:
    """Return the newest file of a client, of those that a checkpoint's folder may speak of."""
    return max((folder.parent / "clients").glob(f"client-{client:05d}@*"))


def damaged_ways() -> dict:
    return {
        "a client cut short": lambda f: replace_bytes(state_of(f, 1), state_of(f, 1).read_bytes()[:-1]),
        "a client missing": lambda f: state_of(f, 1).unlink(),
        "the server missing": lambda f: (f / "server.safetensors").unlink(),
        "the manifest missing": lambda f: (f / "manifest.json").unlink(),
        "the manifest empty": lambda f: replace_bytes(f / "manifest.json", b""),
        "the manifest of another kind": lambda f: replace_bytes(f / "manifest.json", b"[1, 2]"),
        "the header overwritten": lambda f: replace_bytes(
            f / "server.safetensors", b"\xff" * (f / "server.safetensors").stat().st_size
        ),
        "another client's file": lambda f: replace_bytes(state_of(f, 1), state_of(f, 0).read_bytes()),
        "another server": lambda f: edit_manifest(f, server="0" * 64),
        "no clients": lambda f: edit_manifest(f, clients={}),
        "no offsets": lambda f: edit_manifest(f, offsets={}),
        "another round": lambda f: edit_manifest(f, round=-1),
        "without digests": lambda f: edit_manifest(f, digest=None),
    }


def edit_manifest(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    replace_bytes(folder / "manifest.json", json.dumps(manifest | changes).encode())


@pytest.mark.parametrize("way", damaged_ways())
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(way, tmp_path):
    written(tmp_path, at(1, {0: 1.0, 1: 1.0}), at(2, {1: 2.0}))
    damaged_ways()[way](tmp_path / "checkpoints" / "round-00002")
    told: list[str] = []
    back = CheckpointStore(tmp_path, told.append).latest()
    assert back is not None and (back.round, states(back)) == (1, {0: 1.0, 1: 1.0})
    assert len(told) == 1 and told[0].startswith("checkpoint round-00002 is damaged and ignored: ")
    assert ("manifest" in told[0]) != (".safetensors" in told[0]), "the file is named"


@pytest.mark.parametrize("name", ["server.safetensors", "a client's", "manifest.json"])
def test_every_changed_bit_is_noticed(name, tmp_path):
    written(tmp_path, at(1, {0: 1.0}), at(2, {0: 2.0}))
    folder = tmp_path / "checkpoints" / "round-00002"
    path = state_of(folder, 0) if name == "a client's" else folder / name
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        replace_bytes(
            path, whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :]
        )
        found = CheckpointStore(tmp_path).latest()
        assert found is not None
        assert found.round == 1 or (name == "manifest.json" and states(found) == {0: 2.0}), position


def test_damage_to_all_checkpoints_leaves_none(tmp_path):
    written(tmp_path, at(1, {0: 1.0}), at(2, {0: 2.0}))
    for folder in (tmp_path / "checkpoints").glob("round-*"):
        (folder / "manifest.json").unlink()
    store = CheckpointStore(tmp_path)
    assert store.latest() is None
    store.save(at(5, {0: 5.0}))
    store.close()
    assert folders(tmp_path) == ["round-00005"]


def test_a_skipped_damaged_checkpoint_is_not_reused(tmp_path):
    # Saved after rounds 4 and 5; 5 lost a client that did change; resumed from 4, saved next after 6.
    written(tmp_path, at(4, {0: 4.0, 1: 4.0, 2: 4.0}), at(5, {1: 5.0, 2: 5.0}))
    (tmp_path / "checkpoints" / "clients" / "client-00001@00005.safetensors").unlink()
    store = CheckpointStore(tmp_path)
    assert store.latest().round == 4
    store.save(at(6, {1: 6.0}))
    store.close()
    assert states(latest(tmp_path)) == {0: 4.0, 1: 6.0, 2: 4.0}
    assert folders(tmp_path) == ["round-00004", "round-00006"]
    assert not list((tmp_path / "checkpoints" / "clients").glob("*@00005.*"))


@pytest.mark.parametrize("fits", [0, 1, 2], ids=["nothing", "the client", "the server"])
def test_a_full_disk_is_reported_and_keeps_the_last_checkpoint(fits, tmp_path, monkeypatch):
    written(tmp_path, at(1, {0: 1.0}))
    store = CheckpointStore(tmp_path)
    store.latest()
    real, calls = saved_arrays.write_bytes, []

    def write(path, data, **how):
        calls.append(path)
        if len(calls) == fits + 1:
            path.write_bytes(data[:10])
            raise OSError(28, "No space left on device")
        real(path, data, **how)

    for place in (module, saved_arrays):
        monkeypatch.setattr(place, "write_bytes", write)
    store.save(at(2, {0: 2.0}))
    with pytest.raises(OSError, match="No space left"):
        store.wait()
    assert folders(tmp_path) == ["round-00001"]
    store.save(at(3, {0: 3.0}))  # room again
    store.close()
    assert (latest(tmp_path).round, states(latest(tmp_path))) == (3, {0: 3.0})


def test_a_write_error_is_raised_at_the_next_checkpoint(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)

    def refuse(path, data, **how):
        raise OSError("no")

    monkeypatch.setattr(saved_arrays, "write_bytes", refuse)
    store.save(at(1, {0: 1.0}))
    with pytest.raises(OSError, match="no"):
        store.save(at(2, {0: 2.0}))
    store.close()


def test_checkpoints_contain_no_pickle(tmp_path):
    written(tmp_path, at(1, {0: 1.0}))
    files = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
    assert len(files) == 3
    for path in files:
        with pytest.raises(ValueError):
            list(pickletools.genops(path.read_bytes()))


def test_arrays_are_restored_in_a_fixed_order(tmp_path):
    arrays = {f"{number}": np.zeros(1) for number in range(50)}
    written(tmp_path, replace(at(1, {}), clients={0: arrays}))
    for _ in range(3):
        assert list(latest(tmp_path).clients[0]) == sorted(arrays)
