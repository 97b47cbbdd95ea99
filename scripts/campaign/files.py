"""Files that a scenario reads and that are not what they should be."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from campaign.base import DATA, arrays
from campaign.sandbox import Place
from campaign.values import damaged

Scenario = dict[str, Any]
MNIST = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def odd_file(place: Place, scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """Write a file that is not what it should be, and return the scenario that reads it."""
    kinds: tuple[Callable[[Place, Scenario, np.random.Generator], None], ...] = (
        _torn_npz,
        _odd_npz,
        _odd_npz,
        _claiming_npz,
        _partition,
        _partition,
        _idx,
        _images,
        _tar,
        _cifar,
    )
    kinds[rng.integers(len(kinds))](place, scenario, rng)
    return scenario


def _torn_npz(place: Place, scenario: Scenario, rng: np.random.Generator) -> None:
    path = place.inputs / DATA
    path.write_bytes(damaged(path.read_bytes(), rng))


def _odd_npz(place: Place, scenario: Scenario, rng: np.random.Generator) -> None:
    """One or two arrays are of another type or shape, or hold what they must not."""
    found: dict[str, Any] = arrays()
    for _ in range(int(rng.integers(1, 3))):
        name = str(rng.choice([*found, "class_names", "x", "y"]))
        old = np.asarray(found.get(name, np.zeros(3)))
        found[name] = _odd_array(old, rng)
    if rng.random() < 0.2:
        del found[str(rng.choice(list(found)))]
    if rng.random() < 0.3:
        scenario["data"]["normalise"] = False
    np.savez(place.inputs / DATA, allow_pickle=True, **found)


def _odd_array(old: np.ndarray, rng: np.random.Generator) -> Any:
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: old[:0],
        lambda: old[:1],
        lambda: old[..., None, None, None],
        lambda: old.ravel(),
        lambda: np.array(7),
        lambda: old.astype(np.complex64),
        lambda: old.astype(str),
        lambda: old.astype(object),
        lambda: old.astype(bool),
        lambda: old.astype(np.float16),
        lambda: old.astype(np.int8),
        lambda: old.astype(">f8"),
        lambda: old.astype(np.int64) + 2_000_000_000,
        lambda: old.astype(np.int64) - 5,
        lambda: old.astype(np.uint64) + np.uint64(2**63),
        lambda: old * np.float64(1e300),
        lambda: old * np.float32(1e37),
        lambda: np.full_like(old, np.nan, dtype=np.float32),
        lambda: np.full_like(old, np.inf, dtype=np.float32),
        lambda: np.zeros_like(old),
        lambda: np.zeros(old.shape, dtype=[("a", "i4")]),
        lambda: np.zeros(old.shape, dtype="datetime64[s]"),
        lambda: np.array(["a", "b\0", "\ud800".encode("utf-8", "surrogatepass")], dtype=object),
        lambda: old[rng.permutation(len(old))[: len(old) // 2]] if old.ndim else old,
    )
    with np.errstate(all="ignore"):
        try:
            return kinds[rng.integers(len(kinds))]()
        except (TypeError, ValueError):
            return old[:0]


def _claiming_npz(place: Place, scenario: Scenario, rng: np.random.Generator) -> None:
    """A header claims more than there is, or than there can be."""
    sides = rng.choice([0, 1, 7, 10**6, 10**9, 2**31, 2**62, -1], size=int(rng.integers(1, 5)))
    shape = ", ".join(str(side) for side in sides)
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape},), }}"
    header += " " * (64 - (len(header) + 11) % 64) + "\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)
    with zipfile.ZipFile(place.inputs / DATA, "w") as archive:
        for name, values in arrays().items():
            buffer = io.BytesIO()
            np.save(buffer, values)
            archive.writestr(f"{name}.npy", member if rng.random() < 0.4 else buffer.getvalue())


def _partition(place: Place, scenario: Scenario, rng: np.random.Generator) -> None:
    """A partition file that is none, or deals what there is not."""
    lists: Any = [list(range(30 * client, 30 * client + 24)) for client in range(3)]
    odd: tuple[Any, ...] = (-1, 160, 0, 1.5, 1e400, "3", None, True, 10**30, [1], {"a": 1}, 2**63)
    roll = rng.integers(5)
    if roll == 0:
        lists[int(rng.integers(3))][int(rng.integers(24))] = odd[rng.integers(len(odd))]
    elif roll == 1:
        lists[int(rng.integers(3))] = odd[rng.integers(len(odd))]
    elif roll == 2:
        lists = odd[rng.integers(len(odd))]
    elif roll == 3:
        lists.append(lists.pop()[:1])
    content = json.dumps(lists).encode()
    if roll == 4:
        content = (
            damaged(content, rng)
            if rng.random() < 0.6
            else (b"[" * 100_000, b'{"a":' * 50_000, b"[[" + b"9" * 5000 + b"]]")[int(rng.integers(3))]
        )
    (place.inputs / "parts.json").write_bytes(content)
    scenario["data"]["partition"] = {"scheme": "file", "path": "parts.json", "min_samples": 2}


def _idx(place: Place, scenario: Scenario, rng: np.random.Generator) -> None:
    """MNIST whose files are torn, of other sizes, or claim more than they hold."""
    folder = place.inputs / "mnist"
    folder.mkdir()
    odd = int(rng.integers(4))
    for position, name in enumerate(MNIST):
        number, images = (160, 40)[position // 2], position % 2 == 0
        shape: tuple[int, ...] = (number, 6, 6) if images else (number,)
        content = (np.arange(int(np.prod(shape))) % 10).astype(np.uint8).tobytes()
        if position == odd:
            roll = rng.integers(4)
            if roll == 0:
                shape = tuple(int(rng.choice([side, 0, 2**32 - 1, 7])) for side in shape)
            elif roll == 1 and images:
                shape, content = (number, 4, 9), content
            elif roll == 2:
                content = damaged(content, rng)
            else:
                content = bytes([255]) * len(content)
        header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        packed = gzip.compress(header + content, 1) if rng.random() < 0.5 else header + content
        suffix = ".gz" if packed[:2] == b"\x1f\x8b" else ""
        if position == odd and rng.random() < 0.3:
            packed = damaged(packed, rng)
        (folder / f"{name}{suffix}").write_bytes(packed)
    scenario["data"] |= {"dataset": "mnist", "args": {}, "root": "."}


def _picture(rng: np.random.Generator) -> bytes:
    from PIL import Image

    side = 6 if rng.random() < 0.9 else int(rng.integers(1, 9))
    buffer = io.BytesIO()
    mode = str(rng.choice(["RGB", "L", "P", "RGBA", "1"], p=[0.7, 0.1, 0.1, 0.05, 0.05]))
    Image.new(mode, (side, 6)).save(buffer, "png")
    content = buffer.getvalue()
    if rng.random() < 0.02:  # the header claims another width
        header = b"IHDR" + struct.pack(">I", int(rng.choice([0, 50_000, 2**24, 2**31 - 1]))) + content[20:29]
        content = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    return damaged(content, rng) if rng.random() < 0.02 else content


def _pictures(rng: np.random.Generator) -> dict[str, bytes]:
    names = [f"{split}/{label}/{n}.png" for split, many in (("train", 40), ("test", 6)) for label in "ab"
             for n in range(many)]  # fmt: skip
    if rng.random() < 0.3:
        names.append(str(rng.choice(["c.png", "train/x.png", "test/c/0.png", "train/a/b/c.png", "..png"])))
    return {name: _picture(rng) for name in names}


def _images(place: Place, scenario: Scenario, rng: np.random.Generator) -> None:
    for name, content in _pictures(rng).items():
        path = place.inputs / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    _read_pictures(scenario, "pictures", rng)


def _tar(place: Place, scenario: Scenario, rng: np.random.Generator) -> None:
    """An archive that is torn, or whose members claim to be what they are not."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=str(rng.choice(["w", "w:gz", "w:xz"]))) as archive:
        for name, content in _pictures(rng).items():
            member = tarfile.TarInfo(
                str(rng.choice([name, f"../../{name}", f"/{name}"], p=[0.96, 0.02, 0.02]))
            )
            member.size = len(content)
            if rng.random() < 0.01:
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
            archive.addfile(member, io.BytesIO(content))
    content = buffer.getvalue()
    if rng.random() < 0.3:  # the first member claims six gigabytes
        block = bytearray(content[:512])
        block[124:136] = b"%011o\0" % (6 << 30)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        content = bytes(block) + content[512:] if content[:2] not in (b"\x1f\x8b", b"\xfd7") else content
    (place.inputs / "pictures.tar").write_bytes(damaged(content, rng) if rng.random() < 0.5 else content)
    _read_pictures(scenario, "pictures.tar", rng)


