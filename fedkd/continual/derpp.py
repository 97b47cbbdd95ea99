"""Dark Experience Replay++: stored samples are held by their logits, and trained on by their labels."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedkd.continual import reservoir
from fedkd.continual.context import LearnerContext
from fedkd.continual.der import DER
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class DERpp(DER):
    """Train on stored samples, as well as keeping their logits where they were.

    ::

        penalty = α · mean of (z' − z(x'))²  +  β · mean of CE(y'', x'')

    x', z' and x'', y'' are two draws from the same memory, which is that of `der`; the cross entropy of a
    sample is among its own task's units. Labels correct logits of moments at which little was known yet, from
    which `der` suffers where distributions change suddenly. β = 0 is `der`.
    """

    name: ClassVar[str] = "der++"

    beta: Annotated[float, Field(ge=0)] = 0.5
    """β; 0.5 to 1 in the paper: how much a stored sample counts beside a new one."""

    def replay(self, context: LearnerContext) -> Tensor | None:
        """Return the loss of stored samples, a scalar; None: there are none."""
        held = super().replay(context)
        if held is None or self.beta == 0:
            return held
        kept = reservoir.draw(context, self.replay_batch_size)
        assert kept is not None
        outputs = context.run(kept.samples)
        return held + self.beta * context.cross_entropy(outputs, kept.labels, kept.tasks)
