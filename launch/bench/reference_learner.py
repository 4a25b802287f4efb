"""A plain eager DrQ-v2 update with RND: what production is raced against, written from the papers.

Cost structure of the original implementations (DrQ-v2, arXiv 2107.09645; Diffusion Reward, arXiv 2312.14134): images in
PyTorch's default layout, converted to float on every call and shifted by bilinear sampling, one Adam kernel per
operation, a full backward pass in the actor step, the target network moved parameter by parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

ACTION_MARGIN = 1e-6


class PlainBatch(NamedTuple):
    """Transitions as the original replay hands them out.

    Attributes:
        obs: (B, 3, H, W) uint8 [0, 255].
        action: (B, A) float32.
        reward: (B, 1) float32.
        discount: (B, 1) float32.
        next_obs: (B, 3, H, W) uint8 [0, 255].
    """

    obs: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    discount: torch.Tensor
    next_obs: torch.Tensor


@dataclass(frozen=True)
class PlainSettings:
    """Sizes and rates of the plain agent; see `learner.drqv2_config.DrQV2Config` for their meaning."""

    resolution_px: int
    action_dim: int
    lr: float
    channels: int
    strides: tuple[int, ...]
    feature_dim: int
    hidden_dim: int
    tau: float
    stddev_clip: float
    shift_pad_px: int
    dormant_threshold: float


class PlainEncoder(nn.Module):
    """3x3 convolutions over pixels scaled to [-0.5, 0.5]."""

    def __init__(self, settings: PlainSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size_px, channels = settings.resolution_px, 3
        for stride in settings.strides:
            layers += [nn.Conv2d(channels, settings.channels, 3, stride=stride), nn.ReLU()]
            size_px, channels = (size_px - 3) // stride + 1, settings.channels
        self.convnet = nn.Sequential(*layers)
        self.repr_dim = channels * size_px**2

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) float32 [0, 255] -> (B, repr_dim)."""
        h = self.convnet(obs / 255.0 - 0.5)
        return h.reshape(h.shape[0], -1)


def _head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(in_dim, hidden_dim), nn.ReLU(inplace=True)),
        *(nn.Linear(hidden_dim, hidden_dim), nn.ReLU(inplace=True)),
        nn.Linear(hidden_dim, out_dim),
    )


def _trunk(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.LayerNorm(out_dim), nn.Tanh())


class PlainActor(nn.Module):
    """Mean action."""

    def __init__(self, repr_dim: int, settings: PlainSettings) -> None:
        super().__init__()
        self.trunk = _trunk(repr_dim, settings.feature_dim)
        self.policy = _head(settings.feature_dim, settings.hidden_dim, settings.action_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, repr_dim) -> (B, A)."""
        return torch.tanh(self.policy(self.trunk(features)))


class PlainCritic(nn.Module):
    """Two values."""

    def __init__(self, repr_dim: int, settings: PlainSettings) -> None:
        super().__init__()
        self.trunk = _trunk(repr_dim, settings.feature_dim)
        joint_dim = settings.feature_dim + settings.action_dim
        self.Q1 = _head(joint_dim, settings.hidden_dim, 1)
        self.Q2 = _head(joint_dim, settings.hidden_dim, 1)

    def forward(self, features: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, repr_dim), (B, A) -> (B, 1) twice."""
        joint = torch.cat([self.trunk(features), action], dim=-1)
        return self.Q1(joint), self.Q2(joint)


