"""Networks of DrQ-v2 (arXiv 2107.09645): convolutional encoder, actor and twin critic.

Parameter names equal those of the official agent, so that its weights load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import nn
from torch.autograd.function import once_differentiable

from learner.second_thread import SecondThread, Task
from models.products import Linear

ACTION_MARGIN = 1e-6  # actions stay this far inside [-1, 1], as in the official truncated normal


class Encoder(nn.Module):
    """3x3 convolutions with ReLU over pixels scaled to [-0.5, 0.5].

    Args:
        resolution_px: Height and width of the square input.
        channels: Output channels of every convolution.
        strides: Stride of each convolution; (2, 1, 1, 1) in the paper.
        second_thread: Computes gradients of weights beside those of inputs; None for one after the other.
    """

    def __init__(
        self,
        resolution_px: int,
        channels: int,
        strides: Sequence[int],
        second_thread: SecondThread | None = None,
    ) -> None:
        super().__init__()
        self.second_thread = second_thread or SecondThread(enabled=False)
        layers: list[nn.Module] = []
        size_px, in_channels = resolution_px, 3
        for stride in strides:
            layers += [nn.Conv2d(in_channels, channels, 3, stride=stride), nn.ReLU(inplace=True)]
            size_px, in_channels = (size_px - 3) // stride + 1, channels
        if size_px < 1:
            raise ValueError(
                f"encoder_strides={tuple(strides)} leave nothing of a {resolution_px} px image; "
                "use fewer convolutions or smaller strides"
            )
        self.strides = tuple(strides)
        self.convnet = nn.Sequential(*layers)
        self.repr_dim = channels * size_px * size_px
        self.apply(initialise)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encodes images, in the precision of autocast where it is on.

        Args:
            images: (B, H, W, 3) uint8 or float32 [0, 255].

        Returns:
            (B, repr_dim) float32 (or autocast's dtype), flattened in channel, row, column order.
        """
        # An NHWC array seen as NCHW already has the channels-last layout that convolutions like best.
        pixels = rearrange(images, "batch height width channel -> batch channel height width")
        pixels = pixels.float().div(255.0).sub_(0.5)
        if torch.is_grad_enabled() and next(self.parameters()).requires_grad:
            features = _ConvolutionStack.apply(pixels, self.strides, self.second_thread, *self.parameters())
        else:
            features = self.convnet(pixels)
        return rearrange(features, "batch channel height width -> batch (channel height width)")