def _read_pictures(scenario: Scenario, path: str, rng: np.random.Generator) -> None:
    args: dict[str, Any] = {"path": path}
    if rng.random() < 0.4:
        args["size"] = int(rng.choice([4, 6, 0, -3, 10**5, 2**31, 2**63 - 1]))
    scenario["data"] |= {"dataset": "image-folder", "args": args}
    scenario["data"]["partition"]["samples_per_client"] = 12


def _cifar(place: Place, scenario: Scenario, rng: np.random.Generator) -> None:
    """CIFAR's unpacked files, of any length."""
    folder = place.inputs / "cifar-10-batches-bin"
    folder.mkdir()
    for batch in (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
    ):
        records = rng.integers(0, 256, (20, 3073)).astype(np.uint8)
        records[:, 0] = rng.integers(0, 10 if rng.random() < 0.97 else 256, 20)
        content = records.tobytes()
        (folder / f"{batch}.bin").write_bytes(damaged(content, rng) if rng.random() < 0.1 else content)
    names = b"\n".join(b"class%d" % n for n in range(10)) + b"\n"
    (folder / "batches.meta.txt").write_bytes(damaged(names, rng) if rng.random() < 0.3 else names)
    scenario["data"] |= {"dataset": "cifar10", "args": {}, "root": "."}
    scenario["data"]["partition"]["samples_per_client"] = 20
