"""The schedule: participants of each round, and each client's task.

`fedkd.plan.schedule_builder` builds it once for a run. No other code computes a task from a round.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from fedkd.errors import UserError, described
from fedkd.randomness import numpy_generator
from fedkd.storage import parse_json


class Span(NamedTuple):
    """Consecutive rounds of a client on one task, from `first` to `last` inclusive."""

    task: int | None  # from 0; None without a stream
    first: int
    last: int


Course = tuple[Span, ...]
"""A client's spans in order; the client is absent in rounds without a span."""


@dataclass(frozen=True)
class Participation:
    """Partial participation: a draw of `clients_per_round` (None: all), minus `dropout`.

    At least one client takes part.
    """

    seed: int
    clients_per_round: int | None = None
    dropout: float = 0.0

    def present(self, members: Sequence[int], round: int) -> tuple[int, ...]:
        """Return the members that take part in a round (from 1), ascending."""
        sampled = members
        if self.clients_per_round is not None and self.clients_per_round < len(members):
            generator = numpy_generator(self.seed, "cohort", round=round)
            places = generator.choice(len(members), self.clients_per_round, replace=False)
            sampled = sorted(members[int(place)] for place in places)
        if self.dropout == 0.0 or not sampled:
            return tuple(sampled)
        draws = {
            client: numpy_generator(self.seed, "dropout", client=client, round=round).random()
            for client in sampled
        }
        present = [client for client in sampled if draws[client] >= self.dropout]
        return tuple(present or [max(draws, key=lambda client: (draws[client], client))])


@dataclass(frozen=True)
class Schedule:
    """The courses of clients and their participation.

    `course_of` has the index of each client's course; if it is empty, all clients have the first.
    """

    clients: int
    rounds: int
    courses: tuple[Course, ...]
    participation: Participation
    course_of: tuple[int, ...] = ()

    def course(self, client: int) -> Course:
        """Return a client's course over the run."""
        return self.courses[self.course_of[client] if self.course_of else 0]

    def every_course(self) -> tuple[Course, ...]:
        """Return the N courses of all clients."""
        return tuple(map(self.course, range(self.clients)))

    def task(self, client: int, round: int) -> int | None:
        """Return the task of a client's last begun span, if any."""
        return self._span(client, round).task

    def place(self, client: int, round: int) -> int:
        """Return the index of the span of `task` in the client's course."""
        return _place(self.course(client), round)

    def order(self, client: int) -> tuple[int, ...]:
        """Return a client's tasks in order; empty without a stream."""
        return tuple(span.task for span in self.course(client) if span.task is not None)

    @property
    def in_step(self) -> bool:
        """True if all clients have the same course."""
        return len(self.courses) == 1

    def ends(self, client: int, round: int) -> bool:
        """Return whether a client's task ends with a round."""
        span = self._span(client, round)
        return span.task is not None and span.last == round

    def rounds_into_task(self, client: int, round: int) -> int:
        """Return the number of the client's earlier rounds on its present task."""
        return round - self._span(client, round).first

    def rounds_of_task(self, client: int, round: int) -> int:
        """Return the number of rounds of the client's present span."""
        span = self._span(client, round)
        return span.last - span.first + 1

    def ending(self, round: int) -> tuple[int, ...]:
        """Return the clients whose task ends with a round, ascending."""
        return self._whose([span.task is not None and span.last == round for span in self._spans(round)])

    def tasks(self, round: int) -> tuple[int | None, ...]:
        """Return the tasks of all N clients in a round (see `task`)."""
        spans = self._spans(round)
        return tuple(spans[course].task for course in self._courses())

    def is_member(self, client: int, round: int) -> bool:
        """Return whether a client is present in a round, sampled or not."""
        span = self._span(client, round)
        return span.first <= round <= span.last

    def participants(self, round: int) -> tuple[int, ...]:
        """Return the clients that take part in a round, ascending."""
        there = [span.first <= round <= span.last for span in self._spans(round)]
        members = range(self.clients) if all(there) else self._whose(there)
        return self.participation.present(members, round)

    def _span(self, client: int, round: int) -> Span:
        return self.course(client)[self.place(client, round)]

    # Per course, not per client: there may be many clients.

    def _spans(self, round: int) -> list[Span]:
        """Return the last begun span of each distinct course."""
        return [course[_place(course, round)] for course in self.courses]

    def _courses(self) -> Sequence[int]:
        return self.course_of or (0,) * self.clients

    def _whose(self, chosen: Sequence[bool]) -> tuple[int, ...]:
        """Return the clients, ascending, whose course is among the chosen."""
        if all(chosen):
            return tuple(range(self.clients))
        if not any(chosen):
            return ()
        return tuple(client for client, course in enumerate(self._courses()) if chosen[course])

    def to_json(self) -> str:
        """Return the schedule as JSON, which `from_json` reads back."""
        clients: list[list[int]] = [[] for _ in self.courses]
        for client, course in enumerate(self._courses()):
            clients[course].append(client)
        courses = [
            {"clients": own, "spans": list(course)} for own, course in zip(clients, self.courses, strict=True)
        ]
        table = {"clients": self.clients, "rounds": self.rounds}
        return json.dumps(table | {"participation": asdict(self.participation), "courses": courses}) + "\n"

    @staticmethod
    def from_json(text: str, *, file: str | None = None) -> Schedule:
        """Return the schedule from `to_json`; other texts raise a `UserError`."""
        try:
            table = parse_json(text)
            if type(table["clients"]) is not int or type(table["rounds"]) is not int:
                raise ValueError("clients and rounds must be integers")
            clients, courses = table["clients"], table["courses"]
            place_of = {c: place for place, course in enumerate(courses) for c in course["clients"]}
            listed = [client for course in courses for client in course["clients"]]
            if not listed or len(listed) != clients or set(listed) != set(range(clients)):
                raise ValueError("every client must have one course")
            return Schedule(
                clients,
                table["rounds"],
                tuple(_read_course(course["spans"]) for course in courses),
                Participation(**table["participation"]),
                () if len(courses) == 1 else tuple(place_of[client] for client in range(clients)),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"not a schedule: {described(error)}", file=file) from error


def _place(course: Course, round: int) -> int:
    return max(bisect_right(course, round, key=lambda span: span.first) - 1, 0)


def _read_course(spans: Sequence[Sequence[int]]) -> Course:
    course = tuple(Span(*span) for span in spans)
    if not course:
        raise ValueError("a course must have a span")
    past = 0
    for span in course:
        if type(span.first) is not int or type(span.last) is not int:
            raise ValueError("rounds must be integers")
        if span.task is not None and (type(span.task) is not int or span.task < 0):
            raise ValueError(f"{span.task!r} is not a task number, which starts at 0")
        if not past < span.first <= span.last:
            raise ValueError(f"the rounds {span.first} to {span.last} do not come after round {past}")
        past = span.last
    return course
