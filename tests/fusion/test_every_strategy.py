"""Properties of every strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from rounds import assert_distributions, guidance_for
from small_views import SmallClient, SmallServer

from fedkd.fusion.auxiliary import aux_networks_of
from fedkd.fusion.capabilities import capabilities_of
from fedkd.fusion.distillation.soft_labels import TeacherLogits
from fedkd.fusion.kinds import Kind
from fedkd.fusion.local_objective import objective_of
from fedkd.fusion.math.neighbour_weights import uniform
from fedkd.fusion.registry import STRATEGIES, make_strategy
from fedkd.fusion.strategy import FusionStrategy, Guidance, Knowledge
from fedkd.fusion.views import FitSummary
from fedkd.randomness import numpy_generator
from fedkd.server.guidance import tables_of
from fedkd.storage.namespaces import add_prefix

FEATURES = 4
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 5))
"""Clients, transfer samples, classes: down to one of each."""

OPTIONS: dict[str, dict[str, Any]] = {
    "cfd": {
        "server_model": st.none() | st.just("plain"),
        "server_epochs": st.integers(0, 1),
        "bits_down": st.integers(1, 8),
    },
    "chosen_beta": {
        "betas": st.sampled_from([(0.0, 3.0), (2.0,)]),
        "distribution": st.sampled_from(["soft", "hard", "shared", "calibrated"]),
        "trial_share": st.floats(0.01, 1),
        "temperature": st.floats(0.5, 5),
    },
    "comd": {
        "judge": st.sampled_from(["consensus", "labels"]),
        "margin": st.floats(0, 1),
        "temperature": st.floats(0.5, 5),
    },
    "comet": {"space": st.sampled_from(["probabilities", "logits"]), "clusters": st.integers(1, 4)},
    "cronus": {
        "aggregate": st.sampled_from(["spectral", "median", "trimmed_mean", "geometric_median", "mean"])
    },
    "max_confidence": {
        "beta": st.none() | st.floats(0, 50),
        "confidence": st.sampled_from(["maximum", "true_class"]),
    },
    "dsfl": {"sharpen": st.sampled_from(["era", "mean"])},
    "experts": {
        "distribution": st.sampled_from(["soft", "hard", "shared", "calibrated"]),
        "temperature": st.floats(0.5, 5),
    },
    "fd": {"leave_one_out": st.booleans(), "owners_only": st.booleans()},
    "fedmask": {"weight_by_count": st.booleans()},
    "feddf": {"server_epochs": st.integers(0, 1)},
    "fedgh": {"server_epochs": st.integers(0, 2)},
    "fedtgp": {
        "server_epochs": st.integers(0, 2),
        "margin": st.sampled_from(["farthest", "nearest"]),
        "margin_limit": st.sampled_from([0.0, 1.0]),
    },
    "fedgen": {
        "share": st.sampled_from(["model", "head"]),
        "server_steps": st.integers(0, 2),
        "hidden": st.just(5),
    },
    "fedgkt": {
        "server_epochs": st.integers(0, 1),
        "server_hidden": st.just((5,)),
        "inference": st.sampled_from(["server", "model"]),
    },
    "fedkd_wu": {"shared_model": st.just("plain"), "energy_end": st.sampled_from([0.98, 1.0])},
    "fedet": {"server_model": st.just("plain"), "server_epochs": st.integers(0, 1)},
    "fedhkt": {"server_model": st.just("plain"), "server_epochs": st.integers(0, 1)},
    "message": {"questions": st.sampled_from([0.0, 0.5, 1.0])},
    "mhat": {"server_model": st.just("plain"), "server_epochs": st.integers(0, 1)},
    "knfu": {
        "beta": st.floats(0, 50),
        "distribution": st.sampled_from(["soft", "hard", "shared", "calibrated"]),
        "divergence": st.sampled_from(
            ["kl", "reverse", "symmetric", "js", "prediction_kl", "prediction_cosine"]
        ),
        "per_class": st.booleans(),
        "absent_by_experts": st.booleans(),
        "perplexity": st.none() | st.floats(1, 7),
        "temperature": st.floats(0.5, 5),
        "distribution_momentum": st.sampled_from([0.0, 0.5]),
    },
    "kta": {"divergence": st.sampled_from(["kl", "cosine"]), "temperature": st.floats(0.5, 5)},
    "ktpfl": {"temperature": st.floats(1, 10)},
    "panda": {"temperature": st.floats(0.5, 5)},
    "path": {
        "guess": st.sampled_from(["none", "distance", "agreement", "surer", "shift"]),
        "supervision": st.sampled_from(["experts", "labels"]),
        "neighbours": st.integers(1, 4),
        "steps": st.integers(0, 3),
        "temperature": st.floats(0.5, 5),
    },
    "dlf": {"beta": st.floats(0, 20), "neighbours": st.integers(1, 4), "temperature": st.floats(0.5, 5)},
    "complementary": {
        "judge": st.sampled_from(["labels", "confidence"]),
        "teachers": st.integers(0, 4),
        "temperature": st.floats(0.5, 5),
    },
    "mst": {
        "judge": st.sampled_from(["labels", "consensus"]),
        "neighbours": st.integers(1, 4),
        "divergence": st.sampled_from(["kl", "prediction_kl"]),
        "top": st.integers(1, 3),
        "steps": st.integers(0, 2),
        "temperature": st.floats(0.5, 5),
    },
    "masters": {
        "first_share": st.floats(0, 1),
        "warm_up": st.floats(0, 1),
        "distance_weight": st.floats(0, 3),
        "held_out_share": st.sampled_from([0.0, 0.2]),
        "temperature": st.floats(0.5, 5),
    },
    "scalearn": {"per_class": st.booleans(), "steps": st.integers(0, 2), "labels": st.none() | st.just(2)},
    "scarlet": {"exponent": st.floats(0.5, 7), "samples_per_round": st.none() | st.just(2)},
    "selective_fd": {
        "selector": st.sampled_from(["energy", "confidence"]),
        "ambiguity": st.sampled_from([0.2, 1.0, 2.0]),
    },
}
FAR_OPTIONS: dict[str, dict[str, Any]] = {
    "max_confidence": {"beta": st.just(1e300)},
    "knfu": {"beta": st.sampled_from([0.0, 1e4, 1e300]), "temperature": st.sampled_from([1e-3, 1.0, 1e6])},
    "kta": {"beta": st.just(1e300), "gamma": st.just(1e4), "temperature": st.just(1e-3)},
    "ktpfl": {"lr": st.just(1e6), "rho": st.just(0.0), "coefficient_temperature": st.just(1e-3)},
}


NAME_ABSENT = {"feddf", "fedit", "ffa_lora", "flexlora", "hetlora"}
"""Strategies whose guidance for absent clients is of their own architecture, so it is by name."""
CHOOSY = {"max_confidence", "comd", "masters", "mst", "complementary"}
"""Strategies under which clients that are all alike do not hear all alike, themselves included."""


@dataclass(frozen=True)
class Everyone:
    """All that the clients of a federation can tell, `[N, ...]`."""

    logits: np.ndarray
    private: np.ndarray
    label_logits: np.ndarray
    features: np.ndarray
    counts: np.ndarray
    weights: np.ndarray
    labels: np.ndarray
    transfer: np.ndarray

    def of(self, rows) -> Everyone:
        own = ("logits", "private", "label_logits", "features", "counts", "weights")
        chosen = {name: getattr(self, name)[rows] for name in own}
        return Everyone(**chosen, labels=self.labels, transfer=self.transfer)


def draw(size: tuple[int, int, int], seed: int, content: str = "drawn", dtype: type = np.float32) -> Everyone:
    """Return what clients tell; `content` says what their logits are like."""
    clients, samples, classes = size
    generator = numpy_generator(seed, "everyone")

    def logits(*shape: int) -> np.ndarray:
        leaning = generator.normal(0, 1.5, (clients, *[1] * (len(shape) - 1), classes))
        drawn = leaning + generator.normal(0, 1.5, (clients, *shape))
        if content != "drawn":
            drawn = np.where(drawn < 0, -1, 1) * {"equal": 0.0, "huge": 1e4, "overflowed": np.inf}[content]
        return drawn.astype(dtype)

    return Everyone(
        logits=logits(samples, classes),
        private=logits(3, classes),
        label_logits=logits(classes, classes),
        features=generator.normal(0, 1, (clients, classes, FEATURES)).astype(np.float32),
        counts=generator.integers(0, 4, (clients, classes)),
        weights=generator.normal(0, 1, (clients, classes * (FEATURES + 1))).astype(np.float32),
        labels=generator.integers(0, classes, samples),
        transfer=generator.normal(0, 1, (samples, FEATURES)).astype(np.float32),
    )


class HeadsServer(SmallServer):
    """A server whose models are heads alone."""

    def initial_weights(self, architecture: str) -> dict[str, np.ndarray]:
        return {f"head.{name}": values for name, values in super().initial_weights(architecture).items()}


class Round:
    """One strategy and its clients, for as many rounds as it is asked to fuse."""

    def __init__(self, strategy: FusionStrategy, everyone: Everyone, indices=None) -> None:
        self.strategy, self.everyone = strategy, everyone
        clients, _, classes = everyone.logits.shape
        self.indices = tuple(range(clients)) if indices is None else indices
        server = HeadsServer if "linear_head" in strategy.capabilities.needs else SmallServer
        self.server = server(everyone.transfer, classes, dict.fromkeys(self.indices, "plain"))
        start = SmallServer.initial_weights(self.server, "plain")
        self.clients = [
            SmallClient(
                logits=everyone.logits[n],
                private_logits=everyone.private[n],
                means={"logits": everyone.label_logits[n], "features": everyone.features[n]},
                counts=everyone.counts[n],
                weights=start,
            )
            for n in range(clients)
        ]
        speaks_first = strategy.capabilities.needs & {"weights", "server"}
        first = strategy.prepare(self.server) if speaks_first else None
        self.memory = {} if first is None else dict(first.memory)
        for client, row in zip(self.clients, everyone.weights, strict=True):
            if first is not None:
                client.learn(strategy, first.shared)
            client.last_fit = FitSummary(client.weights(), steps=2, lr=0.1)
            split = start["weight"].size
            weight, bias = row[:split].reshape(start["weight"].shape), row[split:]
            objective_of(strategy).before_training(client)
            of = "head." if "linear_head" in strategy.capabilities.needs else ""
            for network in ("model", *aux_networks_of(strategy).aux_networks()):
                client.load_weights({f"{of}weight": weight, f"{of}bias": bias}, network)

    def uploads(self) -> list[dict[str, np.ndarray]]:
        """Return what the clients upload."""
        samples, generator = len(self.everyone.labels), numpy_generator(0, "request")
        request = self.strategy.request(samples, self.memory, generator)
        for client in self.clients:
            client.request = request
        return [self.strategy.upload(client) for client in self.clients]

    def knowledge(self, uploads: Sequence[Mapping[str, np.ndarray]] | None = None) -> Knowledge:
        """Return these uploads, or what the clients upload, as the server puts it together."""
        clients, uploads = len(self.clients), uploads or self.uploads()
        request = self.clients[0].request
        arrays = {name: [upload[name] for upload in uploads] for name in uploads[0]}
        kinds = self.strategy.kinds_of(uploads[0])
        stacked = {kind: np.stack(arrays.pop(name)) for name, kind in kinds.items() if kind.is_stacked}
        return Knowledge(
            clients=self.indices,
            logits=stacked.get(Kind.TRANSFER_LOGITS),
            samples=self.everyone.counts.sum(axis=1),
            label_counts=stacked.get(Kind.LABEL_COUNTS),
            payload=arrays,
            request=request,
            labels=self.everyone.labels if request is None else self.everyone.labels[request],
            server=self.server,
            mixing=uniform(clients) if self.strategy.capabilities.over_graph == "mixed" else None,
        )

    def fuse(self) -> Guidance:
        guidance = self.strategy.fuse(self.knowledge(), self.memory)
        self.memory = guidance.memory
        return guidance


def arrays_of(guidance: Guidance) -> dict[str, np.ndarray]:
    """Return all arrays of guidance in one table."""
    arrays = {"targets": guidance.targets, "weights": guidance.weights}
    arrays |= add_prefix("memory/", guidance.memory) | add_prefix("shared/", guidance.shared)
    for row, own in enumerate(guidance.personal):
        arrays |= add_prefix(f"personal/{row}/", own)
    return {name: values for name, values in arrays.items() if values is not None}


def options_of(name: str, *, far: bool = False) -> st.SearchStrategy[dict[str, Any]]:
    near = OPTIONS.get(name, {})
    if not far or name not in FAR_OPTIONS:
        return st.fixed_dictionaries(near)
    return st.fixed_dictionaries(near) | st.fixed_dictionaries(near | FAR_OPTIONS[name])


every_strategy = pytest.mark.parametrize("name", STRATEGIES.builtin)
FUSING = [name for name in STRATEGIES.builtin if capabilities_of(STRATEGIES.load(name)).sends != "nothing"]
strategies_that_fuse = pytest.mark.parametrize("name", FUSING)


@strategies_that_fuse
@settings(max_examples=20, deadline=None)
@given(data=st.data(), size=SIZES, seed=st.integers(0, 1000))
def test_guidance_is_valid_for_any_upload(name, data, size, seed) -> None:
    """Zero probabilities, ties, overflow; one client, one sample, one class."""
    strategy = make_strategy(name, data.draw(options_of(name, far=True)))
    content = data.draw(st.sampled_from(["drawn", "equal", "huge", "overflowed"]))
    round = Round(strategy, draw(size, seed, content, data.draw(st.sampled_from([np.float32, np.float16]))))
    for _ in range(2):
        guidance = round.fuse()
        for values in arrays_of(guidance).values():
            assert np.isfinite(values).all()
        if guidance.weights is not None:
            assert guidance.weights.shape == (size[0], size[0]) and (guidance.weights >= 0).all()
            assert_allclose(guidance.weights.sum(axis=1), 1.0, rtol=0, atol=1e-9)
        for row, client in enumerate(round.clients):
            assert_client_can_learn(strategy, client, guidance_for(row, guidance), size)


def assert_client_can_learn(strategy, client: SmallClient, arrays: Mapping[str, np.ndarray], size) -> None:
    for values in arrays.values():
        assert not np.issubdtype(values.dtype, np.floating) or values.dtype == np.float32  # bytes are counted
    if strategy.capabilities.uses_local_loss or not arrays:
        return
    client.learn(strategy, arrays)
    found = strategy.targets_of(client, arrays)
    assert strategy.taught_samples(arrays) == (0 if found is None else len(found[0]))
    if found is None:
        assert client.distilled == []
        return
    targets, samples = found
    assert targets.shape == (size[1] if samples is None else len(samples), size[2])
    assert_array_equal(client.distilled[-1][0], targets)
    assert_distributions(strategy.probabilities(targets))
    if not isinstance(strategy, TeacherLogits) and getattr(strategy, "space", "") != "logits":
        assert_distributions(targets)


@pytest.mark.parametrize("name", FUSING)
@settings(max_examples=10, deadline=None)
@given(data=st.data(), size=SIZES, seed=st.integers(0, 1000))
def test_fusion_is_independent_of_client_order_and_indices(name, data, size, seed) -> None:
    options = data.draw(options_of(name))
    for steps in options.keys() & {"server_epochs", "server_steps"}:  # those of Adam make rounding visible
        options[steps] = 0
    everyone, order = draw(size, seed), np.array(data.draw(st.permutations(range(size[0]))))
    strategy, elsewhere = make_strategy(name, options), tuple(2 * n for n in range(size[0]))
    first, second = Round(strategy, everyone), Round(strategy, everyone.of(order), elsewhere)
    for _ in range(2):
        one, other = first.fuse(), second.fuse()
        assert (one.targets is None) == (other.targets is None) and one.shared.keys() == other.shared.keys()
        for array in one.shared:
            assert_allclose(other.shared[array], one.shared[array], rtol=1e-4, atol=2e-5)
        if one.targets is not None:
            expected = one.targets[order] if one.targets.ndim == 3 else one.targets
            assert_allclose(other.targets, expected, rtol=1e-4, atol=2e-5)
        if one.weights is not None:
            assert_allclose(other.weights, one.weights[np.ix_(order, order)], rtol=1e-6, atol=1e-9)
        for row, own in enumerate(other.personal):
            for array, values in own.items():
                assert_allclose(values, one.personal[order[row]][array], rtol=1e-4, atol=2e-5)


@strategies_that_fuse
@settings(max_examples=10, deadline=None)
@given(data=st.data(), size=SIZES, seed=st.integers(0, 1000))
def test_equal_uploads_receive_equal_guidance(name, data, size, seed) -> None:
    strategy = make_strategy(name, data.draw(options_of(name)))
    clients = size[0]
    guidance = Round(strategy, draw(size, seed).of(np.zeros(clients, dtype=int))).fuse()
    if guidance.weights is not None and name not in CHOOSY:
        assert_allclose(guidance.weights, 1 / clients, rtol=1e-9)
    for row in range(clients):
        for array, values in guidance_for(row, guidance).items():
            assert_allclose(values, guidance_for(0, guidance)[array], rtol=1e-5, atol=1e-6)


@every_strategy
@settings(max_examples=6, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_fuse_changes_no_argument_and_repeats(name, data, seed) -> None:
    """The same again gives the same again, and nothing that is handed in changes."""
    strategy = make_strategy(name, data.draw(options_of(name)))
    round = Round(strategy, draw((3, 5, 4), seed))
    for _ in range(3):
        knowledge, memory = round.knowledge(), round.memory
        before = {name: values.copy() for name, values in _handed_in(knowledge, memory).items()}
        first, second = strategy.fuse(knowledge, memory), strategy.fuse(knowledge, memory)
        for array, values in _handed_in(knowledge, memory).items():
            assert_array_equal(values, before[array])
        assert arrays_of(first).keys() == arrays_of(second).keys()
        for array, values in arrays_of(first).items():
            assert_array_equal(values, arrays_of(second)[array])
        round.memory = first.memory


def _handed_in(knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = add_prefix("memory/", memory) | {"samples": knowledge.samples, "labels": knowledge.labels}
    for name in ("logits", "label_counts", "request"):
        if getattr(knowledge, name) is not None:
            arrays[name] = getattr(knowledge, name)
    for name, uploads in knowledge.payload.items():
        arrays |= add_prefix(f"extra/{name}/", {str(n): values for n, values in enumerate(uploads)})
    return arrays


@every_strategy
def test_guidance_is_shared_or_personal_as_declared(name) -> None:
    options = {"server_model": "plain"} if name in ("fedet", "fedhkt", "mhat") else {}
    options |= {"shared_model": "plain"} if name == "fedkd_wu" else {}
    fused = Round(make_strategy(name, options), draw((3, 5, 4), 0))
    guidance = fused.fuse()
    own = len(guidance.personal) > 0 or (guidance.targets is not None and guidance.targets.ndim == 3)
    alike = not own and (guidance.targets is not None or len(guidance.shared) > 0)
    can = capabilities_of(STRATEGIES.load(name))
    assert (own, alike) == {"each": (True, False), "all_alike": (False, True), "nobody": (False, False)}[
        can.guides
    ]
    _, for_absent = tables_of(guidance, fused.knowledge())
    said = can.audience.startswith(("all clients", "every client"))
    assert said == bool(for_absent) or name in NAME_ABSENT
