"""SCAFFOLD: averaging of weights with corrections of client drift (arXiv 1910.06378)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Kind, Knowledge, LocalObjective
from fedkd.fusion.capabilities import ANY_FORM
from fedkd.fusion.views import Arrays, ClientView, ServerModels
from fedkd.fusion.weights.averaging import AVERAGED
from fedkd.fusion.weights.parameters import COUNTERS, PARAMETERS, pack, unpack
from fedkd.plugins import hyperparameters

STATISTICS, CONTROL, OWN_CONTROL, STEP = "statistics", "control", "own_control", "step"


@hyperparameters
class Scaffold(LocalObjective, FusionStrategy):
    """Average weights; correct local steps by control variates against client drift.

    ::

        y ← y − η (g(y) + c − c_n)                  K local steps from the server's x
        c_n⁺ = c_n − c + (x − y) / (K η)            the client's mean gradient; option II of the paper
        x ← x + η_g · mean_n (y_n − x)              over the round's clients
        c ← c + 1/N · Σ_n (c_n⁺ − c_n)              N: all clients of the federation

    The control variates c and c_n estimate the gradient on all data and on the client's own, and start at 0.
    They need every step to be η times a gradient, hence SGD without momentum. Every client starts from the
    server's newest x and c. Statistics of normalisation layers have no gradient and are averaged plainly.
    """

    name: ClassVar[str] = "scaffold"
    capabilities: ClassVar[Capabilities] = replace(
        AVERAGED,
        sends="weights and control variates",
        accepts=ANY_FORM,
        kinds={STEP: Kind.WEIGHTS, CONTROL: Kind.WEIGHTS, STATISTICS: Kind.WEIGHTS, COUNTERS: Kind.COUNTERS},
        shapes={STEP: "T", CONTROL: "T", STATISTICS: "S", COUNTERS: "B"},
        receives={PARAMETERS: "T", CONTROL: "T", STATISTICS: "S", COUNTERS: "B"},
        needs=AVERAGED.needs | {"plain_sgd"},
        reach="all clients, the same, with their next message",
    )
    paper: ClassVar[str] = (
        "Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020"
    )

    server_lr: Annotated[float, Field(gt=0)] = 1.0
    """η_g: share of the clients' mean step that the server takes; 1 is the mean, as in most of the paper's
    experiments. Below 1 damps rounds with few clients."""

    def prepare(self, server: ServerModels) -> Guidance:
        """Return the initial x, and c = 0."""
        architecture = server.architecture_of(0)
        arrays = _flat(server.initial_weights(architecture), server.trainable(architecture))
        return _to_everyone(arrays | {CONTROL: np.zeros_like(arrays[PARAMETERS])})

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the server's new x and c."""
        server, uploads = knowledge.server, knowledge.payload
        assert server is not None
        step = np.mean(uploads[STEP], axis=0, dtype=np.float64)
        statistics = np.asarray(np.mean(uploads[STATISTICS], axis=0, dtype=np.float64))
        turned = np.sum(uploads[CONTROL], axis=0, dtype=np.float64)
        return _to_everyone(
            {
                PARAMETERS: (memory[PARAMETERS] + self.server_lr * step).astype(np.float32),
                STATISTICS: statistics.astype(np.float32),
                COUNTERS: np.max(uploads[COUNTERS], axis=0),
                CONTROL: (memory[CONTROL] + turned / server.clients).astype(np.float32),
            }
        )

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Replace the client's weights by x, and keep c."""
        client.load_weights(_named(guidance, client.weights(), client.trainable()))
        client.memory[CONTROL] = np.array(guidance[CONTROL])

    def gradient_correction(self, client: ClientView) -> Arrays:
        """Return c − c_n by parameter name."""
        names, like = client.trainable(), client.weights()
        control = client.memory[CONTROL]
        correction = control - client.memory.get(OWN_CONTROL, np.zeros_like(control))
        packed = {PARAMETERS: correction, COUNTERS: np.empty(0, np.int64)}
        return unpack(packed, {name: like[name] for name in names})

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return y − x, c_n⁺ − c_n, and the buffers; keep c_n⁺."""
        names, fit = client.trainable(), client.last_fit
        trained = _flat(client.weights(), names)
        step = trained[PARAMETERS] - _flat(fit.start, names)[PARAMETERS]
        control = client.memory[CONTROL]
        refreshed = own = client.memory.get(OWN_CONTROL, np.zeros_like(control))
        if fit.steps > 0:
            refreshed = (own - control - step / (fit.steps * fit.lr)).astype(np.float32)
            client.memory[OWN_CONTROL] = refreshed
        buffers = {name: trained[name] for name in (STATISTICS, COUNTERS)}
        return {STEP: step, CONTROL: refreshed - own} | buffers


def _to_everyone(arrays: dict[str, np.ndarray]) -> Guidance:
    return Guidance(targets=None, memory=arrays, shared=arrays)


def _flat(weights: Arrays, trainable: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return `parameters` `[P]` in the order of `trainable`; all else as `statistics` and `counters`."""
    others = pack({name: values for name, values in weights.items() if name not in trainable})
    return {
        PARAMETERS: pack({name: weights[name] for name in trainable})[PARAMETERS],
        STATISTICS: others[PARAMETERS],
        COUNTERS: others[COUNTERS],
    }


def _named(arrays: Arrays, like: Arrays, trainable: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the weights that `_flat` made flat."""
    parameters = {PARAMETERS: arrays[PARAMETERS], COUNTERS: arrays[COUNTERS][:0]}
    others = {PARAMETERS: arrays[STATISTICS], COUNTERS: arrays[COUNTERS]}
    named = unpack(parameters, {name: like[name] for name in trainable})
    return named | unpack(others, {name: values for name, values in like.items() if name not in trainable})
