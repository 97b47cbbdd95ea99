"""SCARLET: DS-FL with a cache of soft labels and a controlled sharpening (arXiv 2504.19602)."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge
from fedkd.fusion.distillation.selection import draw_samples
from fedkd.fusion.distillation.soft_labels import SoftLabels, mean_probabilities, power
from fedkd.fusion.math.client_index import enlarge, enrol
from fedkd.fusion.math.neighbour_weights import uniform
from fedkd.fusion.views import Arrays, ClientView, Distillation
from fedkd.plugins import hyperparameters
from fedkd.randomness import numpy_generator


@hyperparameters
class Scarlet(SoftLabels):
    """Request samples without a recent label; distil the sharpened mean by cross entropy.

    ::

        S_t  = samples drawn for round t, by default a tenth of the transfer set
        R_t  = those of S_t without a label of the last D rounds, t included            predicted and uploaded
        y[i] = mean^b / Σ mean^b,  mean = mean_n softmax(z_n(x_i))        for i in R_t; kept by the server
        client n receives the labels of S_t that it lacks, keeps them, and learns all of S_t

    Absent clients lack labels, or have old ones. The server stores the round of each client's label of each
    sample, and sends only missing labels. So all participants of a round learn the same labels.
    """

    name: ClassVar[str] = "scarlet"
    paper: ClassVar[str] = "Azuma et al., Soft-Label Caching and Sharpening, arXiv 2504.19602, 2025"

    exponent: Annotated[float, Field(gt=0)] = 2.0
    """b of enhanced ERA: 1 is the plain mean, above 1 sharpens, below 1 softens. Up to 3 or so for very
    different clients, 1 for similar ones."""
    cache_rounds: Annotated[int, Field(ge=0)] = 50
    """D: rounds of a label's validity, its own included; 0 and 1 turn the cache off. A large D saves bytes
    but teaches old knowledge: lower it while models change fast."""
    samples_per_round: Annotated[int, Field(ge=1)] | None = None
    """Transfer samples drawn each round; absent: a tenth, as in the authors' runs (1,000 of 10,000). With
    all of them, every label dates from round 1 until D rounds are over."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            sends="logits of samples that are not in the cache",
            receives={"wanted": "w<M", "new_samples": "n<M", "new_labels": "n C"},
            guides="each",
            requests_vary=self.cache_rounds > 1,
        )

    def request(
        self, transfer_size: int, memory: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> np.ndarray | None:
        """Return the round's samples outside the cache, ascending; there may be none."""
        count = self.samples_per_round or -(-transfer_size // 10)
        drawn = draw_samples(transfer_size, count, generator)
        asked = np.setdiff1d(drawn, self._cached(memory))
        return None if len(asked) == transfer_size else asked

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the samples to learn, ``wanted``, and the soft labels of them that each client lacks."""
        assert knowledge.logits is not None
        _, rows, classes = knowledge.logits.shape
        asked = np.arange(rows) if knowledge.request is None else np.asarray(knowledge.request)
        # Round 1 requests all of its draw, and later draws are as large.
        drawn = int(memory.get("drawn", len(asked)))
        wanted = np.union1d(asked, self._reused(memory, drawn - len(asked), knowledge.seed))
        length = int(wanted.max(initial=-1)) + 1

        round = _round(memory)
        labels = enlarge(memory.get("labels", np.empty((0, classes), dtype=np.float32)), (length, classes))
        fused_in = enlarge(memory.get("fused_in", np.empty(0, dtype=np.int32)), (length,))
        labels[asked] = power(mean_probabilities(knowledge.logits), self.exponent)
        fused_in[asked] = round

        roster = enrol(memory, knowledge.clients)
        held = np.zeros((len(roster.clients), len(fused_in)), dtype=np.int32)
        if len(roster.known):
            held[roster.known, : memory["held"].shape[1]] = memory["held"]
        personal = []
        for row in roster.present:
            missing = wanted[held[row, wanted] != fused_in[wanted]]
            held[row, missing] = fused_in[missing]
            personal.append({"new_samples": missing.astype(np.int32), "new_labels": labels[missing]})
        return Guidance(
            targets=None,
            weights=uniform(len(knowledge.clients)),
            memory={
                "round": np.array(round),
                "drawn": np.array(drawn),
                "labels": labels,
                "fused_in": fused_in,
                "clients": roster.clients,
                "held": held,
            },
            shared={"wanted": wanted.astype(np.int32)},
            personal=personal,
        )

    def apply(self, client: ClientView, guidance: Arrays) -> Distillation:
        """Add new labels to the client's, and learn the round's samples from them."""
        wanted, classes = guidance["wanted"], client.classes
        labels = client.memory.get("labels", np.empty((0, classes), dtype=np.float32))
        # Missing labels are NaN, so that their use fails at once.
        labels = enlarge(labels, (int(wanted.max()) + 1, classes), fill=np.nan)
        labels[guidance["new_samples"]] = guidance["new_labels"]
        client.memory["labels"] = labels
        return labels[wanted], wanted

    def targets_of(self, client: ClientView, guidance: Arrays) -> Distillation:
        """Return the round's samples and their labels, most of them from earlier rounds."""
        return client.memory["labels"][guidance["wanted"]], guidance["wanted"]

    def taught_samples(self, guidance: Arrays) -> int:
        return len(guidance["wanted"])

    def _cached(self, memory: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the samples with valid labels, ascending."""
        fused_in = memory.get("fused_in", np.empty(0, dtype=np.int32))
        return np.flatnonzero((fused_in > 0) & (_round(memory) - fused_in < self.cache_rounds))

    def _reused(self, memory: Mapping[str, np.ndarray], count: int, seed: int) -> np.ndarray:
        """Return `count` cached samples of S_t: given their number, a uniform draw from the cache."""
        cached = self._cached(memory)
        generator = numpy_generator(seed, "scarlet-cached-samples", round=_round(memory))
        return cached[draw_samples(len(cached), count, generator)]


def _round(memory: Mapping[str, np.ndarray]) -> int:
    """Return the number of the round after this memory."""
    return int(memory.get("round", 0)) + 1
