"""What leaves a client under each strategy: the arrays of `upload`, measured on a client of known sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from fedkd.fusion.kinds import Kind
from fedkd.fusion.registry import STRATEGIES
from fedkd.fusion.strategy import FusionStrategy
from fedkd.fusion.views import FitSummary
from fedkd.fusion.weights.weight_exchange import WeightExchange
from fedkd.scenario.dump import toml_value
from reference.markdown import code, page, prose, table

INPUTS, UNITS = 32, 17
TRANSFER, CLASSES, FEATURES, OWN, STATISTICS = 101, 7, 13, 29, 5
BODY, HEAD = (UNITS, INPUTS), (CLASSES, UNITS)
PARAMETERS = prod(BODY) + prod(HEAD) + CLASSES
SIZES = {
    TRANSFER: "M",
    CLASSES: "C",
    FEATURES: "F",
    PARAMETERS: "P",
    STATISTICS: "B",
    PARAMETERS + STATISTICS: "(P + B)",
    -(-PARAMETERS // 8): "⌈P/8⌉",
    8: "8",
    1: "1",
}
"""Sizes of the client that uploads are measured on, none of which is another's, to what they are called."""
LEGEND = (
    "M transfer samples asked for in the round, C classes, F features of the last hidden layer, P"
    " parameters, B numbers of running statistics; K and L: as many as the method picks in the round."
)


def uploads_page() -> str:
    """Return the page of what clients send."""
    kinds = [[code(kind.name.lower()), prose(kind.value)] for kind in Kind]
    return page(
        "What leaves a client",
        "What a client sends after its local training, strategy by strategy. The table is measured: every"
        " strategy's `upload` is called, at its defaults for one architecture, for a client whose sizes are"
        " known, and each array is of the kind that the strategy declares. A run counts the bytes it really"
        " sends (`bytes_up`).",
        LEGEND,
        table(("strategy", "array", "kind", "shape and type", "bytes a client and round"), _rows()),
        'With `fusion.upload_dtype = "float16"` predictions and weights of type float32 have half of'
        " these bytes. `centralized` sends no message: all samples are in one place, as the upper end of"
        " a comparison.",
        "## What hyper-parameters add",
        table(("strategy", "with", "a client also sends"), _variants()),
        "## What the kinds are",
        table(("kind", "what it is"), kinds),
    )


@dataclass(frozen=True)
class Sent:
    """One array of an upload."""

    name: str
    kind: Kind
    shape: str
    bytes: str


def sent_by(strategy: FusionStrategy) -> list[Sent]:
    """Return what a strategy's clients send, in the order of the upload."""
    if strategy.capabilities.sends == "nothing":
        return []
    try:
        upload = strategy.upload(_Client())
    except AttributeError:  # the strategy reads something that this client lacks
        return [
            Sent(name, kind, "not measured here", "") for name, kind in strategy.capabilities.kinds.items()
        ]
    kinds = strategy.kinds_of(upload)
    return [_described(name, kinds[name], values) for name, values in upload.items()]


def _rows() -> Iterator[list[str]]:
    for name in STRATEGIES.builtin:
        yield from _rows_of(name, STRATEGIES.load(name)().for_clients(one_architecture=True))
    yield from _flower()


def _flower() -> Iterator[list[str]]:
    """Yield what clients send to any of Flower's strategies: arrays have the model's names, so by kind."""
    strategy = WeightExchange("flwr:…")
    upload = strategy.upload(_Client())
    kinds = strategy.kinds_of(upload)
    label = "[`flwr:…`](strategies.md#flowers-own)"
    for kind in dict.fromkeys(kinds.values()):
        values = np.concatenate([array.ravel() for name, array in upload.items() if kinds[name] is kind])
        sent = _described("", kind, values)
        yield [label, "by the names of the model", code(kind.name.lower()), sent.shape, sent.bytes]
        label = ""


def _rows_of(name: str, strategy: FusionStrategy) -> Iterator[list[str]]:
    label = f"[`{name}`](strategies.md#{name})"
    sent = sent_by(strategy)
    if not sent:
        yield [label, "nothing", "", "", "0"]
    for array in sent:
        yield [label, code(array.name), code(array.kind.name.lower()), array.shape, array.bytes]
        label = ""


