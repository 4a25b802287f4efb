"""Configuration of the video diffusion model. Defaults are the paper's sizes."""

from __future__ import annotations

from dataclasses import dataclass

CONDITION_POSITIONS = ("none", "learned")
MLP_TYPES = ("conv", "linear")
HISTORIES = ("recent", "first", "clock")


@dataclass(frozen=True)
class VQDiffusionConfig:
    """Sizes and options of `VQDiffusion` (Diffusion Reward, arXiv 2312.14134; VQ-Diffusion, arXiv 2111.14822).

    Attributes:
        num_codes: Number of codes of the image codec, > 1. The mask token is an additional class.
        latent_size: Height and width of a frame's token grid in tokens, > 0.
        num_history_frames: Frames that the prediction is conditioned on, > 0.
        frame_skip: Distance between neighbouring frames of a window in video frames, > 0. The predicted frame
            lies the same distance ahead of the last history frame.
        history: "recent": the frames before the predicted one, as in the paper. "first": the first frame of the episode
            only, whatever lies between (`num_history_frames` is 1, `frame_skip` means nothing); then the model knows where
            things lie, but not where the arm has just been, and has to tell where an expert would be in such a scene.
            "clock": the first frame, and a second one of tokens that tell how many frames ago that was
            (`models.video_windows.clock_rows`; `num_history_frames` is 2): where an expert would be by now.
        num_diffusion_steps: Length of the forward process, > 1.
        num_layers: Transformer blocks, > 0.
        width: Width of the transformer, a multiple of `num_heads`.
        num_heads: Attention heads, > 0.
        condition_dim: Width of the condition embedding of one code, > 0.
        mlp_type: "conv" (two 3x3 convolutions, official) or "linear" (per token, cheaper on a CPU).
        mlp_ratio: Hidden width of the MLP as a multiple of `width`, > 0.
        dropout: Dropout probability of attention outputs and MLP, [0, 1).
        condition_position: "none" (official: the condition is a bag of codes, the order of the frames cannot be
            seen) or "learned" (embeddings of frame and place are added to each condition token).
        train_condition_embedding: Whether the code embedding of the condition is trained. Officially it
            stays at its random initialisation.
        auxiliary_loss_weight: Weight of the x0 prediction loss, >= 0.
        adaptive_auxiliary_loss: Whether the auxiliary weight falls from 2x to 1x with the diffusion step.
    """

    num_codes: int = 1024
    latent_size: int = 8
    num_history_frames: int = 2
    frame_skip: int = 1
    history: str = "recent"
    num_diffusion_steps: int = 100
    num_layers: int = 16
    width: int = 128
    num_heads: int = 16
    condition_dim: int = 1024
    mlp_type: str = "conv"
    mlp_ratio: int = 2
    dropout: float = 0.0
    condition_position: str = "none"
    train_condition_embedding: bool = False
    auxiliary_loss_weight: float = 1e-3
    adaptive_auxiliary_loss: bool = True

    def __post_init__(self) -> None:
        for key, least in (
            ("num_codes", 2),
            ("latent_size", 1),
            ("num_history_frames", 1),
            ("frame_skip", 1),
            ("num_diffusion_steps", 2),
            ("num_layers", 1),
            ("width", 1),
            ("num_heads", 1),
            ("condition_dim", 1),
            ("mlp_ratio", 1),
        ):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"video model {key}={value!r}: expected a whole number of at least {least}")
        if self.width % self.num_heads:
            raise ValueError(
                f"video model width={self.width}: expected a multiple of num_heads={self.num_heads}"
            )
        if self.mlp_type not in MLP_TYPES:
            raise ValueError(f"video model mlp_type={self.mlp_type!r}: expected one of {MLP_TYPES}")
        if self.history not in HISTORIES:
            raise ValueError(f"video model history={self.history!r}: expected one of {HISTORIES}")
        frames = {"first": 1, "clock": 2}.get(self.history, self.num_history_frames)
        if self.num_history_frames != frames:
            raise ValueError(
                f"video model history={self.history!r} has {frames} frames, got num_history_frames="
                f"{self.num_history_frames}: set it to {frames}"
            )
        if self.history == "clock" and self.condition_position != "learned":
            raise ValueError(
                "video model history='clock' needs condition_position='learned': without places the clock cannot be read"
            )
        if self.condition_position not in CONDITION_POSITIONS:
            raise ValueError(
                f"video model condition_position={self.condition_position!r}: expected one of {CONDITION_POSITIONS}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"video model dropout={self.dropout!r}: expected a number in [0, 1)")
        if self.auxiliary_loss_weight < 0:
            raise ValueError(
                f"video model auxiliary_loss_weight={self.auxiliary_loss_weight!r}: expected a number >= 0"
            )

    @property
    def sees_past(self) -> bool:
        """Whether the model is conditioned on the frames just before; else on the first one of the episode."""
        return self.history == "recent"

    @property
    def content_len(self) -> int:
        """Tokens of one frame."""
        return self.latent_size**2

    @property
    def condition_len(self) -> int:
        """Tokens of the whole history."""
        return self.num_history_frames * self.content_len
