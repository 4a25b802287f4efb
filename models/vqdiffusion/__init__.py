"""VQ-Diffusion: the video model whose predictions become rewards."""

from models.vqdiffusion.config import VQDiffusionConfig
from models.vqdiffusion.denoiser import Condition
from models.vqdiffusion.diffusion import VQDiffusion
from models.vqdiffusion.schedule import Schedule, sample_tokens

__all__ = ["Condition", "Schedule", "VQDiffusion", "VQDiffusionConfig", "sample_tokens"]
