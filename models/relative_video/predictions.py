"""What two frozen video models expect of the same masked frame."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.relative_video.checkpoint import VideoPair
from models.relative_video.masks import masked_tokens
from models.relative_video.ratios import expected_codes, standard_codes
from models.vqdiffusion.frozen import FrozenDenoiser, History


class Look(NamedTuple):
    """One look at some frames: a diffusion step and what is masked there, for both models alike.

    Attributes:
        step: Diffusion step that both networks are told.
        state: (B, L) int64 tokens with the masked ones replaced; (1, L) where all are masked.
        masked: The same shape, bool.
    """

    step: int
    state: Tensor
    masked: Tensor


class Histories(NamedTuple):
    """What the two models see of the history of some frames.

    Attributes:
        expert: Of the expert model.
        base: Of the base model.
        rows: (B,) int64, which of those histories each frame has; None if each frame has its own.
    """

    expert: History
    base: History
    rows: Tensor | None = None


class PairPredictions:
    """Both models of a pair, frozen, and the code vectors that their tokens stand for.

    Args:
        pair: Expert and base model.
        precision: "float32" or "bfloat16".
        compiled: Whether torch.compile fuses the networks.
    """

    def __init__(self, pair: VideoPair, precision: str = "float32", compiled: bool = False) -> None:
        self.config, self.device = pair.expert.config, pair.expert.device
        self.expert = FrozenDenoiser(pair.expert, precision, compiled)
        self.base = FrozenDenoiser(pair.base, precision, compiled)
        self.codes = standard_codes(pair.codec.codebook.embedding.weight.detach())
        self._mask_probabilities: list[float] = pair.expert.schedule.mask.tolist()

    def histories(self, tokens: Tensor, shared: bool = False) -> Histories:
        """Looks up what both models see.

        Args:
            tokens: (B, F*L) int64, oldest frame first.
            shared: Whether equal neighbours are looked up once, for `full_look` only: there a prediction depends on the
                history alone, so that a model of the first frame runs once for all frames of a video.
        """
        rows = None
        if shared:
            tokens, rows = torch.unique_consecutive(tokens, dim=0, return_inverse=True)
        return Histories(self.expert.history(tokens), self.base.history(tokens), rows)

    def look(self, tokens: Tensor, step: int, uniform: Tensor) -> Look:
        """Masks tokens as a diffusion step does.

        Args:
            tokens: (B, L) int64 of the frame.
            step: Diffusion step.
            uniform: (B, L) numbers in [0, 1).
        """
        masked = masked_tokens(uniform, self._mask_probabilities[step])
        return Look(step, torch.where(masked, self.config.num_codes, tokens), masked)

    def full_look(self) -> Look:
        """Every token masked, at the last diffusion step."""
        state = torch.full((1, self.config.content_len), self.config.num_codes, device=self.device)
        return Look(self.config.num_diffusion_steps - 1, state, torch.ones_like(state, dtype=torch.bool))

    def log_probabilities(self, look: Look, histories: Histories) -> tuple[Tensor, Tensor]:
        """Of the clean tokens, (B, L, K) each: expert, base."""
        expert = self.expert.log_probabilities(look.state, look.step, histories.expert)
        base = self.base.log_probabilities(look.state, look.step, histories.base)
        return (expert, base) if histories.rows is None else (expert[histories.rows], base[histories.rows])

    def expected(self, look: Look, histories: Histories) -> tuple[Tensor, Tensor]:
        """Expected code vectors, (B, L, D) each: expert, base."""
        expert, base = self.log_probabilities(look, histories)
        return expected_codes(expert, self.codes), expected_codes(base, self.codes)
