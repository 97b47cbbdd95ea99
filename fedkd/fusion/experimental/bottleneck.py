"""Bottleneck: KnFu on predictions that travel as short linear codes, which the server fits to the logits.

The learned variant of `message`. The best linear codes in squares have a closed form: nothing is trained.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar
from zlib import crc32

import numpy as np
from pydantic import Field

from fedkd.continual import canonical_rotation
from fedkd.fusion import Capabilities, Guidance, Kind, Knowledge
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.math.probabilities import finite_logits, softmax
from fedkd.fusion.views import Arrays, ClientView, Distillation, Network
from fedkd.plugins import hyperparameters
from fedkd.storage import below, under

WHOLE, CODES, ABOUT = "whole_logits", "codes", "about"
CODER, AGAIN, AGE = "coder", "again", "age"
LEAST = 1e-7
NOISE = 1e-10
"""Share of the logits' squares below which a direction is rounding."""
NO_CODER = np.zeros((0, 0), dtype=np.float32)


@hyperparameters
class Bottleneck(KnFu):
    """Fuse as `knfu` does, of predictions that are sent as `width` numbers each, up and down.

    ::

        z̃_n[i] = z_n(x_i) − its mean over classes                  which softmax does not see
        μ, E   = mean, and first b principal directions, of all clients' z̃           E: C×b, b = `width`
        up     = Eᵀ(z̃_n[i] − μ),     the server reads μ + E · code
        down   = Eᵀ(log K_n[i] − its mean − μ),   K_n by `knfu`;   a client learns softmax(μ + E · code)

    In the first round and every `refresh` rounds, clients send whole logits and the server finds μ and E
    anew. Of all linear codes of b numbers these lose least in squares; b = C − 1 loses nothing. Every
    guidance carries them, (b + 1)·C numbers. Clients with another code, as after a change of task, are asked
    for logits.

    E does not depend on the order of clients and samples (see
    `fedkd.continual.subspace.canonical_basis`). Where logits span fewer than b dimensions, codes are
    shorter, and mixtures of knowledge may lose more.
    """

    name: ClassVar[str] = "bottleneck"
    paper: ClassVar[str] = (
        "after Wang et al., Talking Models, arXiv 2310.03188, 2023, and Seyedmohammadi et al., KnFu, arXiv"
        " 2403.11892, 2024"
    )

    width: Annotated[int, Field(ge=1, le=65536)] = 3
    """b: numbers of a code. C − 1 and more lose nothing and save nothing; with less, the likeliest class of a
    prediction is lost sooner than squares tell: of ten classes four numbers keep three in four."""
    refresh: Annotated[int, Field(ge=1)] = 5
    """Rounds after which whole logits are sent again, because models have learned what codes do not tell; 1:
    always, so that only guidance is coded."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return replace(
            super().capabilities,
            sends="codes of logits",
            kinds={
                WHOLE: Kind.SAMPLE_LOGITS,
                CODES: Kind.CODES,
                ABOUT: Kind.CONSTANT,
                "label_counts": Kind.LABEL_COUNTS,
            },
            shapes={WHOLE: "M? C", CODES: "M? b?", ABOUT: "1"},
            receives={"coder": "w? C", "again": "1", CODES: "M? b?"},
            upload_changes=True,
            guides="each",
            reach="every client: the code; and who took part, what is made for it",
            mixes=False,
        )

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return `codes` `[M, b]` or, without a code, `whole_logits`; `about` `[1]` is its checksum."""
        logits, coder = client.logits(), client.memory.get(CODER, NO_CODER)
        none = np.zeros((0, logits.shape[1]), dtype=logits.dtype)
        if coder.shape[1] == logits.shape[1]:
            sent = {WHOLE: none, CODES: encode(coder, centred(logits)).astype(logits.dtype)}
        else:
            coder = NO_CODER
            sent = {WHOLE: logits, CODES: none[:, :0]}
        sent[ABOUT] = np.array([crc32(coder.tobytes())], dtype=np.uint32)
        if self.capabilities.label_counts:
            sent["label_counts"] = client.label_counts()
        return sent

    def misfit(self, upload: Arrays, sizes: Mapping[str, int], network: Network | None) -> str | None:
        whole, codes = len(upload[WHOLE]), len(upload[CODES])
        if (whole == 0) == (codes == 0):
            return f"array {WHOLE} has {whole} rows and array {CODES} {codes}, one of them must have 0"
        return None

    def apply(self, client: ClientView, guidance: Arrays) -> Distillation | None:
        """Store the code, unless whole logits are asked for, and learn the decoded guidance."""
        client.memory[CODER] = NO_CODER if guidance[AGAIN][0] else np.array(guidance[CODER])
        return self.targets_of(client, guidance)

    def targets_of(self, client: ClientView, guidance: Arrays) -> Distillation | None:
        """Return the probabilities of the codes, `[M, C]`; None: there are none."""
        if CODES not in guidance:
            return None
        return softmax(decode(guidance[CODER], guidance[CODES])), None

    def taught_samples(self, guidance: Arrays) -> int:
        return len(guidance[CODES]) if CODES in guidance else 0

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return each client's effective knowledge as `codes` `[M, b]`, and the code for all."""
        coder = memory.get(CODER, NO_CODER)
        whole, codes = knowledge.payload[WHOLE], knowledge.payload[CODES]
        known = (crc32(coder.tobytes()), len(coder) - 1) if coder.size else None
        read = [
            n
            for n, (about, code) in enumerate(zip(knowledge.payload[ABOUT], codes, strict=True))
            if len(whole[n]) or (int(about[0]), code.shape[1]) == known
        ]
        if not read:
            return Guidance(None, shared=_shared(NO_CODER, again=True))
        logits = [whole[n] if len(whole[n]) else decode(coder, codes[n]) for n in read]
        rows: dict[str, Any] = {"logits": np.stack(logits)}
        for name in ("samples", "label_counts", "age", "new", "freshness"):
            array = getattr(knowledge, name)
            rows[name] = None if array is None else array[read]
        part = replace(knowledge, clients=tuple(knowledge.clients[n] for n in read), payload={}, **rows)
        fused = super().fuse(part, below("knfu/", memory))
        assert fused.targets is not None and fused.weights is not None
        age = int(memory.get(AGE, 0)) + 1
        strangers = [n for n in np.flatnonzero(knowledge.has_come) if n not in read]
        if not coder.size or all(len(whole[n]) for n in read):
            coder, age = best_coder(np.stack([finite_logits(own) for own in logits]), self.width), 1
        told = dict(zip(read, fused.targets, strict=True))
        personal = [
            {CODES: encode(coder, centred(np.log(np.maximum(told[n], LEAST))))} if n in told else {}
            for n in range(len(whole))
        ]
        weights = np.eye(len(whole))
        weights[np.ix_(read, read)] = fused.weights
        return Guidance(
            None,
            weights,
            under("knfu/", fused.memory) | {CODER: coder, AGE: np.array(age)},
            shared=_shared(coder, again=age >= self.refresh or bool(strangers)),
            personal=personal,
            for_absent={},
        )