class _ConvolutionStack(torch.autograd.Function):
    """The encoder's convolutions and ReLUs as one step of automatic differentiation.

    The gradient is masked by each ReLU in place and kept channels-last from the last layer to the first. Left to
    itself, autograd allocates a tensor per layer for it and meets the flattened layout of the linear layers.
    """

    @staticmethod
    def forward(
        ctx: Any,
        pixels: torch.Tensor,
        strides: tuple[int, ...],
        second_thread: SecondThread,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        kind = pixels.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        weights, biases = ([p.to(dtype) for p in parameters[first::2]] for first in (0, 1))
        layers = [pixels.to(dtype)]
        for weight, bias, stride in zip(weights, biases, strides):
            layers.append(torch.conv2d(layers[-1], weight, bias, stride=stride).relu_())
        ctx.strides, ctx.second_thread = strides, second_thread
        ctx.save_for_backward(*weights, *layers)
        return layers[-1]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        count = len(ctx.strides)
        weights, layers = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        # A copy in the layout of the linear layers becomes one of our own, which may be written to.
        gradient = gradient.clone(memory_format=torch.channels_last)
        waiting: list[Task[list[torch.Tensor]]] = []
        for index in reversed(range(count)):
            torch.ops.aten.threshold_backward.grad_input(gradient, layers[index + 1], 0, grad_input=gradient)
            step = partial(
                _convolution_gradients, gradient, layers[index], weights[index], ctx.strides[index]
            )
            # What the layer below waits for is the gradient of its output alone.
            waiting.insert(0, ctx.second_thread.start(partial(step, [False, True, True])))
            if index > 0:
                gradient = step([True, False, False])[0]
        parameters = (value.float() for task in waiting for value in task.result()[1:])
        return None, None, None, *parameters


@torch.no_grad()
def _convolution_gradients(
    gradient: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor, stride: int, wanted: list[bool]
) -> list[torch.Tensor]:
    """Gradients of an unpadded convolution's inputs, weight and bias, those of them that are wanted."""
    gradients: list[torch.Tensor] = torch.ops.aten.convolution_backward(
        *(gradient, inputs, weight, [len(weight)], [stride, stride], [0, 0], [1, 1]),
        *(False, [0, 0], 1, wanted),
    )
    return gradients


def _trunk(repr_dim: int, feature_dim: int) -> nn.Sequential:
    return nn.Sequential(Linear(repr_dim, feature_dim), nn.LayerNorm(feature_dim), nn.Tanh())


def _mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(
        Linear(in_dim, hidden_dim),
        nn.ReLU(inplace=True),
        Linear(hidden_dim, hidden_dim),
        nn.ReLU(inplace=True),
        Linear(hidden_dim, out_dim),
    )


class Actor(nn.Module):
    """Deterministic part of the policy: encoded observation -> mean action in (-1, 1)."""

    def __init__(self, repr_dim: int, action_dim: int, feature_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.trunk = _trunk(repr_dim, feature_dim)
        self.policy = _mlp(feature_dim, hidden_dim, action_dim)
        self.apply(initialise)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, repr_dim) float32 -> (B, A) float32 mean action."""
        return torch.tanh(self.pre_tanh(features))

    def pre_tanh(self, features: torch.Tensor) -> torch.Tensor:
        """(B, repr_dim) float32 -> (B, A) float32, unbounded: the mean action before its tanh."""
        output: torch.Tensor = self.policy(self.trunk(features))
        return output

    def linear_layers(self) -> list[nn.Linear]:
        """The linear layers in order, whose outputs the dormant ratio looks at."""
        return [layer for layer in self.modules() if isinstance(layer, nn.Linear)]


class Critic(nn.Module):
    """Two state-action values on a shared trunk."""

    def __init__(self, repr_dim: int, action_dim: int, feature_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.trunk = _trunk(repr_dim, feature_dim)
        self.Q1 = _mlp(feature_dim + action_dim, hidden_dim, 1)
        self.Q2 = _mlp(feature_dim + action_dim, hidden_dim, 1)
        self.apply(initialise)

    def forward(self, features: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, repr_dim), (B, A) float32 -> two (B, 1) float32 values."""
        joint = torch.cat([self.trunk(features), action], dim=-1)
        return self.Q1(joint), self.Q2(joint)


def initialise(module: nn.Module) -> None:
    """Orthogonal weights (gain sqrt(2) for convolutions) and zero biases, as in DrQ-v2."""
    if isinstance(module, nn.Linear):
        nn.init.orthogonal_(module.weight)
    elif isinstance(module, nn.Conv2d):
        nn.init.orthogonal_(module.weight, nn.init.calculate_gain("relu"))
    else:
        return
    assert module.bias is not None
    nn.init.zeros_(module.bias)


def noisy_action(
    mean: torch.Tensor, stddev: float | torch.Tensor, noise: torch.Tensor, clip: float | None = None
) -> torch.Tensor:
    """Action with clipped Gaussian exploration noise (DrQ-v2, arXiv 2107.09645, eq. 2 and 4).

    The result stays inside [-1, 1]; the gradient passes straight through that last clamp.

    Args:
        mean: (B, A) float32 mean action.
        stddev: Standard deviation of the noise, a number or a scalar tensor.
        noise: (B, A) standard normals.
        clip: Bound on the scaled noise, or None.

    Returns:
        (B, A) float32 in [-1 + 1e-6, 1 - 1e-6].
    """
    offset = noise * stddev
    if clip is not None:
        offset = offset.clamp(-clip, clip)
    action = mean + offset
    clamped = action.detach().clamp(-1.0 + ACTION_MARGIN, 1.0 - ACTION_MARGIN)
    return action - action.detach() + clamped


def random_shift(images: torch.Tensor, shifts: torch.Tensor, pad_px: int) -> torch.Tensor:
    """Random-shift augmentation: a crop, at integer offsets, of the edge-padded image.

    The official code samples bilinearly at integer positions, which is the same crop up to 1e-3 of
    rounding error on the 0..255 scale.

    Args:
        images: (B, H, W, 3) uint8.
        shifts: (B, 2) int64 (x, y) offsets in pixels, 0..2*pad_px; pad_px means no shift.
        pad_px: Width of the padding in pixels.

    Returns:
        (B, H, W, 3) uint8.
    """
    if images.device.type == "cpu":
        return _crop_one_by_one(images, shifts, pad_px)
    batch, height, width, channels = images.shape
    columns = torch.arange(width, device=images.device) + shifts[:, :1] - pad_px
    rows = torch.arange(height, device=images.device) + shifts[:, 1:] - pad_px
    rows, columns = rows.clamp_(0, height - 1), columns.clamp_(0, width - 1)
    first = torch.arange(batch, device=images.device)[:, None] * height
    # One gather of whole pixels from a flat list is several times faster than indexing three axes.
    pixel = (first + rows)[:, :, None] * width + columns[:, None, :]
    return images.reshape(-1, channels).index_select(0, pixel.flatten()).view(images.shape)


def _crop_one_by_one(images: torch.Tensor, shifts: torch.Tensor, pad_px: int) -> torch.Tensor:
    """The same crop by block copies, image by image: several times faster than the gather on a CPU core."""
    height, width = images.shape[1:3]
    cropped = np.empty(images.shape, dtype=np.uint8)
    for source, target, (x, y) in zip(images.numpy(), cropped, shifts.tolist()):
        right, down = x - pad_px, y - pad_px
        left, top = max(0, -right), max(0, -down)
        columns, rows = min(width, width - right), min(height, height - down)
        inside = source[top + down : rows + down]
        target[top:rows, left:columns] = inside[:, left + right : columns + right]
        target[top:rows, :left] = inside[:, :1]
        target[top:rows, columns:] = inside[:, -1:]
        target[:top], target[rows:] = target[top], target[rows - 1]
    return torch.from_numpy(cropped)
