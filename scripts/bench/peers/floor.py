"""The floor: federated averaging by hand, plain loops over tensors in memory, processes of one thread.

Clients are dealt to processes once, the largest first. Each process trains its clients one after the other in
one model, adds up their weights, and evaluates its share of the test images.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import BATCH, LR, Rounds, as_tensors, hits, lenet, load_images, run_driver
from torch import multiprocessing, nn

State = dict[str, torch.Tensor]


def work(connection, folder: Path, clients: list[int], part: tuple[int, int]) -> None:
    """Train some clients from the weights that come, and send the sum of theirs; until there are none."""
    torch.set_num_threads(1)
    images = load_images(folder)
    shards = {
        client: as_tensors(images.x[images.of(client)], images.y[images.of(client)]) for client in clients
    }
    test = as_tensors(images.test_x[slice(*part)], images.test_y[slice(*part)])
    model, loss = lenet(), nn.CrossEntropyLoss()
    while (state := connection.recv()) is not None:
        if connection.recv() == "evaluate":
            model.load_state_dict(state)
            connection.send(hits(model, *test))
            continue
        total: State = {name: torch.zeros_like(value) for name, value in state.items()}
        for client in clients:
            model.load_state_dict(state)
            train(model, loss, *shards[client])
            for name, value in model.state_dict().items():
                total[name] += len(shards[client][1]) * value
        connection.send(total)


def train(model: nn.Module, loss: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Train for an epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    order = torch.randperm(len(x))
    for start in range(0, len(x), BATCH):
        batch = order[start : start + BATCH]
        optimizer.zero_grad()
        loss(model(x[batch]), y[batch]).backward()
        optimizer.step()


def drive(folder: Path, rounds: int, processes: int, took: Rounds) -> None:
    """Run rounds of federated averaging."""
    images = load_images(folder)
    sizes = [images.of(client).stop - images.of(client).start for client in range(images.clients)]
    owned: list[list[int]] = [[] for _ in range(processes)]
    for client in sorted(range(images.clients), key=lambda client: -sizes[client]):
        min(owned, key=lambda own: sum(sizes[one] for one in own)).append(client)
    bounds = [len(images.test_y) * place // processes for place in range(processes + 1)]
    context = multiprocessing.get_context("spawn")
    pipes = []
    for place, own in enumerate(owned):
        here, there = context.Pipe()
        part = (bounds[place], bounds[place + 1])
        context.Process(target=work, args=(there, folder, own, part), daemon=True).start()
        pipes.append(here)
    state = lenet().state_dict()
    for _ in range(rounds):
        sums = exchange(pipes, state, "train")
        state = {name: sum(one[name] for one in sums) / sum(sizes) for name in state}
        took.done(sum(exchange(pipes, state, "evaluate")) / len(images.test_y))
    for pipe in pipes:
        pipe.send(None)


def exchange(pipes, state: State, what: str) -> list:
    """Send weights to all processes, and return what they make of them."""
    for pipe in pipes:
        pipe.send(state)
        pipe.send(what)
    return [pipe.recv() for pipe in pipes]


if __name__ == "__main__":
    run_driver(drive)
