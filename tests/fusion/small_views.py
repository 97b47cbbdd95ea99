"""A client and a server small enough to check by hand: what strategies may use of both."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fedkd.fusion.views import FitSummary, TrialLogits
from fedkd.randomness import seeded_torch
from fedkd.training.fast.uncompiled import uncompiled_class


class SmallSupermask:
    """A mask that is given, over as many weights; those above 1 are taken; writes down what is agreed on."""

    is_settled = False

    def __init__(self, weights: np.ndarray) -> None:
        self._weights = weights
        self.fingerprint = np.arange(8, dtype=np.uint8)
        self.agreed: tuple[np.ndarray, np.ndarray | None] | None = None

    def bits(self) -> np.ndarray:
        return np.packbits(self._weights > 0)

    def taken(self) -> np.ndarray | None:
        return np.packbits(self._weights > 1)

    def agree(self, log_odds: np.ndarray, taken: np.ndarray | None) -> None:
        assert log_odds.dtype == np.float32 and np.isfinite(log_odds).all()
        self.agreed = (log_odds, taken)


class SmallClient:
    """A client whose predictions and weights are given, and whose learning is written down."""

    def __init__(self, *, logits=None, private_logits=None, means=None, counts=None, weights=None) -> None:
        self.all_logits, self._private_logits, self._means = logits, private_logits, means or {}
        self.request: np.ndarray | None = None
        self.last_fit: FitSummary | None = None
        self._counts = counts
        self._weights = weights or {}
        self._others: dict[str, dict[str, np.ndarray]] = {}
        self.round, self.rounds = 1, 2
        self.memory: dict[str, np.ndarray] = {}
        self.told: dict[str, np.ndarray] = {}
        self.distilled: list[tuple[np.ndarray, np.ndarray | None]] = []

    @property
    def classes(self) -> int:
        return self.all_logits.shape[1]

    def logits(self) -> np.ndarray:
        return self.all_logits if self.request is None else self.all_logits[self.request]

    def private_logits(self) -> np.ndarray:
        return self._private_logits

    def private_features(self) -> np.ndarray:
        """Return features of as many samples as there are private logits, those of the classes in turn."""
        features = self._means["features"]
        return np.resize(features, (len(self._private_logits), features.shape[1])).astype(np.float32)

    def private_labels(self) -> np.ndarray:
        return np.arange(len(self._private_logits)) % len(self._means["features"])

    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all private samples: of this client none is trained on."""
        return self._private_logits, self.private_labels()

    def label_counts(self) -> np.ndarray:
        return self._counts

    def class_means(self, of: str) -> np.ndarray:
        return self._means[of]

    def weights(self, of: str = "model") -> dict[str, np.ndarray]:
        """Return given weights; an auxiliary network has the model's until others are loaded."""
        return {name: values.copy() for name, values in self._others.get(of, self._weights).items()}

    def load_weights(self, weights: Mapping[str, np.ndarray], of: str = "model") -> None:
        if of == "model":
            self._weights = dict(weights)
        else:
            self._others[of] = dict(weights)

    batch_size = 2

    def own_rows(self) -> np.ndarray:
        return np.arange(int(np.sum(self._counts)))

    def generator(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(len(purpose))

    def private_gradient(self, weights: Mapping[str, np.ndarray], of):
        """Return the gradient of a loss that is least at zero: half the squares' sum of the named weights."""

        def gradient(values: Mapping[str, np.ndarray], rows: np.ndarray):
            return float(sum((values[name] ** 2).sum() for name in of)) / 2, {n: values[n] for n in of}

        return gradient

    def supermask(self) -> SmallSupermask:
        return SmallSupermask(np.concatenate([values.ravel() for values in self._weights.values()]))

    def trainable(self) -> tuple[str, ...]:
        return tuple(name for name in self._weights if name.rpartition(".")[2] in ("weight", "bias"))

    @property
    def learned(self) -> tuple[int, ...]:
        return ()

    def learner_tells(self, tasks) -> dict[str, np.ndarray]:
        """Return a mask of ones for every weight, as of a learner that splits weights."""
        return {
            f"mask/{name}": np.ones(len(w), np.float32) for name, w in self._weights.items() if w.ndim > 1
        }

    def tell_learner(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.told |= arrays

    def trial(self, targets: np.ndarray, samples: np.ndarray, asked: np.ndarray) -> TrialLogits:
        """Return what the client says anyway: what it is taught in a trial is not learned."""
        assert len(targets) == len(samples) and not set(samples) & set(asked)
        return TrialLogits(self._private_logits, self.private_labels(), self.all_logits[asked])

    def distil(self, targets: np.ndarray, samples: np.ndarray | None = None) -> None:
        self.distilled.append((targets, samples))

    def learn(self, strategy, guidance: Mapping[str, np.ndarray]) -> None:
        """Apply guidance, and distil what the strategy returns."""
        found = strategy.apply(self, guidance)
        if found is not None:
            self.distil(*found)


class SmallServer:
    """A server whose models are tiny: `plain` is linear, `normed` has BatchNorm and so a counter."""

    def __init__(self, transfer_x: np.ndarray, classes: int, architectures: Mapping[int, str] | None = None):
        self.x = torch.from_numpy(transfer_x)
        self.classes = classes
        self.architectures = dict(architectures or {})
        self.trained: list[dict[str, Any]] = []
        self.fitted: list[tuple[Any, ...]] = []

    @property
    def clients(self) -> int:
        return len(self.architectures)

    def trainable(self, architecture: str) -> tuple[str, ...]:
        return tuple(name for name, _ in self.model(architecture).named_parameters())

    def architecture_of(self, client: int) -> str:
        return self.architectures.get(client, "plain")

    def clients_of(self, architecture: str) -> list[int]:
        return sorted(client for client, name in self.architectures.items() if name == architecture)

    def architecture(self, model: str, args: Mapping[str, Any]) -> str:
        assert not args
        return model

    def model(self, architecture: str) -> nn.Module:
        width = self.x.shape[1]
        with seeded_torch(1):
            if architecture == "plain":
                return nn.Linear(width, self.classes)
            return nn.Sequential(
                nn.Linear(width, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, self.classes)
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    def network(self, architecture: str, weights: Mapping[str, np.ndarray] | None = None) -> nn.Module:
        return self.model(architecture) if weights is None else self._load(architecture, weights)

    def seed(self, purpose: str) -> int:
        return len(purpose)

    def initial_weights(self, architecture: str) -> dict[str, np.ndarray]:
        return state_of(self.model(architecture))

    def logits(self, architecture: str, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        model = self._load(architecture, weights).eval()
        with torch.no_grad():
            return model(self.x).numpy()

    def train(
        self, architecture, weights, targets, loss, *, epochs, batch_size, lr, validation=0.0, patience=0
    ) -> dict[str, np.ndarray]:
        self.trained.append(
            {
                "architecture": architecture,
                "weights": copy.deepcopy(dict(weights)),
                "targets": targets,
                "options": (epochs, batch_size, lr, validation, patience),
            }
        )
        model = self._load(architecture, weights).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        tensors = [torch.from_numpy(target) for target in targets]
        for _ in range(epochs):
            optimizer.zero_grad()
            loss(model(self.x), *tensors).backward()
            optimizer.step()
        return state_of(model)

    def fit(self, network, arrays, loss, *, optimizer, lr, epochs, batch_size, weight_decay=0.0) -> None:
        self.fitted.append((arrays, optimizer, lr, epochs, batch_size, weight_decay))
        made = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
        chosen = uncompiled_class(made)(network.parameters(), lr=lr, weight_decay=weight_decay)
        tensors = [torch.from_numpy(array) for array in arrays]
        for _ in range(epochs):
            for start in range(0, len(tensors[0]), batch_size):
                chosen.zero_grad()
                loss(network, *(tensor[start : start + batch_size] for tensor in tensors)).backward()
                chosen.step()

    def _load(self, architecture: str, weights: Mapping[str, np.ndarray]) -> nn.Module:
        model = self.model(architecture)
        model.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in weights.items()})
        return model


def state_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: np.array(tensor) for name, tensor in model.state_dict().items()}
