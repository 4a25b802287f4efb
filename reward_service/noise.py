"""Where the randomness of the denoising chain comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from models.vqdiffusion.posterior import StepPosterior


class Noise(Protocol):
    """Chooses tokens from posteriors; one instance serves the rows of one scoring call."""

    def choose(self, posterior: StepPosterior, rows: slice, sample: int, step: int) -> torch.Tensor:
        """Picks one class per token.

        Args:
            posterior: Of B rows of L tokens over K codes and the mask.
            rows: Which rows of the whole call these B are.
            sample: Number of the chain, from 0.
            step: Number of the network step, from 0.

        Returns:
            (B, L) int64, K for the mask.
        """
        ...


class MostProbable:
    """No noise: the most probable class."""

    def choose(self, posterior: StepPosterior, rows: slice, sample: int, step: int) -> torch.Tensor:
        return posterior.log_probs().argmax(dim=-1)


class SeededNoise:
    """One uniform number per (row, chain, step, token), inverted through the cumulative distribution.

    Each episode draws from its own generator, row by row: what a row gets depends on its episode's seed and its
    place in the episode only, not on the batch, the device or the episode's length.

    Args:
        lengths: Frames of each episode.
        seeds: Seed of each episode.
        num_samples: Chains per row.
        num_steps: Network steps per chain.
        num_tokens: L, tokens per frame.
        device: Where the numbers are used.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        seeds: Sequence[int],
        num_samples: int,
        num_steps: int,
        num_tokens: int,
        device: str | torch.device = "cpu",
    ) -> None:
        numbers = [
            torch.rand(
                (length, num_samples, num_steps, num_tokens), generator=torch.Generator().manual_seed(seed)
            )
            for length, seed in zip(lengths, seeds)
        ]
        self._uniform = torch.cat(numbers).to(device)

    def choose(self, posterior: StepPosterior, rows: slice, sample: int, step: int) -> torch.Tensor:
        return posterior.sample(self._uniform[rows, sample, step])


class GivenUniform:
    """Stored uniform numbers and the Gumbel trick, as published implementations sample; for comparison with them.

    Args:
        uniform: (steps, rows, C, L) float32 in [0, 1), for a single chain per row.
    """

    def __init__(self, uniform: torch.Tensor) -> None:
        self._uniform = uniform

    def choose(self, posterior: StepPosterior, rows: slice, sample: int, step: int) -> torch.Tensor:
        uniform = self._uniform[step, rows].transpose(1, 2)
        gumbel = -torch.log(-torch.log(uniform + 1e-30) + 1e-30)
        return (posterior.log_probs() + gumbel).argmax(dim=-1)
