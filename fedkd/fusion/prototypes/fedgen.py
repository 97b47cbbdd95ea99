"""FedGen: a generator of features, trained on the server, teaches every client (arXiv 2105.10056)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from fedkd.errors import UserError
from fedkd.fusion import AuxNetwork, AuxNetworks, FusionStrategy, Guidance, Kind, Knowledge, LocalObjective
from fedkd.fusion.capabilities import Capabilities, Need
from fedkd.fusion.distillation.server_model import own_network
from fedkd.fusion.forms import check_feature_widths
from fedkd.fusion.server_cost import FORWARDS_PER_TRAINING_STEP, RoundExtent, ServerCost, dense
from fedkd.fusion.views import Arrays, ClientView, LocalBatch, LocalStep, ServerModels
from fedkd.fusion.weights.averaging import in_body
from fedkd.fusion.weights.parameters import COUNTERS, PARAMETERS, average, pack, packs_of, unpack
from fedkd.plugins import hyperparameters
from fedkd.storage import add_prefix, strip_prefix

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedkd.fusion.auxiliary import Maker

GENERATOR = "generator"
WEIGHT, BIAS = "head_weight", "head_bias"
BODY = "body/"
"""Prefix of the packed weights of a body, where whole models are averaged."""
CLASSES = "classes"


@hyperparameters
class FedGen(LocalObjective, AuxNetworks, ServerCost, FusionStrategy):
    """Average models; train a feature generator on the server, which teaches clients.

    ::

        G(y, ε): one-hot y and ε ~ N(0, 1)^Z → hidden units, batch normalisation, ReLU → F
        server: min_G E_y Σ_n ω_n[y] CE(head_n(G(y, ε)), y) + exp(−mean_ij ‖ε_i − ε_j‖² ‖G_i − G_j‖₁)
        client: CE(z(x), y) + a CE(head(G(ŷ, ε)), ŷ) + a KL(softmax head(G(y, ε)) held ‖ softmax z(x))
        w      ← Σ_n S_n w_n / Σ_n S_n                  all weights, or the head's alone: see `share`

    ω_n[y] is n's share of the samples of class y. y and ŷ are uniform over the classes of all clients. Norms
    are means over elements; the second term keeps G from ignoring ε. Features have one width F, and heads are
    linear. Statistics of normalisation layers are averaged. With `share = "head"` bodies stay with their
    clients and may be of any architecture. All clients begin with one head, since a mean of different heads
    would fit no body. Once they have G, in evaluation mode, clients train with a = strength · decay^round.

    The authors' code averages whole models by default, and draws ε from [0, 1), as does a library. The
    library lacks the second term, weighs clients instead of labels, and clients learn from a random G.
    """

    name: ClassVar[str] = "fedgen"
    paper: ClassVar[str] = (
        "Zhu et al., Data-Free Knowledge Distillation for Heterogeneous Federated Learning, ICML 2021"
    )

    share: Literal["model", "head"] | None = None
    """Averaged weights: the whole `model`, as in the authors' code, or the `head`, their partial mode.
    Absent: `model` where all clients have one architecture, `head` where they have several."""
    strength: Annotated[float, Field(ge=0)] = 10.0
    """Weight of G's lessons, before it decays; 10 in the paper. 0 leaves the average alone."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.98
    """Factor of that weight in every round; 0.98 in the paper's code."""
    noise: Annotated[int, Field(gt=0, le=65536)] = 32
    """Length Z of ε; 32 in the paper."""
    hidden: Annotated[int, Field(gt=0, le=65536)] = 256
    """Hidden units of G; 256 in the paper."""
    server_steps: Annotated[int, Field(ge=0)] = 50
    """Steps of G a round; 50 in the paper. G lives on from round to round."""
    server_lr: Annotated[float, Field(gt=0)] = 3e-4
    """Learning rate of G's Adam; 3e-4 in the paper, with a decay of weights of 1e-2. In a few rounds it
    brings little: raise it to 3e-3 there."""
    server_batch_size: Annotated[int, Field(ge=2)] = 32
    """Features of one step on the server; 32 in the paper."""

    @cached_property
    def capabilities(self) -> Capabilities:
        needs: set[Need] = {"gradients", "features", "equal_features", "linear_head", "server"}
        whole = self.share == "model"
        if whole:
            needs |= {"weights", "one_architecture"}
        shapes = {f"{BODY}{PARAMETERS}": "W", f"{BODY}{COUNTERS}": "V", WEIGHT: "O F", BIAS: "O"}
        return Capabilities(
            needs=needs,
            optional=frozenset() if whole else {f"{BODY}{PARAMETERS}", f"{BODY}{COUNTERS}"},
            sends="weights, or heads alone, and label counts",
            kinds={
                f"{BODY}{PARAMETERS}": Kind.WEIGHTS,
                f"{BODY}{COUNTERS}": Kind.COUNTERS,
                WEIGHT: Kind.WEIGHTS,
                BIAS: Kind.WEIGHTS,
                "label_counts": Kind.LABEL_COUNTS,
            },
            shapes=shapes,
            receives={**shapes, PARAMETERS: "g", COUNTERS: "c", CLASSES: "C"},
            guides="all_alike",
            uses_transfer_set=False,
            shares_model=whole,
        )

    def for_clients(self, *, one_architecture: bool) -> Self:
        """Return the strategy with `share` set; a `UserError` if models cannot be averaged."""
        if self.share == "model" and not one_architecture:
            raise UserError(
                'must be "head" where clients have several architectures, got "model"', key="fusion.share"
            )
        return replace(self, share=self.share or ("model" if one_architecture else "head"))

    def prepare(self, server: ServerModels) -> Guidance | None:
        """Return the common initial head, without a G; None for whole models."""
        if self.share == "model":
            return None
        weights = server.initial_weights(server.architecture_of(0))
        return Guidance(targets=None, shared={WEIGHT: weights["head.weight"], BIAS: weights["head.bias"]})

    def server_cost(self, extent: RoundExtent) -> float:
        """Return the operations of training G against all heads."""
        made = dense(extent.classes + self.noise, self.hidden, extent.width)
        asked = extent.clients * dense(extent.width, extent.classes)
        return FORWARDS_PER_TRAINING_STEP * self.server_steps * self.server_batch_size * (made + asked)

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the mean weights, G (the memory too), and the known `classes` [C]."""
        from fedkd.training import weights_of

        assert knowledge.label_counts is not None and knowledge.server is not None
        weights, biases, counts = knowledge.payload[WEIGHT], knowledge.payload[BIAS], knowledge.label_counts
        check_feature_widths(self.name, knowledge.clients, [weight.shape[1] for weight in weights])
        heads = np.stack(weights), np.stack(biases)
        classes, width = heads[0].shape[1:]
        generator = own_network(knowledge.server, lambda: self.generator(classes, width), memory)
        owned = np.flatnonzero(counts.sum(axis=0))
        if self.server_steps > 0 and len(owned):
            draws = np.random.default_rng(knowledge.server.seed("features"))
            number = self.server_steps * self.server_batch_size
            labels = draws.choice(owned, number)
            noise = draws.standard_normal((number, self.noise), dtype=np.float32)
            knowledge.server.fit(
                generator,
                (labels, noise),
                server_loss(*heads, counts),
                optimizer="adam",
                lr=self.server_lr,
                weight_decay=1e-2,
                epochs=1,
                batch_size=self.server_batch_size,
            )
        share = np.maximum(knowledge.samples, 1) / np.maximum(knowledge.samples, 1).sum()
        shared = {
            WEIGHT: np.einsum("n,ncf->cf", share, heads[0], dtype=np.float64).astype(np.float32),
            BIAS: np.einsum("n,nc->c", share, heads[1], dtype=np.float64).astype(np.float32),
        }
        if self.share == "model":
            shared |= add_prefix(
                BODY, average(packs_of(strip_prefix(BODY, knowledge.payload)), knowledge.samples)
            )
        known = np.isin(np.arange(classes), owned).astype(np.uint8)
        made = pack(weights_of(generator)) | {CLASSES: known | memory.get(CLASSES, known)}
        return Guidance(targets=None, shared=shared | made, memory=made)

    def generator(self, classes: int, width: int) -> nn.Module:
        """Return a fresh G."""
        from torch import nn

        first = nn.Linear(classes + self.noise, self.hidden)
        return nn.Sequential(first, nn.BatchNorm1d(self.hidden), nn.ReLU(), nn.Linear(self.hidden, width))

    def aux_networks(self) -> Mapping[str, AuxNetwork]:
        def made(make: Maker) -> nn.Module:
            return self.generator(make.classes, make.width())

        return {GENERATOR: AuxNetwork(made, trained=False, sees="features", passes=2 / 3)}

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return the head, `[C, F]` and `[C]`, the packed body if it is averaged, and the label counts."""
        weights = client.weights()
        sent = {WEIGHT: weights["head.weight"], BIAS: weights["head.bias"]}
        if self.share == "model":
            sent |= add_prefix(BODY, pack(_body(weights)))
        return sent | {"label_counts": client.label_counts()}

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Load the mean weights, and G if there is one."""
        weights = client.weights()
        if self.share == "model":
            weights |= unpack(strip_prefix(BODY, guidance), _body(weights))
        client.load_weights(weights | {"head.weight": guidance[WEIGHT], "head.bias": guidance[BIAS]})
        if CLASSES not in guidance:
            return
        client.load_weights(unpack(guidance, client.weights(GENERATOR)), GENERATOR)
        client.memory[CLASSES] = np.array(guidance[CLASSES])

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep | None:
        """Return the client's loss; None: cross entropy, until there is a G."""
        if CLASSES not in client.memory or self.strength == 0.0:
            return None
        import torch
        import torch.nn.functional as F

        from fedkd.training import cross_entropy, kd_kl

        made = client.frozen(client.weights(GENERATOR), GENERATOR)
        drawn_from = torch.from_numpy(np.flatnonzero(client.memory[CLASSES]))
        a, classes = self.strength * self.decay**client.round, client.classes

        def features_of(labels: Tensor) -> Tensor:
            noise = torch.randn(len(labels), self.noise)
            codes = F.one_hot(labels, classes).to(noise.dtype)
            entries = torch.cat([codes, noise.to(labels.device)], dim=1)
            with torch.no_grad():
                return made(entries)

        def loss(batch: LocalBatch) -> Tensor:
            model: Any = batch.model
            places = torch.randint(len(drawn_from), (len(batch.labels),))
            labels = drawn_from[places].to(batch.labels.device)
            told = model.head(features_of(batch.labels)).detach().float().softmax(dim=1)
            value = cross_entropy(batch.logits, batch.labels) + a * kd_kl(batch.logits, told, 1.0)
            return value + a * cross_entropy(model.head(features_of(labels)), labels)

        return loss


