"""Audit a run: attacks of a curious server on the uploads of a round."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from fedkd.auditing import label_mix
from fedkd.auditing.candidates import Candidates, draw_candidates
from fedkd.auditing.observation import Observation, observe
from fedkd.auditing.result import AUDIT_FILE, Attack, AuditResult, LabelGuess
from fedkd.auditing.roc import area, area_bounds, epsilon_bound, roc_curve, tpr_bounds
from fedkd.auditing.scores import correctness, log_odds, translations
from fedkd.errors import UserError, refuse_if
from fedkd.fusion import Kind, softmax
from fedkd.randomness import numpy_generator
from fedkd.storage import expand_path, write_json_atomically
from fedkd.tracking import lock_run_folder

FEWEST_FOR_RARE = 1000
"""Fewest non-members for a TPR at 0.1 % FPR."""
NO_ANSWERS = "the server gets no prediction of samples of its choice from these uploads"


def audit(
    folder: str | Path,
    *,
    round: int | None = None,
    samples: int = 500,
    delta: float = 1e-5,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> AuditResult:
    """Attack the uploads of a round as a curious server, and write `audit.json` into the run folder.

    The clients train the round once more, from the last checkpoint before it. The run's files stay as they
    are. Every draw derives from the seed.

    Args:
        round: Round of the uploads; absent: the last.
        samples: Most members of each client; as many non-members are drawn.
        delta: δ of the bound of ε.
        progress: Receives lines about the work.

    Raises:
        UserError: Not a run folder, or a run without such uploads.
    """
    if not isinstance(folder, str | os.PathLike):
        raise UserError(f"the run folder must be a path, got {folder!r}")
    for key, value, least in (("--samples", samples, 1), ("--seed", seed, 0)):
        wrong = not isinstance(value, int) or isinstance(value, bool) or value < least
        refuse_if(wrong, f"must be a whole number ≥ {least}, got {value!r}", key)
    refuse_if(not 0.0 <= delta < 1.0, f"must be in 0 … 1, got {delta!r}", "--delta")
    path = expand_path(folder).absolute()
    tell = progress or (lambda line: None)
    seen = observe(path, round, tell)
    labels = guess_labels(seen)
    drawn = {
        client: found
        for client, own in seen.clients.items()
        if len(found := draw_candidates(own, seen.data, samples, seed))
    }
    scores, skipped = membership_scores(seen, drawn, tell)
    attacks = {}
    for name, (of_client, queries) in scores.items():
        tell(f"measuring attack {name}")
        attacks[name] = _measured(of_client, drawn, queries, delta, seed)
    kinds = {kind.name.lower(): None for client in seen.uploads for kind in seen.kinds(client).values()}
    members = sum(int(found.member.sum()) for found in drawn.values())
    result = AuditResult(
        folder=path,
        round=seen.round,
        seed=seed,
        strategy=seen.plan.scenario.fusion.strategy,
        uploads=tuple(kinds),
        clients=tuple(seen.uploads),
        members=members,
        non_members=sum(map(len, drawn.values())) - members,
        delta=delta,
        labels=labels,
        membership=attacks,
        skipped=skipped,
    )
    with lock_run_folder(path):
        write_json_atomically(path / AUDIT_FILE, result.table())
    return result


def guess_labels(seen: Observation) -> dict[str, LabelGuess]:
    """Return the guesses of class shares that the uploads allow, by method, with the uniform one."""
    classes, clients = seen.data.classes, list(seen.uploads)
    truth = seen.data.label_distribution()
    guesses: dict[str, dict[int, np.ndarray]] = {
        "uniform": dict.fromkeys(clients, np.full(classes, 1.0 / classes))
    }
    known = {client: seen.predictions(client) for client in clients}
    found = {client: softmax(logits) for client, logits in known.items() if logits is not None}
    if len(found) == len(clients):
        guesses |= label_mix.from_predictions(found)
    counts = {client: seen.of_kind(client, Kind.LABEL_COUNTS) for client in clients}
    whole = {c: own for c, own in counts.items() if own is not None and own.shape == (classes,)}
    if len(whole) == len(clients):
        guesses["counts"] = {
            client: label_mix.normalised(own.astype(np.float64)) for client, own in whole.items()
        }
    return {
        name: LabelGuess(
            {client: label_mix.total_variation(truth[client], own) for client, own in of_client.items()},
            {client: label_mix.divergence(truth[client], own) for client, own in of_client.items()},
        )
        for name, of_client in guesses.items()
    }


Scores = Mapping[int, np.ndarray]
"""Scores `[S]` of a client's candidates, by client."""


def membership_scores(
    seen: Observation, drawn: Mapping[int, Candidates], tell: Callable[[str], None]
) -> tuple[dict[str, tuple[Scores, int]], dict[str, str]]:
    """Return the scores and queries of each attack by name, and why others are left out."""
    answers: dict[int, np.ndarray] = {}
    shifted: dict[int, np.ndarray] = {}
    images = len(seen.data.input_shape) == 3
    for done, (client, found) in enumerate(drawn.items(), start=1):
        tell(f"asking client {client} ({done} of {len(drawn)})")
        own = seen.answers(client, found.x)
        if own is None:
            return {}, {"membership": NO_ANSWERS}
        answers[client] = own
        if images:
            views = translations(found.x)
            again = seen.answers(client, views.reshape(-1, *found.x.shape[1:]))
            assert again is not None
            right = correctness(again, np.tile(found.y, len(views)))
            shifted[client] = right.reshape(len(views), -1).mean(axis=0)
    if not drawn:
        return {}, {"membership": "no client has samples of a class on both sides"}
    scores: dict[str, tuple[Scores, int]] = {
        "loss": ({client: log_odds(own, drawn[client].y) for client, own in answers.items()}, 1),
        "gap": ({client: correctness(own, drawn[client].y) for client, own in answers.items()}, 1),
    }
    if images:
        scores["label"] = (shifted, 5)
    return scores, {} if images else {"label": "samples are no images, which it shifts"}


def _measured(
    scores: Scores, drawn: Mapping[int, Candidates], queries: int, delta: float, seed: int
) -> Attack:
    """Return the figures of an attack; candidates of all clients count together."""
    ours = np.concatenate([own[drawn[client].member] for client, own in scores.items()])
    theirs = np.concatenate([own[~drawn[client].member] for client, own in scores.items()])
    rates = [0.01, *([0.001] if len(theirs) >= FEWEST_FOR_RARE else [])]
    curve = roc_curve(ours, theirs)
    return Attack(
        auc=area_bounds(ours, theirs, numpy_generator(seed, "audit-bootstrap")),
        advantage=curve.advantage,
        tpr={fpr: tpr_bounds(ours, theirs, fpr) for fpr in rates},
        epsilon=epsilon_bound(ours, theirs, delta, numpy_generator(seed, "audit-halves")),
        by_client={
            client: area(own[drawn[client].member], own[~drawn[client].member])
            for client, own in scores.items()
        },
        queries=queries,
        curve=curve,
    )
