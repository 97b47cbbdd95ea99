"""A folder, or a tar archive, of images sorted into one folder per class."""

import hashlib
import io
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.memory_budget import check_memory_budget
from fedkd.data.partitions.stratified import own_test_split
from fedkd.data.request import SourceRequest, user_cache_folder, writable
from fedkd.data.sources.archive import tar_members
from fedkd.data.sources.download import written_whole
from fedkd.errors import UserError, refuse_if

KEY = "data.args.path"
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
REPORT_EVERY = 10_000
MOST_PIXELS = 50_000_000  # of one image: above cameras' sizes, below Pillow's warning


def load(request: SourceRequest) -> Dataset:
    """Return the images of `train/<class>/*` and `test/<class>/*`, or of `<class>/*` alone.

    `data.args`: `path` of the folder or the `.tar`, `.tar.gz`, `.tar.xz`; `size`, to resize to a square of
    that many pixels; `grayscale`; without a `test/`, the share of the test split (`test_share`) and its seed
    (`split_seed`). Classes and files are sorted. Decoded images stay in the user cache until the path, size
    or time of a file changes. Images are uint8 [n, 3, H, W], or [n, 1, H, W] if `grayscale`. Missing or
    broken images, or several sizes, raise a `UserError`.
    """
    args = request.arguments(path=str, size=int, grayscale=False, test_share=0.2, split_seed=0)
    path = request.path(args["path"])
    if args["size"] is not None and args["size"] < 1:
        raise UserError(f"must be ≥ 1, got {args['size']}", key="data.args.size")
    cached = (
        user_cache_folder() / "image-folder" / f"{_fingerprint(path, args['size'], args['grayscale'])}.npz"
    )
    decoded = _read_cache(cached)
    if decoded is None:
        decoded = _decode_all(path, args["size"], args["grayscale"], request)
        if writable(cached.parent):
            with written_whole(cached) as file:
                np.savez(file, **cast(Any, decoded))
    x, y, is_test = decoded["x"], decoded["y"], decoded["is_test"]
    names = tuple(str(name) for name in decoded["class_names"])
    if not is_test.any():
        is_test = own_test_split(y, args["test_share"], args["split_seed"])
    return Dataset(request.name, names, x[~is_test], y[~is_test], x[is_test], y[is_test])


def locate(name: str) -> tuple[bool, str]:
    """Return an image's split (True: test) and class by its path."""
    parts = [part for part in PurePosixPath(name).parts if part not in (".", "/")]
    for place, part in enumerate(parts[:-2]):
        if part in ("train", "test"):
            refuse_if(len(parts) != place + 3, f"{name} must lie directly in {part}/<class>/", KEY)
            return part == "test", parts[-2]
    refuse_if(len(parts) < 2, f"{name} must lie in the folder of its class", KEY)
    return False, parts[-2]


def _decode_all(
    path: Path, size: int | None, grayscale: bool, request: SourceRequest
) -> dict[str, np.ndarray]:
    """Return x [n, C, H, W] uint8, y [n], is_test [n] bool and class_names [C], sorted by file name."""
    request.progress(f"decoding the images of {path}")
    images: dict[str, np.ndarray] = {}
    first, decoded = "", 0
    files = tar_members(path, _is_image, key=KEY) if path.is_file() else _folder_images(path)
    for name, content in files:
        image = _decode(name, content, size, grayscale)
        first = first or name
        if image.shape != images.get(first, image).shape:
            (_, height, width), (_, first_height, first_width) = image.shape, images[first].shape
            told = f"{name} is {width}×{height}, {first} is {first_width}×{first_height}"
            raise UserError(f"{told}; set data.args.size", key=KEY)
        images[name] = image
        decoded += 2 * image.nbytes  # they are copied into one array when all are there
        check_memory_budget(decoded, f"the images of {path}, decoded, take more than", KEY)
        if len(images) % REPORT_EVERY == 0:
            request.progress(f"decoded {len(images)} images")
    refuse_if(not images, f"{path} holds no images ({', '.join(sorted(SUFFIXES))})", KEY)
    ordered = sorted(images)
    places = [locate(name) for name in ordered]
    is_test = np.array([test for test, _ in places])
    class_names = sorted({label for test, label in places if not test})
    unknown = {label for _, label in places}.difference(class_names)
    if unknown:
        raise UserError(f"{path}: class {min(unknown)} has test images but no train images", key=KEY)
    index = {label: y for y, label in enumerate(class_names)}
    x = np.stack([images[name] for name in ordered])
    y = np.array([index[label] for _, label in places], dtype=np.int64)
    return {"x": x, "y": y, "is_test": is_test, "class_names": np.array(class_names)}


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _folder_images(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if _is_image(name) and path.is_file():
            yield name, path.read_bytes()


def _decode(name: str, content: bytes, size: int | None, grayscale: bool) -> np.ndarray:
    from PIL import Image

    if size is not None:
        check_memory_budget(
            size * size * (1 if grayscale else 3), "an image of this size takes", "data.args.size"
        )
    try:
        # Pillow warns about such images before it returns their size; they are refused below.
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            opened = Image.open(io.BytesIO(content))
        with opened:
            width, height = opened.size  # as its header claims; nothing is decoded yet
            told = f"{name} has {width:,}×{height:,} pixels; at most {MOST_PIXELS:,} are read"
            refuse_if(width * height > MOST_PIXELS, told, KEY)
            image = opened.convert("L" if grayscale else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot decode {name}: {error}", key=KEY) from error
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if grayscale else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _fingerprint(path: Path, size: int | None, grayscale: bool) -> str:
    """Return a name that changes with the image files and settings."""
    digest = hashlib.blake2b(f"{path.resolve()}|{size}|{grayscale}".encode(), digest_size=16)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        status = file.stat()
        digest.update(f"|{file}|{status.st_size}|{status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _read_cache(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in ("x", "y", "is_test", "class_names")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
