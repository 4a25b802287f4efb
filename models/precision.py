"""In which number format the products of networks are computed; weights and sums stay float32."""

from __future__ import annotations

import torch

PRECISIONS = ("float32", "bfloat16")


def forbid_tf32() -> None:
    """Makes float32 mean float32 in this process: on a GPU torch convolves in TF32, with 10 bits of mantissa, by default."""
    torch.backends.cudnn.allow_tf32 = False


def bfloat16_pays(device: torch.device | str) -> bool:
    """Whether the hardware multiplies bfloat16 matrices faster than float32 ones: a GPU, or a CPU with AMX or AVX512-BF16."""
    if torch.device(device).type != "cpu":
        return True
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # torch 2.5 knows neither
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in names)
