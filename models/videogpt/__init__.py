"""VideoGPT: an autoregressive model of video tokens, the video model of VIPER (arXiv 2305.14343, 2104.10157)."""

from models.videogpt.config import VideoGPTConfig
from models.videogpt.gpt import VideoGPT

__all__ = ["VideoGPT", "VideoGPTConfig"]
