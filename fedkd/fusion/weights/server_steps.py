"""A server model that takes steps by clients' uploads, and that clients train from."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np

from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Knowledge
from fedkd.fusion.capabilities import ANY_FORM
from fedkd.fusion.views import Arrays, ClientView, ServerModels
from fedkd.fusion.weights.averaging import AVERAGED
from fedkd.fusion.weights.parameters import COUNTERS, PARAMETERS, pack, packs_of, unpack
from fedkd.plugins import hyperparameters
from fedkd.storage import add_prefix, strip_prefix

MODEL, SUM, COUNT, SEEN = "model/", "sum", "count", "seen"


@hyperparameters
class ServerSteps(FusionStrategy):
    """Base of strategies whose server takes one step per round, the mean over uploads.

    ::

        x ← x + η (1/K) Σ_i s(τ_i) u_i      over the round's K uploads

    In asynchronous rounds s(τ) = (1 + τ)^−a weighs an upload that began τ versions of the model ago; else it
    is 1. The sum is divided by K and not by Σ s: with old uploads alone the step is smaller. Statistics of
    normalisation layers move along; counters are the maximum. Every message carries x, so clients keep no
    model.
    """

    capabilities: ClassVar[Capabilities] = replace(
        AVERAGED,
        accepts=ANY_FORM,
        brings_model=True,
        shares_model=False,
        weighs_age=True,
        reach="all clients, the same, with every message",
    )

    def prepare(self, server: ServerModels) -> Guidance:
        """Return the initial x."""
        model = server.initial_weights(server.architecture_of(0))
        return Guidance(targets=None, memory=add_prefix(MODEL, model), shared=model)

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the new x, or keep the sum so far while uploads of the round are awaited."""
        model = _sorted(strip_prefix(MODEL, memory))
        x = pack(model)
        uploads = packs_of(knowledge.payload)
        freshness = np.ones(len(uploads)) if knowledge.freshness is None else knowledge.freshness
        total = np.array(memory.get(SUM, np.zeros(x[PARAMETERS].shape)))
        for weight, upload in zip(freshness, uploads, strict=True):
            total += weight * self._wanted(upload[PARAMETERS].astype(np.float64), x[PARAMETERS])
        count = int(memory.get(COUNT, 0)) + len(uploads)
        before = memory.get(SEEN, x[COUNTERS])
        seen = np.max([x[COUNTERS], before, *(upload[COUNTERS] for upload in uploads)], axis=0)
        if knowledge.awaited:
            partly = {SUM: total, COUNT: np.array(count), SEEN: seen}
            return Guidance(targets=None, memory=add_prefix(MODEL, model) | partly)
        moved = (x[PARAMETERS] + self._rate * total / count).astype(np.float32)
        new = unpack({PARAMETERS: moved, COUNTERS: seen}, model)
        return Guidance(targets=None, memory=add_prefix(MODEL, new), shared=new)

    @property
    @abstractmethod
    def _rate(self) -> float:
        """η."""

    @abstractmethod
    def _wanted(self, upload: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return u, the step of x by an upload, `[P]` float64."""

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Load x."""
        client.load_weights(guidance)

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return the client's weights, in the order of their names."""
        return pack(_sorted(client.weights()))


def _sorted(weights: Arrays) -> dict[str, np.ndarray]:
    """Return weights in the order of their names, which a file keeps."""
    return {name: weights[name] for name in sorted(weights)}
