"""Images with their batch last in memory, and fast layers for them.

CPU vectors hold 8 or 16 numbers. The 6 channels of a LeNet, or rows of 10 pixels, fill them only in part. The
same pixel of 32 images fills them, ``[H, C, W, B]`` in memory. The tensor's shape stays ``[B, C, H, W]``.

Convolutions sum in another order than torch's. In float32, outputs and gradients agree with float64 within
1e-4 (``tests/models/test_batch_last.py``); pooling and flattening agree with torch to the bit.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedkd.models.fast.kernel_mode import is_transformed

FEWEST = 16  # fewest images of a batch that fill vectors
MANY = 16  # fewest output channels that become the columns of a weight gradient's product
FEW = 8  # most output channels for which a weight's gradient joins several rows of outputs


def use_torch_kernels(model: nn.Module) -> None:
    """Make the layers of a model use torch's kernels instead of fedkd's."""
    module: Any
    for module in model.modules():
        if hasattr(type(module), "fedkd_kernels"):
            module.fedkd_kernels = False


def batch_last(images: Tensor) -> Tensor:
    """Return images ``[B, C, H, W]`` in their memory order, ``[H, C, W, B]``: a view."""
    return images.permute(2, 1, 3, 0)


def batch_first(rows: Tensor) -> Tensor:
    """Undo `batch_last`."""
    return rows.permute(3, 1, 0, 2)


def lies_batch_last(images: Tensor) -> bool:
    """Return whether images ``[B, C, H, W]`` lie on a CPU with their batch last."""
    on_cpu = images.device.type == "cpu" and images.dim() == 4 and images.numel() > 0
    return on_cpu and not is_transformed() and batch_last(images).is_contiguous()


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, up to rounding; fast on a CPU for few channels and `FEWEST` images or more."""

    recordable: ClassVar[bool] = True
    fedkd_kernels = True

    def forward(self, input: Tensor) -> Tensor:
        """Return ``[B, O, H', W']`` of images ``[B, C, H, W]``."""
        padding = self._zeros_around if self.fedkd_kernels else None
        if padding is None or not _is_for_us(input, self.weight) or not self._fits(input, padding):
            return super().forward(input)
        if not torch.is_grad_enabled():
            return _convolve(_windows(input, self.weight.shape[2:], padding), self.weight, self.bias)
        return _Convolution.apply(input, self.weight, self.bias, padding)

    @property
    def _zeros_around(self) -> tuple[int, int] | None:
        """Rows and columns of zero padding at each edge; None: another kind of convolution."""
        once = self.stride == self.dilation == (1, 1) and self.groups == 1
        if not once or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return None
        return self.padding[0], self.padding[1]

    def _fits(self, images: Tensor, padding: tuple[int, int]) -> bool:
        sides = zip(images.shape[2:], padding, self.kernel_size, strict=True)
        large = all(side + 2 * around >= wanted for side, around, wanted in sides)
        return large and images.shape[1] == self.in_channels


def _is_for_us(images: Tensor, weight: Tensor) -> bool:
    return (
        all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64) for t in (images, weight))
        and images.dtype == weight.dtype
        and images.dim() == 4
        and len(images) >= FEWEST
        and images.numel() > 0
        and type(images) is Tensor
        and not torch.is_autocast_enabled("cpu")
        and not is_transformed()
    )


def _windows(images: Tensor, kernel: Sequence[int], padding: tuple[int, int]) -> Tensor:
    """Return ``[H + 2 P, k', C, W', B]``: the pixels under each place k' in a kernel's row."""
    rows, (tall, wide) = batch_last(images), padding
    height, channels, width, batch = rows.shape
    if tall or wide:
        padded = rows.new_zeros(height + 2 * tall, channels, width + 2 * wide, batch)
        padded[tall : tall + height, :, wide : wide + width].copy_(rows)
        rows = padded
    rows = rows.contiguous()
    height, channels, width, batch = rows.shape
    across = width - kernel[1] + 1
    shape = (height, kernel[1], channels, across, batch)
    return rows.as_strided(shape, (channels * width * batch, batch, width * batch, batch, 1)).contiguous()


