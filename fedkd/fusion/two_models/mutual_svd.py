"""FedKD: a private and a shared model teach each other; changes of the shared one are sent as an SVD.

Wu et al., Nature Communications 13, 2022, arXiv 2108.13323.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import AuxNetwork, Capabilities, Guidance, Kind, Knowledge, LocalObjective
from fedkd.fusion.two_models.low_rank import FACTORS, RANKS, compress, decompress, factor_sizes, moved, real
from fedkd.fusion.two_models.shared_model import SHARED_NETWORK, SharedModel
from fedkd.fusion.views import Arrays, ClientView, LocalBatch, LocalStep, Network, ServerModels
from fedkd.fusion.weights.parameters import COUNTERS, PACKED, PARAMETERS, pack, unpack
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor

PROJECTION = "projection"
"""Maps the shared model's features to the own model's."""


@hyperparameters
class FedKD(LocalObjective, SharedModel):
    """Train an own model z and a shared g with mutual distillation of predictions and features.

    ::

        D   = CE(z, y) + CE(g, y), held, at least `least_loss`              confident models teach more
        L_z = CE(z, y) + [KL(softmax g ‖ softmax z) + MSE(h_z, W h_g)] / D  g and W held
        L_g = CE(g, y) + [KL(softmax z ‖ softmax g) + MSE(W h_g, h_z)] / D  z held
        Δ_n = g_n − g as received, every matrix as U_k σ_k V_k              up
        g   ← g + mean by samples of Δ_n, as U_k σ_k V_k again              down

    h are features; W `[F, F_g]` is each client's own and learns from L_g. k is the smallest rank that keeps a
    share e of a matrix's squares, and e grows over the rounds. A matrix is sent whole if its factors have
    more numbers, so e = 1 is exact. The kernel of a convolution is one matrix of O rows. Absent clients
    receive g itself.

    Public codes drop a layer where all ranks are needed. They compress weights instead of changes, or
    convolutions kernel by kernel, in more numbers than the kernels have.
    """

    name: ClassVar[str] = "fedkd_wu"
    paper: ClassVar[str] = (
        "Wu et al., Communication-Efficient Federated Learning via Knowledge Distillation, Nature"
        " Communications 13, 2022"
    )

    energy_start: Annotated[float, Field(gt=0, le=1)] = 0.95
    """e in the first round; 0.95 in the paper."""
    energy_end: Annotated[float, Field(gt=0, le=1)] = 0.98
    """e in the last round; 0.98 in the paper. 1 sends every change exactly."""
    least_loss: Annotated[float, Field(gt=0)] = 0.01
    """Lower bound of D, which the paper lacks: teaching would grow without end for two perfect models."""

    @cached_property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return replace(
            SharedModel.capabilities,
            sends="changes of a small shared model, as factors of low rank",
            kinds={FACTORS: Kind.WEIGHTS, RANKS: Kind.INDICES, COUNTERS: Kind.COUNTERS},
            shapes={FACTORS: "f", RANKS: "R", COUNTERS: "B"},
            receives={**PACKED, FACTORS: "f", RANKS: "R"},
            guides="each",
            needs={"gradients", "features", "server"},
            requires_sync="sends how the shared model has changed since the round before",
            reach="all clients, with their next message: participants the change, others the model",
            counts_rounds=self.energy_start != self.energy_end,
        )

    def energy(self, round: int, rounds: int) -> float:
        """Return e of a round."""
        over = (round - 1) / (rounds - 1) if rounds > 1 else 0.0
        return self.energy_start + (self.energy_end - self.energy_start) * min(over, 1.0)

    def prepare(self, server: ServerModels) -> Guidance:
        """Return the initial g."""
        start = pack(server.initial_weights(self._architecture(server)))
        return Guidance(targets=None, shared=start, memory=start)

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the compressed mean change for participants and g for all others."""
        assert knowledge.server is not None
        like = knowledge.server.initial_weights(self._architecture(knowledge.server))
        samples, uploads = np.maximum(knowledge.samples, 1), knowledge.payload
        mean = {name: np.zeros(values.shape) for name, values in real(like).items()}
        shares = samples / samples.sum()
        for share, factors, ranks in zip(shares, uploads[FACTORS], uploads[RANKS], strict=True):
            for name, values in decompress({FACTORS: factors, RANKS: ranks}, mean).items():
                mean[name] += share * values
        counters = np.max(uploads[COUNTERS], axis=0)
        change = compress(mean, self.energy(knowledge.round, knowledge.rounds)) | {COUNTERS: counters}
        newest = pack(moved(unpack(memory, like), decompress(change, mean))) | {COUNTERS: counters}
        personal = [change] * len(knowledge.clients)
        return Guidance(targets=None, personal=personal, for_absent=newest, memory=newest)

    def _architecture(self, server: ServerModels) -> str:
        return server.architecture(self.shared_model, self.shared_arguments)

    def aux_networks(self) -> Mapping[str, AuxNetwork]:
        """Return g and W."""
        from torch import nn

        return {
            SHARED_NETWORK: AuxNetwork(lambda make: make.shared_model(with_features=True)),
            PROJECTION: AuxNetwork(
                lambda make: nn.Linear(make.width(SHARED_NETWORK), make.width(), bias=False),
                start="client",
                sees="features",
            ),
        }

    def before_training(self, client: ClientView) -> None:
        """Keep g as received, the origin of changes."""
        client.memory |= pack(client.weights(SHARED_NETWORK))

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return the change of g in training."""
        now = client.weights(SHARED_NETWORK)
        received = unpack(client.memory, now) if PARAMETERS in client.memory else {}
        change = {n: v.astype(np.float64) - received.get(n, 0.0) for n, v in real(now).items()}
        compressed = compress(change, self.energy(client.round, client.rounds))
        return compressed | {COUNTERS: pack(now)[COUNTERS]}

    def misfit(self, upload: Arrays, sizes: Mapping[str, int], network: Network | None) -> str | None:
        if network is None:
            return None
        like, ranks = real(network.weights), upload[RANKS]
        if len(ranks) != len(like):
            return f"array {RANKS} has {len(ranks)} numbers, must have {len(like)}"
        numbers = sum(map(sum, factor_sizes(ranks, like)))
        if len(upload[FACTORS]) != numbers:
            return f"array {FACTORS} has {len(upload[FACTORS])} numbers, must have {numbers} of these ranks"
        return None

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Load g, or add its change to the g received last."""
        like = client.weights(SHARED_NETWORK)
        if FACTORS in guidance:
            received = unpack(client.memory, like)
            parameters = pack(moved(received, decompress(guidance, real(like))))[PARAMETERS]
            guidance = {PARAMETERS: parameters, COUNTERS: guidance[COUNTERS]}
        client.load_weights(unpack(guidance, like), SHARED_NETWORK)

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep:
        """Return ``L_z + L_g``."""
        from fedkd.training import cross_entropy, kd_kl, logits_mse

        shared: Any = client.network(SHARED_NETWORK)
        projection = client.network(PROJECTION)

        def loss(batch: LocalBatch) -> Tensor:
            assert batch.features is not None
            features = shared.features(batch.inputs)
            own, other = batch.logits.float(), shared.head(features).float()
            seen = projection(features.flatten(1))
            of_own, of_other = cross_entropy(own, batch.labels), cross_entropy(other, batch.labels)
            divisor = (of_own + of_other).detach().clamp(min=self.least_loss)
            taught = kd_kl(own, other.softmax(dim=1), 1.0) + logits_mse(batch.features, seen)
            teaches = kd_kl(other, own.softmax(dim=1), 1.0) + logits_mse(seen, batch.features)
            return of_own + of_other + (taught + teaches) / divisor

        return loss