class PlainDrQV2:
    """The agent.

    Args:
        settings: Sizes and rates.
        device: Torch device.
        read_metrics: Read every metric at every update, as the original does while it logs; on a GPU each reading
            waits for the device.
    """

    def __init__(self, settings: PlainSettings, device: str, read_metrics: bool) -> None:
        self.settings, self.device, self.read_metrics = settings, torch.device(device), read_metrics
        self.encoder = PlainEncoder(settings).to(device)
        self.actor = PlainActor(self.encoder.repr_dim, settings).to(device)
        self.critic = PlainCritic(self.encoder.repr_dim, settings).to(device)
        self.critic_target = copy.deepcopy(self.critic)
        self.encoder_opt = torch.optim.Adam(self.encoder.parameters(), lr=settings.lr, foreach=False)
        self.actor_opt = torch.optim.Adam(self.actor.parameters(), lr=settings.lr, foreach=False)
        self.critic_opt = torch.optim.Adam(self.critic.parameters(), lr=settings.lr, foreach=False)

    def load(self, networks: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Takes over weights: network name -> state dict."""
        for name, state in networks.items():
            getattr(self, name).load_state_dict(state)

    def update(
        self,
        batch: PlainBatch,
        stddev: float,
        shifts: tuple[torch.Tensor, torch.Tensor],
        noise: tuple[torch.Tensor, torch.Tensor],
    ) -> dict[str, Any]:
        """One update of everything; the last two arguments are drawn by the caller.

        Args:
            batch: Transitions.
            stddev: Of the exploration noise.
            shifts: (B, 2) int64 (x, y) offsets for obs and next_obs, 0..2*pad.
            noise: (B, A) standard normals of the target action and of the actor's.
        """
        pad_px = self.settings.shift_pad_px
        obs = self.encoder(bilinear_shift(batch.obs.float(), shifts[0], pad_px))
        with torch.no_grad():
            next_obs = self.encoder(bilinear_shift(batch.next_obs.float(), shifts[1], pad_px))
        metrics = {"batch_reward": self._metric(batch.reward.mean())}
        metrics |= self._update_critic(obs, batch, next_obs, stddev, noise[0])
        metrics |= self._update_actor(obs.detach(), stddev, noise[1])
        for parameter, target in zip(self.critic.parameters(), self.critic_target.parameters()):
            tau = self.settings.tau
            target.data.copy_(tau * parameter.data + (1 - tau) * target.data)
        return metrics

    def _update_critic(
        self,
        obs: torch.Tensor,
        batch: PlainBatch,
        next_obs: torch.Tensor,
        stddev: float,
        noise: torch.Tensor,
    ) -> dict[str, Any]:
        with torch.no_grad():
            next_action = self._noisy(self.actor(next_obs), stddev, noise)
            target_q1, target_q2 = self.critic_target(next_obs, next_action)
            target_q = batch.reward + batch.discount * torch.min(target_q1, target_q2)
        q1, q2 = self.critic(obs, batch.action)
        loss = F.mse_loss(q1, target_q) + F.mse_loss(q2, target_q)
        metrics = {
            "critic_target_q": self._metric(target_q.mean()),
            "critic_q1": self._metric(q1.mean()),
            "critic_q2": self._metric(q2.mean()),
            "critic_loss": self._metric(loss),
        }
        self.encoder_opt.zero_grad(set_to_none=True)
        self.critic_opt.zero_grad(set_to_none=True)
        loss.backward()
        self.critic_opt.step()
        self.encoder_opt.step()
        return metrics

    def _update_actor(self, obs: torch.Tensor, stddev: float, noise: torch.Tensor) -> dict[str, Any]:
        outputs: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
            for layer in self.actor.modules()
            if isinstance(layer, nn.Linear)
        ]
        mean = self.actor(obs)
        for hook in hooks:
            hook.remove()
        policy = torch.distributions.Normal(mean, torch.ones_like(mean) * stddev)
        action = self._noisy(mean, stddev, noise)
        log_prob = policy.log_prob(action).sum(-1, keepdim=True)
        loss = -torch.min(*self.critic(obs, action)).mean()
        self.actor_opt.zero_grad(set_to_none=True)
        loss.backward()
        self.actor_opt.step()
        return {
            "actor_loss": self._metric(loss),
            "actor_logprob": self._metric(log_prob.mean()),
            "actor_ent": self._metric(policy.entropy().sum(dim=-1).mean()),
            "actor_dormant_ratio": self._dormant_ratio(outputs),
        }

    def _dormant_ratio(self, outputs: list[torch.Tensor]) -> Any:
        dormant, total = torch.zeros((), device=self.device), 0
        for output in outputs:
            activity = output.detach().abs().mean(0)
            dormant = dormant + (activity < activity.mean() * self.settings.dormant_threshold).sum()
            total += activity.numel()
        return self._metric(dormant / total)

    def _noisy(self, mean: torch.Tensor, stddev: float, noise: torch.Tensor) -> torch.Tensor:
        offset = torch.clamp(noise * stddev, -self.settings.stddev_clip, self.settings.stddev_clip)
        action = mean + offset
        clamped = torch.clamp(action, -1.0 + ACTION_MARGIN, 1.0 - ACTION_MARGIN)
        return action - action.detach() + clamped.detach()

    def _metric(self, value: torch.Tensor) -> Any:
        return value.item() if self.read_metrics else value.detach()


class PlainRND:
    """Random network distillation (arXiv 1810.12894): the bonus and the training step each run both networks.

    Args:
        target: The fixed network, in PyTorch's default layout.
        predictor: The trained one.
        lr: Learning rate of Adam.
    """

    def __init__(self, target: nn.Module, predictor: nn.Module, lr: float) -> None:
        self.target, self.predictor = target, predictor
        self.opt = torch.optim.Adam(predictor.parameters(), lr=lr, foreach=False)

    def _error(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 -> (B, D) squared differences."""
        pixels = frames.float() / 255.0 - 0.5
        return torch.pow(self.target(pixels).detach() - self.predictor(pixels), 2)

    def bonus(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 -> (B, 1) float32."""
        with torch.no_grad():
            return self._error(frames).sum(1, keepdim=True) / 2

    def update(self, frames: torch.Tensor) -> torch.Tensor:
        """One training step; the loss before it."""
        loss = self._error(frames).mean()
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return loss.detach()


def bilinear_shift(images: torch.Tensor, shifts: torch.Tensor, pad_px: int) -> torch.Tensor:
    """Shifts float images by bilinear sampling of the edge-padded image (arXiv 2107.09645, section 3.1).

    Args:
        images: (B, C, H, H) float32.
        shifts: (B, 2) int64 (x, y), 0..2*pad_px.
        pad_px: Width of the padding.
    """
    size_px = images.shape[-1]
    padded_px = size_px + 2 * pad_px
    padded = F.pad(images, (pad_px, pad_px, pad_px, pad_px), mode="replicate")
    low = -1.0 + 1.0 / padded_px
    axis = torch.linspace(low, -low, padded_px, device=images.device, dtype=images.dtype)[:size_px]
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    base = torch.stack([columns, rows], dim=-1)
    offsets = rearrange(shifts.to(images.dtype), "batch xy -> batch 1 1 xy") * (2.0 / padded_px)
    return F.grid_sample(padded, base + offsets, padding_mode="zeros", align_corners=False)
