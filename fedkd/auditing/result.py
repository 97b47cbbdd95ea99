"""The result of an audit, for scripts and `audit.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedkd.auditing.roc import Bounds, Curve

AUDIT_FILE = "audit.json"


@dataclass(frozen=True)
class LabelGuess:
    """Distances between guessed and true class shares, by client.

    `variation` is the total variation in [0, 1], `divergence` KL(p ‖ p̂) in nats; 0 is a perfect guess.
    """

    variation: Mapping[int, float]
    divergence: Mapping[int, float]

    @property
    def mean(self) -> float:
        return sum(self.variation.values()) / len(self.variation)

    @property
    def worst_client(self) -> int:
        """The client whose shares were guessed best."""
        return min(self.variation, key=lambda client: self.variation[client])


@dataclass(frozen=True, eq=False)
class Attack:
    """A membership attack on all audited clients together, and on each.

    Attributes:
        auc: Area under the ROC curve with its bootstrap interval; 0.5 is chance.
        advantage: Largest TPR − FPR.
        tpr: True positive rates by false positive rate, with Clopper–Pearson intervals.
        epsilon: Lower bound of the ε of (ε, δ)-differential privacy, at 95 % confidence.
        by_client: Area of each client.
        queries: Answers that the server needs of one sample.
    """

    auc: Bounds
    advantage: float
    tpr: Mapping[float, Bounds]
    epsilon: float
    by_client: Mapping[int, float]
    queries: int
    curve: Curve

    @property
    def worst_client(self) -> int:
        """The client with the largest area."""
        return max(self.by_client, key=lambda client: self.by_client[client])


@dataclass(frozen=True, eq=False)
class AuditResult:
    """What the uploads of a round tell about labels and membership.

    Attributes:
        uploads: Kinds of the uploaded arrays.
        labels: Guesses of class shares by method; `uniform` is the guess without an upload.
        membership: Attacks by name; empty if the server gets no answers on samples of its choice.
        skipped: Reasons why attacks are missing, by name.
    """

    folder: Path
    round: int
    seed: int
    strategy: str
    uploads: tuple[str, ...]
    clients: tuple[int, ...]
    members: int
    non_members: int
    delta: float
    labels: Mapping[str, LabelGuess]
    membership: Mapping[str, Attack]
    skipped: Mapping[str, str]

    def table(self) -> dict[str, Any]:
        """Return the content of `audit.json`."""
        return {
            "round": self.round,
            "seed": self.seed,
            "strategy": self.strategy,
            "uploads": list(self.uploads),
            "clients": list(self.clients),
            "members": self.members,
            "non_members": self.non_members,
            "delta": self.delta,
            "labels": {
                name: {
                    "mean": found.mean,
                    "worst_client": found.worst_client,
                    "total_variation": _by_text(found.variation),
                    "divergence": _by_text(found.divergence),
                }
                for name, found in self.labels.items()
            },
            "membership": {name: _attack_table(found) for name, found in self.membership.items()},
            "skipped": dict(self.skipped),
        }

    def lines(self) -> Iterator[str]:
        """Yield the result in lines for a terminal."""
        yield f"round {self.round} of {self.strategy}: {', '.join(self.uploads)}; {len(self.clients)} clients"
        yield ""
        yield f"{'label mix':<14}{'total variation':>16}{'best guessed':>22}"
        for name, guess in self.labels.items():
            worst = f"{guess.variation[guess.worst_client]:.3f} (client {guess.worst_client})"
            yield f"{name:<14}{guess.mean:>16.3f}{worst:>22}"
        if self.membership:
            yield ""
            yield f"{'membership':<14}{'AUC':>22}{'TPR at 1 % FPR':>24}{'ε ≥':>7}{'worst client':>20}"
        for name, attack in self.membership.items():
            auc, at = attack.auc, attack.tpr[0.01]
            worst = f"{attack.by_client[attack.worst_client]:.3f} (client {attack.worst_client})"
            area = f"{auc.value:.3f} ({auc.low:.3f}–{auc.high:.3f})"
            rate = f"{at.value:.3f} ({at.low:.3f}–{at.high:.3f})"
            yield f"{name:<14}{area:>22}{rate:>24}{attack.epsilon:>7.2f}{worst:>20}"
        for name, why in self.skipped.items():
            yield f"{name}: left out, {why}"


def _attack_table(found: Attack) -> dict[str, Any]:
    curve = found.curve.thinned()
    return {
        "auc": asdict(found.auc),
        "advantage": found.advantage,
        "tpr_at_fpr": {f"{fpr:g}": asdict(rate) for fpr, rate in found.tpr.items()},
        "epsilon": found.epsilon,
        "queries": found.queries,
        "worst_client": found.worst_client,
        "auc_by_client": _by_text(found.by_client),
        "roc": {"fpr": curve.fpr.tolist(), "tpr": curve.tpr.tolist()},
    }


def _by_text(values: Mapping[int, float]) -> dict[str, float]:
    return {str(client): value for client, value in values.items()}
