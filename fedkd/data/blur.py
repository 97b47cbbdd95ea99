"""Blurry streams: some samples of every task come while another one is being learned.

"Blurry-M" of Bang et al., "Rainbow Memory: Continual Learning with a Memory of Diverse Samples", CVPR 2021,
arXiv 2103.17230: M % of a task's samples are of the classes of other tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedkd.data.federated import ClientData
from fedkd.randomness import numpy_generator


def blurred(tasks: Sequence[ClientData], task: int, share: float, *, seed: int, client: int) -> ClientData:
    """Return a client's task with some samples of all its other tasks, which get as many of its own.

    Every training sample is in one task. Test samples and the transfer set are the task's own, as they were.

    Args:
        tasks: All of the client's tasks T, with labels that mean the same in each.
        task: Which of them.
        share: Of every task's training samples that come with the others.
        seed: The scenario's seed.
        client: Client index.
    """
    x, y = [], []
    for j, data in enumerate(tasks):
        order = numpy_generator(seed, "blur", client=client, task=j).permutation(len(data.train_y))
        leaving = int(share * len(order) + 0.5)
        # Those that leave go round: the first of them to the task after theirs.
        parts = [order[leaving:], *np.array_split(order[:leaving], len(tasks) - 1)]
        rows = np.sort(parts[(task - j) % len(tasks)])
        x.append(data.train_x[rows])
        y.append(data.train_y[rows])
    return replace(tasks[task], train_x=np.concatenate(x), train_y=np.concatenate(y))
