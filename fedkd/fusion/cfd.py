"""CFD: clients vote, one class per transfer sample; everyone learns the shares of the votes.

F. Sattler, A. Marban, R. Rischke and W. Samek, "CFD: Communication-Efficient Federated Distillation via
Soft-Label Quantization and Delta Coding", IEEE TNSE, 2021, arXiv 2012.00632.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from fedkd.errors import TrainingDiverged
from fedkd.fusion.kinds import Kind
from fedkd.fusion.soft_labels import SoftLabels
from fedkd.fusion.strategy import Guidance, Guided, Knowledge
from fedkd.fusion.views import ClientView
from fedkd.fusion.weights import uniform
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class CFD(SoftLabels):
    """Send the predicted class alone; average the votes; learn the result by cross entropy.

    ::

        v_n[i]  = argmax_c z_n(x_i)_c                  a byte a sample, two above 256 classes
        t[i, c] = share of clients with v_n[i] = c

    The cheapest uplink: 4·C times smaller than float32 logits. It is the paper's coarsest quantisation, one
    bit for each class, without the delta coding of what is left. Votes lose how sure a client is, so many
    clients are needed before the shares say as much as a mean of probabilities; a single client teaches
    itself its own hard labels.
    """

    name: ClassVar[str] = "cfd"
    sends: ClassVar[str] = "hard labels"
    kinds: ClassVar[Mapping[str, Kind]] = {"votes": Kind.VOTES, "classes": Kind.CONSTANT}
    guides: ClassVar[Guided] = "all_alike"
    paper: ClassVar[str] = "Sattler et al., CFD: Communication-Efficient Federated Distillation, 2021"

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return the client's `votes` `[M]` and the number of `classes`, which votes alone do not tell.

        Raises:
            TrainingDiverged: The model predicts nothing any more.
        """
        logits = client.logits()
        if np.isnan(logits).any():  # argmax would turn them into votes
            raise TrainingDiverged("predictions are not numbers (NaN); a lower training.lr may help")
        smallest = np.min_scalar_type(client.classes - 1)
        votes = logits.argmax(axis=-1).astype(smallest)
        return {"votes": votes, "classes": np.array([client.classes], dtype=np.uint32)}

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the shares of the votes, `[M, C]`, shared by all."""
        votes = np.stack(knowledge.extra["votes"])
        classes = int(knowledge.extra["classes"][0][0])
        clients, samples = votes.shape
        cell = votes + classes * np.arange(samples)
        counts = np.bincount(cell.ravel(), minlength=samples * classes).reshape(samples, classes)
        return Guidance((counts / clients).astype(np.float32), uniform(clients))
