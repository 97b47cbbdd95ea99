"""CFD: clients vote for classes and learn quantised soft labels (arXiv 2012.00632)."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.errors import TrainingDiverged
from fedkd.fusion import Guidance, Kind, Knowledge, softmax
from fedkd.fusion.capabilities import REACH, TAUGHT, Capabilities
from fedkd.fusion.distillation.quantised import (
    SHAPE,
    Version,
    difference,
    put_together,
    quantise,
    renew,
    soft_labels,
)
from fedkd.fusion.distillation.server_model import ServerStudent
from fedkd.fusion.distillation.soft_labels import SoftLabels
from fedkd.fusion.math.client_index import enrol
from fedkd.fusion.views import Arrays, ClientView, Distillation
from fedkd.plugins import hyperparameters

STEPS = "steps"


@hyperparameters
class CFD(ServerStudent, SoftLabels):
    """Send hard labels alone; average the votes; distil them by cross entropy.

    ::

        v_n[i]  = argmax_c z_n(x_i)_c                  a byte a sample, two above 256 classes
        t[i, c] = share of clients with v_n[i] = c

    The cheapest uplink: 4·C times smaller than float32 logits. Votes lose certainty, so the method needs many
    clients; a single client learns its own hard labels.

    Without a `server_model` clients learn the shares, as float32. A server model is the paper's downlink::

        server ← minimise −mean_i Σ_c t[i, c] log softmax(z(x_i))_c
        s[i]   = softmax(z(x_i)) in steps of 1 / (2^b − 1) that add up to 1        b = `bits_down`
        down   = a bit for each sample, and b bits for each class of those whose s[i] the client lacks

    The server stores each client's labels, and sends every change once. Two parts of the paper are missing:
    entropy coding (a changed label costs C·b bits) and delta coding of votes.
    """

    name: ClassVar[str] = "cfd"
    paper: ClassVar[str] = "Sattler et al., CFD: Communication-Efficient Federated Distillation, 2021"

    bits_down: Annotated[int, Field(ge=1, le=8)] = 8
    """b: bits of a class in the labels of the server's model. 1 is the most likely class alone, which changes
    least from round to round."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            sends="hard labels",
            kinds={"votes": Kind.VOTES, "classes": Kind.CONSTANT},
            shapes={"classes": "1=C"},
            receives={**TAUGHT, "changed": "Y", "labels": "n", "shape": "2"},
            guides="all_alike",
            upload_changes=True,
            weighs_age=True,
            over_graph="each",
            needs=frozenset({"server"} if self.server_model is not None else ()),
            reach=f"{REACH['all_alike']}; with a server model participants alone",
        )

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return `votes` `[M]` and the number of `classes` `[1]`; raise TrainingDiverged on NaN."""
        logits = client.logits()
        if np.isnan(logits).any():  # argmax would turn them into votes
            raise TrainingDiverged("predictions are not numbers (NaN); a lower training.lr may help")
        smallest = np.min_scalar_type(client.classes - 1)
        votes = logits.argmax(axis=-1).astype(smallest)
        return {"votes": votes, "classes": np.array([client.classes], dtype=np.uint32)}

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the vote shares `[M, C]`; or each client's missing labels of the server model."""
        votes = np.stack(knowledge.payload["votes"])
        classes = int(knowledge.payload["classes"][0][0])
        clients, samples = votes.shape
        cell = votes + classes * np.arange(samples)
        fresh = np.ones(clients) if knowledge.freshness is None else knowledge.freshness
        counts = np.bincount(cell.ravel(), np.repeat(fresh, samples), minlength=samples * classes)
        shares = (counts.reshape(samples, classes) / fresh.sum()).astype(np.float32)
        heard = np.tile(fresh / fresh.sum(), (clients, 1))
        if self.server_model is None:
            return Guidance(shares, heard)
        logits, trained = self._taught(knowledge, memory, (shares,), self.loss)
        round = int(memory.get("round", 0)) + 1
        old = Version(memory["steps"], memory["since"]) if memory else None
        new = renew(old, quantise(softmax(logits), self.bits_down), round)
        roster = enrol(memory, knowledge.clients)
        told = np.zeros(len(roster.clients), dtype=np.int64)
        told[roster.known] = memory.get("told", np.empty(0, dtype=np.int64))
        # Clients without labels now may lack any of them at the next message.
        known = np.where(knowledge.has_come, told[roster.present], 0)
        personal = [difference(new, int(since), self.bits_down) for since in known]
        told[roster.present[knowledge.has_come]] = round
        kept = {"round": np.array(round), "clients": roster.clients, "told": told, **new._asdict()}
        return Guidance(None, heard, memory=kept | trained, personal=personal)

    def apply(self, client: ClientView, guidance: Arrays) -> Distillation | None:
        """Learn the shares; or merge new labels into the stored ones and learn all."""
        if SHAPE in guidance:
            client.memory[STEPS] = put_together(client.memory.get(STEPS), guidance, self.bits_down)
        return super().apply(client, guidance)

    def targets_of(self, client: ClientView, guidance: Arrays) -> Distillation | None:
        """Return shares, or all stored labels of the server model."""
        if SHAPE in guidance:
            return soft_labels(client.memory[STEPS], self.bits_down), None
        return super().targets_of(client, guidance)

    def taught_samples(self, guidance: Arrays) -> int:
        return int(guidance[SHAPE][0]) if SHAPE in guidance else super().taught_samples(guidance)
