"""Cronus: all clients distil a robust mean of their probabilities (arXiv 1912.11279)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge, softmax
from fedkd.fusion.distillation.soft_labels import SoftLabels
from fedkd.fusion.math.robust import complete, geometric_median, median, spectral_filter, trimmed_mean
from fedkd.plugins import hyperparameters


@hyperparameters
class Cronus(SoftLabels):
    """Distil a robust mean of predictions, which a few poisoned clients cannot move far.

    A prediction has C numbers, a model has millions; in few dimensions a robust mean is cheap and tight.
    Predictions are compared as probabilities, because logits have no bound. Clients train on private and
    soft-labelled transfer samples together, as in the paper: `fusion.ce_weight` is 1 by default. With 0 they
    alternate.

    ::

        q_n[i] = softmax(z_n(x_i)),   t[i] = robust mean over n of q_n[i]

    Robust means reject minorities, so honest clients need the same classes. With different classes, the few
    clients that know a class are rejected even without an attacker.
    """

    name: ClassVar[str] = "cronus"
    capabilities: ClassVar[Capabilities] = Capabilities(
        trains_jointly=True, sends="logits", guides="all_alike", over_graph="each"
    )
    paper: ClassVar[str] = "Chang et al., Cronus: Robust and Heterogeneous Collaborative Learning, 2019"

    aggregate: Literal["spectral", "median", "trimmed_mean", "geometric_median", "mean"] = "spectral"
    """`spectral`, the paper's filter: it reduces the weight of clients that stretch the spread of all
    predictions in one direction; `median` of every class's probability; `trimmed_mean`, smoother (both by
    class, with the missing rest to 1 spread like the mean); `geometric_median`, which like `spectral` treats
    a prediction as one point; `mean`, which a single client can move, to compare with."""
    poisoned: Annotated[float, Field(ge=0, le=0.49)] = 0.2
    """Share of clients that `spectral` assumes may be poisoned; an attack is filtered up to it. It takes the
    weight of twice as many, so too high a share costs honest knowledge; 0 is the mean. Of four clients 0.2
    is less than one: a Byzantine client among them is weakened only."""
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """Share left out at either end by `trimmed_mean`, ⌊trim · N⌋ clients; at least the expected share of
    attackers. Of four clients 0.2 is none."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-5
    """`geometric_median` stops when no probability moves by more than this."""
    max_iterations: Annotated[int, Field(ge=1)] = 50
    """Maximum number of steps of `geometric_median`; most samples need ten to twenty."""

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the robust mean probability, `[M, C]`, and the mean weights of `spectral`."""
        assert knowledge.logits is not None
        q, weights = softmax(knowledge.logits), None
        mean = q.mean(axis=0, dtype=np.float64)
        match self.aggregate:
            case "spectral":
                robust, of_samples = spectral_filter(q, self.poisoned)
                left = of_samples.mean(axis=1)
                weights = np.tile(left / left.sum(), (len(left), 1))
            case "geometric_median":
                robust = geometric_median(q, tolerance=self.tolerance, max_iterations=self.max_iterations)
            case "mean":
                robust = mean
            case "median":
                robust = complete(median(q), mean)
            case "trimmed_mean":
                robust = complete(trimmed_mean(q, self.trim), mean)
        return Guidance((robust / robust.sum(axis=-1, keepdims=True)).astype(np.float32), weights)
