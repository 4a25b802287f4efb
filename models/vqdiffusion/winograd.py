"""3x3 convolutions over a small token grid by Winograd's method F(4x4, 3x3): 4x fewer multiplications, exact maths.

Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv 1509.09308. The transforms of a whole
grid, zero padding included, are two small matrices, so a convolution is three matrix products and no copies.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

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


class WinogradConv:
    """A frozen 3x3 convolution with padding 1 over a square grid, positions first.

    Rounding errors are about eight times those of a direct convolution: 1e-5 of the output's scale in float32.

    Args:
        conv: The convolution; its weights are copied.
        side: Height and width of the grid, a multiple of 4.

    Raises:
        ValueError: for another kind of convolution or a grid that does not fit.
    """

    def __init__(self, conv: nn.Conv2d, side: int) -> None:
        if conv.kernel_size != (3, 3) or conv.padding != (1, 1) or conv.stride != (1, 1) or conv.bias is None:
            raise ValueError(f"expected a 3x3 convolution with padding 1, stride 1 and bias, got {conv}")
        self._into, self._out_of = (m.to(conv.weight.device) for m in _grid_transforms(side))
        kernel = torch.from_numpy(KERNEL).to(conv.weight.device)
        weight = torch.einsum("ak,oikl,bl->abio", kernel, conv.weight.detach().double(), kernel)
        self._weight = weight.flatten(0, 1).float().contiguous()  # (products, in, out)
        self._bias = conv.bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """Convolves (side*side, B, in) float32 into (side*side, B, out)."""
        places, rows, channels = x.shape
        transformed = self._into @ x.reshape(places, rows * channels)
        products = torch.bmm(transformed.view(POINTS**2, -1, channels), self._weight)
        bias = self._bias.repeat(rows)
        return torch.addmm(bias, self._out_of, products.view(len(transformed), -1)).view(places, rows, -1)


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
