"""What the federation learns, in plain PyTorch: handwritten digits, dealt unevenly, by models that differ."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

torch.set_num_threads(1)  # more would cost such small models more than they bring

CLASSES = 10
COMMON = 200
"""Samples without labels that every client holds."""
TEST = 400
"""Samples that every client is tested on."""
BATCH = 20


class Digits(NamedTuple):
    """What a client holds: vectors of 64 grey values in [0, 1], and labels where it has them."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    common_x: Tensor


@cache
def load_digits_of(client: int, clients: int) -> Digits:
    """Return the samples of one client, mostly of a few classes that one other client has as well."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = np.float32(x[order] / 16), y[order]
    common, test, own = np.split(np.arange(len(x)), [COMMON, COMMON + TEST])
    # A class belongs to two clients, who have nine samples in ten of it; the rest goes to everybody in turn.
    pairs = max(clients // 2, 1)
    owner = np.where(own % 10 > 0, 2 * (y[own] % pairs) + own % 2, own % clients)
    mine = own[owner == client]
    return Digits(*map(torch.from_numpy, (x[mine], y[mine], x[test], y[test], x[common])))


def new_model(client: int) -> nn.Module:
    """Return the untrained model of one client; two with the same classes differ in it."""
    torch.manual_seed(client)
    if client % 2:
        return nn.Sequential(
            nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, CLASSES)
        )
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def batches(x: Tensor, y: Tensor, seed: int, epochs: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all samples once an epoch, in orders that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for some in torch.randperm(len(x), generator=generator).split(BATCH):
            yield x[some], y[some]


def learn(
    model: nn.Module, pairs: Iterator[tuple[Tensor, Tensor]], loss_of: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """Take one step of Adam per batch; return the mean loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for x, y in pairs:
        loss = loss_of(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of samples that the model names rightly."""
    with torch.no_grad():
        return float((model(x).argmax(dim=1) == y).float().mean())
