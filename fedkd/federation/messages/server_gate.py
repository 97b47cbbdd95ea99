"""The server's gate, which checks sender, figures and uploads of replies."""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import isfinite, isnan
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedkd.clients import UploadStage, decode_upload
from fedkd.errors import RunFailed
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import payload_bytes, record_to_arrays
from fedkd.fusion import Arrays, InvalidUpload, Kind
from fedkd.server import Upload

MOST_SAMPLES = 2**40
"""Most training samples that a client may report."""
LARGEST_FIGURE = 1e15
TRAIN_LOSS = "train_loss"
TRAIN_FIGURES = (msg.NUM_EXAMPLES, TRAIN_LOSS)
Misfits = Callable[[Sequence[Message]], Mapping[int, InvalidUpload]]
"""Returns reasons of refused uploads by client."""


def check_reply(client: int, reply: Message, figures: Collection[str] = ()) -> None:
    """Raise `InvalidUpload` for a reply's first fault, arrays aside; `figures` are the expected metrics."""
    content = reply.content
    # Flower makes its views by type anew on each access.
    told = _record(content, msg.IDENTITY, ConfigRecord).get(msg.CLIENT)
    if told != client or isinstance(told, bool):
        raise InvalidUpload(f"it claims to be client {told!r}")
    metrics = _record(content, msg.METRICS, MetricRecord)
    for name in figures:
        if name not in metrics:
            raise InvalidUpload(f"metric {name} is missing")
    for name, value in metrics.items():
        _check_figure(name, value)
    for record in (msg.CURVES, msg.AT_CHANCE, msg.LEARNER):
        for name, value in _record(content, record, ConfigRecord).items():
            for figure in value if isinstance(value, list) else [value]:
                _check_figure(f"{record}/{name}", figure)


def sift(
    answers: Mapping[int, Message], figures: Collection[str], misfits_of: Misfits | None = None
) -> tuple[dict[int, Message], dict[int, InvalidUpload]]:
    """Return the replies that pass, and the others' reasons; `misfits_of` checks uploads, if any."""
    misfits: dict[int, InvalidUpload] = {}
    for client, reply in answers.items():
        try:
            check_reply(client, reply, figures)
        except InvalidUpload as misfit:
            misfits[client] = misfit
    if misfits_of is not None:
        misfits |= misfits_of([reply for client, reply in answers.items() if client not in misfits])
    sound = {client: reply for client, reply in answers.items() if client not in misfits}
    return sound, dict(sorted(misfits.items()))


def _record(content: RecordDict, name: str, kind: Any) -> Mapping[str, Any]:
    found: Any = content.get(name)
    return found if isinstance(found, kind) else {}


def _check_figure(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidUpload(f"metric {name} is {value!r}, must be a number")
    if name == msg.NUM_EXAMPLES and not (isinstance(value, int) and 0 <= value <= MOST_SAMPLES):
        raise InvalidUpload(f"metric {name} is {value!r}, must be in 0 … {MOST_SAMPLES}")
    if name == TRAIN_LOSS and not (isnan(value) or (isfinite(value) and value >= -LARGEST_FIGURE)):
        raise InvalidUpload(f"metric {name} is {value!r}, must be finite, or NaN if nothing was trained")
    if name.startswith("accuracy") and not (isnan(value) or 0.0 <= value <= 1.0):
        raise InvalidUpload(f"metric {name} is {value!r}, must be in 0 … 1")


def opened(
    reply: Message, stages: Sequence[UploadStage], kinds_of: Callable[[Arrays], Mapping[str, Kind]]
) -> Upload:
    """Return an upload past some stages, without its round, or raise `InvalidUpload`."""
    try:
        size = payload_bytes(reply.content)
        arrays = record_to_arrays(reply.content.array_records[msg.ARRAYS])
        wrong = next((name for name, values in arrays.items() if values.dtype.kind not in "biuf"), None)
    except Exception as error:  # the bytes come from another machine
        raise InvalidUpload(f"its arrays cannot be read: {type(error).__name__}") from None
    if wrong is not None:
        raise InvalidUpload(f"array {wrong} is of type {arrays[wrong].dtype}, must be real numbers")
    try:
        with np.errstate(all="ignore"):
            received = decode_upload(stages, arrays, kinds_of(arrays))
    except Exception:
        names = ", ".join(f"{name} {list(values.shape)}" for name, values in arrays.items())
        raise InvalidUpload(
            f"its arrays do not match the scenario's uploads: got {names or 'none'}"
        ) from None
    figures: Mapping[str, Any] = reply.content.metric_records[msg.METRICS]
    return Upload(0, received, int(figures[msg.NUM_EXAMPLES]), size)


def refusal(misfit: InvalidUpload, client: int, round: int) -> RunFailed:
    return RunFailed(f"reply refused: {misfit}", client=client, round=round, diverged=misfit.diverged)
