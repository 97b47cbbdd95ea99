"""Warnings about clients that learned nothing from their own samples, once for each task."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from flwr.app import Message

from fedkd.federation.messages import records as msg
from fedkd.models import architecture_names
from fedkd.plan import Plan
from fedkd.scenario import task_count
from fedkd.tracking import Recorder, format_percent

AT_CHANCE = "at_chance"
"""Name of the warning."""
NAMED = 3
"""Most clients named in one line."""


class ChanceWatch:
    """Reports clients that end a task or a run at chance; it keeps no state."""

    def __init__(self, plan: Plan, recorder: Recorder) -> None:
        self._plan, self._recorder = plan, recorder

    def look(self, round: int, replies: Mapping[int, Message]) -> str | None:
        """Record clients at chance after their last training on a task; return the warning, if any."""
        at_chance = [client for client, reply in replies.items() if msg.AT_CHANCE in reply.content]
        ending = self._training_no_more(sorted(at_chance), round)
        if not ending:
            return None
        task_of = {client: self._plan.schedule.task(client, round) for client in ending}
        figures: dict[str, float] = {}
        for client, task in task_of.items():
            told: Mapping[str, Any] = replies[client].content.config_records[msg.AT_CHANCE]
            figures = {key: float(told[key]) for key in (msg.ACCURACY, msg.CHANCE)}
            self._recorder.warning(AT_CHANCE, round=round, client=client, task=task, **figures)
        return self._line(round, task_of, figures)

    @cached_property
    def _names(self) -> list[str]:
        return architecture_names(self._plan.groups)

    def _line(self, round: int, task_of: Mapping[int, int | None], figures: Mapping[str, float]) -> str:
        task, *others = set(task_of.values())
        what = "" if task is None else f" on task {task + 1}/{task_count(self._plan.scenario)}"
        if others:
            what = " on their tasks"
        when = f"last training{what} (round {round} of {self._plan.last_round})"
        named = [f"client {client} ({self._names[client]})" for client in task_of]
        if len(named) > 1:
            more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
            return (
                f"warning: after their {when} {len(named)} clients are no better than the majority class on"
                f" their training samples: {', '.join(named[:NAMED])}{more}"
            )
        return (
            f"warning: after its {when} {named[0]} is no better than the majority class on its training"
            f" samples: {format_percent(figures[msg.ACCURACY])} are right,"
            f" {format_percent(figures[msg.CHANCE])} are of the majority class"
        )

    def _training_no_more(self, clients: list[int], round: int) -> list[int]:
        """Return the clients, ascending, that do not train on their present task again."""
        schedule, rounds = self._plan.schedule, self._plan.scenario.rounds
        if round < self._plan.last_round and self._plan.last_round > rounds:
            return []  # all clients train once more at the end
        waiting, ending = set(clients), set()
        for later in range(round + 1, rounds + 1):
            moved_on = {c for c in waiting if schedule.task(c, later) != schedule.task(c, round)}
            ending |= moved_on
            waiting -= moved_on
            if not waiting:
                break
            waiting -= set(schedule.participants(later))
        return sorted(ending | waiting)
