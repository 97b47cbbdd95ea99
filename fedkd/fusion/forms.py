"""Forms of arrays: checks of uploads and guidance by kinds and known sizes.

A shape has a letter or number for each dimension, such as ``"M C"``. The server knows the sizes of capital
letters, or all clients of an architecture agree about them. A small letter is the client's own size, and the
same in all arrays of the upload. ``?`` behind a letter allows 0. ``<C`` at the end bounds every value by a
size, ``=C`` requires that value.

Letters that the server may know:

    M  transfer samples asked for           P  parameters and statistics that are exchanged
    Y  ⌈M/8⌉, a bit for each                B  buffers that are not real numbers
    C  classes of the task                  T  parameters that are trained
    O  outputs of the model                 S  statistics, which are not
    F  features of the last hidden layer
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import numpy as np

from fedkd.errors import UserError
from fedkd.fusion.capabilities import PREDICTIONS, TAUGHT
from fedkd.fusion.kinds import Kind
from fedkd.fusion.strategy import FusionStrategy, overrides_hook
from fedkd.fusion.views import Arrays, Network
from fedkd.fusion.weights.averaging import exchanges_weight
from fedkd.fusion.weights.parameters import COUNTERS, PARAMETERS, pack

LARGEST_VALUE = 1e15
"""Bound of real numbers: their squares are summed in float32."""
MOST = 2**53
"""Bound of whole numbers: float64 holds all up to here."""
LABEL_COUNTS = "label_counts"

T = TypeVar("T")
Sizes = Mapping[str, int]
"""Values of the letters of shapes."""


class InvalidUpload(Exception):
    """A one-line reason to refuse an upload; `diverged`: some values are not finite."""

    def __init__(self, reason: str, *, diverged: bool = False) -> None:
        super().__init__(reason)
        self.diverged = diverged


@dataclass(frozen=True)
class Form:
    """Form of arrays of a kind: NumPy types, shape as above (None: any), and bounds of the values."""

    types: str
    """Letters of types: f real, i and u whole, b true or false."""
    shape: str | None
    least: float = -LARGEST_VALUE
    most: float = LARGEST_VALUE


FORMS: Mapping[Kind, Form] = {
    Kind.TRANSFER_LOGITS: Form("f", "M C"),
    Kind.SAMPLE_LOGITS: Form("f", "k C"),
    Kind.LABEL_LOGITS: Form("f", "C C"),
    Kind.LABEL_COUNTS: Form("biuf", "C", 0, MOST),
    Kind.FEATURES: Form("f", None),
    Kind.WEIGHTS: Form("f", None),
    Kind.MASKS: Form("u", None, 0, 255),
    Kind.COUNTERS: Form("biu", None, 0, MOST),
    Kind.MASS: Form("f", "1", float(np.finfo(np.float32).tiny)),
    Kind.SAMPLE_LABELS: Form("iu", "s<C", 0),
    Kind.VOTES: Form("iu", "M<C", 0),
    Kind.SAMPLE_CLASSES: Form("iu", "k n<C", 0),
    Kind.SHARES: Form("u", "k n", 0, 255),
    Kind.SCORES: Form("f", None),
    Kind.INDICES: Form("biu", None, -1, MOST),
    Kind.UNTRAINED: Form("f", "C"),
    Kind.CONSTANT: Form("biuf", None),
    Kind.OTHER: Form("biuf", None),
}
_SHAPE = re.compile(r"(?P<dimensions>[^<=]*)(?:(?P<relation>[<=])(?P<size>\w))?")


def check_upload(
    strategy: FusionStrategy, arrays: Arrays, sizes: Sizes, network: Network | None = None
) -> None:
    """Check one upload: names, types, shapes, values, and consistency of arrays.

    Args:
        arrays: By name, after the server's part of all stages.
        sizes: Known sizes; a missing letter matches any number.
        network: The sender's; None: unknown, or it sends no weights.

    Raises:
        Unfit: The first array that does not fit, and why.
    """
    kinds = strategy.kinds_of(arrays)
    for name in sorted(required(strategy) - arrays.keys()):
        raise InvalidUpload(f"array {name} is missing; the client sent {', '.join(arrays) or 'nothing'}")
    known = dict(sizes)
    for name, values in arrays.items():
        form = FORMS[kinds[name]]
        if values.dtype.kind not in form.types:
            kind = kinds[name].name.lower().replace("_", " ")
            raise InvalidUpload(f"array {name} is of type {values.dtype}, which does not fit {kind}")
        shape = strategy.capabilities.shapes.get(name, form.shape)
        bounds = (form.least, form.most)
        if shape is not None:
            bounds = _check_shape(name, values.shape, shape, known, bounds)
        _check_values(name, values, *bounds)
    if (reason := strategy.misfit(arrays, known, network)) is not None:
        raise InvalidUpload(reason)


def required(strategy: FusionStrategy) -> set[str]:
    """Return the arrays that every upload of a strategy must have."""
    can = strategy.capabilities
    counts = {LABEL_COUNTS} if can.label_counts else set()
    if not declares_upload(strategy):
        return counts
    return set(can.kinds) - can.optional | (counts & can.kinds.keys())


def declares_upload(strategy: FusionStrategy) -> bool:
    """Return whether a strategy declares its upload: its own `upload` needs its own `kinds`."""
    kinds = strategy.capabilities.kinds
    return bool(kinds) and (kinds is not PREDICTIONS or type(strategy).upload is FusionStrategy.upload)


def check_weight(name: str, values: np.ndarray, like: np.ndarray) -> None:
    """Check a weight or a buffer against the server's own: shape, type and values."""
    real = like.dtype.kind == "f"
    form = FORMS[Kind.WEIGHTS if real else Kind.COUNTERS]
    if values.dtype.kind not in form.types:
        raise InvalidUpload(f"array {name} is of type {values.dtype}, must be like {like.dtype}")
    if values.shape != like.shape:
        raise InvalidUpload(f"array {name} has shape {list(values.shape)}, must be {list(like.shape)}")
    _check_values(name, values, form.least, form.most)


