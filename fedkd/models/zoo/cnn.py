"""The two-convolution CNN of the FedAvg paper."""

from torch import nn

from fedkd.errors import UserError
from fedkd.models.fast.batch_last import MaxPool2d
from fedkd.models.zoo.classifier import Classifier, check_dropout, projecting


def cnn(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    padding: int = 2,
    features: int = 512,
    dropout: float = 0.0,
    projection: int = 0,
) -> Classifier:
    """Return the CNN of FedAvg: 32 and 64 5×5 convolutions with 2×2 max-pooling, then 512 units.

    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017
    (1,663,370 parameters on 28×28 digits).

    Images have at least 4×4 pixels with the default padding.

    Args:
        padding: Zeros around each convolution's input: 2 keeps the size, as in the paper; 0 is the common
            smaller variant (582,026 parameters on 28×28 digits).
        features: Width of the fully connected layer, 512 in the paper; strategies that compare features need
            the same width in all clients (`lenet` has 84).
        dropout: Probability of dropping one of these units in training.
        projection: Width of a two-layer projection below the head, for `moon`, whose paper has 256; 0: none.
    """
    channels, height, width = input_shape
    check_dropout(dropout)
    if type(padding) is not int or not 0 <= padding <= 2:
        raise UserError(f"padding must be 0, 1 or 2, got {padding!r}", key="clients.args")
    if type(features) is not int or features < 1:
        raise UserError(f"features must be ≥ 1, got {features!r}", key="clients.args")

    def side(length: int) -> int:
        return ((length + 2 * padding - 4) // 2 + 2 * padding - 4) // 2

    if min(side(height), side(width)) < 1:
        raise UserError(
            f"'cnn' with padding {padding} leaves nothing of a {height}×{width} image; use 'mlp'"
            + ("" if padding == 2 else " or padding 2"),
            key="clients.model",
        )
    # Pooling before the ReLU gives the same values on a quarter of the elements.
    layers: list[nn.Module] = [
        *(nn.Conv2d(channels, 32, 5, padding=padding), MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(32, 64, 5, padding=padding), MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64 * side(height) * side(width), features), nn.ReLU()),
    ]
    if dropout > 0.0:
        layers.append(nn.Dropout(dropout))
    return projecting(nn.Sequential(*layers), features, classes, projection=projection)
