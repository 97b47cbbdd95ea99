"""The schedule of a run to look at."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from fedkd.continual.metrics.outcome import ProtocolOutcome, StreamOutcome
from fedkd.continual.task_history import TaskHistory
from fedkd.plan.schedule import Participation, Schedule, Span
from fedkd.report.schedule import draw_schedule_figure, schedule_figure, schedule_lines

TWO = Schedule(
    clients=3,
    rounds=6,
    courses=((Span(0, 1, 2), Span(2, 3, 6)), (Span(1, 2, 3), Span(0, 5, 5))),
    participation=Participation(0),
    course_of=(0, 1, 0),
)


def test_the_text_has_a_line_per_client_and_a_sign_per_round():
    assert schedule_lines(TWO, 72, 12) == ["client 0  002222", "client 1  ·11·0·", "client 2  002222"]


def test_omitted_clients_and_rounds_are_stated():
    assert schedule_lines(TWO, 3, 1) == ["client 0  022", "… and 2 more", "one character per 2 rounds"]


def test_without_a_stream_the_text_shows_presence():
    alone = Schedule(1, 4, ((Span(None, 1, 1), Span(None, 3, 4)),), Participation(0))
    assert schedule_lines(alone, 72, 12) == ["client 0  x·xx"]


def test_the_figure_has_rows_for_clients_and_columns_for_rounds(tmp_path):
    figure = schedule_figure(TWO, ["zero", "one", "two"])
    (image,) = figure.axes[0].get_images()
    table = image.get_array()
    assert table.shape == (3, 6)
    assert table.filled(-1).tolist() == [[0, 0, 2, 2, 2, 2], [-1, 1, 1, -1, 0, -1], [0, 0, 2, 2, 2, 2]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["zero", "one", "two"]
    assert [file.name for file in draw_schedule_figure(TWO, tmp_path)] == [
        "schedule.png",
        "schedule.svg",
        "schedule.pdf",
    ]


def test_the_figure_shows_final_accuracies_by_client_and_task(tmp_path):
    nothing, ends = np.zeros(2), {0: [0.6, 0.9], 1: [0.5, 0.7], 2: [0.8, 1.0]}
    clients = {client: (np.array([[0.1, 0.2], end]), nothing) for client, end in ends.items()}
    test = ProtocolOutcome("task_incremental", "global", np.zeros((2, 2)), nothing, clients, {})
    histories = tuple(TaskHistory.of(TWO.course(client)) for client in range(3))
    outcome = StreamOutcome(3, "task_incremental", (test,), {}, frozenset(range(3)), histories, False)
    of_tasks, axes = schedule_figure(TWO, ["zero", "one", "two"], outcome).axes
    assert [line.get_segments()[0][0][0] for line in axes.collections[::2]] == [75.0, 60.0, 90.0]
    colours = of_tasks.get_images()[0].cmap
    for client, dots in enumerate(axes.collections[1::2]):
        assert_allclose(dots.get_offsets()[:, 0], 100 * np.array(ends[client]))
        assert_allclose(dots.get_facecolors(), [colours(task) for task in histories[client].tasks])
    assert draw_schedule_figure(TWO, tmp_path, (), outcome)[1].stat().st_size > 0
