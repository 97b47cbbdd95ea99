"""The multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from fedkd.errors import UserError, refuse_if
from fedkd.models.zoo.classifier import Classifier, check_dropout, projecting


def mlp(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    hidden: Sequence[int] = (200, 200),
    dropout: float = 0.0,
    bias: bool = True,
    projection: int = 0,
) -> Classifier:
    """Return a multilayer perceptron on the flattened input; it takes images and feature vectors.

    The default is the "2NN" of McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017 (199,210 parameters on 28×28 digits).

    Args:
        hidden: Width of each hidden layer; empty gives a linear classifier.
        dropout: Probability of dropping a hidden unit in training.
        bias: True for layers with biases; papers on subspace learners use networks without.
        projection: Width of a two-layer projection below the head, for `moon`, whose paper has 256; 0: none.
    """
    check_dropout(dropout)
    if not isinstance(hidden, Sequence) or not all(type(width) is int and width > 0 for width in hidden):
        raise UserError(f"hidden must be a list of widths ≥ 1, got {hidden!r}", key="clients.args")
    refuse_if(not isinstance(bias, bool), f"bias must be true or false, got {bias!r}", "clients.args")
    layers: list[nn.Module] = [nn.Flatten()]
    widths = [prod(input_shape), *hidden]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), nn.ReLU()]
        if dropout > 0.0:
            layers.append(nn.Dropout(dropout))
    return projecting(nn.Sequential(*layers), widths[-1], classes, projection=projection, bias=bias)
