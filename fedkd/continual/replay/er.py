"""Experience replay: keep training on a few samples of earlier tasks."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.fast_steps import FastSteps
from fedkd.continual.learner import Learner, Step
from fedkd.continual.replay import buffer as episodes
from fedkd.plugins import hyperparameters


@hyperparameters
class ExperienceReplay(FastSteps, Learner):
    """Add samples of earlier tasks to every batch.

    ::

        L = mean of CE over the B new samples             the training loss, or that of guidance
        M = mean of CE over R samples drawn from memory   each among its own task's units
        samples:  (B·L + R·M) / (B + R)
        tasks:    L / t + (1 − 1/t) · M                   t-th task
        sum:      L + M

    The memory has `memory_size` samples, equally many of each task so far and of each class of a task. It is
    filled at the end of a task; the paper fills it during training. Replay starts with the second task.
    Samples never leave the client.
    """

    name: ClassVar[str] = "er"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Chaudhry et al., On Tiny Episodic Memories in Continual Learning, arXiv 1902.10486, 2019"
    )
    source_note: ClassVar[str] = "the memory is equal by class and filled when a task ends"

    memory_size: Annotated[int, Field(ge=0)] = 1000
    """Samples kept of all tasks together. A few for every class of every task go a long way; more help more,
    and cost their bytes. 0 trains like `naive`."""
    replay_batch_size: Annotated[int, Field(ge=1)] | None = None
    """R: remembered samples in a step; absent: the training batch size, as in the paper. Raise it if early
    tasks are forgotten; a step's cost grows with B + R."""
    mix: Literal["samples", "tasks", "sum"] = "samples"
    """Weights of old and new losses. `samples` is the mean over one joint batch, as in the paper. `tasks`
    gives every task equal weight, so old ones count more with each task (van de Ven et al., Three Types of
    Incremental Learning, 2022). `sum` keeps the new loss as it is, and takes larger steps."""

    def draw(self, context: LearnerContext) -> Sequence[Tensor]:
        """Return remembered samples for the next step; none if nothing is remembered."""
        return episodes.draw(context, self.replay_batch_size) or ()

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return the correction of the new loss, ``share · (M − L)``, or M for the sum."""
        episode = episodes.drawn(context, self.replay_batch_size)
        if episode is None:
            return None
        replayed = episodes.replay_loss(context, episode)
        if self.mix == "sum":
            return replayed
        if self.mix == "tasks":
            share = context.task / (context.task + 1)
        else:
            share = len(episode.tasks) / (len(step.inputs) + len(episode.tasks))
        return share * (replayed - step.loss)

    def end_task(self, context: LearnerContext) -> None:
        episodes.remember(context, self.memory_size)
