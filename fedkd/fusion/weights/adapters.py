"""Federated LoRA: combine the adapters of clients on one frozen base.

FedIT: Zhang et al., arXiv 2305.05644. FFA-LoRA: Sun et al., arXiv 2403.12313. FlexLoRA: Bai et al., arXiv
2402.11505. FLoRA: Wang et al., arXiv 2409.05976. HetLoRA: Cho et al., arXiv 2401.06432.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedkd.fusion import Capabilities, Guidance, Knowledge, LocalObjective
from fedkd.fusion.views import Arrays, ClientView, Phase, ServerModels
from fedkd.fusion.weights.averaging import AVERAGED, WeightAveraging
from fedkd.fusion.weights.parameters import PACKED, PARAMETERS, average, pack, packs_of, unpack
from fedkd.plugins import hyperparameters
from fedkd.randomness import numpy_generator
from fedkd.storage import add_prefix, strip_prefix

A, B = "lora_A", "lora_B"
BASE, STACK, REST, MET = "base/", "stack/", "rest/", "met"
"""Prefixes of the base, of stacked adapters and of other weights; the clients that have the base."""
NOISE = 1e-14
"""Share of the squares below which a direction is rounding of float32 factors."""

Factors = tuple[np.ndarray, np.ndarray]
"""B ``[m, r]`` times α/r, and A ``[r, n]``, float64: their product is the change ΔW of a weight."""


@dataclass(frozen=True, eq=False)
class Adapted:
    """Initial exchanged weights of an architecture, its base, and the scales α/r by path of an adapter."""

    weights: Arrays
    base: Arrays
    scales: Mapping[str, float]

    @classmethod
    def of(cls, server: ServerModels, architecture: str) -> "Adapted":
        """Return those of an architecture."""
        from fedkd.models import adapters_of, frozen_base
        from fedkd.training import weights_of

        network = server.network(architecture)
        base, scales = frozen_base(network), {f"{path}.": part.scale for path, part in adapters_of(network)}
        frozen = {name: values for name, values in weights_of(network).items() if name in base}
        return cls(server.initial_weights(architecture), frozen, scales)

    def rest(self, weights: Arrays) -> dict[str, np.ndarray]:
        """Return the weights that belong to no adapter: the head and buffers."""
        return {n: v for n, v in weights.items() if n[: -len(A)] not in self.scales}

    def factors(self, weights: Arrays) -> dict[str, Factors]:
        """Return the factors of given weights by path."""
        return {
            path: (scale * weights[path + B].astype(np.float64), weights[path + A].astype(np.float64))
            for path, scale in self.scales.items()
        }

    def named(self, factors: Mapping[str, Factors]) -> dict[str, np.ndarray]:
        """Return factors as weights by name."""
        found: dict[str, np.ndarray] = {}
        for path, (b, a) in factors.items():
            found |= {path + A: a.astype(np.float32), path + B: (b / self.scales[path]).astype(np.float32)}
        return found


class Opened:
    """A round's uploads: factors of each client by path, shares of the clients, and the mean of the rest."""

    def __init__(self, strategy: "AdapterAveraging", knowledge: Knowledge) -> None:
        server = knowledge.server
        assert server is not None
        present = knowledge.clients
        self.absent = [client for client in range(server.clients) if client not in present]
        self.of = {client: server.architecture_of(client) for client in [*present, *self.absent]}
        self.kinds = {name: Adapted.of(server, name) for name in dict.fromkeys(self.of.values())}
        own = [self.kinds[self.of[client]] for client in present]
        sent = [
            {**kind.weights, **unpack(upload, strategy.exchanged(kind.weights))}
            for kind, upload in zip(own, packs_of(knowledge.payload), strict=True)
        ]
        samples = np.maximum(knowledge.samples, 1)
        self.shares = samples / samples.sum()
        self.factors = [kind.factors(weights) for kind, weights in zip(own, sent, strict=True)]
        rest = [pack(kind.rest(weights)) for kind, weights in zip(own, sent, strict=True)]
        self.rest = unpack(average(rest, samples), own[0].rest(own[0].weights))

    def by_path(self) -> dict[str, list[Factors]]:
        """Return the factors of all clients by path."""
        return {path: [own[path] for own in self.factors] for path in self.factors[0]}


