"""Whether a scenario can do without waiting for everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedkd.errors import UserError
from fedkd.plan.capability_table import Case, check_table
from fedkd.scenario.schema import Population, Scenario

if TYPE_CHECKING:
    from fedkd.fusion.strategy import FusionStrategy

KEY = "asynchronous"


def check_asynchronous(scenario: Scenario) -> None:
    """Check rounds that wait for nobody against all else that decides who is there when."""
    asynchronous = scenario.asynchronous
    if asynchronous is None:
        return
    clients, most = scenario.data.clients, asynchronous.concurrency
    mapped = scenario.measure is not None and scenario.measure.transferability is not None
    if most is not None and most > clients:
        raise UserError(f"must be ≤ data.clients ({clients}), got {most}", key=f"{KEY}.concurrency")
    working = clients if most is None else most
    if asynchronous.buffer > working:
        raise UserError(
            f"must be ≤ {working}, the clients that are at work at a time, got {asynchronous.buffer}",
            key=f"{KEY}.buffer",
        )
    for key, is_set, reason in (
        ("continual", scenario.continual is not None, "whose tasks are counted in rounds of all clients"),
        ("clients_per_round", scenario.clients_per_round is not None, "use asynchronous.concurrency"),
        ("finish", scenario.finish != "guided", "as it does not end for all clients at once"),
        ("faults.dropout", scenario.faults.dropout > 0, "in which nobody is waited for in any case"),
        ("faults.on_client_error", scenario.faults.on_client_error == "skip", "use 'fail' or 'retry'"),
        ("faults.on_bad_upload", scenario.faults.on_bad_upload == "drop", "use 'fail'"),
        ("population", scenario.population != Population(), "use asynchronous.concurrency"),
        ("topology.graph", scenario.topology.graph != "star", "whose server nobody waits for"),
        ("measure.transferability", mapped, "in which clients are never all between two rounds"),
        ("fusion.bank", scenario.fusion.bank is not None, "which keeps a bank of knowledge by itself"),
    ):
        if is_set:
            raise UserError(f"not allowed in a run that is asynchronous, {reason}", key=key)


def check_asynchronous_strategy(scenario: Scenario, strategy: FusionStrategy) -> None:
    """Refuse a strategy whose server has to have heard all clients of a round at once."""
    check_table(Case(scenario, strategy), ("asynchronous",))