def _variants() -> Iterator[list[str]]:
    """Yield what else is sent where one hyper-parameter that chooses among a few values has another one."""
    for name in STRATEGIES.builtin:
        cls = STRATEGIES.load(name)
        usual = {array.name for array in sent_by(cls().for_clients(one_architecture=True))}
        for key, value in _choices(cls):
            try:
                other = cls(**{key: value})
            except Exception:  # noqa: S112  a value that needs others beside it
                continue
            more = [array for array in sent_by(other) if array.name not in usual]
            if more:
                added = ", ".join(f"{code(array.name)} {array.shape}" for array in more)
                yield [f"[`{name}`](strategies.md#{name})", code(f"{key} = {toml_value(value)}"), added]


def _choices(cls: type) -> Iterator[tuple[str, Any]]:
    for field in vars(cls)["__dataclass_fields__"].values():
        hint = get_type_hints(cls).get(field.name)
        if hint is bool:
            yield field.name, not field.default
        elif get_origin(hint) is Literal:
            yield from ((field.name, value) for value in get_args(hint) if value != field.default)


def _described(name: str, kind: Kind, values: np.ndarray) -> Sent:
    free = iter("KLJI")
    sizes = [SIZES[size] if size in SIZES else next(free) for size in values.shape]
    if values.size == 0:
        return Sent(name, kind, f"[0] {values.dtype}", "0")
    formula = _product(values.dtype.itemsize, [size for size in sizes if size != "1"])
    return Sent(name, kind, f"[{', '.join(size.strip('()') for size in sizes)}] {values.dtype}", formula)


def _product(itemsize: int, sizes: Sequence[str]) -> str:
    numbers = [int(size) for size in sizes if size.isdigit()]
    letters = [size for size in sizes if not size.isdigit()]
    factor = itemsize * prod(numbers)
    return " · ".join([str(factor), *letters] if factor > 1 or not letters else letters)


class _Mask:
    """A supermask of `PARAMETERS` weights."""

    is_settled = False
    fingerprint = np.arange(8, dtype=np.uint8)

    def bits(self) -> np.ndarray:
        return np.ones(-(-PARAMETERS // 8), np.uint8)

    def taken(self) -> np.ndarray:
        return self.bits()


class _Client:
    """A client with as many of everything as `SIZES` says; see `fedkd.fusion.views.ClientView`."""

    classes = CLASSES
    learned = (0,)

    def __init__(self) -> None:
        self.memory: Mapping[str, np.ndarray] = _Zeros({"reward": np.ones(1, np.float32)})
        self.generator = np.random.default_rng(0)

    def logits(self) -> np.ndarray:
        return self.generator.normal(size=(TRANSFER, CLASSES)).astype(np.float32)

    def private_logits(self) -> np.ndarray:
        return self.generator.normal(size=(OWN, CLASSES)).astype(np.float32)

    def private_features(self) -> np.ndarray:
        return np.ones((OWN, FEATURES), np.float32)

    def private_labels(self) -> np.ndarray:
        return np.arange(OWN) % CLASSES

    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        return self.private_logits(), np.zeros(OWN, np.int64)

    def label_counts(self) -> np.ndarray:
        return np.ones(CLASSES, np.int64)

    def class_means(self, of: str) -> np.ndarray:
        return np.ones((CLASSES, CLASSES if of == "logits" else FEATURES), np.float32)

    def weights(self, of: str = "") -> dict[str, np.ndarray]:
        return {
            "layer.weight": np.ones(BODY, np.float32),
            "layer.running_mean": np.ones(STATISTICS, np.float32),
            "layer.batches": np.ones((), np.int64),
            "head.weight": np.ones(HEAD, np.float32),
            "head.bias": np.ones(CLASSES, np.float32),
        }

    def trainable(self) -> tuple[str, ...]:
        return ("layer.weight", "head.weight", "head.bias")

    def supermask(self) -> _Mask:
        return _Mask()

    @property
    def last_fit(self) -> FitSummary:
        return FitSummary(self.weights(), 3, 0.1)

    def learner_tells(self, tasks: Sequence[int]) -> dict[str, np.ndarray]:
        mask = {"mask/layer.weight": np.linspace(0, 1, UNITS, dtype=np.float32)}
        sparse = np.zeros(BODY, np.float32)
        sparse[::3] = 1.0
        return mask | {f"part/{task}/layer.weight": sparse for task in tasks}


class _Zeros(dict[str, np.ndarray]):
    """What a strategy has put aside on a client: of what it asks for and never put there, zeros."""

    def __missing__(self, name: str) -> np.ndarray:
        return np.zeros(PARAMETERS, np.float32)
