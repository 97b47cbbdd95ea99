"""FedPM with a mask per task: clients agree on a subset of common initial weights."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from fedkd.errors import UserError
from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Kind, Knowledge
from fedkd.fusion.views import Arrays, ClientView
from fedkd.plugins import hyperparameters

LEAST = 1e-6
"""Distance of probabilities to 0 and 1, for finite log-odds."""


@hyperparameters
class FedMask(FusionStrategy):
    """Average the masks of a task; rank every client's scores by the log-odds.

    ::

        m_n ∈ {0, 1}^d    client n's mask of the task, after local training of its scores    d bits up
        θ   = Σ_n m_n / N                                                                    N θ down
        σ   = ln θ/(1 − θ)
        S_n ← S_n's own sizes, largest first, to the weights in the order of (σ, |S_n|)      mask rule `topk`
        S_n ← |S_n| where σ > 0, −|S_n| where σ < 0, S_n where σ = 0                         `threshold`

    All clients begin with the same weights, and each task with the same scores; masks are the learner's.
    FedPM draws masks from sigmoid(S) in every step, and its clients continue from S = σ. Here masks depend on
    the order or the signs of scores. σ has N + 1 values and decides first; a client's own scores break ties.
    Scores keep their sizes, which suit their learning rate. If all clients agree, they keep their scores.

    Learners that train weights (`exssnet`) do so once the mask is settled, and then send no mask. They also
    send d bits that mark weights of their earlier tasks, and train only weights that are still free.
    """

    name: ClassVar[str] = "fedmask"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="masks",
        kinds={"mask": Kind.MASKS, "taken": Kind.MASKS, "fingerprint": Kind.CONSTANT},
        optional={"taken"},
        shapes={"mask": "W?", "taken": "W?", "fingerprint": "8?"},
        receives={"votes": "v", "voters": "", "taken": "W"},
        guides="all_alike",
        needs={"gradients", "masks", "one_architecture"},
        uses_transfer_set=False,
    )
    paper: ClassVar[str] = (
        "Isik et al., Sparse Random Networks for Communication-Efficient Federated Learning, ICLR 2023,"
        " arXiv 2209.15328"
    )

    weight_by_count: bool = False
    """Weigh clients by training samples, not equally as in the paper; for clients of very unequal size. A
    knowledge cache lets old masks count for less only so."""

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return bits of the task's `mask` and the `taken` weights; empty once the mask is settled.

        The `fingerprint` of the common initial weights has 8 bytes.
        """
        own, nothing = client.supermask(), np.empty(0, dtype=np.uint8)
        settled, taken = own.is_settled, own.taken()
        sent = {
            "mask": nothing if settled else own.bits(),
            "fingerprint": nothing if settled else own.fingerprint,
        }
        return sent if taken is None else sent | {"taken": nothing if settled else taken}

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Rank the client's scores by the log-odds of all masks."""
        probabilities = guidance["votes"] / float(guidance["voters"])
        client.supermask().agree(log_odds(probabilities), guidance.get("taken"))

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return each weight's `votes` out of all `voters`, and the `taken` weights."""
        sent, taken = knowledge.payload["mask"], knowledge.payload.get("taken", ())
        voting = np.array([len(mask) > 0 for mask in sent])
        if not voting.any():
            return Guidance(targets=None)
        starts: dict[bytes, int] = {}
        for client, fingerprint in zip(knowledge.clients, knowledge.payload["fingerprint"], strict=True):
            if len(fingerprint):
                starts.setdefault(fingerprint.tobytes(), client)
        if len(starts) > 1:
            one, other, *_ = starts.values()
            raise UserError(
                f"'fedmask' needs clients that begin with the same weights; those of client {one} and client"
                f" {other} differ: does the model ignore the seed?",
                key="clients.model",
            )
        counts = np.maximum(knowledge.samples, 1) if self.weight_by_count else np.ones_like(knowledge.samples)
        counts = np.where(voting, counts, 0)
        votes = np.zeros(8 * max(map(len, sent)), dtype=np.int64)  # whole numbers: ties are ties
        for mask, count in zip(sent, counts, strict=True):
            if count:
                votes += count * np.unpackbits(mask)
        voters = counts.sum()
        narrow = np.min_scalar_type(voters)
        shared = {"votes": votes.astype(narrow), "voters": np.array(voters, dtype=narrow)}
        claims = [own for own in taken if len(own)]
        if claims:
            shared["taken"] = np.bitwise_or.reduce(claims)
        listened = np.where(voting[:, None], counts / voters, np.eye(len(sent)))
        return Guidance(targets=None, weights=listened, shared=shared)


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Return ``ln p/(1 − p)``, float32, of clipped probabilities."""
    p = np.clip(probabilities.astype(np.float64), LEAST, 1.0 - LEAST)
    return (np.log(p) - np.log1p(-p)).astype(np.float32)
