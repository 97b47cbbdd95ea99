"""KKT: a new task starts from the scores of the most suitable old mask.

k-NN knowledge transfer of Yadav and Bansal, "Exclusive Supermask Subnetwork Training for Continual Learning",
2022, arXiv 2210.10209.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.masks.mask_memory import MaskState

REFERENCE_SHARE = 0.66
QUERIES_AT_ONCE = 512


def knn_accuracy(
    reference: Tensor, labels: Tensor, queries: Tensor, answers: Tensor, neighbours: int, classes: int
) -> float:
    """Return the accuracy of k-NN for queries `[m, F]` with references `[n, F]`.

    At most n neighbours vote, by Euclidean distance. Ties go to the first reference and the lowest label.
    """
    k = min(neighbours, len(reference))
    votes_of = torch.nn.functional.one_hot(labels, classes)
    correct = 0
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        asked = queries[start : start + QUERIES_AT_ONCE].double()
        distances = torch.cdist(asked, reference.double())
        nearest = distances.argsort(dim=1, stable=True)[:, :k]
        chosen = votes_of[nearest].sum(dim=1).argmax(dim=1)
        correct += int((chosen == answers[start : start + QUERIES_AT_ONCE]).sum())
    return correct / len(queries)


def sample_batches(count: int, batch_size: int, share: float, generator: torch.Generator) -> Tensor:
    """Return the positions of a `share` of the batches of `count` samples, at least one batch, shuffled."""
    batches = -(-count // batch_size)
    wanted = max(1, round(share * batches)) * batch_size
    return torch.randperm(count, generator=generator)[:wanted]


def accuracies(
    features: Callable[[int, Tensor], Tensor],
    candidates: Sequence[int],
    x: Tensor,
    y: Tensor,
    *,
    neighbours: int,
    classes: int,
) -> list[float]:
    """Return the k-NN accuracy on features of each candidate's mask; empty: too few samples.

    `features` maps an old task and shuffled new samples x `[n, *input_shape]` to penultimate features `[n,
    F]`. The first 66 % are the reference.
    """
    split = round(REFERENCE_SHARE * len(x))
    if not 0 < split < len(x):
        return []
    made = (features(task, x) for task in candidates)
    return [knn_accuracy(f[:split], y[:split], f[split:], y[split:], neighbours, classes) for f in made]


def best(candidates: Sequence[int], found: Sequence[float], classes: int) -> int | None:
    """Return the first candidate of highest accuracy, if it beats 1/C; else None."""
    highest = max(found, default=0.0)
    return candidates[list(found).index(highest)] if highest > 1.0 / classes else None


def lender(
    context: LearnerContext,
    slot: int,
    candidates: Sequence[int],
    features: Callable[[int, Tensor], Tensor],
    *,
    neighbours: int,
    share: float,
) -> int | None:
    """Return the candidate that lends its scores to a mask, or None; store all accuracies."""
    x, y = context.samples()
    if not candidates or not len(x):
        return None
    order = sample_batches(len(x), context.batch_size, share, context.generator("kkt", slot)).to(x.device)
    classes = len(context.units[context.task])
    found = accuracies(features, candidates, x[order], y[order], neighbours=neighbours, classes=classes)
    if not found:
        return None
    chosen = best(candidates, found, classes)
    state = MaskState(context)
    state.kkt[slot] = torch.tensor(-1 if chosen is None else chosen, device=context.device)
    state.kkt_accuracies[slot] = torch.tensor(found, dtype=torch.float64, device=context.device)
    return chosen
