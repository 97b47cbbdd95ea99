"""A share in its own folder: `share.json` describes the arrays in `share.safetensors`.

Samples are normalised and, in a stream, transformed by the task. The JSON is written last. It has a digest of
itself and of the arrays, so that partial or damaged files are detected. There are no pickles.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedkd.data.dataset import LARGEST
from fedkd.data.federated import FederatedData
from fedkd.data.kinds import KINDS, inferred_kind
from fedkd.data.memory_budget import check_memory_budget
from fedkd.data.normalise import AsStored, Statistics
from fedkd.data.shares.share import NOBODYS, Share, of_one_client
from fedkd.data.streams.stream import FederatedStream
from fedkd.data.streams.task import Task
from fedkd.errors import UserError, blaming, refuse_if
from fedkd.storage import InvalidJson, add_prefix, parse_json, strip_prefix

SHARE_MANIFEST = "share.json"
ARRAYS = "share.safetensors"
FORMAT: Literal[1] = 1
MOST_CLIENTS = 1_000_000
SAMPLES = {"x": "y", "transfer_x": None, "test_x": "test_y"}
"""Arrays of samples, each with that of their labels."""
REQUIRED = ("x", "transfer_x", "test_x", "y", "test_y")

Count = Annotated[int, Field(ge=0, le=2**40)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Part(_Form):
    """The samples of a task, or of a federation without a stream."""

    name: str
    class_names: list[str] = Field(min_length=1)
    input_shape: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, max_length=3)
    train: Count
    test: Count
    as_stored: bool
    units: list[Count] | None = None
    own_units: list[Count] | None = None
    kind: str | None = Field(default=None, pattern=f"^({'|'.join(KINDS)})$")  # None: inferred

    vocabulary: Count = 0

    @model_serializer(mode="wrap")
    def _without_inferred(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Earlier releases wrote no kind and no vocabulary, and the digest is of all entries.
        told = handler(self)
        return {key: value for key, value in told.items() if value or key not in ("kind", "vocabulary")}


class _Stream(_Form):
    name: str
    unit_class: list[int]
    class_names: list[str]
    blur: float
    seed: int


class _Manifest(_Form):
    format: Literal[1]
    client: Count | None
    clients: Annotated[int, Field(ge=1, le=MOST_CLIENTS)]
    parts: list[_Part] = Field(min_length=1)
    stream: _Stream | None
    arrays: Digest
    digest: Digest | None = None
    """Digest of all other entries; None: an earlier release wrote none."""

    def own_digest(self) -> str:
        """Return the SHA-256 of all other entries."""
        text = json.dumps(self.model_dump(mode="json", exclude={"digest"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def write_share(folder: Path, share: Share) -> None:
    """Write a share into an existing folder."""
    arrays: dict[str, np.ndarray] = {}
    parts: list[_Part] = []
    stream = share.data if isinstance(share.data, FederatedStream) else None
    for place, part in enumerate(share.parts):
        refuse_if(part.scale is not None, "shares of a deployment need data.task = 'classification'", None)
        assert part.statistics is not None
        labels = [name for name in ("transfer_y", "foreign_y") if getattr(part, name) is not None]
        kept = {name: getattr(part, name) for name in (*REQUIRED, *labels)}
        kept |= {"mean": part.statistics.mean, "std": part.statistics.std}
        arrays |= add_prefix(
            f"{place}/", {name: np.ascontiguousarray(values) for name, values in kept.items()}
        )
        client = share.client
        bounds = NOBODYS * 2 if client is None else part.train_bounds[client] + part.test_bounds[client]
        task = None if stream is None else stream[place]
        parts.append(
            _Part(
                name=part.name if task is None else task.name,
                class_names=list(part.class_names),
                input_shape=list(part.input_shape),
                train=bounds[1] - bounds[0],
                test=bounds[3] - bounds[2],
                as_stored=isinstance(part.statistics, AsStored),
                units=None if task is None else list(task.units),
                own_units=None if task is None else list(task.own_units),
                kind=None if part.kind == inferred_kind(part.input_shape, part.x.dtype) else part.kind.name,
                vocabulary=part.kind.vocabulary,
            )
        )
    data = save(arrays)
    of_stream = None
    if stream is not None:
        units, names = list(stream.unit_class), list(stream.class_names)
        of_stream = _Stream(
            name=stream.name, unit_class=units, class_names=names, blur=stream.blur, seed=stream.seed
        )
    found, clients = hashlib.sha256(data).hexdigest(), share.data.num_clients
    manifest = _Manifest(
        format=FORMAT, client=share.client, clients=clients, parts=parts, stream=of_stream, arrays=found
    )
    manifest = manifest.model_copy(update={"digest": manifest.own_digest()})
    (folder / SHARE_MANIFEST).unlink(missing_ok=True)
    (folder / ARRAYS).unlink(missing_ok=True)
    private = os.open(folder / ARRAYS, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(private, "wb") as file:
        file.write(data)
    (folder / SHARE_MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_share(folder: Path) -> Share:
    """Read a share that `write_share` wrote; a missing or damaged one is a `UserError`."""
    manifest = _read_manifest(folder / SHARE_MANIFEST)
    path = folder / ARRAYS
    try:
        check_memory_budget(path.stat().st_size, f"{path} takes", "node-config.data")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest.arrays:
            raise UserError(
                f"does not match {SHARE_MANIFEST}: it is damaged, or belongs to another share", file=str(path)
            )
        # Copies, because the address of values in a buffer may change sums.
        arrays = {name: np.array(values) for name, values in load(data).items()}
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=str(path)) from error
    except SafetensorError as error:
        raise UserError(f"is not a safetensors file: {error}", file=str(path)) from None
    with blaming(file=str(path)):
        return _share_of(manifest, arrays)


def _read_manifest(path: Path) -> _Manifest:
    try:
        found = _Manifest.model_validate(parse_json(path.read_bytes()))
    except FileNotFoundError:
        told = f"lacks {SHARE_MANIFEST}; `fedkd partition` writes a share for each client"
        raise UserError(told, file=str(path.parent)) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=str(path)) from error
    except InvalidJson as error:
        raise UserError(f"is not valid JSON: {error}", file=str(path)) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or None
        raise UserError(first["msg"], key=key, file=str(path)) from None
    damaged = found.digest not in (None, found.own_digest())
    refuse_if(damaged, "is damaged: its contents differ from its checksum", None, file=str(path))
    told = f"must be below {found.clients}, the number of clients, got {found.client}"
    refuse_if(found.client is not None and found.client >= found.clients, told, "client", file=str(path))
    several = found.stream is None and len(found.parts) > 1
    refuse_if(several, "is missing, but there are several parts", "stream", file=str(path))
    return found


def _share_of(manifest: _Manifest, arrays: Mapping[str, np.ndarray]) -> Share:
    parts = [_part_of(manifest, place, arrays) for place in range(len(manifest.parts))]
    if manifest.stream is None:
        return Share(manifest.client, parts[0])
    stream = manifest.stream
    tasks = []
    for place, (said, data) in enumerate(zip(manifest.parts, parts, strict=True)):
        for key in ("units", "own_units"):
            units = getattr(said, key)
            if units is None or any(unit >= len(stream.unit_class) for unit in units):
                raise UserError(f"part {place}: {key} must be output units below {len(stream.unit_class)}")
        assert said.units is not None and said.own_units is not None
        tasks.append(Task(place, said.name, tuple(said.units), tuple(said.own_units), data))
    return Share(
        manifest.client,
        FederatedStream(
            name=stream.name,
            tasks=tuple(tasks),
            unit_class=tuple(stream.unit_class),
            class_names=tuple(stream.class_names),
            input_shape=parts[0].input_shape,
            num_clients=manifest.clients,
            blur=stream.blur,
            seed=stream.seed,
        ),
    )


def _part_of(manifest: _Manifest, place: int, arrays: Mapping[str, np.ndarray]) -> FederatedData:
    said = manifest.parts[place]
    found = strip_prefix(f"{place}/", arrays)
    for name in (*REQUIRED, "mean", "std"):
        if name not in found:
            raise UserError(f"array {place}/{name} is missing")
    for name, labels in SAMPLES.items():
        _check_samples(f"{place}/{name}", found[name], tuple(said.input_shape))
        if labels is not None:
            _check_labels(f"{place}/{labels}", found[labels], len(found[name]), len(said.class_names))
    for name in ("transfer_y", "foreign_y"):
        if name in found:
            _check_labels(f"{place}/{name}", found[name], len(found["transfer_x"]))
    if len({found[name].dtype for name in SAMPLES}) > 1:
        raise UserError(f"part {place}: samples must be all float32 or all int64")
    told = f"part {place}: must have {said.train} + {said.test} samples, got {len(found['x'])}"
    refuse_if(said.train + said.test != len(found["x"]), told, None)
    kind = inferred_kind(tuple(said.input_shape), found["x"].dtype) if said.kind is None else KINDS[said.kind]
    normalisation = AsStored if said.as_stored else Statistics
    data = FederatedData(
        name=said.name,
        class_names=tuple(said.class_names),
        input_shape=tuple(said.input_shape),
        x=found["x"],
        y=found["y"],
        train_bounds=(NOBODYS,) * manifest.clients,
        test_bounds=(NOBODYS,) * manifest.clients,
        source_index=np.arange(len(found["x"])),
        transfer_x=found["transfer_x"],
        test_x=found["test_x"],
        test_y=found["test_y"],
        transfer_y=found.get("transfer_y"),
        foreign_y=found.get("foreign_y"),
        statistics=normalisation(found["mean"], found["std"]),
        kind=replace(kind, vocabulary=said.vocabulary),
    )
    return of_one_client(data, manifest.client, said.train, said.test)


def _check_samples(name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    told = f"{name} must be float32 or int64 samples {list(shape)}, got {values.dtype} {list(values.shape)}"
    refuse_if(values.dtype not in (np.float32, np.int64) or values.shape[1:] != shape, told, None)
    if values.size and values.dtype == np.float32 and not (np.abs(values) <= LARGEST).all():
        raise UserError(f"{name} must be finite and within ±{LARGEST:g}")


def _check_labels(name: str, values: np.ndarray, samples: int, classes: int | None = None) -> None:
    told = f"{name} must be int64 labels of {samples} samples, got {values.dtype} {list(values.shape)}"
    refuse_if(values.dtype != np.int64 or values.shape != (samples,), told, None)
    if samples and (values.min() < 0 or (classes is not None and values.max() >= classes)):
        allowed = "≥ 0" if classes is None else f"in 0..{classes - 1}"
        raise UserError(f"{name} must be {allowed}, got {values.min()} to {values.max()}")
