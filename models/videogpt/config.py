"""Configuration of VideoGPT. Defaults are the sizes of VIPER as a baseline of Diffusion Reward."""

from __future__ import annotations

from dataclasses import dataclass

HISTORY_PADDINGS = ("current", "first")


@dataclass(frozen=True)
class VideoGPTConfig:
    """Sizes and options of `VideoGPT` (VIPER, arXiv 2305.14343; Diffusion Reward, arXiv 2312.14134).

    Attributes:
        num_codes: Number of codes of the image codec, > 1.
        latent_size: Height and width of a frame's token grid in tokens, > 0.
        latent_dim: Length of the codec's code vectors, > 0; they are the input of the transformer.
        num_history_frames: Frames before the predicted one, > 0. A window has one frame more.
        frame_skip: Distance between neighbouring frames of a window in video frames, > 0.
        history_padding: What stands for frames before the first of a video. "current" (official): training windows
            lie inside the video, and a scored frame without a full history sees copies of itself. "first": copies
            of the first frame, in training and in scoring, so that every frame is scored as trained.
        num_layers: Transformer blocks, > 0.
        width: Width of the transformer, a multiple of `num_heads`.
        num_heads: Attention heads, > 0.
        mlp_ratio: Hidden width of the MLP as a multiple of `width`, > 0. Officially 4.
        dropout: Dropout probability of embedding, attention outputs and MLP, [0, 1).
        keep_prob: Probability of an input token to be kept in training, (0, 1]; the others are replaced by zero
            latents, so that the model cannot lean on the last tokens alone.
    """

    num_codes: int = 1024
    latent_size: int = 8
    latent_dim: int = 64
    num_history_frames: int = 2
    frame_skip: int = 1
    history_padding: str = "current"
    num_layers: int = 8
    width: int = 512
    num_heads: int = 8
    mlp_ratio: int = 4
    dropout: float = 0.0
    keep_prob: float = 0.8

    def __post_init__(self) -> None:
        for key, least in (
            ("num_codes", 2),
            ("latent_size", 1),
            ("latent_dim", 1),
            ("num_history_frames", 1),
            ("frame_skip", 1),
            ("num_layers", 1),
            ("width", 1),
            ("num_heads", 1),
            ("mlp_ratio", 1),
        ):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"videogpt {key}={value!r}: expected a whole number of at least {least}")
        if self.width % self.num_heads:
            raise ValueError(
                f"videogpt width={self.width}: expected a multiple of num_heads={self.num_heads}"
            )
        if self.history_padding not in HISTORY_PADDINGS:
            raise ValueError(
                f"videogpt history_padding={self.history_padding!r}: expected one of {HISTORY_PADDINGS}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"videogpt dropout={self.dropout!r}: expected a number in [0, 1)")
        if not 0.0 < self.keep_prob <= 1.0:
            raise ValueError(f"videogpt keep_prob={self.keep_prob!r}: expected a number in (0, 1]")

    @property
    def content_len(self) -> int:
        """Tokens of one frame."""
        return self.latent_size**2

    @property
    def block_size(self) -> int:
        """Tokens of one window, the longest sequence that the model takes."""
        return (self.num_history_frames + 1) * self.content_len