def _rows_met(windows: Tensor, tall: int, together: int = 1) -> Tensor:
    """Return the inputs of each row of outputs, ``[H', k · k' · C, W' · B]``, as overlapping views.

    Or those of several rows together, ``[H' / together, (together + k - 1) · k' · C, W' · B]``.
    """
    height, wide, channels, across, batch = windows.shape
    several, length = wide * channels, across * batch
    shape = ((height - tall + 1) // together, (together + tall - 1) * several, length)
    return windows.as_strided(shape, (together * several * length, length, 1))


def _convolve(windows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    met = _rows_met(windows, weight.shape[2])
    matrix = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)  # no copy if channels are last
    out = torch.bmm(matrix.expand(len(met), *matrix.shape), met)
    if bias is not None:
        out += bias.view(1, -1, 1)
    return batch_first(out.view(*out.shape[:2], *windows.shape[-2:]))


class _Convolution(torch.autograd.Function):
    """A convolution with stride 1, as one matrix product per row of outputs of all images."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]
    ) -> Tensor:
        windows = _windows(images, weight.shape[2:], padding)
        ctx.save_for_backward(windows, weight)
        ctx.padding, ctx.shape = padding, images.shape
        return _convolve(windows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        windows, weight = ctx.saved_tensors
        rows = batch_last(gradient).contiguous()
        outer = rows.view(*rows.shape[:2], -1)  # [H', O, W' · B]
        for_images = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            for_images = _for_images(outer, weight, windows.shape, ctx.shape, ctx.padding)
        if ctx.needs_input_grad[1]:
            for_weight = _for_weight(outer, windows, weight.shape)
        if ctx.needs_input_grad[2]:
            for_bias = outer.sum(dim=(0, 2))
        return for_images, for_weight, for_bias, None


def _for_weight(outer: Tensor, windows: Tensor, shape: torch.Size) -> Tensor:
    """Return the gradient of a weight, channels last in memory, given that of the outputs."""
    number, channels, tall, wide = shape
    met = _rows_met(windows, tall)
    if number <= FEW and len(outer) % 4 == 0:  # few large products waste less than many small ones
        met, several = _rows_met(windows, tall, together=4), wide * channels
        groups, columns, length = met.shape
        large = torch.bmm(outer.view(groups, 4 * number, length), met.transpose(1, 2))
        strides = (4 * number * columns, number * columns + several, columns, 1)
        found = large.as_strided((groups, 4, number, tall * several), strides).sum(dim=(0, 1))
    elif number < MANY:
        found = torch.bmm(outer, met.transpose(1, 2)).sum(dim=0)
    else:
        found = torch.bmm(met, outer.transpose(1, 2)).sum(dim=0).T.contiguous()
    return found.view(number, tall, wide, channels).permute(0, 3, 1, 2)


def _for_images(
    outer: Tensor, weight: Tensor, windows: torch.Size, images: torch.Size, padding: tuple[int, int]
) -> Tensor:
    """Return the gradient of the images, given that of the outputs ``[H', O, W' · B]``."""
    height, wide, channels, across, batch = windows
    down, number, length = outer.shape
    tall = weight.shape[2]
    # Each row of inputs contributes to as many rows of outputs as a kernel is high, some beyond the edge.
    padded = outer.new_zeros(down + 2 * (tall - 1), number, length)
    padded[tall - 1 : tall - 1 + down] = outer
    met = padded.as_strided((height, tall * number, length), (number * length, length, 1))
    turned = weight.flip(2).permute(3, 1, 2, 0).reshape(wide * channels, tall * number)
    for_windows = torch.bmm(turned.expand(height, *turned.shape), met)
    for_windows = for_windows.view(height, wide, channels, across, batch)
    rows = outer.new_zeros(height, channels, across + wide - 1, batch)
    for place in range(wide):
        rows[:, :, place : place + across] += for_windows[:, place]
    top, left = padding
    return batch_first(rows[top : top + images[2], :, left : left + images[3]])


class HalvingMax(torch.autograd.Function):
    """Maxima of 2×2 windows of batch-last images, with torch's gradient of ties."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        left, right = _columns(batch_last(images))
        larger = torch.maximum(left, right)
        upper, lower = larger[0::2], larger[1::2]
        # Differences, not comparisons: kernels with boolean masks are not vectorised.
        ctx.save_for_backward(right - left, lower - upper)
        ctx.shape = images.shape
        return batch_first(torch.maximum(upper, lower))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        beside, below = ctx.saved_tensors
        batch, channels, height, width = ctx.shape
        rows = batch_last(gradient).contiguous()
        halves = torch.empty_like(beside)
        _share(rows, below, halves[0::2], halves[1::2])
        make = rows.new_zeros if height % 2 or width % 2 else rows.new_empty
        whole = make(height, channels, width, batch)
        _share(halves, beside, *_columns(whole))
        return batch_first(whole)


class MaxPool2d(nn.MaxPool2d):
    """`torch.nn.MaxPool2d` with the same numbers, faster on a CPU.

    It takes whole rows of images with the batch last and, without gradients, of channels-last images.
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
            return HalvingMax.apply(input)
        if torch.is_grad_enabled() or not self._halves:
            return super().forward(input)
        on_cpu = input.device.type == "cpu" and input.dim() == 4 and input.numel() > 0
        layout = torch.channels_last
        if not on_cpu or min(input.shape[2:]) < 2 or not input.is_contiguous(memory_format=layout):
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


class Flatten(nn.Flatten):
    """`torch.nn.Flatten` with the images' memory order in its gradient."""

    recordable: ClassVar[bool] = True
    fedkd_kernels = True

    def forward(self, input: Tensor) -> Tensor:
        """Return ``[B, C · H · W]`` of images ``[B, C, H, W]``."""
        plain = (self.start_dim, self.end_dim) == (1, -1) and torch.is_grad_enabled()
        if self.fedkd_kernels and plain and lies_batch_last(input):
            return _Flattened.apply(input)
        return super().forward(input)


class _Flattened(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        ctx.shape = images.shape
        return images.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return batch_first(batch_last(gradient.view(ctx.shape)).contiguous())


def halved_max(images: Tensor) -> Tensor:
    """Return the output of `HalvingMax`, without a gradient."""
    rows = batch_last(images)
    down, across = rows.shape[0] // 2 * 2, rows.shape[2] // 2 * 2
    larger = torch.maximum(rows[0:down:2], rows[1:down:2])
    return batch_first(torch.maximum(larger[:, :, 0:across:2], larger[:, :, 1:across:2]))


def _columns(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the even and the odd columns of rows ``[H, C, W, B]``, without an odd last row and column."""
    down, across = rows.shape[0] // 2 * 2, rows.shape[2] // 2 * 2
    return rows[:down, :, 0:across:2], rows[:down, :, 1:across:2]


def _share(gradient: Tensor, difference: Tensor, first: Tensor, second: Tensor) -> None:
    """Write a gradient into `second` where a difference is positive, else into `first`; the other gets 0."""
    torch.ops.aten.threshold_backward.grad_input(gradient, difference, 0, grad_input=second)
    torch.sub(gradient, second, out=first)
