"""Residual networks for small images."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.errors import UserError
from fedkd.models.zoo.classifier import Classifier, projecting

GROUPS = 2


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters ("option A").

    With a `stride` of 2, which halves the image, the shortcut drops every other pixel and pads channels with
    zeros. The `norm` is ``"group"`` or ``"batch"``.
    """

    recordable: ClassVar[bool] = True

    def __init__(self, channels: int, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = _normalisation(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = _normalisation(norm, width)
        self.stride = stride
        self.missing = width - channels

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, channels, H, W]`` to ``[B, width, ⌈H/stride⌉, ⌈W/stride⌉]``."""
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        shortcut = x
        if self.stride > 1:
            shortcut = shortcut[:, :, :: self.stride, :: self.stride]
        if self.missing:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))
        return F.relu(out + shortcut)


def resnet8(
    input_shape: tuple[int, ...], classes: int, *, norm: str = "group", projection: int = 0
) -> Classifier:
    """Return the 8-layer residual network: one block a stage (see `resnet20`), 0.08 M parameters.

    Args:
        norm: ``"group"`` or ``"batch"``.
        projection: Width of a two-layer projection below the head, for `moon`, whose paper has 256; 0: none.
    """
    return _resnet("resnet8", 1, input_shape, classes, norm, projection)


def resnet20(
    input_shape: tuple[int, ...], classes: int, *, norm: str = "group", projection: int = 0
) -> Classifier:
    """Return the 20-layer residual network for small images: three blocks a stage, 0.27 M parameters.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2: stages of 16, 32 and 64
    channels, shortcuts without parameters. GroupNorm replaces BatchNorm by default, with two groups as in
    Reddi et al., "Adaptive Federated Optimization", ICLR 2021. Batch statistics of non-IID shards disagree:
    Hsieh et al., "The Non-IID Data Quagmire of Decentralized Machine Learning", ICML 2020.

    Args:
        norm: ``"group"`` or ``"batch"``.
        projection: Width of a two-layer projection below the head, for `moon`, whose paper has 256; 0: none.
    """
    return _resnet("resnet20", 3, input_shape, classes, norm, projection)


def _resnet(
    name: str, blocks: int, input_shape: tuple[int, ...], classes: int, norm: str, projection: int
) -> Classifier:
    channels, _, _ = input_shape
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
    layers += [_normalisation(norm, 16), nn.ReLU()]
    fan_in = 16
    for width in (16, 32, 64):
        for block in range(blocks):
            stride = 2 if block == 0 and width > 16 else 1
            layers.append(BasicBlock(fan_in, width, stride, norm))
            fan_in = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    body = nn.Sequential(*layers)
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return projecting(body, 64, classes, projection=projection)


def _normalisation(norm: str, width: int) -> nn.Module:
    if norm == "group":
        return nn.GroupNorm(GROUPS, width)
    if norm == "batch":
        return nn.BatchNorm2d(width)
    raise UserError(f"norm must be 'group' or 'batch', got {norm!r}", key="clients.args")
