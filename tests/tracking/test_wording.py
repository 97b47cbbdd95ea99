from __future__ import annotations

import pytest

from fedkd.tracking import wording
from fedkd.tracking.phase_watch import Pace


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (2_012_345, "2.0 MB"),
        (5e9, "5.0 GB"),
        (1.5e12, "1.5 TB"),
    ],
)
def test_sizes_are_decimal(number, text):
    assert wording.format_bytes(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.23, "1.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7505, "2 h 05 min"),
    ],
)
def test_durations_are_worded_by_size(seconds, text):
    assert wording.format_duration(seconds) == text


def test_estimates_have_no_decimals():
    assert [wording.format_time_left(s) for s in (None, 0.0, 7.6, 12.3, 75)] == [
        "–",
        "1 s",
        "8 s",
        "12 s",
        "1 min 15 s",
    ]


def test_accuracies_and_gains_are_formatted():
    assert [wording.format_percent(v) for v in (0.8714, 1.0, None)] == ["87.1 %", "100.0 %", "–"]
    assert [wording.format_points(v) for v in (0.012, -0.012, -0.0001, None)] == [
        "+1.2 pt",
        "-1.2 pt",
        "+0.0 pt",
        "–",
    ]


def test_only_phases_of_several_clients_are_counted():
    assert wording.phase_text("train", 7, 10) == "train 7/10 clients"
    assert wording.phase_text("fuse", 0, 1) == "fuse"


def test_the_pace_forgets_a_slow_start_and_counts_down():
    pace = Pace(window=2)
    assert pace.left(3) is None
    for seconds in (100.0, 2.0, 4.0):
        pace.add(seconds)
    assert pace.left(3) == pytest.approx(9.0)
    assert pace.left(3, elapsed=1.0) == pytest.approx(8.0)
    assert pace.left(3, elapsed=50.0) == pytest.approx(
        6.0
    )  # the round under way is late, the others still come
