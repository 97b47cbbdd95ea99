"""A client that has a network: what it answers with, its weights, its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor, nn

from fedkd.clients.base import Client
from fedkd.clients.faults import Poison
from fedkd.clients.guidance_effect import Split
from fedkd.clients.shared_network import SharedModel
from fedkd.clients.view import RoundView
from fedkd.data.federated import ClientData
from fedkd.fusion.auxiliary import OWN, networks_of
from fedkd.fusion.views import Arrays, PrivateGradient
from fedkd.namespaces import below, under
from fedkd.plan.plan import Plan
from fedkd.training.device import prepare_inputs
from fedkd.training.evaluate import Score, predict_in_batches, predict_logits, score
from fedkd.training.frozen import frozen_copy, gradient_of
from fedkd.training.weights import load_weights, trainable_names, weights_of

FEATURES_BATCH = 256
AUXILIARY = "auxiliary/"


class NetworkClient(Client):
    """Holds a torch module, and those that its strategy has besides; how they are trained is left open.

    Args:
        plan: What to simulate.
        index: Client index, 0-based.
        data: The client's samples, the transfer set and the common test set.
        model: The client's own network, on its device; or the one that the clients of a process share.
        poison: What makes the client a poisoned one; None: nothing does.
        auxiliaries: The networks that its strategy has it train besides, by name, on the same device.

    Attributes:
        begin: Makes the network once more that the client began with; None: it has none of its own.
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        data: ClientData,
        model: nn.Module | SharedModel,
        poison: Poison | None = None,
        auxiliaries: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> None:
        super().__init__(plan, index, data, poison)
        self._shared = model if isinstance(model, SharedModel) else None
        self.model: nn.Module = model.network if isinstance(model, SharedModel) else model
        self.begin: Callable[[], nn.Module] | None = None
        self._device = next(self.model.parameters()).device
        self._lanes = 1
        self._auxiliaries = dict(auxiliaries)

    @property
    def workplace(self) -> object:
        """What only one client can work in at a time: itself, unless clients of the process share a model."""
        return self if self._shared is None else self._shared

    def _on_device(self, array: np.ndarray) -> Tensor:
        return prepare_inputs(array, self._device)

    # Predictions --------------------------------------------------------------------------------------

    def _predictor(self) -> nn.Module:
        """Return the module whose logits and features are the client's predictions."""
        return self.model

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return logits `[n, C]` float32 in evaluation mode."""
        return self.logits_of(self._predictor(), x)

    def logits_of(self, network: nn.Module, x: np.ndarray) -> np.ndarray:
        """Return the logits `[n, C]` float32 of a network on the client's device, in evaluation mode."""
        return predict_logits(network, self._on_device(x), lanes=self._lanes).cpu().numpy()

    @contextmanager
    def lent(self, lanes: int) -> Iterator[None]:
        """Have so many threads predict while the block runs, as the processors of others are idle."""
        self._lanes = lanes
        try:
            yield
        finally:
            self._lanes = 1

    def answering(self) -> nn.Module:
        """Return the network that evaluations ask: the client's model, unless its strategy has another.

        Raises:
            TypeError: What the strategy has is no network.
        """
        found = networks_of(self._strategy).predictor(RoundView(self, self.applied_round))
        if found is None:
            return self._predictor()
        if not isinstance(found, nn.Module):
            told = f"`predictor` of '{self._strategy.name}' returned a {type(found).__name__}"
            raise TypeError(f"{told}; must be a torch.nn.Module, or None")
        return found

    def _answer(self, x: np.ndarray) -> np.ndarray:
        if self._answers_by_guidance:
            return super()._answer(x)
        network, wanted = self.answering(), (len(x), self.data.classes)
        logits = self.logits_of(network, x)
        if logits.shape != wanted and network is not self._predictor():
            told = f"what `predictor` of '{self._strategy.name}' returned made {list(logits.shape)}"
            raise TypeError(f"{told} of {len(x)} samples; must be {list(wanted)}")
        return logits

    def evaluate_each(self, split: Split, answered: Score) -> dict[str, Score]:
        """Evaluate each of the models that its strategy tells apart."""
        strategy, view = self._strategy, RoundView(self, self.applied_round)
        x, y = self._tests(split)
        found = {}
        for name in networks_of(strategy).eval_models:
            if name == networks_of(strategy).answering_model or not len(y):
                found[name] = answered
                continue
            logits, _ = self.leaning(partial(self.logits_of, networks_of(strategy).eval_model(view, name)), x)
            found[name] = score(logits, y)
        return found

    def features(self, x: np.ndarray) -> np.ndarray:
        """Return penultimate features `[n, F]` float32 in evaluation mode."""
        model: Any = self._predictor()
        found = predict_in_batches(
            model, lambda batch: model.features(batch).flatten(1), self._on_device(x), FEATURES_BATCH
        )
        return found.cpu().numpy()

    def evaluate_fused(self, split: Split, round: int) -> Score:
        """Evaluate what the fusion of a round has led to, the common test set once a process."""
        # With a prior of its own, each client answers otherwise with the same weights.
        alike = self._scenario.fusion.own_prior == 0.0
        if self._shared is None or split == "local" or not alike:
            return self.evaluate(split)
        return self._shared.measured.once(round, "global", lambda: self.evaluate("global"))

    def remember_trained(self, round: int, *, changes: bool = True) -> None:
        """Take down how the client does without what comes in this round."""
        super().remember_trained(round, changes=changes)
        if self._shared is not None:
            self.effect.forget_flips()  # another model takes its place: nobody follows anybody

    # State --------------------------------------------------------------------------------------------

    def network(self, of: str = OWN) -> nn.Module:
        """Return a network itself: the client's own, or an auxiliary one.

        Raises:
            KeyError: It has none of this name.
        """
        if of != OWN and of not in self._auxiliaries:
            known = ", ".join([OWN, *self._auxiliaries])
            raise KeyError(f"'{self._strategy.name}' asks for a network '{of}'; clients have {known}")
        return self.model if of == OWN else self._auxiliaries[of]

    def fresh(self) -> nn.Module:
        """Return a network like the client's own before it had learned anything.

        Raises:
            TypeError: The client has no network of its own.
        """
        if self.begin is None:
            raise TypeError(f"client {self.index} has no network of its own that it began with")
        return self.begin()

    def weights(self, of: str = OWN) -> dict[str, np.ndarray]:
        """Return copies of all parameters and buffers, normalisation statistics included, by name."""
        return weights_of(self.network(of))

    def trainable(self) -> tuple[str, ...]:
        """Return the names of those weights that are trained by gradients."""
        return trainable_names(self.model)

    def frozen(self, weights: Arrays, of: str = OWN) -> nn.Module:
        """Return a network like the client's own with other weights, which stays as it is."""
        return self._as_seen(frozen_copy(self.network(of), weights))

    def private_gradient(self, weights: Arrays, of: Sequence[str]) -> PrivateGradient:
        """Return a function that tells the gradient of own samples' cross entropy in some weights."""
        network = frozen_copy(self.model, weights)
        x, y = self._on_device(self.data.train_x), self._on_device(self.training_labels())
        return gradient_of(network, self._as_seen(network), of, x, y)

    def _as_seen(self, network: nn.Module) -> nn.Module:
        """Return a network as losses see it, of the present task."""
        return network

    def load_weights(self, weights: Arrays, of: str = OWN) -> None:
        """Set all parameters and buffers; values are cast to each tensor's own type."""
        load_weights(self.network(of), weights)

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that `restore` needs to continue exactly here."""
        arrays = super().state()
        for name, network in self._auxiliaries.items():
            arrays |= under(f"{AUXILIARY}{name}/", weights_of(network))
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Continue from a state that `state` returned."""
        super().restore(arrays)
        for name, network in self._auxiliaries.items():
            load_weights(network, below(f"{AUXILIARY}{name}/", arrays))

    def model_state(self) -> dict[str, np.ndarray]:
        """Return the weights; nothing where every message brings them along."""
        return {} if self._shared is not None else self.weights()

    def restore_model(self, arrays: Arrays) -> None:
        """Put the weights back."""
        if self._shared is None:
            self.load_weights(arrays)
