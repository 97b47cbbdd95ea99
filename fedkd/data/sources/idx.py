"""MNIST and Fashion-MNIST: 60,000 + 10,000 grey images of 28×28 pixels, in IDX files."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.memory_budget import check_memory_budget, memory_budget
from fedkd.data.request import SourceRequest
from fedkd.data.sources.download import download
from fedkd.errors import UserError, refuse_if

FILES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
UINT8 = 0x08
CLOTHES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


def load_mnist(request: SourceRequest) -> Dataset:
    """Return MNIST's handwritten digits (LeCun, Cortes & Burges, 1998), uint8 [n, 1, 28, 28]."""
    return _load(request, "MNIST", tuple(map(str, range(10))))


def load_fashion_mnist(request: SourceRequest) -> Dataset:
    """Return Fashion-MNIST's clothes (Xiao, Rasul & Vollgraf, 2017), uint8 [n, 1, 28, 28]."""
    return _load(request, "FashionMNIST", CLOTHES)


def _load(request: SourceRequest, torchvision_class: str, class_names: tuple[str, ...]) -> Dataset:
    """Find the four files, in torchvision's folders too, or download them."""
    request.arguments()
    layouts = [Path(request.name), Path(torchvision_class) / "raw"]
    for folder in (base / layout for base in request.folders for layout in layouts):
        found = ((folder / f"{file}.gz", folder / file) for file in FILES)
        paths = [next(filter(Path.is_file, two)) for two in found if any(map(Path.is_file, two))]
        if len(paths) == len(FILES):
            break
    else:
        paths = _download(request, torchvision_class)
    train_x, train_y, test_x, test_y = map(read_idx, paths)
    for images, labels, path in ((train_x, train_y, paths[1]), (test_x, test_y, paths[3])):
        if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max() >= len(class_names):
            raise UserError(f"{path} does not match its images: must be images [n, H, W] and labels [n]")
    sizes = ["×".join(map(str, images.shape[:0:-1])) for images in (train_x, test_x)]
    told = f"images must have one size: {paths[0]} has {sizes[0]}, {paths[2]} has {sizes[1]}"
    refuse_if(train_x.shape[1:] != test_x.shape[1:], told, None)
    y, test = train_y.astype(np.int64), test_y.astype(np.int64)
    return Dataset(request.name, class_names, train_x[:, None], y, test_x[:, None], test)


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of one IDX file, gzipped or not."""
    try:
        limit = memory_budget()
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(limit + 1)  # a gigabyte of zeros is a megabyte
        check_memory_budget(len(content), f"{path} unpacks to more than", "data.root")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if len(content) < 8 or content[:2] != b"\0\0" or content[2] != UINT8 or len(content) < 4 + 4 * content[3]:
        raise UserError(f"{path} is not an IDX file of unsigned bytes")
    shape = tuple(np.frombuffer(content, dtype=">u4", count=content[3], offset=4).tolist())
    header = 4 + 4 * len(shape)
    if len(content) != header + int(np.prod(shape)) or 0 in shape:
        raise UserError(f"{path} is incomplete: {len(content) - header} bytes of data for shape {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _download(request: SourceRequest, torchvision_class: str) -> list[Path]:
    import torchvision.datasets

    source = getattr(torchvision.datasets, torchvision_class)
    folder = request.download_folder / request.name
    checksums = dict(source.resources)
    files = [f"{file}.gz" for file in FILES]
    hint = f"put {', '.join(files)} into {request.root / request.name}"
    urls = {file: [f"{mirror}{file}" for mirror in source.mirrors] for file in files}
    told: dict[str, Any] = {"hint": hint, "progress": request.progress}
    return [download(urls[file], folder / file, md5=checksums[file], **told) for file in files]
