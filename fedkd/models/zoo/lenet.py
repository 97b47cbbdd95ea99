"""LeNet-5."""

from torch import nn

from fedkd.errors import refuse_if
from fedkd.models.fast.batch_last import Conv2d, Flatten, MaxPool2d
from fedkd.models.zoo.classifier import Classifier, projecting


def lenet(input_shape: tuple[int, ...], classes: int, *, projection: int = 0) -> Classifier:
    """Return LeNet-5: 6 and 16 5×5 convolutions with 2×2 pooling, then 120 and 84 units.

    LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 1998, with ReLU and
    max-pooling. LeNet-5 reads 32×32 images, so smaller ones are padded by 2 (28×28: 61,706 parameters). The
    second convolution pads inputs below 14×14, so that 8×8 images work.

    Args:
        projection: Width of a two-layer projection below the head, for `moon`, whose paper has 256; 0: none.
    """
    channels, height, width = input_shape
    smallest = min(height, width)
    told = f"'lenet' needs images of at least 4×4, got {height}×{width}; use 'mlp'"
    refuse_if(smallest < 4, told, "clients.model")
    first = 2 if smallest < 32 else 0
    second = 2 if (smallest + 2 * first - 4) // 2 < 14 else 0

    def side(length: int) -> int:
        return ((length + 2 * first - 4) // 2 + 2 * second - 4) // 2

    body = nn.Sequential(
        # Pooling before the ReLU gives the same values on a quarter of the elements.
        *(Conv2d(channels, 6, 5, padding=first), MaxPool2d(2), nn.ReLU()),
        *(Conv2d(6, 16, 5, padding=second), MaxPool2d(2), nn.ReLU()),
        *(Flatten(), nn.Linear(16 * side(height) * side(width), 120), nn.ReLU()),
        nn.Linear(120, 84),
        nn.ReLU(),
    )
    return projecting(body, 84, classes, projection=projection)