def check_guidance(strategy: FusionStrategy, arrays: Arrays, sizes: Sizes) -> None:
    """Check the arrays of guidance: names, shapes, values.

    Raises:
        Unfit: The first array that does not fit, and why.
    """
    shapes = strategy.capabilities.receives
    known = dict(sizes)
    own = strategy.capabilities.uses_local_loss or overrides_hook(strategy, "apply")
    if shapes is None and not own:
        shapes = TAUGHT
    if shapes is TAUGHT and "targets" not in arrays:
        raise InvalidUpload(f"array targets is missing; guidance has {', '.join(arrays) or 'nothing'}")
    if shapes is not None and "samples" in shapes and "samples" not in arrays and "M" in known:
        known["k"] = known["M"]
    for name, values in arrays.items():
        pattern = next((p for p in shapes or () if fnmatchcase(name, p)), None)
        if shapes is not None and pattern is None:
            raise InvalidUpload(f"array {name} is unknown to '{strategy.name}'")
        if values.dtype.kind not in "biuf":
            raise InvalidUpload(f"array {name} is of type {values.dtype}, must be real numbers")
        bounds = (-LARGEST_VALUE, LARGEST_VALUE) if values.dtype.kind == "f" else (-MOST, MOST)
        if shapes is not None and pattern is not None and shapes[pattern] != "*":
            bounds = _check_shape(name, values.shape, shapes[pattern], known, bounds)
        _check_values(name, values, *bounds)


def find_deviating_uploads(
    uploads: Mapping[int, Arrays], strategy: FusionStrategy
) -> dict[int, InvalidUpload]:
    """Return how uploads of one architecture deviate from the majority, by client.

    The majority decides about names and unknown capital letters; in a tie, the first client. Each upload is
    valid by itself; clients ascend.
    """
    found: dict[int, InvalidUpload] = {}
    names = _most(tuple(sorted(arrays)) for arrays in uploads.values())
    sizes = {
        client: {
            letter: size
            for name, values in arrays.items()
            for letter, size in zip(_letters(strategy, arrays, name), values.shape, strict=False)
            if letter.isupper()
        }
        for client, arrays in uploads.items()
    }
    agreed = {
        letter: _most(own[letter] for own in sizes.values() if own.get(letter))
        for letter in sorted({letter for own in sizes.values() for letter in own})
        if any(own.get(letter) for own in sizes.values())
    }
    for client, arrays in uploads.items():
        if tuple(sorted(arrays)) != names:
            sent = ", ".join(arrays) or "nothing"
            found[client] = InvalidUpload(f"sent {sent}; most clients sent {', '.join(names) or 'nothing'}")
            continue
        for letter, size in sizes[client].items():
            if size and size != agreed[letter]:
                array = next(name for name in arrays if letter in _letters(strategy, arrays, name))
                found[client] = InvalidUpload(
                    f"array {array} has shape {list(arrays[array].shape)}; {letter} is {agreed[letter]} for"
                    " most clients of its architecture"
                )
                break
    return found


