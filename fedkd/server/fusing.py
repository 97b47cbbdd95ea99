"""A fusion strategy at work over the rounds of a run: knowledge in, guidance out."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedkd.fusion import (
    Arrays,
    FilterSettings,
    FusionStrategy,
    Guidance,
    Kind,
    Knowledge,
    Network,
    ServerModels,
    aux_networks_of,
    check_arrays,
    upload_sizes,
)
from fedkd.randomness import numpy_generator
from fedkd.server.filtering import fuse_filtered
from fedkd.server.guidance import check_guidance, tables_of
from fedkd.server.knowledge_cache import KnowledgeCache, Upload, fade, staleness
from fedkd.server.mailbox import GuidanceParcel, Mailbox
from fedkd.server.reports import FusionReport, Links, report_of
from fedkd.storage import add_prefix, strip_prefix
from fedkd.training import one_blas_thread

MODEL, PENDING = "model/", "pending/"
"""Prefixes in a `Fusing.state`: weights that messages bring, guidance that waits for clients."""


@dataclass(frozen=True, eq=False)
class ServerKnowledge:
    """What the server knows besides the uploads, for the whole federation or for one task.

    `transfer_size` is the number M of transfer samples (None: all are always used). `labels` `[M]` are their
    true labels. `models` and `classes_met` return those of a round, if any.
    """

    transfer_size: int | None = None
    labels: np.ndarray | None = None
    models: Callable[[int], ServerModels] | None = None
    seed: int = 0
    classes_met: Callable[[int], tuple[int, ...] | None] | None = None
    rounds: int = 1
    filters: Sequence[FilterSettings] = ()
    classes: int | None = None


class Fusing:
    """Fuse uploads in client order, and keep guidance until it is sent.

    `decay` is the weight of knowledge per round of age (see `fade`). None: only the round's knowledge is
    fused, unless the strategy weighs old knowledge. `exponent` is that of `staleness`; None: rounds are
    synchronous.

    Attributes:
        report: Weights between clients in the last fusion.
        links: Links used in the last fusion.
        figures: The strategy's figures of the last fusion, by metric.
        cache: Every client's last knowledge, if old knowledge is fused.
        model: The newest weights by name, if messages contain the model.
    """

    def __init__(
        self,
        strategy: FusionStrategy,
        known: ServerKnowledge,
        decay: float | None = None,
        exponent: float | None = None,
    ) -> None:
        self.strategy = strategy
        self.mailbox, self.cache = Mailbox(), KnowledgeCache()
        self.report: FusionReport | None = None
        self.links: Links | None = None
        self.figures: Mapping[str, float] = {}
        self.model: Arrays = {}
        self._known, self._decay, self._exponent = known, decay, exponent
        self._request: np.ndarray | None = None
        self._started = False
        self._memory: dict[str, np.ndarray] = {}
        self._networks: dict[str, tuple[Network, dict[str, int]]] = {}

    def architecture_of(self, client: int) -> str:
        models = self._models_of(0)
        return "" if models is None else models.architecture_of(client)

    def expects(self, client: int) -> tuple[dict[str, int], Network | None]:
        """Return an upload's sizes by letter (see `fedkd.fusion.forms`), and its network if known."""
        capabilities, found = self.strategy.capabilities, dict[str, int]()
        samples = self._known.transfer_size if self._request is None else len(self._request)
        if samples is not None and capabilities.uses_transfer_set:
            found |= {"M": samples, "Y": -(-samples // 8)}
        if self._known.classes is not None:
            found["C"] = self._known.classes
        models = self._models_of(0)
        if models is None or Kind.WEIGHTS not in capabilities.kinds.values():
            return found, None
        networks = aux_networks_of(self.strategy)
        architecture = models.architecture_of(client)
        if networks.shared_model is not None:
            architecture = models.architecture(networks.shared_model, networks.shared_arguments)
        if architecture not in self._networks:
            weights, trainable = models.initial_weights(architecture), models.trainable(architecture)
            sizes = upload_sizes(self.strategy, weights, trainable)
            self._networks[architecture] = Network.like(weights, trainable), sizes
        network, sizes = self._networks[architecture]
        return found | sizes, network

    def begin(self, clients: Iterable[int]) -> None:
        """Leave the strategy's initial guidance for all clients, before the first round."""
        models, started, self._started = self._models(0), self._started, True
        guidance = None if started or models is None else self.strategy.prepare(models)
        if guidance is None:
            return
        if not isinstance(guidance, Guidance):
            raise TypeError(f"prepare returned a {type(guidance).__name__}; must be a Guidance")
        check_arrays(guidance.memory, "the initial Guidance.memory")
        check_arrays(guidance.shared, "the initial Guidance.shared")
        self._memory = dict(guidance.memory)
        if self.strategy.capabilities.brings_model:
            self.model = dict(guidance.shared)
        else:
            self.mailbox.put_for_all(clients, GuidanceParcel(0, dict(guidance.shared)))

    def request(self, round: int) -> np.ndarray | None:
        """Return the transfer samples that clients predict in a round, ascending; None: all."""
        self._request = None
        if self._known.transfer_size is not None:
            generator = numpy_generator(self._known.seed, "request", round=round)
            self._request = self.strategy.request(self._known.transfer_size, self._memory, generator)
            _check_request(self._request, self._known.transfer_size)
        return self._request

    def fuse(
        self,
        round: int,
        uploads: Mapping[int, Upload],
        everyone: Iterable[int],
        elsewhere: Collection[int] = (),
        *,
        backward: bool = False,
        awaited: int = 0,
    ) -> int:
        """Fuse a round's uploads, and put guidance into the mailbox; return its bytes for participants.

        Args:
            everyone: All known clients.
            elsewhere: Clients at another task, which get no guidance for absent ones.
            backward: True if clients elsewhere with fused knowledge get guidance like absent clients.
            awaited: Number of the round's uploads that come with another call.
        """
        self.report, capabilities = None, self.strategy.capabilities
        if not uploads or capabilities.sends == "nothing":
            return 0
        recalled = self._recalled(round, uploads)
        knowledge = self._knowledge(round, recalled)
        if self._exponent is not None:
            new, fresh = np.array([client in uploads for client in recalled]), None
            if capabilities.stale_decay is None and capabilities.weighs_age:
                fresh = staleness(round - np.array([one.round for one in recalled.values()]), self._exponent)
            knowledge = replace(knowledge, new=new, freshness=fresh, awaited=awaited)
        with one_blas_thread():
            guidance, heard = fuse_filtered(self.strategy, knowledge, self._memory, self._known.filters)
            if knowledge.classes_met is not None:
                guidance = self.strategy.end_task(knowledge, guidance)
        check_guidance(guidance, knowledge)
        self._memory, self.figures = dict(guidance.memory), dict(guidance.figures)
        if capabilities.brings_model:
            self.model = dict(guidance.shared) or self.model
            return 0  # its bytes count with every message
        if guidance.weights is not None:
            found = report_of(guidance, guidance.weights, knowledge.clients, tuple(sorted(uploads)))
            self.report = replace(found, heard=heard)
        here = replace(guidance, absent={c: g for c, g in guidance.absent.items() if c not in elsewhere})
        gone_on = set(knowledge.clients).intersection(elsewhere) if backward else set()
        for client, table in tables_of(guidance, knowledge)[0].items() if gone_on else ():
            if client in gone_on and table:
                self.mailbox.put_missed([client], GuidanceParcel(round, table))
        return self._post(round, here, knowledge, uploads.keys(), everyone)

    def _recalled(self, round: int, uploads: Mapping[int, Upload]) -> dict[int, Upload]:
        """Return the uploads to fuse, in client order: the round's, and the cache's."""
        capabilities, waits = self.strategy.capabilities, self._exponent is None
        ages_itself = capabilities.stale_decay is not None
        if capabilities.brings_model or (not ages_itself and self._decay is None and waits):
            return dict(sorted(uploads.items()))
        self.cache.put(uploads)
        known = self.cache.all()
        if ages_itself or (capabilities.weighs_age and not waits):
            return known
        ages = {client: round - upload.round for client, upload in known.items()}
        if self._exponent is not None:
            counts = staleness(np.array(list(ages.values())), self._exponent)
            factors = dict(zip(known, counts.tolist(), strict=True))
        else:
            assert self._decay is not None
            factors = {client: self._decay**age for client, age in ages.items()}
        new = [known[client] for client in sorted(uploads)]
        return fade(known, factors, new, self.strategy.kinds_of(new[0].arrays))

    def _post(
        self,
        round: int,
        guidance: Guidance,
        knowledge: Knowledge,
        took_part: Set[int],
        everyone: Iterable[int],
    ) -> int:
        by_client, for_others = tables_of(guidance, knowledge)
        # Clients with old knowledge took no part, and get no personal guidance.
        meant = {c: table for c, table in by_client.items() if c in took_part or c in guidance.absent}
        sent = 0
        for client, parcel in (
            (client, GuidanceParcel(round, table)) for client, table in meant.items() if table
        ):
            if client in took_part:
                self.mailbox.put(client, parcel)
                sent += parcel.size
            else:
                self.mailbox.put_missed([client], parcel)
        if for_others:
            others = [client for client in everyone if client not in meant]
            self.mailbox.put_for_all(others, GuidanceParcel(round, for_others))
        return sent

    def _knowledge(self, round: int, uploads: Mapping[int, Upload]) -> Knowledge:
        items = list(uploads.values())
        by_name = {name: [item.arrays[name] for item in items] for name in items[0].arrays}
        _check_alike(uploads)
        kinds = self.strategy.kinds_of(items[0].arrays)
        stacked = {kind: np.stack(by_name.pop(name)) for name, kind in kinds.items() if kind.is_stacked}
        labels = self._known.labels if "transfer_labels" in self.strategy.capabilities.needs else None
        if labels is not None and self._request is not None:
            labels = labels[self._request]
        return Knowledge(
            clients=tuple(uploads),
            logits=stacked.get(Kind.TRANSFER_LOGITS),
            samples=np.array([item.samples for item in items], dtype=np.int64),
            label_counts=stacked.get(Kind.LABEL_COUNTS),
            age=np.array([round - item.round for item in items], dtype=np.int64),
            payload=by_name,
            request=self._request,
            labels=labels,
            seed=self._known.seed,
            server=self._models(round),
            classes_met=None if self._known.classes_met is None else self._known.classes_met(round),
            round=round,
            rounds=self._known.rounds,
        )

    def _models(self, round: int) -> ServerModels | None:
        return self._models_of(round) if self.strategy.capabilities.needs & {"weights", "server"} else None

    def _models_of(self, round: int) -> ServerModels | None:
        return None if self._known.models is None else self._known.models(round)

    def state(self) -> dict[str, np.ndarray]:
        arrays = add_prefix("memory/", self._memory) | add_prefix(PENDING, self.mailbox.state())
        return arrays | add_prefix("last/", self.cache.state()) | add_prefix(MODEL, self.model)

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._started = True
        self._memory = strip_prefix("memory/", arrays)
        self.mailbox.restore(strip_prefix(PENDING, arrays))
        self.cache.restore(strip_prefix("last/", arrays))
        self.model = strip_prefix(MODEL, arrays)


def _check_request(request: Any, size: int) -> None:
    if request is None:
        return
    if not isinstance(request, np.ndarray) or request.ndim != 1 or request.dtype.kind not in "iu":
        kind = f"array of {request.dtype}" if isinstance(request, np.ndarray) else type(request).__name__
        raise TypeError(f"request returned a {kind}; must be None or an array of indices [M]")
    if len(request) and (request[0] < 0 or request[-1] >= size or (np.diff(request) <= 0).any()):
        raise ValueError(f"request must return indices in 0..{size - 1}, ascending, each once")


def _check_alike(uploads: Mapping[int, Upload]) -> None:
    (first, upload), *others = uploads.items()
    for client, other in others:
        if other.arrays.keys() != upload.arrays.keys():
            sent = [", ".join(arrays) or "nothing" for arrays in (upload.arrays, other.arrays)]
            raise ValueError(f"client {first} sent {sent[0]} and client {client} {sent[1]}; must be the same")
