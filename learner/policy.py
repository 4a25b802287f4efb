"""The acting half of DrQ-v2: encoder and actor, inference only, for rollouts and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from learner.networks import Actor, Encoder, noisy_action


@dataclass(frozen=True)
class PolicyConfig:
    """Shapes of the policy networks.

    Attributes:
        resolution_px: Height and width of the frames.
        action_dim: Length A of the action vector.
        encoder_channels: Channels of every convolution.
        encoder_strides: Stride of each 3x3 convolution.
        feature_dim: Width of the trunk.
        hidden_dim: Width of the hidden layers.
    """

    resolution_px: int
    action_dim: int
    encoder_channels: int = 32
    encoder_strides: tuple[int, ...] = (2, 1, 1, 1)
    feature_dim: int = 50
    hidden_dim: int = 1024


class Policy:
    """A policy on the CPU that acts with the weights loaded last.

    Args:
        config: Shapes of the networks; the weights stay random until `load`.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self.config = config
        encoder = Encoder(config.resolution_px, config.encoder_channels, config.encoder_strides)
        actor = Actor(encoder.repr_dim, config.action_dim, config.feature_dim, config.hidden_dim)
        self._encoder = encoder.eval().requires_grad_(False)
        self._actor = actor.eval().requires_grad_(False)

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Loads `DrQV2Agent.actor_weights()`.

        Args:
            weights: Float32 arrays named "encoder.*" and "actor.*".

        Raises:
            RuntimeError: naming the missing, unexpected or wrongly shaped entries.
        """
        for prefix, network in (("encoder.", self._encoder), ("actor.", self._actor)):
            # Arrays out of an object store are read-only; torch wants to own what it wraps.
            state = {
                name.removeprefix(prefix): torch.from_numpy(np.array(value))
                for name, value in weights.items()
                if name.startswith(prefix)
            }
            network.load_state_dict(state)

    @torch.inference_mode()
    def act(
        self,
        frames: np.ndarray,
        stddev: float | None,
        noise: np.ndarray | None = None,
        uniform: bool = False,
    ) -> np.ndarray:
        """Actions for N observations.

        Args:
            frames: (N, H, W, 3) uint8 [0, 255].
            stddev: Standard deviation of the exploration noise, or None for the mean action.
            noise: (N, A) float32 standard normals; not needed for mean actions.
            uniform: Uniform actions from the noise instead (the first exploration steps).

        Returns:
            (N, A) float32 [-1, 1].
        """
        if uniform:
            # The distribution function of the normal distribution makes normals uniform in [0, 1].
            return (2.0 * torch.special.ndtr(torch.from_numpy(noise)) - 1.0).numpy()
        images = frames if frames.flags.writeable else frames.copy()
        mean = self._actor(self._encoder(torch.from_numpy(images)))
        if stddev is None:
            return mean.numpy()
        return noisy_action(mean, stddev, torch.from_numpy(noise)).numpy()


def build_policy(config: dict[str, Any]) -> Policy:
    """Builds a policy from `DrQV2Agent.policy_config()`; importable by name, so that it travels by reference."""
    return Policy(PolicyConfig(**{**config, "encoder_strides": tuple(config["encoder_strides"])}))
