"""FedALA: each weight of the top layers learns how far to move towards the average."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, LocalObjective
from fedkd.fusion.capabilities import ANY_FORM
from fedkd.fusion.views import Arrays, ClientView
from fedkd.fusion.weights.averaging import AVERAGED, WeightAveraging
from fedkd.fusion.weights.parameters import unpack
from fedkd.plugins import hyperparameters
from fedkd.storage import add_prefix, strip_prefix

OWN_PREFIX = "own/"
RATES = "rates/"
FOUND = "found/"
WINDOW = 10
"""Passes whose losses decide whether the first search is over."""


@hyperparameters
class FedALA(LocalObjective, WeightAveraging):
    """Average weights; clients load the lower layers, and learned shares of the top ones.

    ::

        ŵ = w_n + Ω ⊙ (w − w_n)                          in the top layers; below them ŵ = w
        Ω ← clip(Ω − η ∇_ŵ CE(ŵ) ⊙ (w − w_n), 0, 1)      batch by batch on some of the client's own samples

    w is the average and w_n the client's model after its last local training. Ω has a number per weight and
    begins at 1, where ŵ is the average. The first search ends when the losses of the last 10 passes have a
    standard deviation below `tolerance`, or after `passes`; later ones take one pass. Samples are drawn anew
    each time; the model is in evaluation mode.

    Names of weights identify layers: `a.b.weight` and `a.b.bias` belong to `a.b`. The top layer is the last
    in the model's order, in the zoo the head.

    If a newer average replaces one before the next training, w_n and Ω stay.
    """

    name: ClassVar[str] = "fedala"
    capabilities: ClassVar[Capabilities] = replace(AVERAGED, shares_model=False, accepts=ANY_FORM)
    paper: ClassVar[str] = (
        "Zhang et al., FedALA: Adaptive Local Aggregation for Personalized Federated Learning, AAAI 2023,"
        " arXiv 2212.01197"
    )

    layers: Annotated[int, Field(ge=1)] = 1
    """Layers at the top that are aggregated adaptively, weights and biases together; all of them, if there
    are not so many. The paper finds 1 to be enough, and more to cost only time."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the client's own samples that Ω is found on."""
    lr: Annotated[float, Field(ge=0)] = 1.0
    """η: step of Ω; 0 leaves it at 1, which is FedAvg."""
    tolerance: Annotated[float, Field(gt=0)] = 0.01
    """Standard deviation of the last losses below which the first search is over."""
    passes: Annotated[int, Field(ge=1)] = 100
    """Passes of the first search at most: where batches disagree, losses may never come to rest."""

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return the weights, and store those of the top layers as w_n."""
        weights = client.weights()
        top = top_layers(client.trainable(), self.layers)
        client.memory |= add_prefix(OWN_PREFIX, {name: weights[name] for name in top})
        return super().upload(client)

    def before_training(self, client: ClientView) -> None:
        """Keep the Ω found for the newest average."""
        found = strip_prefix(FOUND, client.memory)
        client.memory |= add_prefix(RATES, found)
        for name in found:
            del client.memory[FOUND + name]

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Load the average with the shares Ω; in full before the first training."""
        current = client.weights()
        received = current | unpack(guidance, self._exchanged(current))
        own, names = strip_prefix(OWN_PREFIX, client.memory), top_layers(client.trainable(), self.layers)
        if own and self.lr > 0:
            ways = {name: received[name] - own[name] for name in names}
            rates = self._rates(client, received, ways)
            client.memory |= add_prefix(FOUND, rates)
            received |= _mixed(received, ways, rates)
        client.load_weights(received)

    def _rates(self, client: ClientView, received: Arrays, ways: Arrays) -> dict[str, np.ndarray]:
        """Return Ω by name, `[0, 1]` float32, found on own samples from w and the top layers' w − w_n."""
        known = strip_prefix(RATES, client.memory)
        rates = known or {name: np.ones_like(way) for name, way in ways.items()}
        rows, size = client.own_rows(), client.batch_size
        chosen = client.generator("ala").permutation(rows)[: max(1, round(self.share * len(rows)))]
        if not len(rows) or not any(way.any() for way in ways.values()):
            return rates
        gradient, losses = client.private_gradient(received, list(ways)), []
        for _ in range(1 if known else self.passes):
            total = 0.0
            for start in range(0, len(chosen), size):
                batch = chosen[start : start + size]
                loss, slopes = gradient(_mixed(received, ways, rates), batch)
                total += loss * len(batch)
                rates = {
                    name: np.clip(rates[name] - self.lr * slopes[name] * way, 0.0, 1.0).astype(np.float32)
                    for name, way in ways.items()
                }
            losses.append(total / len(chosen))
            if len(losses) >= WINDOW and np.std(losses[-WINDOW:]) < self.tolerance:
                break
        return rates


def _mixed(received: Arrays, ways: Arrays, rates: Arrays) -> dict[str, np.ndarray]:
    """Return ŵ of the top layers; where Ω is 1 it is w to the last bit."""
    return {name: received[name] - (1 - rates[name]) * way for name, way in ways.items()}


def top_layers(names: Sequence[str], layers: int) -> list[str]:
    """Return the weights of a model's last layers, in the order of `names`."""
    all_layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    top = set(all_layers[-layers:])
    return [name for name in names if name.rpartition(".")[0] in top]
