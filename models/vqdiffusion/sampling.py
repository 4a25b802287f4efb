"""Generation of the next frame's tokens."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from models.vqdiffusion.denoiser import Condition
from models.vqdiffusion.diffusion import VQDiffusion
from models.vqdiffusion.schedule import sample_tokens


@torch.no_grad()
def generate_tokens(
    model: VQDiffusion, condition: Condition, jumps: int, generator: torch.Generator | None = None
) -> Tensor:
    """Samples next frames from the all-mask state by the exact jump posterior.

    Args:
        model: In eval mode.
        condition: Histories of B rows.
        jumps: Denoising steps, 1 (all tokens at once, each from its own marginal) to T.
        generator: Source of randomness on the model's device.

    Returns:
        (B, L) int64 codes.
    """
    if not 1 <= jumps <= model.num_steps:
        raise ValueError(
            f"jumps is {jumps}, expected 1 to {model.num_steps}, the diffusion steps of the model"
        )
    x = model.all_mask(condition.batch_size)
    times = torch.linspace(model.num_steps - 1, -1, jumps + 1).round().long().tolist()
    for now, then in pairwise(times):
        t = torch.full((len(x),), now, device=x.device)
        log_x0 = model.predict_log_x0(x, t, condition)
        log_next = log_x0 if then < 0 else model.schedule.posterior(log_x0, x, t, torch.full_like(t, then))
        x = sample_tokens(log_next, generator=generator)
    return x
