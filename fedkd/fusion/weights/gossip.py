"""Gossip: clients average their models with those of their neighbours, without a server.

Lian et al., NeurIPS 2017, arXiv 1705.09056; directed links: Assran, Loizou, Ballas and Rabbat, "Stochastic
Gradient Push for Distributed Deep Learning", ICML 2019, arXiv 1811.10792.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Kind, Knowledge
from fedkd.fusion.capabilities import ANY_FORM
from fedkd.fusion.views import Arrays, ClientView
from fedkd.fusion.weights.parameters import COUNTERS, PACKED, PARAMETERS, pack, packs_of, unpack
from fedkd.plugins import hyperparameters

MASS = "mass"


@hyperparameters
class Gossip(FusionStrategy):
    """Train, then mix: each model becomes a weighted mean of itself and its neighbours'.

    ::

        z_n ← z_n + Δ_n                     local training, from z_n
        x_n ← Σ_m P_nm x_m,  x_m = w_m z_m + Δ_m
        w_n ← Σ_m P_nm w_m                  masses, which all begin at 1
        z_n ← x_n / w_n                     the client's new model

    P is that of the scenario's `topology`. With Metropolis weights masses stay 1, and this is ``z ← P (z +
    Δ)``. With push-sum, for directed links, masses correct unequal numbers of receivers. Either way the sum
    of all x is constant, and so is the common limit. Clients have equal weights for any numbers of samples.

    Models are mixed among clients of one architecture, from equal initial weights. Normalisation statistics
    are mixed by their masses; counters are the maximum.
    """

    name: ClassVar[str] = "gossip"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="weights",
        accepts=ANY_FORM,
        kinds={PARAMETERS: Kind.WEIGHTS, COUNTERS: Kind.COUNTERS, MASS: Kind.MASS},
        shapes=PACKED,
        receives={**PACKED, MASS: "1"},
        guides="each",
        over_graph="mixed",
        needs={"gradients", "weights", "graph"},
        uses_transfer_set=False,
        reach="the participants, each its mixture with neighbours of the same architecture",
    )
    paper: ClassVar[str] = (
        "Lian et al., Can Decentralized Algorithms Outperform Centralized Algorithms?, NeurIPS 2017, arXiv"
        " 1705.09056"
    )

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return x as `parameters` `[P]`, the `counters` `[B]` and the `mass` `[1]`."""
        weights, mass = client.weights(), client.memory.get(MASS, np.ones(1, np.float32))
        if mass[0] != 1.0:
            weights = _numerators(weights, client.last_fit.start, set(client.trainable()), float(mass[0]))
        return pack(weights) | {MASS: mass}

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return each client's z and mass; the weights `[N, N]` are the senders' shares in z."""
        assert knowledge.mixing is not None
        mixing, uploads = knowledge.mixing, packs_of(knowledge.payload)
        before = np.concatenate(knowledge.payload[MASS]).astype(np.float64)
        after = (mixing @ before).astype(np.float32)  # where rows sum to 1 up to rounding, it stays 1
        personal = []
        for row, mass in zip(mixing, after, strict=True):
            heard = np.flatnonzero(row)
            x: np.ndarray = sum(row[m] * uploads[m][PARAMETERS].astype(np.float64) for m in heard)
            personal.append(
                {
                    PARAMETERS: (x / mass).astype(np.float32),
                    COUNTERS: np.max([uploads[m][COUNTERS] for m in heard], axis=0),
                    MASS: np.array([mass]),
                }
            )
        # Shares in z, which is x divided by its mass.
        shares = mixing * before
        return Guidance(None, shares / shares.sum(axis=1, keepdims=True), personal=personal)

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Load z, and store its mass."""
        client.load_weights(unpack(guidance, client.weights()))
        client.memory[MASS] = np.array(guidance[MASS])


def _numerators(weights: Arrays, start: Arrays, trained: set[str], mass: float) -> dict[str, np.ndarray]:
    """Return x of a client with a mass other than 1, from its weights z + Δ and their start z.

    Statistics are multiplied by the mass, since a variance plus a weighted step might become negative.
    """
    found = {}
    for name, values in weights.items():
        if not np.issubdtype(values.dtype, np.floating):
            found[name] = values
        elif name in trained:
            found[name] = values.astype(np.float64) + (mass - 1.0) * start[name].astype(np.float64)
        else:
            found[name] = mass * values.astype(np.float64)
    return found
