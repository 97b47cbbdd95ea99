"""Who hears whom, as a picture and as text."""

from __future__ import annotations

import pytest

from fedkd.plan.graph import Graph
from fedkd.report.topology import graph_figure, graph_lines, graph_title, shown_rounds


def test_links_are_lines_and_directed_links_are_arrows():
    figure = graph_figure(Graph(6, "ring", 0), 10)
    (axes,) = figure.axes
    assert len(axes.collections[0].get_segments()) == 6
    figure = graph_figure(Graph(6, "one_peer_exponential", 0), 10)
    assert [axes.get_title() for axes in figure.axes] == ["round 1", "round 2", "round 3"]
    arrows = [text for text in figure.axes[0].texts if text.get_text() == ""]
    assert len(arrows) == 6  # beside the numbers of the clients


@pytest.mark.parametrize(
    ("graph", "title"),
    [
        (Graph(10, "ring", 0), "ring: 2 senders per client; λ₂ = 0.8727"),
        (
            Graph(10, "k_regular", 0, 6, "shuffled"),
            "k_regular, shuffled: 6 senders per client; λ₂ = 0.3740",
        ),
        (Graph(7, "matching", 0), "matching: 0 to 1 sender per client, drawn in each round"),
        (
            Graph(8, "one_peer_exponential", 0),
            "one_peer_exponential: 1 sender per client, period of 3 rounds",
        ),
    ],
)
def test_a_graph_is_described_in_words(graph, title):
    assert graph_title(graph, 20) == title


def test_excess_rounds_and_clients_are_left_out():
    graph = Graph(30, "matching", 1)
    assert shown_rounds(graph, 2) == [1, 2] and shown_rounds(graph, 50) == [1, 2, 3, 4]
    lines = graph_lines(graph, 50, 72, 5)
    assert lines[0].split() == ["t", "=", "1", "t", "=", "2"]
    assert len(lines) == 7 and lines[-1] == "… and 25 more"
    assert all(len(line) < 90 for line in lines)
