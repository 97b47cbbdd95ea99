"""How long a run on Ray will take, from what its parts take.

One process, the server's, sends every message and takes every reply, one after the other; the actors work on
them side by side. So a phase of a round takes as long as the slower of the two:

    phase(n, w) = max(n · message, n / actors · w) + w

with n clients and w seconds of an actor's for each. The last term is the last client, whom nobody works
beside. A round is a training, a fusion and, every so often, an evaluation and a checkpoint:

    round = phase(per_round, train) + fuse + phase(evaluated, evaluate) / evaluate_every
            + phase(min(clients, per_round · checkpoint_every), save) / checkpoint_every

and a run

    run = start + clients · message + rounds · round

as every client is asked once, in the beginning, who it is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parts:
    """What the parts of a round take, in seconds.

    Attributes:
        message: Of the server's process, for a message and its reply.
        train: Of an actor, for one client's training message, guidance included.
        evaluate: Of an actor, for one client's evaluation.
        save: Of an actor, for handing over one client's state.
        fuse: Of the server's process, for a fusion.
        start: Until the actors are up and the data are there.
    """

    message: float
    train: float
    evaluate: float
    save: float = 0.0
    fuse: float = 0.0
    start: float = 0.0


@dataclass(frozen=True)
class RunSize:
    """How large a run is.

    Attributes:
        clients: All of them.
        per_round: Those that are trained in a round.
        evaluated: Those that are evaluated.
        rounds: Rounds.
        actors: Actors, each with a core, or a share of a GPU, of its own.
        evaluate_every: Rounds from one evaluation to the next.
        checkpoint_every: Rounds from one checkpoint to the next.
    """

    clients: int
    per_round: int
    evaluated: int
    rounds: int
    actors: int
    evaluate_every: int = 1
    checkpoint_every: int = 1


@dataclass(frozen=True)
class Forecast:
    """How long a run takes.

    Attributes:
        train: Seconds of a round's training.
        evaluate: Seconds of an evaluation, in the rounds that have one.
        save: Seconds of a checkpoint, in the rounds that have one.
        round: Seconds of a round, the last two spread over all of them.
        run: Seconds of the run.
        busy: Share of a round's training that actors are at work, in [0, 1]: what more of them could gain.
    """

    train: float
    evaluate: float
    save: float
    round: float
    run: float
    busy: float


def forecast(parts: Parts, size: RunSize) -> Forecast:
    """Return how long a run takes (see the module).

    Actors are taken to be equally fast, and to have equally much to do.

    Raises:
        ValueError: There is no actor, or no client to train.
    """
    if size.actors < 1 or size.per_round < 1:
        raise ValueError("there has to be an actor, and a client that is trained")
    train = _phase(size.per_round, parts.train, parts.message, size.actors)
    evaluate = _phase(size.evaluated, parts.evaluate, parts.message, size.actors)
    changed = min(size.clients, size.per_round * size.checkpoint_every)
    save = _phase(changed, parts.save, parts.message, size.actors)
    a_round = train + parts.fuse + evaluate / size.evaluate_every + save / size.checkpoint_every
    run = parts.start + size.clients * parts.message + size.rounds * a_round
    busy = size.per_round * parts.train / (min(size.actors, size.per_round) * train) if train else 0.0
    return Forecast(train, evaluate, save, a_round, run, busy)


def _phase(clients: int, work: float, message: float, actors: int) -> float:
    return max(clients * message, clients / actors * work) + work if clients else 0.0
