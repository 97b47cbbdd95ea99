"""Max-pooling of 2×2 windows that is quick for few channels, or without gradients."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fedkd.models.fast.batch_last import HalvingMax, halved_max, lies_batch_last


class MaxPool2d(nn.MaxPool2d):
    """`torch.nn.MaxPool2d`, quicker on a CPU, and the same numbers.

    torch's kernel also stores the place of each maximum, which only training needs, and vectorises over the
    channels of one pixel: few in a LeNet. This one takes whole rows of images with the batch last and,
    without gradients, of channels-last images.
    """

    recordable: ClassVar[bool] = True
    fedkd_kernels = True

    def forward(self, input: Tensor) -> Tensor:
        """Return the maxima ``[B, C, H', W']`` of windows of images ``[B, C, H, W]``."""
        if not self.fedkd_kernels:
            return super().forward(input)
        if self._halves and lies_batch_last(input) and min(input.shape[2:]) > 1:
            if not (torch.is_grad_enabled() and input.requires_grad):
                return halved_max(input)
            out: Tensor = HalvingMax.apply(input)
            return out
        if torch.is_grad_enabled() or not self._halves or not _lies_channels_last(input):
            return super().forward(input)
        height, width = 2 * (input.shape[2] // 2), 2 * (input.shape[3] // 2)
        rows = torch.maximum(input[:, :, 0:height:2], input[:, :, 1:height:2])
        if width < input.shape[3]:
            return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])
        # Two pixels that lie side by side, as one vector of both their channels.
        pairs = rows.permute(0, 2, 3, 1).reshape(len(rows), height // 2, width // 2, -1)
        left, right = pairs.chunk(2, dim=-1)
        return torch.maximum(left, right).permute(0, 3, 1, 2)

    @property
    def _halves(self) -> bool:
        window = (self.kernel_size, self.stride, self.padding, self.dilation)
        return window == (2, 2, 0, 1) and not self.ceil_mode and not self.return_indices


def _lies_channels_last(images: Tensor) -> bool:
    return (
        images.device.type == "cpu"
        and images.dim() == 4
        and images.numel() > 0
        and min(images.shape[2:]) > 1
        and images.is_contiguous(memory_format=torch.channels_last)
    )
