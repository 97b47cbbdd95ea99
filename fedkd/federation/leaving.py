"""What may leave a deployed node: what its strategy sends, figures, and nothing else.

A simulator may ask a client for anything. A node answers a server that is somebody else's, so that what it
says is held against the node's own scenario before it goes out.
"""

from __future__ import annotations

from flwr.app import RecordDict

from fedkd.clients.fewer_numbers import CLASSES, SENT, WIDTH
from fedkd.errors import UserError
from fedkd.federation import messages as msg
from fedkd.federation.arrays import from_record
from fedkd.fusion.forms import is_declared
from fedkd.plan.plan import Plan

ASKED_IN_SIMULATIONS = frozenset({msg.EXPORT_STATE, msg.IMPORT_STATE, msg.SHOW, msg.TRY_OUT})
"""Messages that are for a simulation's checkpoints, which move a client's whole state, its model among it;
and for what it measures for itself, with predictions that clients would not exchange."""
FIGURES = frozenset({msg.IDENTITY, msg.METRICS, msg.CURVES, msg.AT_CHANCE, msg.LEARNER})
"""Records of numbers about a client."""


def refuse_to_answer(kind: str) -> None:
    """Refuse a message that a deployed client answers to nobody.

    Raises:
        UserError: It is for simulations.
    """
    if kind in ASKED_IN_SIMULATIONS:
        raise UserError(f"a deployed client keeps its state to itself; '{kind}' is for simulations")


def check_leaving(plan: Plan, kind: str, content: RecordDict) -> None:
    """Refuse to send what the strategy does not exchange.

    Args:
        plan: The node's own.

    Raises:
        UserError: There is something else in it.
    """
    for name in content:
        if name != msg.ARRAYS and name not in FIGURES:
            raise UserError(f"'{name}' is not for others to see: no strategy exchanges it")
    arrays = from_record(content.array_records.get(msg.ARRAYS, {}))  # type: ignore[arg-type]
    if not arrays:
        return
    strategy = plan.scenario.fusion.strategy
    if kind == msg.END_TASK and plan.scenario.fusion.orthogonal is not None:
        return  # sketches of what layers receive, which is what it exchanges
    if kind != msg.TRAIN or plan.strategy.sends == "nothing":
        raise UserError(f"'{strategy}' exchanges no arrays upon a '{kind}' message: {', '.join(arrays)}")
    if not is_declared(plan.strategy):
        return
    for name in arrays:
        stages = name == SENT or name.endswith((CLASSES, WIDTH))
        if name not in plan.strategy.kinds and not stages:
            raise UserError(f"'{strategy}' exchanges no array '{name}'")
