"""Frozen 3x3 convolutions by Winograd's method F(4x4, 3x3): 4x fewer multiplications, exact maths.

Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv 1509.09308. For processors without
units of their own for products: elsewhere the direct convolution is as fast. Rounding errors are about eight times
those of a direct convolution, 1e-5 of the output's scale in float32.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.products import batched_product, product

TILE = 4  # outputs of a tile per axis
POINTS = TILE + 2  # products per axis
# Interpolation at 0, 1, -1, 2, -2 and infinity (arXiv 1509.09308, section 4.3).
INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=np.float64,
)
KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=np.float64,
)
OUTPUT = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=np.float64
)


CACHE_BYTES = 5 * 2**20  # transformed tiles of one go; more no longer fit the caches of two cores


class WinogradGrid:
    """A frozen convolution over a small square grid, positions first.

    The transforms of the whole grid, padding included, are two small matrices, so that a convolution is three
    matrix products and no copies.

    Args:
        conv: 3x3, stride 1, padding 1; its weights are copied.
        side: Height and width of the grid, a multiple of 4.

    Raises:
        ValueError: for another kind of convolution or a grid that does not fit.
    """

    def __init__(self, conv: nn.Conv2d, side: int) -> None:
        self._weight, self._bias = _transformed(conv)
        self._into, self._out_of = (m.to(conv.weight.device) for m in _grid_transforms(side))

    def __call__(self, x: Tensor) -> Tensor:
        """Convolves (side*side, B, in) float32 into (side*side, B, out)."""
        places, rows, channels = x.shape
        transformed = product(self._into, x.reshape(places, rows * channels))
        products = batched_product(transformed.view(POINTS**2, -1, channels), self._weight)
        bias = self._bias.repeat(rows)
        outputs = product(self._out_of, products.view(len(transformed), -1))
        return outputs.add_(bias).view(places, rows, -1)


class WinogradConv2d(nn.Module):
    """A frozen convolution of pictures whose sides are multiples of 4.

    Args:
        conv: 3x3, stride 1, padding 1; its weights are copied.

    Raises:
        ValueError: for another kind of convolution.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._weight, self._bias = _transformed(conv)
        self._into = torch.from_numpy(np.kron(INPUT, INPUT)).float()
        self._out_of = torch.from_numpy(np.kron(OUTPUT, OUTPUT)).float()

    def forward(self, x: Tensor) -> Tensor:
        """Convolves (B, in, H, W) float32 into (B, out, H, W), channels last in memory."""
        _, channels, height, width = x.shape
        widest = max(channels, len(self._bias))
        size = max(1, CACHE_BYTES // (POINTS**2 * (height // TILE) * (width // TILE) * widest * 4))
        return torch.cat([self._convolve(part) for part in x.split(size)]).permute(0, 3, 1, 2)

    def _convolve(self, x: Tensor) -> Tensor:
        padded = F.pad(rearrange(x, "b c h w -> b h w c"), (0, 0, 1, 1, 1, 1))
        tiles = padded.unfold(1, POINTS, TILE).unfold(2, POINTS, TILE)
        batch, rows, columns, channels = tiles.shape[:4]
        flat = rearrange(tiles, "b row column c y x -> (y x) (b row column c)")
        products = batched_product(product(self._into, flat).view(POINTS**2, -1, channels), self._weight)
        outputs = product(self._out_of, products.view(POINTS**2, -1)).view(
            TILE, TILE, batch, rows, columns, -1
        )
        return rearrange(outputs, "y x b row column c -> b (row y) (column x) c") + self._bias


def can_use_winograd(conv: nn.Module) -> bool:
    """Whether a module is a 3x3 convolution with stride 1, padding 1 and bias."""
    return (
        isinstance(conv, nn.Conv2d)
        and (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1))
        and conv.groups == 1
        and conv.bias is not None
    )


def _transformed(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight (products, in, out) and bias."""
    if not can_use_winograd(conv):
        raise ValueError(f"expected a 3x3 convolution with padding 1, stride 1 and bias, got {conv}")
    kernel = torch.from_numpy(KERNEL).to(conv.weight.device)
    weight = torch.einsum("ak,oikl,bl->abio", kernel, conv.weight.detach().double(), kernel)
    assert conv.bias is not None
    return weight.flatten(0, 1).float().contiguous(), conv.bias.detach()


def _grid_transforms(side: int) -> tuple[Tensor, Tensor]:
    """Input and output transform of a whole grid, (products*tiles, places) and (places, products*tiles)."""
    if side % TILE:
        raise ValueError(f"side is {side}, expected a multiple of {TILE}")
    tiles = side // TILE
    into, out_of = np.zeros((POINTS, tiles, side)), np.zeros((side, POINTS, tiles))
    for tile in range(tiles):
        for offset in range(POINTS):
            place = TILE * tile + offset - 1  # the padding outside contributes zero
            if 0 <= place < side:
                into[:, tile, place] = INPUT[:, offset]
        out_of[TILE * tile : TILE * (tile + 1), :, tile] = OUTPUT
    both_in = np.einsum("atp,bus->abtups", into, into).reshape(-1, side * side)
    both_out = np.einsum("pat,sbu->psabtu", out_of, out_of).reshape(side * side, -1)
    return torch.from_numpy(both_in).float(), torch.from_numpy(both_out).float()
