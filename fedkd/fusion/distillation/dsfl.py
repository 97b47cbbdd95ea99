"""DS-FL: all clients distil the sharpened mean of their probabilities (arXiv 2008.06180)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge
from fedkd.fusion.distillation.selection import asked_samples
from fedkd.fusion.distillation.soft_labels import SoftLabels, entropy_reduction, mean_probabilities
from fedkd.fusion.math.neighbour_weights import uniform
from fedkd.plugins import hyperparameters


@hyperparameters
class DSFL(SoftLabels):
    """Average probabilities, reduce the entropy of the mean, distil it by cross entropy.

    ::

        q[i] = mean_n softmax(z_n(x_i))
        t[i] = softmax(q[i] / T_era)          entropy reduction aggregation (ERA)

    Clients with different data disagree, so their mean is less certain than each of them; ERA sharpens it. It
    works on probabilities and depends on the number of classes: it sharpens an uncertain mean if C < 1 /
    T_era, and softens a nearly certain one. `scarlet` has neither limit. The paper's server also trains a
    global model on the targets; here only clients have models.
    """

    name: ClassVar[str] = "dsfl"
    capabilities: ClassVar[Capabilities] = Capabilities(guides="all_alike", over_graph="each")
    paper: ClassVar[str] = "Itahara et al., Distillation-Based Semi-Supervised Federated Learning, 2020"

    sharpen: Literal["era", "mean"] = "era"
    """`era` reduces the entropy of the mean; `mean` leaves it unchanged, the paper's simple aggregation and a
    safer choice for clients with similar data."""
    era_temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.1
    """T_era of `era`; 0.1 in the paper, for ten classes. Lower sharpens more. Keep it below 1 / C: for a
    hundred classes start at 0.01, or vague means get vaguer."""
    samples_per_round: Annotated[int, Field(ge=1)] | None = None
    """Transfer samples drawn and predicted each round; absent: all. The paper draws 1,000 of 20,000: a round
    costs less, and every round has other samples."""

    def request(
        self, transfer_size: int, memory: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> np.ndarray | None:
        """Return the round's samples, ascending; None: all."""
        return asked_samples(transfer_size, self.samples_per_round, generator)

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the sharpened mean probability, `[M, C]`, shared by all."""
        assert knowledge.logits is not None
        mean = mean_probabilities(knowledge.logits)
        targets = mean if self.sharpen == "mean" else entropy_reduction(mean, self.era_temperature)
        return Guidance(targets, uniform(len(knowledge.clients)))
