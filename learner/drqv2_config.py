"""Hyperparameters of DrQ-v2, and the policy they describe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from learner.policy import PolicyConfig


@dataclass(frozen=True)
class DrQV2Config:
    """Hyperparameters of the agent; the defaults are those of Diffusion Reward (arXiv 2312.14134).

    Attributes:
        batch_size: Transitions per update, at least 1.
        lr: Learning rate of the three Adam optimisers, above 0.
        encoder_channels: Channels of every convolution, at least 1.
        encoder_strides: Stride of each 3x3 convolution, at least one of them.
        feature_dim: Width of the actor's and critic's trunk, at least 1.
        hidden_dim: Width of the actor's and critic's hidden layers, at least 1.
        critic_target_tau: Rate of the target network's moving average, in (0, 1].
        stddev_start: Exploration stddev at agent step 0, at least 0.
        stddev_end: Exploration stddev from `stddev_duration_steps` on, at least 0.
        stddev_duration_steps: Agent steps over which the stddev moves linearly, at least 1.
        stddev_clip: Bound on the scaled noise inside updates, above 0.
        num_expl_steps: Agent steps at the start whose actions are uniform, at least 0.
        noise_correlation: Correlation of the exploration noise from one agent step to the next, in [0, 1); 0 in the paper.
            What updates add to actions is never correlated.
        excursion_prob: Probability per agent step, in [0, 1), that a rollout begins to hold a random action, for n agent steps
            with a probability that falls as 1 / n^2 (epsilon-z-greedy, Dabney et al., arXiv 2006.01782); 0 in the paper.
        acting_ema_decay: Decay per update, in [0, 1), of the moving average of the weights with which the policy acts and is
            evaluated; updates go on from the last weights. 0, the last weights alone, in the paper.
        shift_pad_px: Largest shift of the augmentation in pixels, at least 0.
        dormant_threshold: A neuron counts as dormant if its mean absolute output is below this
            fraction of its layer's mean; at least 0.
        value_scale: Factor on the critics' outputs, above 0; 1 in the paper. Of the size of the returns, it spares a short
            training the updates in which outputs grow to them.
        centre_values: Whether the critics learn the difference from the value of the first batch's mean reward
            ("Reward Centering", Naik et al., arXiv 2405.09999, with a fixed mean), not that value too; no in the paper.
        saturation_weight: Weight, at least 0, of the squared excess of the actor's outputs before their tanh over +-2,
            beyond which no gradient brings an action back; 0 in the paper.
    """

    batch_size: int = 256
    lr: float = 1e-4
    encoder_channels: int = 32
    encoder_strides: tuple[int, ...] = (2, 1, 1, 1)
    feature_dim: int = 50
    hidden_dim: int = 1024
    critic_target_tau: float = 0.01
    stddev_start: float = 1.0
    stddev_end: float = 0.1
    stddev_duration_steps: int = 3_000_000
    stddev_clip: float = 0.3
    num_expl_steps: int = 2000
    noise_correlation: float = 0.0
    excursion_prob: float = 0.0
    acting_ema_decay: float = 0.0
    shift_pad_px: int = 4
    dormant_threshold: float = 0.025
    value_scale: float = 1.0
    centre_values: bool = False
    saturation_weight: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder_strides", tuple(int(stride) for stride in self.encoder_strides))
        whole = ("batch_size", "encoder_channels", "feature_dim", "hidden_dim", "stddev_duration_steps")
        for name in whole:
            require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        not_negative = ("stddev_start", "stddev_end", "num_expl_steps", "shift_pad_px", "dormant_threshold")
        for name in (*not_negative, "saturation_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "a number of at least 0")
        for name in ("lr", "stddev_clip", "value_scale"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        for name in ("noise_correlation", "excursion_prob", "acting_ema_decay"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        require(0 < self.critic_target_tau <= 1, "critic_target_tau", self.critic_target_tau, "in (0, 1]")
        strides_ok = len(self.encoder_strides) > 0 and min(self.encoder_strides) >= 1
        require(strides_ok, "encoder_strides", self.encoder_strides, "one whole number >= 1 a convolution")

    def stddev(self, agent_steps: int) -> float:
        """Exploration stddev at a global agent step: linear from start to end, then constant."""
        progress = min(max(agent_steps / self.stddev_duration_steps, 0.0), 1.0)
        return (1.0 - progress) * self.stddev_start + progress * self.stddev_end


def require(allowed: bool, name: str, value: object, expected: str) -> None:
    if not allowed:
        raise ValueError(f"agent.{name}={value!r} is not allowed: expected {expected}")


def policy_config(config: DrQV2Config, resolution_px: int, action_dim: int) -> dict[str, Any]:
    """The plain dict from which `learner.policy.build_policy` builds this agent's policy."""
    return asdict(
        PolicyConfig(
            resolution_px=resolution_px,
            action_dim=action_dim,
            encoder_channels=config.encoder_channels,
            encoder_strides=config.encoder_strides,
            feature_dim=config.feature_dim,
            hidden_dim=config.hidden_dim,
        )
    )
