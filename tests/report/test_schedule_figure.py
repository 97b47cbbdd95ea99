"""The schedule of a run to look at."""

from __future__ import annotations

from fedkd.plan.schedule import Participation, Schedule, Span
from fedkd.report.schedule import draw_schedule_figure, schedule_figure, schedule_lines

TWO = Schedule(
    clients=3,
    rounds=6,
    courses=((Span(0, 1, 2), Span(2, 3, 6)), (Span(1, 2, 3), Span(0, 5, 5))),
    participation=Participation(0),
    course_of=(0, 1, 0),
)


def test_a_line_a_client_and_a_sign_a_round():
    assert schedule_lines(TWO, 72, 12) == ["client 0  002222", "client 1  ·11·0·", "client 2  002222"]


def test_what_does_not_fit_is_told():
    assert schedule_lines(TWO, 3, 1) == ["client 0  022", "… and 2 more", "a character for 2 rounds"]


def test_without_a_stream_it_says_who_is_there():
    alone = Schedule(1, 4, ((Span(None, 1, 1), Span(None, 3, 4)),), Participation(0))
    assert schedule_lines(alone, 72, 12) == ["client 0  x·xx"]


def test_the_picture_has_a_row_a_client_a_column_a_round_and_nothing_where_somebody_is_away(tmp_path):
    figure = schedule_figure(TWO, ["zero", "one", "two"])
    (image,) = figure.axes[0].get_images()
    table = image.get_array()
    assert table.shape == (3, 6)
    assert table.filled(-1).tolist() == [[0, 0, 2, 2, 2, 2], [-1, 1, 1, -1, 0, -1], [0, 0, 2, 2, 2, 2]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["zero", "one", "two"]
    assert [file.name for file in draw_schedule_figure(TWO, tmp_path)] == ["schedule.png", "schedule.svg"]