def _body(weights: Arrays) -> dict[str, np.ndarray]:
    return {name: values for name, values in weights.items() if in_body(name)}


def server_loss(weights: np.ndarray, biases: np.ndarray, counts: np.ndarray) -> Any:
    """Return G's loss on labels `[B]`, noise `[B, Z]`; heads are `[N, C, F]`, `[N, C]`, counts `[N, C]`."""
    import torch
    import torch.nn.functional as F

    heads, offsets = torch.from_numpy(weights), torch.from_numpy(biases)
    shares = torch.from_numpy(counts / np.maximum(counts.sum(axis=0), 1)).float()

    def loss(generator: nn.Module, labels: Tensor, noise: Tensor) -> Tensor:
        codes = F.one_hot(labels, heads.shape[1]).to(noise.dtype)
        features = generator(torch.cat([codes, noise], dim=1))
        logits = torch.einsum("bf,ncf->bnc", features, heads) + offsets
        wanted = labels[:, None].expand(len(labels), len(heads))
        losses = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        weighted = losses.unflatten(0, wanted.shape) * shares[:, labels].T
        return weighted.sum(dim=1).mean() + diversity(noise, features)

    return loss


def diversity(noise: Tensor, features: Tensor) -> Tensor:
    """Return ``exp(−mean_ij ‖ε_i − ε_j‖² ‖G_i − G_j‖₁)`` of ε `[B, Z]` and G `[B, F]`; norms are means."""
    apart = (noise[:, None] - noise[None]).square().mean(dim=2)
    made = (features[:, None] - features[None]).abs().mean(dim=2)
    return (-(apart * made).mean()).exp()
