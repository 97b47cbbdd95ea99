"""Partial averaging: one part of the model is shared, the other is personal.

FedPer: Arivazhagan et al., arXiv 1912.00818. FedRep: Collins et al., ICML 2021, arXiv 2102.07078. FedBABU:
Oh, Kim and Yun, ICLR 2022, arXiv 2106.06042. LG-FedAvg: Liang et al., arXiv 2001.01523.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, LocalObjective
from fedkd.fusion.capabilities import ANY_FORM
from fedkd.fusion.views import Phase, ServerModels
from fedkd.fusion.weights.averaging import AVERAGED, WeightAveraging, in_body, is_head_weight
from fedkd.fusion.weights.parameters import pack
from fedkd.plugins import hyperparameters


@hyperparameters
class PartialAveraging(WeightAveraging):
    """Base of strategies that average the body or the head of a model."""

    shared_part: ClassVar[Literal["body", "head"]] = "body"
    capabilities: ClassVar[Capabilities] = replace(
        AVERAGED,
        sends="the body's weights",
        needs=AVERAGED.needs | {"parts"},
        accepts=ANY_FORM,
        shares_model=False,
    )

    def exchanges(self, weight: str) -> bool:
        """Return whether a weight belongs to the shared part."""
        return in_body(weight) if self.shared_part == "body" else is_head_weight(weight)


@hyperparameters
class FedPer(PartialAveraging):
    """Average the bodies; every client keeps its own head and trains both together.

    ::

        w = (body, head_n):   body ← Σ_n S_n body_n / Σ_n S_n,   head_n stays

    Statistics of normalisation layers belong to the body. The head fits the client's classes: compare local
    accuracy before and after fusion.
    """

    name: ClassVar[str] = "fedper"
    paper: ClassVar[str] = (
        "Arivazhagan et al., Federated Learning with Personalization Layers, 2019, arXiv 1912.00818"
    )


@hyperparameters
class FedRep(LocalObjective, FedPer):
    """Train the head on the received body, then the body under the head; average the bodies.

    ::

        head_n ← `head_epochs` of training head_n, the body as received
        body_n ← `local_epochs` of training the body, head_n as it is now
        body   ← Σ_n S_n body_n / Σ_n S_n

    Unlike in `fedper`, the two are never trained together. Both phases use the scenario's optimiser; the
    paper has SGD with lr 0.01, momentum 0.5 and batches of 10. Training after the last fusion (`end_with =
    "training"`) is of the head alone.
    """

    name: ClassVar[str] = "fedrep"
    paper: ClassVar[str] = (
        "Collins et al., Exploiting Shared Representations for Personalized Federated Learning, ICML 2021,"
        " arXiv 2102.07078"
    )

    head_epochs: Annotated[int, Field(ge=1)] = 10
    """Epochs of the head in every round; those of the body are `training.local_epochs`, 1 in the paper. A
    head is cheap and its problem convex: enough of them that it is fitted."""

    def phases(self, epochs: int, *, last: bool) -> Sequence[Phase]:
        """Return the head's phase, and the body's unless the last fusion is over."""
        head = Phase(self.head_epochs, is_head_weight)
        return [head] if last else [head, Phase(epochs, in_body)]


@hyperparameters
class FedBABU(LocalObjective, FedPer):
    """Train and average the bodies; the head stays at the common random initialisation.

    ::

        body_n ← `local_epochs` of SGD on the body, the head as it was made
        body   ← Σ_n S_n body_n / Σ_n S_n
        at last:  body_n, head_n ← some epochs of SGD on both, alone

    The last line personalises, and needs `end_with = "training"`; an extra round at the end has its accuracy.
    The paper's SGD has momentum 0.9 and lr 0.1. The rate drops to a tenth after half of the rounds, and to a
    hundredth after three quarters.
    """

    name: ClassVar[str] = "fedbabu"
    paper: ClassVar[str] = (
        "Oh, Kim & Yun, FedBABU: Toward Enhanced Representation for Federated Image Classification,"
        " ICLR 2022, arXiv 2106.06042"
    )

    tune_epochs: Annotated[int, Field(ge=1)] = 5
    """Epochs of the fine-tuning after the last fusion. In the paper one does most of it."""

    def phases(self, epochs: int, *, last: bool) -> Sequence[Phase]:
        """Return the body's phase; at last that of all weights."""
        return [Phase(self.tune_epochs, lambda name: True) if last else Phase(epochs, in_body)]


@hyperparameters
class LGFedAvg(PartialAveraging):
    """Average the heads; every client keeps its own body, of any architecture.

    ::

        w = (body_n, head):   head ← Σ_n S_n head_n / Σ_n S_n,   body_n stays

    Features must have one width; the shared head alone aligns their meaning. Heterogeneous architectures
    begin with client 0's head.

    Published figures start from a model that FedAvg has trained, and take each client's best round by test
    accuracy. Here training starts from scratch, and every round is reported.
    """

    name: ClassVar[str] = "lg_fedavg"
    shared_part: ClassVar[Literal["body", "head"]] = "head"
    capabilities: ClassVar[Capabilities] = replace(
        AVERAGED,
        sends="the head's weights",
        accepts=ANY_FORM,
        needs={"gradients", "weights", "parts", "like_heads"},
        shares_model=False,
    )
    paper: ClassVar[str] = (
        "Liang et al., Think Locally, Act Globally: Federated Learning with Local and Global Representations,"
        " 2020, arXiv 2001.01523"
    )

    def prepare(self, server: ServerModels) -> Guidance | None:
        """Return the common first head where architectures are mixed."""
        first = server.architecture_of(0)
        if len(server.clients_of(first)) == server.clients:
            return None
        return Guidance(targets=None, shared=pack(self._exchanged(server.initial_weights(first))))