def check_feature_widths(strategy: str, clients: Sequence[int], widths: Sequence[int]) -> None:
    """Raise UserError if features differ in width, naming a client of each width."""
    first: dict[int, int] = {}
    for client, width in zip(clients, widths, strict=True):
        first.setdefault(width, client)
    if len(first) > 1:
        seen = ", ".join(f"{width} (client {client})" for width, client in first.items())
        raise UserError(
            f"'{strategy}' needs models with the same number of features, got {seen}", key="clients.model"
        )


def upload_sizes(strategy: FusionStrategy, weights: Arrays, trainable: Iterable[str]) -> dict[str, int]:
    """Return the sizes in uploads of a network with these weights, of which some are trainable."""
    trained = set(trainable)
    packed = pack({name: values for name, values in weights.items() if exchanges_weight(strategy, name)})
    real = {name: values.size for name, values in weights.items() if values.dtype.kind == "f"}
    found = {
        "P": len(packed[PARAMETERS]),
        "B": len(packed[COUNTERS]),
        "T": sum(size for name, size in real.items() if name in trained),
        "S": sum(size for name, size in real.items() if name not in trained),
    }
    if (head := weights.get("head.weight")) is not None and head.ndim == 2:
        found |= {"O": head.shape[0], "F": head.shape[1]}
    return found


def _check_shape(
    name: str, found: tuple[int, ...], shape: str, known: dict[str, int], bounds: tuple[float, float]
) -> tuple[float, float]:
    """Check a shape, record the sizes of its letters, and return the bounds of the values."""
    match = _SHAPE.fullmatch(shape)
    assert match is not None
    letters = match["dimensions"].split()
    fits, before = len(found) == len(letters), dict(known)
    for size, letter in zip(found, letters, strict=False):
        bare = letter.removesuffix("?")
        if size == 0 and letter != bare:
            continue
        fits = fits and size == (int(bare) if bare.isdigit() else known.setdefault(bare, size))
    if not fits:
        wanted_shape = ", ".join(str(before.get(letter.removesuffix("?"), letter)) for letter in letters)
        raise InvalidUpload(f"array {name} has shape {list(found)}, must be [{wanted_shape}]")
    if match["relation"] is None:
        return bounds
    limit = known.get(match["size"])
    if match["relation"] == "<":
        return 0, bounds[1] if limit is None else limit - 1
    return bounds if limit is None else (limit, limit)


def _check_values(name: str, values: np.ndarray, least: float, most: float) -> None:
    """Check that all values are finite and within bounds, without a copy."""
    if not values.size or values.dtype.kind == "b":
        return
    low, high = values.min().item(), values.max().item()  # NaN, if there is one
    if low >= least and high <= most:
        return
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InvalidUpload(f"array {name} has values that are not numbers (NaN or infinite)", diverged=True)
    wrong = low if low < least else high
    raise InvalidUpload(f"array {name} has {wrong:g}, must be in {least:g} … {most:g}")


def _letters(strategy: FusionStrategy, arrays: Arrays, name: str) -> list[str]:
    shape = strategy.capabilities.shapes.get(name, FORMS[strategy.kinds_of(arrays)[name]].shape)
    match = _SHAPE.fullmatch(shape or "")
    assert match is not None
    return [letter.removesuffix("?") for letter in match["dimensions"].split()]


def _most(found: Iterable[T]) -> T:
    """Return the most frequent one; in a tie the first."""
    return Counter(found).most_common(1)[0][0]
