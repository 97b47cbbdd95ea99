"""FedPM with a mask for every task: clients agree on which of the weights that all begin with take part.

B. Isik, F. Pase, D. Gündüz, T. Weissman and M. Zorzi, "Sparse Random Networks for Communication-Efficient
Federated Learning", ICLR 2023, arXiv 2209.15328.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from fedkd.errors import UserError
from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.kinds import Kind
from fedkd.fusion.strategy import FusionStrategy, Guidance, Knowledge
from fedkd.fusion.views import Arrays, ClientView
from fedkd.hyperparameters import STRICT

LEAST = 1e-6
"""What a probability is at least, and 1 − it, so that its log-odds are a number."""


@dataclass(frozen=True, config=STRICT)
class FedMask(FusionStrategy):
    """Average the masks of a task to probabilities, and let their log-odds rank every client's scores.

    ::

        m_n ∈ {0, 1}^d    client n's mask of the task, after local training of its scores    d bits up
        θ   = Σ_n m_n / N                                                                    N θ down
        σ   = ln θ/(1 − θ)
        S_n ← S_n's own sizes, largest first, to the weights in the order of (σ, |S_n|)      mask rule `topk`
        S_n ← |S_n| where σ > 0, −|S_n| where σ < 0, S_n where σ = 0                         `threshold`

    All clients begin with the same weights, and a task with the same scores; masks are the learner's. FedPM's
    own are drawn from sigmoid(S) in every step, and its clients go on from S = σ. Here masks follow from the
    order, or the signs, of scores, of which σ has N + 1 different ones: so σ decides, a client's own scores
    break ties, and they keep their sizes, which the learning rate of scores suits. Clients that agree are
    left with the scores that they have.

    Learners that train weights (`exssnet`) do so once the mask is agreed on, and send no mask any more. With
    their masks they send which weights their earlier tasks have taken, d further bits, and train those alone
    that nobody has taken: these are still what all clients began with.
    """

    name: ClassVar[str] = "fedmask"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="masks",
        kinds={
            "mask": Kind.MASKS,
            "taken": Kind.MASKS,
            "fingerprint": Kind.CONSTANT,
        },
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
    """Count each client by its number of training samples, instead of all alike as in the paper; for clients
    of very unequal size, and with a knowledge bank, whose old masks count for less only so."""

    # On a client --------------------------------------------------------------------------------------

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return the `mask` of the present task and what is `taken`, bits; empty once the mask is settled.

        The `fingerprint` of the weights that all clients should have begun with is 8 bytes.
        """
        own, nothing = client.supermask(), np.empty(0, dtype=np.uint8)
        settled, taken = own.is_settled, own.taken()
        sent = {
            "mask": nothing if settled else own.bits(),
            "fingerprint": nothing if settled else own.fingerprint,
        }
        return sent if taken is None else sent | {"taken": nothing if settled else taken}

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Rank the client's scores by the log-odds of what all masks say."""
        probabilities = guidance["votes"] / float(guidance["voters"])
        client.supermask().agree(log_odds(probabilities), guidance.get("taken"))

    # On the server ------------------------------------------------------------------------------------

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return how many `votes` of all `voters` every weight has, and which weights anybody has `taken`.

        Raises:
            UserError: Clients began with different weights.
        """
        sent, taken = knowledge.extra["mask"], knowledge.extra.get("taken", ())
        voting = np.array([len(mask) > 0 for mask in sent])
        if not voting.any():
            return Guidance(targets=None)
        check_one_start(knowledge.clients, knowledge.extra["fingerprint"])
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
    """Return ``ln p/(1 − p)`` in float32, p kept `LEAST` away from 0 and 1."""
    p = np.clip(probabilities.astype(np.float64), LEAST, 1.0 - LEAST)
    return (np.log(p) - np.log1p(-p)).astype(np.float32)


def check_one_start(clients: Sequence[int], fingerprints: Sequence[np.ndarray]) -> None:
    """Check that all clients began with the same weights, without which a mask means nothing to others.

    Raises:
        UserError: They did not; it names two that differ.
    """
    first: dict[bytes, int] = {}
    for client, fingerprint in zip(clients, fingerprints, strict=True):
        if len(fingerprint):
            first.setdefault(fingerprint.tobytes(), client)
    if len(first) > 1:
        one, other, *_ = first.values()
        raise UserError(
            f"'fedmask' needs clients that begin with the same weights; those of client {one} and client"
            f" {other} differ, as where a model is not the same for the same seed",
            key="clients.model",
        )
