"""`bandit`: every client tries teachers, and returns to those with larger gains.

The paper's policy is a recurrent network; here it is a softmax over clients.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Guidance, Kind, Knowledge, LocalObjective, softmax
from fedkd.fusion.capabilities import TAUGHT, Capabilities
from fedkd.fusion.distillation.competence import held_out_accuracy
from fedkd.fusion.distillation.soft_labels import TemperedLabels
from fedkd.fusion.math.client_index import Roster, enrol
from fedkd.fusion.math.combine import combine
from fedkd.fusion.views import Arrays, ClientView, Distillation
from fedkd.plugins import hyperparameters
from fedkd.randomness import numpy_generator

REWARD = "reward"
BEFORE = "accuracy_before"
DECAY = 0.9
"""Of the running mean and variance of a client's rewards."""


@hyperparameters
class Bandit(LocalObjective, TemperedLabels):
    """Draw one teacher for each client and round, and learn from what came of it whom to draw.

    ::

        π_n    = (1 − ε) softmax θ_n + ε / N                   over the round's clients, n itself among them
        a ~ π_n;   K_n[i] = w q_n[i] + (1 − w) q_a[i]
        r      = accuracy after K_n was learned − before, on own samples kept apart; sent with the next upload
        θ_n   ← θ_n + η (r − b_n) / s_n · (1_a − π_n)          b, s: running mean and deviation of rewards

    Nothing is assumed about similarity: a teacher is as good as its effect. Clients find out a poisoned one
    draw by draw: N clients need several times N rounds. Samples kept apart are not trained on, which can
    cost a small client more than it learns from them.
    """

    name: ClassVar[str] = "bandit"
    paper: ClassVar[str] = "after Fu et al., Reinforcement-based Meta-Transfer Learning, arXiv 2409.19075"

    step: Annotated[float, Field(ge=0, le=1e6)] = 0.5
    """η: how far a round's reward moves a client's policy. Larger finds good teachers sooner, or the wrong
    ones: a single round's gain on few samples is mostly chance."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.1
    """ε: share of uniform draws, so that no client is given up; 1 draws uniformly."""
    own: Annotated[float, Field(ge=0, le=1)] = 0.5
    """w: what a client's own prediction counts in its target."""
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of a client's training samples that it keeps apart for the reward."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Temperature T of targets and of the loss."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            sends="logits, and what the last guidance gained",
            kinds={"logits": Kind.TRANSFER_LOGITS, REWARD: Kind.SCORES},
            shapes={REWARD: "1?"},
            receives=TAUGHT,
            guides="each",
            held_out_share=self.held_out_share,
        )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return K `[N, M, C]`; the weights `[N, N]` show each client's draw."""
        assert knowledge.logits is not None
        roster = enrol(memory, knowledge.clients)
        kept = _recall(memory, roster)
        chosen = []
        has_come = knowledge.has_come
        for row, (client, place) in enumerate(zip(knowledge.clients, roster.present, strict=True)):
            if not has_come[row]:  # a client that receives nothing draws no teacher
                chosen.append(row)
                continue
            sent = knowledge.payload[REWARD][row]
            if len(sent) and kept["teacher"][place] >= 0:
                self._learn(kept, place, float(np.clip(sent[0], -1.0, 1.0)))
            policy = self._policy(kept["theta"][place, roster.present])
            generator = numpy_generator(knowledge.seed, "teacher", client=client, round=knowledge.round)
            chosen.append(int(generator.choice(len(policy), p=policy)))
            kept["teacher"][place] = knowledge.clients[chosen[row]]
            kept["policy"][place] = 0.0
            kept["policy"][place, roster.present] = policy
        q = softmax(knowledge.logits, self.temperature)
        weights = self.own * np.eye(len(q))
        weights[np.arange(len(q)), chosen] += 1.0 - self.own
        return Guidance(combine(weights, q), weights, kept, mixed=q)

    def _policy(self, theta: np.ndarray) -> np.ndarray:
        """Return π over the clients of these θ, `[N]`."""
        powers = np.exp(theta - theta.max())
        policy = (1.0 - self.floor) * powers / powers.sum() + self.floor / len(theta)
        return policy / policy.sum()

    def _learn(self, kept: dict[str, np.ndarray], place: int, reward: float) -> None:
        """Move a client's policy by its last teacher's gain."""
        gained, *kept["moments"][place] = advantage(reward, *kept["moments"][place])
        toward = (kept["clients"] == kept["teacher"][place]) - kept["policy"][place]
        kept["theta"][place] += self.step * gained * toward
        kept["teacher"][place] = -1

    def apply(self, client: ClientView, guidance: Arrays) -> Distillation | None:
        """Store the held-out accuracy before distillation, and learn."""
        client.memory[BEFORE] = held_out_accuracy(client)
        return super().apply(client, guidance)

    def before_training(self, client: ClientView) -> None:
        """Measure the gain of the last guidance."""
        if BEFORE in client.memory:
            client.memory[REWARD] = held_out_accuracy(client) - client.memory.pop(BEFORE)

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return logits and the reward `[1]`, or `[0]` where no guidance has come since the last one."""
        reward = client.memory.pop(REWARD, np.empty(0, dtype=np.float32))
        return super().upload(client) | {REWARD: reward}


def advantage(reward: float, mean: float, variance: float, count: float) -> tuple[float, float, float, float]:
    """Return ``(r − b) / s``, and the updated moments of a client's rewards.

    b and s are exponential averages of earlier rewards and of squared deviations, this one's included, with
    Adam's bias correction; before the first reward b is 0. Moments are the uncorrected averages and a count.
    """
    apart = reward - (mean / (1.0 - DECAY**count) if count else 0.0)
    count += 1
    mean = DECAY * mean + (1.0 - DECAY) * reward
    variance = DECAY * variance + (1.0 - DECAY) * apart**2
    deviation = np.sqrt(variance / (1.0 - DECAY**count))
    return (apart / deviation if deviation > 0.0 else 0.0), mean, variance, count


def _recall(memory: Mapping[str, np.ndarray], roster: Roster) -> dict[str, np.ndarray]:
    """Return the memory of all clients seen, K: `policy` and `teacher` are those of the last draw.

    Teacher −1: none, or its reward is known. Moments are those of `advantage`.
    """
    everyone = len(roster.clients)
    kept = {
        "clients": roster.clients,
        "theta": np.zeros((everyone, everyone)),
        "policy": np.zeros((everyone, everyone)),
        "teacher": np.full(everyone, -1, dtype=np.int64),
        "moments": np.zeros((everyone, 3)),
    }
    if len(roster.known):
        for name in ("theta", "policy"):
            kept[name][np.ix_(roster.known, roster.known)] = memory[name]
        for name in ("teacher", "moments"):
            kept[name][roster.known] = memory[name]
    return kept
