"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour images of 32×32 pixels (Krizhevsky, 2009).

The *binary* distribution is read and downloaded, because it needs no pickle. Torchvision's pickled batches
are read too, after every file matches torchvision's checksum. The unpickler builds only NumPy arrays.
"""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.request import SourceRequest
from fedkd.data.sources.archive import tar_members
from fedkd.data.sources.download import download
from fedkd.errors import UserError, refuse_if

PIXELS = 3 * 32 * 32


class CifarFormat(NamedTuple):
    """The files of one of the two data sets, in the binary distribution and in torchvision's."""

    archive: str
    md5: str  # checksum of the archive, from the authors' page
    folder: str
    train_files: tuple[str, ...]
    test_file: str
    names_file: str
    label_bytes: int  # bytes before the pixels of a record; the last of them is the (fine) label
    torchvision_class: str
    label_key: str  # key of the labels in torchvision's pickled batches

    @property
    def files(self) -> tuple[str, ...]:
        """All files that are read."""
        return (*self.train_files, self.test_file, self.names_file)


CIFAR10 = CifarFormat(
    archive="cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test_file="test_batch.bin",
    names_file="batches.meta.txt",
    label_bytes=1,
    torchvision_class="CIFAR10",
    label_key="labels",
)
CIFAR100 = CifarFormat(
    archive="cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train_files=("train.bin",),
    test_file="test.bin",
    names_file="fine_label_names.txt",
    label_bytes=2,
    torchvision_class="CIFAR100",
    label_key="fine_labels",
)


def load_cifar10(request: SourceRequest) -> Dataset:
    """Return CIFAR-10, uint8 [n, 3, 32, 32]: ten classes."""
    return _load(request, CIFAR10)


def load_cifar100(request: SourceRequest) -> Dataset:
    """Return CIFAR-100, uint8 [n, 3, 32, 32]: a hundred (fine) classes."""
    return _load(request, CIFAR100)


def _load(request: SourceRequest, form: CifarFormat) -> Dataset:
    """Search `<root>` and `<root>/<name>`: binary files, their archive, pickles; else download it."""
    request.arguments()
    for base in (base / sub for base in request.folders for sub in ("", request.name)):
        for folder in (base / form.folder, base):
            if all((folder / file).is_file() for file in form.files):
                return _from_files(request, form, {name: (folder / name).read_bytes() for name in form.files})
        if (base / form.archive).is_file():
            return _from_files(request, form, _archive_members(base / form.archive, form))
        dataset = _from_torchvision(request, form, base)
        if dataset is not None:
            return dataset
    archive = download(
        [f"https://www.cs.toronto.edu/~kriz/{form.archive}"],
        request.download_folder / request.name / form.archive,
        md5=form.md5,
        hint=f"put {form.archive} into {request.root / request.name}",
        progress=request.progress,
    )
    return _from_files(request, form, _archive_members(archive, form))


def _archive_members(path: Path, form: CifarFormat) -> dict[str, bytes]:
    members = tar_members(path, lambda name: Path(name).name in form.files, key="data.root")
    found = {Path(name).name: content for name, content in members}
    missing = [name for name in form.files if name not in found]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}")
    return found


def _from_files(request: SourceRequest, form: CifarFormat, files: dict[str, bytes]) -> Dataset:
    try:
        names = tuple(files[form.names_file].decode().split())
    except UnicodeDecodeError as error:
        raise UserError(f"{form.names_file} is not UTF-8 text (byte {error.start})") from None
    train = [_records(files[name], name, form.label_bytes, len(names)) for name in form.train_files]
    test_x, test_y = _records(files[form.test_file], form.test_file, form.label_bytes, len(names))
    train_x = np.concatenate([x for x, _ in train])
    train_y = np.concatenate([y for _, y in train])
    return Dataset(request.name, names, train_x, train_y, test_x, test_y)


def _records(content: bytes, name: str, label_bytes: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    width = label_bytes + PIXELS
    if not content or len(content) % width:
        raise UserError(f"{name} is incomplete: {len(content)} bytes are not a multiple of {width}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, width)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise UserError(f"{name} holds label {labels.max()}, but there are {classes} class names")
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), labels


def _from_torchvision(request: SourceRequest, form: CifarFormat, base: Path) -> Dataset | None:
    if not any((base / folder).is_dir() for folder in ("cifar-10-batches-py", "cifar-100-python")):
        return None
    import torchvision.datasets

    source = getattr(torchvision.datasets, form.torchvision_class)
    folder = base / source.base_folder
    if not folder.is_dir():
        return None
    listed = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
    batches = {name: _load_checked(folder / name, md5) for name, md5 in listed}
    names = tuple(str(name) for name in batches[source.meta["filename"]][source.meta["key"]])
    x, y = [], []
    for files in (source.train_list, source.test_list):
        x.append(np.concatenate([batches[name]["data"] for name, _ in files]).reshape(-1, 3, 32, 32))
        y.append(np.concatenate([batches[name][form.label_key] for name, _ in files]).astype(np.int64))
    return Dataset(request.name, names, x[0], y[0], x[1], y[1])


def _load_checked(path: Path, md5: str) -> Any:
    content = path.read_bytes() if path.is_file() else b""
    told = f"{path} is missing, or differs from torchvision's file (MD5 {md5})"
    refuse_if(hashlib.md5(content, usedforsecurity=False).hexdigest() != md5, told, None)
    return ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()


class ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and Python's plain containers, and refuses everything else."""

    ALLOWED = (
        *(("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")),
        *(("numpy", "ndarray"), ("numpy", "dtype")),
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed constructor; any other name is a `UserError`."""
        if (module, name) not in self.ALLOWED:
            raise UserError(f"refused to load {module}.{name} from a pickle")
        # NumPy 2 renamed the module that older pickles name.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
