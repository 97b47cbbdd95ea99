"""A client's random draws: each derives from (seed, purpose, client, round)."""

from dataclasses import dataclass

import numpy as np
import torch

from fedkd.randomness import derive_seed, numpy_generator, torch_generator


@dataclass(frozen=True)
class Draws:
    """The seeds and generators of one client."""

    seed: int
    client: int

    def seed_of(self, purpose: str, round: int, task: int | None = None) -> int:
        return derive_seed(self.seed, purpose, client=self.client, round=round, task=task)

    def numpy(self, purpose: str, round: int) -> np.random.Generator:
        return numpy_generator(self.seed, purpose, client=self.client, round=round)

    def torch(self, purpose: str, round: int, task: int | None = None) -> torch.Generator:
        return torch_generator(self.seed, purpose, client=self.client, round=round, task=task)