def _shared(coder: np.ndarray, *, again: bool) -> dict[str, np.ndarray]:
    return {CODER: coder, AGAIN: np.array([again], dtype=np.uint8)}


def centred(logits: np.ndarray) -> np.ndarray:
    """Return logits `[..., C]` less their mean over classes, float32."""
    z = finite_logits(logits)
    return z - z.mean(axis=-1, keepdims=True)


def best_coder(logits: np.ndarray, width: int) -> np.ndarray:
    """Return μ and E of logits `[N, M, C]` as rows, `[1 + b, C]` float32; b is at most the rank of z̃ − μ."""
    z = centred(logits).reshape(-1, logits.shape[-1]).astype(np.float64)
    mean = z.mean(axis=0)
    energies, directions = np.linalg.eigh((z - mean).T @ (z - mean))
    energies, directions = energies[::-1], directions[:, ::-1]
    best = directions @ canonical_rotation(directions, energies, NOISE * float((z**2).sum()))
    return np.vstack([mean, best.T[:width]]).astype(np.float32)


def encode(coder: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the codes `[..., b]` of centred logits `[..., C]`."""
    return (rows - coder[0]) @ coder[1:].T


def decode(coder: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the centred logits `[..., C]` float32 that codes `[..., b]` stand for."""
    return finite_logits(codes) @ coder[1:] + coder[0]
