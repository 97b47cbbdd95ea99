"""Trials of pairwise transfer: copies of a client that learn from one sender each.

The client itself is not trained, and its own draws stay the same.
"""

import copy
from functools import partial
from math import nan

import numpy as np
from torch import nn

from fedkd.clients.client import Client
from fedkd.clients.evaluation.fusion_effect import SPLITS
from fedkd.fusion import INITIAL_PREDICTION, Arrays, Kind, mean_prediction
from fedkd.training import Training, score

LOGITS_KEY = "logits"
TRIAL_UPLOAD_KINDS = {LOGITS_KEY: Kind.TRANSFER_LOGITS, INITIAL_PREDICTION: Kind.UNTRAINED}


def trial_knowledge(client: Client, round: int) -> dict[str, np.ndarray]:
    """Return a client's knowledge for trials after local training and all upload stages.

    `logits` are `[M, C]` on the transfer set, `start` is the initial mean prediction `[C]`.
    """
    x, trainer = client.data.transfer_x, client.networks
    start = mean_prediction(trainer.logits_of(trainer.fresh(), x))
    return client.sent({LOGITS_KEY: client.predict(x), INITIAL_PREDICTION: start}, TRIAL_UPLOAD_KINDS, round)


def run_trials(client: Client, probabilities: np.ndarray, epochs: int, round: int) -> Training[Arrays]:
    """Let a copy of a client learn from each sender alone, on the same batches in the same order.

    The senders' `probabilities` are `[N, M, C]` float32.

    Returns:
        `gains`: Gains of accuracy on the local and on the common test set, `[N, 2]` float64 (NaN without
            samples).
        `answers`: The copies' class of each transfer sample, `[N, M]` int32.
    """
    trainer = client.networks
    before = _accuracies(client, trainer.network)
    gains, answers = [], []
    for of_sender in probabilities:
        model = copy.deepcopy(trainer.network)
        yield trainer.jobs.trial_of_sender(model, of_sender, epochs, round)
        gains.append(_accuracies(client, model) - before)
        answers.append(trainer.logits_of(model, client.data.transfer_x).argmax(axis=1).astype(np.int32))
    return {"gains": np.stack(gains), "answers": np.stack(answers)}


def _accuracies(client: Client, model: nn.Module) -> np.ndarray:
    """Return a model's accuracy on the local and on the common test set, `[2]`."""
    data, found = client.data, []
    tests = {"local": (data.test_x, data.test_y), "global": (data.global_x, data.global_y)}
    for split in SPLITS:
        x, y = tests[split]
        logits, _ = client.evaluator.leaning(partial(client.networks.logits_of, model), x)
        found.append(score(logits, y).accuracy if len(y) else nan)
    return np.array(found)
