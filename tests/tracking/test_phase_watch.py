from __future__ import annotations

import io

from fedkd.scenario.schema import Scenario
from fedkd.tracking.events import RoundReport
from fedkd.tracking.phase_watch import FollowedRun, Slowest
from fedkd.tracking.progress import QUIET_SECONDS, PlainProgress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_phase_reports_its_slowest_client_and_time_left():
    clock = Clock()
    watch = FollowedRun(clock)
    assert watch._parts(with_left=True) == []
    watch.phase(3, "train", 0, 4)
    assert watch._parts(with_left=True) == ["train 0/4 clients"] and watch._phase_left() is None
    for done, (client, seconds) in enumerate([(2, 1.0), (0, 5.0), (3, 0.5)], start=1):
        clock.now += seconds
        watch.answered(3, "train", client, seconds)
        watch.phase(3, "train", done, 4)
    assert watch._slowest == Slowest(0, 5.0)
    assert watch._phase_left() == 6.5 / 3
    assert watch._parts(with_left=True) == [
        "train 3/4 clients",
        "slowest client 0 (5.0 s)",
        "2 s left in this phase",
    ]
    watch.answered(2, "train", 1, 99.0)  # of another round
    watch.phase(3, "train", 4, 4)
    assert watch._phase_left() is None and watch._slowest == Slowest(0, 5.0)
    watch.phase(3, "fuse", 0, 1)
    assert watch._parts(with_left=True) == ["fuse"]


def test_a_long_round_has_few_plain_lines():
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, clock)
    progress._rounds = 12
    progress.phase(1, "train", 0, 400)
    for second in range(1, 301):
        clock.now = float(second)
        progress.answered(1, "train", second, 1.0)
        progress.phase(1, "train", second, 400)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3, "after 30, 90 and 210 seconds"
    assert (
        lines[0]
        == "        1/12  train 30/400 clients  slowest client 1 (1.0 s)  6 min 10 s left in this phase"
    )
    progress.round_finished(RoundReport(1, 12))
    clock.now += QUIET_SECONDS - 1
    progress.phase(2, "train", 1, 400)
    assert len(stream.getvalue().splitlines()) == 4, "a round's line begins the wait anew"


def test_a_short_round_has_one_line():
    stream = io.StringIO()
    progress = PlainProgress(stream)
    progress._schedule, progress._rounds = None, Scenario(rounds=3).rounds
    for done in range(5):
        progress.phase(1, "train", done, 4)
    assert stream.getvalue() == ""