@hyperparameters
class AdapterAveraging(WeightAveraging):
    """Base of strategies that combine adapters of one frozen base.

    ::

        ΔW_n = (α_n/r_n) B_n A_n       client n's change of a weight; below, B has the factor α/r

    Heads and buffers are averaged by samples. The base travels once, before a client's first training.
    """

    capabilities: ClassVar[Capabilities] = replace(
        AVERAGED,
        sends="adapters and trained heads",
        receives={**PACKED, f"{BASE}*": "*"},
        guides="each",
        needs={"gradients", "weights", "one_architecture", "adapter"},
        reach="all clients, with their next message: adapters of their own rank",
    )

    def exchanged(self, weights: Arrays) -> dict[str, np.ndarray]:
        """Return those weights that leave a client."""
        return self._exchanged(weights)

    def prepare(self, server: ServerModels) -> Guidance:
        """Return the base for all clients."""
        base = Adapted.of(server, server.architecture_of(0)).base
        return Guidance(None, shared=add_prefix(BASE, base), memory={MET: np.empty(0, np.int64)})

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the combined adapters, cut to each client's rank."""
        opened = Opened(self, knowledge)
        pairs = opened.by_path()
        merged = {path: self.merged(of_clients, opened.shares) for path, of_clients in pairs.items()}
        tables = {}
        for name, kind in opened.kinds.items():
            cut = {
                path: _cut(pair, len(kind.weights[path + A]), knowledge, path)
                for path, pair in merged.items()
            }
            tables[name] = pack(self._exchanged({**kind.weights, **opened.rest, **kind.named(cut)}))
        met = np.union1d(memory[MET], knowledge.clients).astype(np.int64)
        first = {name: {**tables[name], **add_prefix(BASE, kind.base)} for name, kind in opened.kinds.items()}
        return Guidance(
            targets=None,
            personal=[tables[opened.of[client]] for client in knowledge.clients],
            absent={c: (tables if c in met else first)[opened.of[c]] for c in opened.absent},
            memory={MET: met},
            figures=self.figures(pairs, merged, opened.shares),
        )

    def merged(self, factors: Sequence[Factors], shares: np.ndarray) -> Factors:
        """Return the clients' means of B and of A, which are cut to ranks from their ends."""
        b, a = (
            sum(p * part for p, part in zip(shares, parts, strict=True))
            for parts in zip(*factors, strict=True)
        )
        return np.asarray(b), np.asarray(a)

    def figures(
        self, factors: Mapping[str, Sequence[Factors]], merged: Mapping[str, Factors], shares: np.ndarray
    ) -> dict[str, float]:
        """Return the server's figures of a round by metric."""
        return {}

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Load the received base, adapters, head and buffers."""
        own = client.weights()
        received = unpack(guidance, self._exchanged(own)) if PARAMETERS in guidance else {}
        client.load_weights(own | received | strip_prefix(BASE, guidance))


@hyperparameters
class FedIT(AdapterAveraging):
    """Average A and B apart.

    ::

        B ← Σ_n p_n B_n,   A ← Σ_n p_n A_n,   p_n = S_n / Σ S_n

    The product of means is not the mean of products. `adapter_gap` is their distance in every round,
    ‖B A − Σ p_n ΔW_n‖ / ‖Σ p_n ΔW_n‖ over all layers.
    """

    name: ClassVar[str] = "fedit"
    paper: ClassVar[str] = (
        "Zhang et al., Towards Building the Federated GPT: Federated Instruction Tuning, ICASSP 2024, arXiv"
        " 2305.05644"
    )

    def figures(
        self, factors: Mapping[str, Sequence[Factors]], merged: Mapping[str, Factors], shares: np.ndarray
    ) -> dict[str, float]:
        """Return the gap to the exact mean, if that is not 0."""
        means = {path: mean_change(own, shares) for path, own in factors.items()}
        apart = sum(float(((b @ a - means[path]) ** 2).sum()) for path, (b, a) in merged.items())
        whole = sum(float((mean**2).sum()) for mean in means.values())
        return {"adapter_gap": float(np.sqrt(apart / whole))} if whole > 0 else {}


@hyperparameters
class FFALoRA(LocalObjective, AdapterAveraging):
    """Average B; A stays as drawn, the same on all clients.

    ::

        B ← Σ_n p_n B_n,   so B A = Σ_n p_n B_n A exactly

    Half of the numbers are sent. The learning rate of B alone may have to be higher.
    """

    name: ClassVar[str] = "ffa_lora"
    paper: ClassVar[str] = (
        "Sun et al., Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024, arXiv 2403.12313"
    )

    def exchanges(self, weight: str) -> bool:
        """Return whether a weight is not an A."""
        return not weight.endswith(f".{A}")

    def phases(self, epochs: int, *, last: bool) -> Sequence[Phase]:
        """Return one phase without A."""
        return [Phase(epochs, self.exchanges)]


@hyperparameters
class FlexLoRA(AdapterAveraging):
    """Average the changes, and send each client the best approximation of its rank.

    ::

        Σ_n p_n ΔW_n = U σ Vᵀ,   B ← U_r σ_r,   A ← V_rᵀ      r: the client's rank

    The signs of singular vectors are canonical. Where the mean has a lower rank than a client, its other
    rows of A are drawn anew and those of B are 0.
    """

    name: ClassVar[str] = "flexlora"
    capabilities: ClassVar[Capabilities] = replace(
        AdapterAveraging.capabilities, needs={"gradients", "weights", "adapter"}
    )
    paper: ClassVar[str] = (
        "Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client"
        " Resources, NeurIPS 2024, arXiv 2402.11505"
    )

    def merged(self, factors: Sequence[Factors], shares: np.ndarray) -> Factors:
        """Return the factors of the exact mean, largest singular values first."""
        from fedkd.continual import canonical_rotation

        u, sigma, v = np.linalg.svd(mean_change(factors, shares), full_matrices=False)
        rotation = canonical_rotation(u, sigma**2, NOISE * float((sigma**2).sum()))
        kept = rotation.shape[1]
        return (u @ rotation) * sigma[:kept], rotation.T @ v


@hyperparameters
class HetLoRA(AdapterAveraging):
    """Pad all adapters to the largest rank, and average A and B by the sizes of the changes.

    ::

        q_n = ‖ΔW_n‖ / Σ ‖ΔW_m‖,   B ← Σ_n q_n [B_n, 0],   A ← Σ_n q_n [A_n; 0]     cut to each client's rank

    Norms are Frobenius', layer by layer. If all changes are 0, clients count by samples. Unlike in the paper,
    clients do not prune their ranks.
    """

    name: ClassVar[str] = "hetlora"
    capabilities: ClassVar[Capabilities] = FlexLoRA.capabilities
    paper: ClassVar[str] = (
        "Cho et al., Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models, EMNLP 2024,"
        " arXiv 2401.06432"
    )

    def merged(self, factors: Sequence[Factors], shares: np.ndarray) -> Factors:
        """Return the means of the padded factors."""
        most = max(len(a) for _, a in factors)
        norms = np.array([np.linalg.norm(b @ a) for b, a in factors])
        padded = [
            (np.pad(b, ((0, 0), (0, most - len(a)))), np.pad(a, ((0, most - len(a)), (0, 0))))
            for b, a in factors
        ]
        return super().merged(padded, norms / norms.sum() if norms.any() else shares)


@hyperparameters
class FLoRA(AdapterAveraging):
    """Stack all adapters, and add their exact mean into every client's base.

    ::

        B = [p_1 B_1, …, p_N B_N],  A = [A_1; …; A_N],   W ← W + B A = W + Σ_n p_n ΔW_n

    After that every client draws A anew, and B is 0. The stack is as long as the sum of the ranks. Absent
    clients receive the whole base instead.
    """

    name: ClassVar[str] = "flora"
    capabilities: ClassVar[Capabilities] = replace(
        FlexLoRA.capabilities,
        receives={f"{BASE}*": "*", f"{STACK}*": "*", f"{REST}*": "*"},
        reach="all clients, with their next message: participants the stack, others the base",
        shares_model=False,
    )
    paper: ClassVar[str] = (
        "Wang et al., FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank"
        " Adaptations, NeurIPS 2024, arXiv 2409.05976"
    )

    def prepare(self, server: ServerModels) -> Guidance:
        """Return the base, and keep it."""
        first = super().prepare(server)
        return replace(first, memory=dict(first.shared))

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the stack for participants, and the new base for all others."""
        opened, stack = Opened(self, knowledge), {}
        for path, factors in opened.by_path().items():
            shares = zip(opened.shares, factors, strict=True)
            stack[path + B] = np.concatenate([p * b for p, (b, _) in shares], axis=1).astype(np.float32)
            stack[path + A] = np.concatenate([a for _, a in factors]).astype(np.float32)
        base = add_prefix(BASE, _with_stack(strip_prefix(BASE, memory), stack))
        rest = add_prefix(REST, opened.rest)
        return Guidance(
            targets=None,
            shared=rest,
            personal=[add_prefix(STACK, stack)] * len(knowledge.clients),
            for_absent=base,
            memory=base,
        )

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Renew the base, and begin with new adapters."""
        base, stack, own = strip_prefix(BASE, guidance), strip_prefix(STACK, guidance), client.weights()
        if stack:
            from fedkd.training import weights_of

            whole = weights_of(client.network())
            base = _with_stack({base_name(path): whole[base_name(path)] for path in _paths(stack)}, stack)
        generator, fresh = client.generator("lora"), {}
        for path in _paths(own):
            fresh[path + A] = _drawn(generator, own[path + A].shape).astype(np.float32)
            fresh[path + B] = np.zeros_like(own[path + B])
        client.load_weights(own | fresh | strip_prefix(REST, guidance) | base)


def mean_change(factors: Sequence[Factors], shares: np.ndarray) -> np.ndarray:
    """Return ``Σ_n p_n ΔW_n``, float64."""
    return np.asarray(sum(p * (b @ a) for p, (b, a) in zip(shares, factors, strict=True)))


def base_name(path: str) -> str:
    """Return the name of the frozen weight that the adapter at a path changes."""
    return f"{path.rpartition('.0.')[0]}.original"


def _paths(weights: Arrays) -> list[str]:
    return [name.removesuffix(A) for name in weights if name.endswith(f".{A}")]


def _with_stack(base: Arrays, stack: Arrays) -> dict[str, np.ndarray]:
    """Return base weights plus the product of a stack, equal on the server and all clients."""
    moved = dict(base)
    for path in _paths(stack):
        name = base_name(path)
        change = stack[path + B].astype(np.float64) @ stack[path + A].astype(np.float64)
        moved[name] = (base[name] + change.reshape(base[name].shape)).astype(np.float32)
    return moved


def _cut(pair: Factors, rank: int, knowledge: Knowledge, path: str) -> Factors:
    """Return factors of a rank: the first ones, and if there are too few, drawn rows of A and zeros of B."""
    b, a = pair[0][:, :rank], pair[1][:rank]
    if (lacking := rank - len(a)) == 0:
        return b, a
    generator = numpy_generator(knowledge.seed, f"lora-{path}", round=knowledge.round)
    drawn = _drawn(generator, (rank, a.shape[1]))[len(a) :]
    return np.pad(b, ((0, 0), (0, lacking))), np.concatenate([a, drawn])


def _drawn(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return an initial A, like that of the adapter: uniform within 1/√n."""
    return generator.uniform(-1.0, 1.0, shape) / np.sqrt(shape[1])
