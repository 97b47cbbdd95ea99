"""The graph of a topology, as a figure with clients on a circle and as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedkd.fusion import contraction_factor, is_undirected, metropolis_weights, push_sum_weights
from fedkd.plan import Graph
from fedkd.report.style import new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "topology"
LINK_SIGN, SELF_SIGN, NO_LINK_SIGN = "x", "o", "·"
MOST_ROUNDS = 4  # drawn rounds of a changing graph
MOST_CLIENTS = 500
"""Up to this number of clients, λ₂ is computed: the eigenvalue of an N × N matrix."""
MOST_NAMED = 40


def shown_rounds(graph: Graph, rounds: int) -> list[int]:
    """Return the drawn rounds: one of a static graph, else the first few."""
    return list(range(1, min(rounds, MOST_ROUNDS, graph.period or MOST_ROUNDS) + 1))


def graph_title(graph: Graph, rounds: int) -> str:
    """Describe a graph: the senders per client, and the contraction λ₂ of a round of mixing."""
    shown = [graph.edges(round) for round in shown_rounds(graph, rounds)]
    heard = sorted({int(number) - 1 for edges in shown for number in edges.sum(axis=1)})
    most = f"{heard[0]} to {heard[-1]}" if len(heard) > 1 else str(heard[0])
    placed = ", shuffled" if graph.order == "shuffled" else ""
    told = f"{graph.kind}{placed}: {most} sender{'s' * (heard[-1] != 1)} per client"
    if graph.period is None:
        told += ", drawn in each round"
    elif not graph.stays:
        told += f", period of {graph.period} rounds"
    if graph.stays and 1 < graph.clients <= MOST_CLIENTS:
        mixing = metropolis_weights(shown[0]) if is_undirected(shown[0]) else push_sum_weights(shown[0])
        if np.allclose(mixing.sum(axis=1), 1.0):
            told += f"; λ₂ = {contraction_factor(mixing):.4f}"
    return told


def graph_lines(graph: Graph, rounds: int, width: int, height: int) -> list[str]:
    """Return a graph as text: a line per receiver, a sign per sender; the first ones of many."""
    clients, numbers = graph.clients, shown_rounds(graph, rounds)
    columns = min(clients, width)
    numbers = numbers[: max(width // (columns + 2), 1)]
    label = len(f"client {clients - 1}")
    lines = []
    if len(numbers) > 1:
        titles = [f"t = {round}"[:columns].ljust(columns) for round in numbers]
        lines.append(f"{'':{label}}  {'  '.join(titles)}".rstrip())
    edges = [graph.edges(round) for round in numbers]
    for client in range(min(clients, height)):
        signs = (np.where(heard[client], LINK_SIGN, NO_LINK_SIGN) for heard in edges)
        rows = ["".join([*row[:client], SELF_SIGN, *row[client + 1 :]][:columns]) for row in signs]
        lines.append(f"{f'client {client}':<{label}}  {'  '.join(rows)}")
    if clients > min(columns, height):
        lines.append(f"… and {clients - min(columns, height)} more")
    return lines


def draw_graph_figure(graph: Graph, rounds: int, folder: Path) -> list[Path]:
    """Draw `topology.png`, `.svg` and `.pdf` into a run folder; return the files."""
    return write_figure(lambda: graph_figure(graph, rounds), folder, NAME)


def graph_figure(graph: Graph, rounds: int, groups: Sequence[int] = ()) -> Figure:
    """Draw clients on a circle, with lines for mutual links and arrows to receivers for others.

    A changing graph has its first rounds side by side. A client has the colour of its group.
    """
    from matplotlib.collections import LineCollection

    numbers = shown_rounds(graph, rounds)
    figure = new_figure(2.2 * len(numbers) + 0.4, 2.5)
    angle = np.pi / 2 - 2 * np.pi * np.arange(graph.clients) / graph.clients
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for axes, round in zip(figure.subplots(1, len(numbers), squeeze=False)[0], numbers, strict=True):
        heard = graph.edges(round) & ~np.eye(graph.clients, dtype=bool)
        mutual = heard & heard.T
        pairs = [(points[n], points[m]) for n, m in zip(*np.nonzero(np.triu(mutual)), strict=True)]
        axes.add_collection(LineCollection(pairs, colors="0.6", linewidths=0.8, zorder=1))
        arrow = {"arrowstyle": "-|>", "color": "0.5", "linewidth": 0.8, "shrinkA": 5, "shrinkB": 5}
        for receiver, sender in zip(*np.nonzero(heard & ~mutual), strict=True):
            axes.annotate("", points[receiver], points[sender], arrowprops=arrow, zorder=1)
        colours = [f"C{group % 10}" for group in groups] if groups else "C0"
        axes.scatter(*points.T, s=40 if graph.clients <= MOST_NAMED else 8, c=colours, zorder=2)
        if graph.clients <= MOST_NAMED:
            for client, (x, y) in enumerate(1.22 * points):
                axes.text(x, y, str(client), ha="center", va="center", fontsize=7)
        axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal")
        axes.axis("off")
        if not graph.stays:
            axes.set_title(f"round {round}", fontsize=8)
    return figure
