"""Samples whose membership is asked: training samples of a client, and others that are like them."""

from dataclasses import dataclass

import numpy as np

from fedkd.clients import Client
from fedkd.data import FederatedData, replace_labels
from fedkd.randomness import numpy_generator


@dataclass(frozen=True, eq=False)
class Candidates:
    """Samples `[S, *input_shape]`, normalised, their labels `[S]`, and `[S]` bool: trained on or not."""

    x: np.ndarray
    y: np.ndarray
    member: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


def draw_candidates(client: Client, data: FederatedData, most: int, seed: int) -> Candidates:
    """Return at most `most` members of a client and as many non-members, class by class equally many.

    Members are samples that the client trains on. Non-members are its local test samples, and samples of the
    common test set unless the client's samples look different (`heterogeneity`, owners). Non-members have
    labels as noisy as those of members.
    """
    generator = numpy_generator(seed, "audit-candidates", client=client.index)
    ours_x, ours_y = client.samples.trained_on(0)
    own, skew = client.data, data.skew[client.index] if data.skew else None
    theirs_x, theirs_y = own.test_x, own.test_y
    if not data.owners and (skew is None or not (skew.angle or skew.noise or skew.colour)):
        theirs_x, theirs_y = (
            np.concatenate([theirs_x, own.global_x]),
            np.concatenate([theirs_y, own.global_y]),
        )
    if skew is not None and skew.label_noise and len(theirs_y):
        theirs_y = replace_labels(theirs_y, data.classes, skew.label_noise, generator)
    ours, theirs = generator.permutation(len(ours_y)), generator.permutation(len(theirs_y))
    counts = [np.bincount(y, minlength=data.classes) for y in (ours_y, theirs_y)]
    take = _at_most(np.minimum(*counts), most)
    chosen = [_first_of_each(y, order, take) for y, order in ((ours_y, ours), (theirs_y, theirs))]
    return Candidates(
        np.concatenate([ours_x[chosen[0]], theirs_x[chosen[1]]]),
        np.concatenate([ours_y[chosen[0]], theirs_y[chosen[1]]]),
        np.repeat([True, False], [len(chosen[0]), len(chosen[1])]),
    )


def _at_most(counts: np.ndarray, most: int) -> np.ndarray:
    """Return counts `[C]` with a sum of at most `most`, in about the same proportions."""
    if (total := counts.sum()) <= most:
        return counts
    kept = counts * most // total
    missing = np.argsort(kept - counts * most / total, kind="stable")[: most - kept.sum()]
    kept[missing] += 1
    return kept


def _first_of_each(labels: np.ndarray, order: np.ndarray, take: np.ndarray) -> np.ndarray:
    """Return the first `take` `[C]` samples of each class in an order, ascending."""
    of_class = [order[labels[order] == label][:number] for label, number in enumerate(take)]
    return np.sort(np.concatenate(of_class))
