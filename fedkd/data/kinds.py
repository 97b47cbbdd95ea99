"""The kinds of samples, and what each allows."""

from dataclasses import dataclass, field, replace

import numpy as np

from fedkd.errors import did_you_mean, refuse_if


@dataclass(frozen=True)
class SampleKind:
    """What samples are, and which changes they allow.

    `axes` names the sides of one sample; an axis in digits has that length. Samples of any other length may
    be in it. `heterogeneity` has the keys of `[heterogeneity]` that may differ from 0.
    """

    name: str
    plural: str
    axes: tuple[str, ...]
    integers: bool = False
    """Samples are int64 ids to look up; else they are float32 for models, stored as float32 or uint8."""
    statistics: bool = (
        True  # models get mean 0 and variance 1, unless `data.normalise = false`; else as stored
    )
    noise: bool = True  # Gaussian noise may be a transfer set
    converts: bool = False  # samples of other shapes can be converted to the shape of one's own
    heterogeneity: tuple[str, ...] = ("noise", "label_noise")
    vocabulary: int = field(default=0, compare=False)  # number of ids in the data; 0: unknown

    @property
    def dtype(self) -> np.dtype:
        """Type of the samples that models get."""
        return np.dtype(np.int64 if self.integers else np.float32)

    @property
    def form(self) -> str:
        """Kind and shape in words, for messages."""
        return f"{self.plural} [{', '.join(self.axes)}]"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether one sample may have this shape."""
        if self.name == "graph" and len(shape) == 2 and shape[1] <= shape[0]:
            return False
        pairs = zip(self.axes, shape, strict=False)
        return len(shape) == len(self.axes) and all(not a.isdigit() or int(a) == side for a, side in pairs)


IMAGE = SampleKind(
    *("image", "images", ("C", "H", "W")),
    converts=True,
    heterogeneity=("rotation", "noise", "colour", "label_noise"),
)
VECTOR = SampleKind("vector", "vectors", ("F",))
SERIES = SampleKind("series", "series", ("C", "T"))
TEXT = SampleKind(  # 0 is padding
    *("text", "token ids", ("L",)),
    integers=True,
    statistics=False,
    noise=False,
    heterogeneity=("label_noise",),
)
TRIPLE = replace(TEXT, name="triple", plural="triples", axes=("2",))  # head, relation
# Features, then the adjacency matrix with self loops; a row of zeros is padding.
GRAPH = SampleKind(
    *("graph", "graphs", ("V", "F+V")), statistics=False, noise=False, heterogeneity=("label_noise",)
)
INFERRED = SampleKind("inferred", "samples", ())
"""Stands for the kind that shape and type of the samples imply."""
KINDS = {kind.name: kind for kind in (IMAGE, VECTOR, SERIES, TEXT, GRAPH, TRIPLE)}


def kind_named(name: str) -> SampleKind:
    """Return the kind that `data.args.kind` names."""
    refuse_if(
        name not in KINDS,
        f"unknown kind of samples {name!r}; {did_you_mean(str(name), KINDS)}",
        "data.args.kind",
    )
    return KINDS[name]


def with_vocabulary(kind: SampleKind, *samples: np.ndarray) -> SampleKind:
    """Return the kind with a vocabulary that covers the samples, if they are ids."""
    if not kind.integers:
        return kind
    largest = max((int(x.max()) for x in samples if x.size), default=-1)
    return replace(kind, vocabulary=max(kind.vocabulary, largest + 1))


def inferred_kind(shape: tuple[int, ...], dtype: np.dtype | type = np.float32) -> SampleKind:
    """Return the kind of samples of a shape and a type, when their source names none.

    Integers other than uint8 are text.
    """
    if np.dtype(dtype).kind in "iu" and dtype != np.uint8:
        return TEXT
    return {1: VECTOR, 2: SERIES}.get(len(shape), IMAGE)
