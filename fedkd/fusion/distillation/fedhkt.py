"""FedHKT: groups average weights; their models teach a server model, which teaches all clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Guidance, Kind, Knowledge, softmax
from fedkd.fusion.capabilities import TAUGHT, Capabilities
from fedkd.fusion.distillation.confidence import ambiguity, normalised_certainty
from fedkd.fusion.distillation.server_model import ServerTeacher
from fedkd.fusion.math.clustering import cluster
from fedkd.fusion.server_cost import RoundExtent
from fedkd.fusion.views import Arrays, ClientView, Distillation
from fedkd.fusion.weights.parameters import COUNTERS, PACKED, PARAMETERS, average, pack, packs_of, unpack
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor


@hyperparameters
class FedHKT(ServerTeacher):
    """Average weights in groups that teach a server model; written from an abstract.

    The formulas are fedkd's.

    ::

        groups  = k-means of softmax(z_n(x)) on the whole transfer set; in a group, those of one architecture
        w_g     = Σ_{n in g} S_n w_n / Σ_{n in g} S_n                        the members' new weights
        a_g[i]  ∝ 1 − H(q_g[i]) / log C,   q_g[i] = softmax(z(x_i; w_g))    how certain the group is
        e[i]    = Σ_g a_g[i] q_g[i]
        server  ← minimise mean KL(e[i] ‖ softmax(z(x_i))) over {i : ‖e[i] − one-hot(e[i])‖₁ ≤ ambiguity}
        client  ← w_g, then minimise T² · mean_i KL(softmax(z_server(x_i) / T) ‖ softmax(z_n(x_i) / T))

    Weights are averaged within a group, and predictions fused between groups. The server skips samples with
    an ambiguous ensemble.
    """

    name: ClassVar[str] = "fedhkt"
    capabilities: ClassVar[Capabilities] = replace(
        ServerTeacher.capabilities,
        sends="logits and weights",
        kinds={"logits": Kind.TRANSFER_LOGITS, PARAMETERS: Kind.WEIGHTS, COUNTERS: Kind.COUNTERS},
        shapes=PACKED,
        receives={**TAUGHT, **PACKED},
        guides="each",
        needs={"server", "weights"},
    )
    paper: ClassVar[str] = (
        "after the abstract of Deng et al., A Hierarchical Knowledge Transfer Framework for Heterogeneous"
        " Federated Learning, INFOCOM 2023"
    )
    source_note: ClassVar[str] = (
        "written from the abstract: grouping, confidence and the choice of samples are fedkd's"
    )

    clusters: Annotated[int, Field(ge=1)] = 3
    """k: maximum number of groups of similar clients. 1 averages all of an architecture, as `feddf` does
    before it distils; N leaves each client its own weights."""
    ambiguity: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Largest L1 distance of the ensemble to its one-hot, 2 (1 − max e), for samples that the server's model
    learns: 1 keeps those with at least half for one class, 2 keeps all."""

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return `logits` `[M, C]`, and the weights as flat `parameters` and `counters`."""
        return {"logits": client.logits(), **pack(client.weights())}

    def server_cost(self, extent: RoundExtent) -> float:
        """Return the operations of the server's model and of the groups' predictions."""
        asked = sum(cost * min(number, self.clusters) for cost, number in extent.architectures.values())
        return super().server_cost(extent) + extent.samples * asked

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the server's logits, `[M, C]`, and each client's mean weights of its group."""
        assert knowledge.logits is not None and knowledge.server is not None
        server, uploads = knowledge.server, packs_of(knowledge.payload)
        membership = cluster(softmax(knowledge.logits).reshape(len(uploads), -1), self.clusters)
        architectures = [server.architecture_of(client) for client in knowledge.clients]
        group_of = list(zip(membership.argmax(axis=0).tolist(), architectures, strict=True))
        means, voices = {}, []
        for group in dict.fromkeys(group_of):
            members = [n for n, other in enumerate(group_of) if other == group]
            means[group] = average([uploads[n] for n in members], knowledge.samples[members])
            weights = unpack(means[group], server.initial_weights(group[1]))
            voices.append(softmax(server.logits(group[1], weights)))
        ensemble = weighted_by_certainty(np.stack(voices))
        # A row of zeros adds 0 to the KL and to its gradient.
        clear = ensemble * (ambiguity(ensemble) <= self.ambiguity)[:, None]
        logits, kept = self._taught(knowledge, memory, (clear.astype(np.float32),), self.server_loss)
        return Guidance(targets=logits, personal=[means[group] for group in group_of], memory=kept)

    def apply(self, client: ClientView, guidance: Arrays) -> Distillation | None:
        """Load the group's weights, then distil the server's logits."""
        client.load_weights(unpack(guidance, client.weights()))
        return super().apply(client, guidance)

    def server_loss(self, logits: Tensor, ensemble: Tensor) -> Tensor:
        """Return the mean of ``KL(e_i ‖ softmax(z_i))`` over the clear rows of `[B, C]`; 0 without any."""
        from fedkd.training import kd_kl

        number = (ensemble.sum(dim=1) > 0).sum().clamp(min=1)
        return kd_kl(logits, ensemble, 1.0) * (len(ensemble) / number)


def weighted_by_certainty(predictions: np.ndarray) -> np.ndarray:
    """Return ``Σ_g a_g[i] q_g[i]`` of `[G, M, C]`, a by certainty, else equal: `[M, C]` float64."""
    weights = normalised_certainty(predictions)
    weights[:, weights.max(axis=0) == 0.0] = 1.0
    return np.einsum("gm,gmc->mc", weights / weights.sum(axis=0), predictions)
