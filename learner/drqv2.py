"""DrQ-v2 (Yarats et al., arXiv 2107.09645): off-policy actor-critic from pixels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from learner.actor_statistics import dormant_ratio, policy_statistics
from learner.batch import TensorBatch
from learner.captured import CapturedFunction, Run
from learner.drqv2_config import DrQV2Config, policy_config, require
from learner.networks import Actor, Critic, Encoder, noisy_action, random_shift
from learner.second_thread import SecondThread, Task

SATURATED_FROM = 2.0  # where tanh is 0.96, and its slope 0.07


class DrQV2Agent:
    """Encoder, actor, twin critic, target critic and their optimisers.

    Args:
        resolution_px: Height and width of the frames.
        action_dim: Length A of the action vector.
        config: Hyperparameters.
        device: Torch device of the networks.
        seed: Seed of the initial weights, and of the shifts and noise drawn in updates.
        precision: "float32", or "bfloat16": the encoder's convolutions in bfloat16 (autocast); weights, moments, and
            everything after the encoder stay float32.
        second_thread: Computes target values and gradients of convolutions beside the caller; None for one after
            the other, the same numbers.
        record: Records updates so that they run as a whole (`learner.captured.record_cuda_graph`), or None.

    Raises:
        ValueError: if the augmentation shifts by more than the image.
    """

    def __init__(
        self,
        resolution_px: int,
        action_dim: int,
        config: DrQV2Config,
        device: torch.device | str = "cpu",
        seed: int = 0,
        precision: str = "float32",
        record: Callable[[Run], Run] | None = None,
        second_thread: SecondThread | None = None,
    ) -> None:
        shift_fits = config.shift_pad_px < resolution_px
        require(
            shift_fits, "shift_pad_px", config.shift_pad_px, f"less than the {resolution_px} px of a frame"
        )
        self.config = config
        self.resolution_px, self.action_dim = resolution_px, action_dim
        self.device = torch.device(device)
        self.precision = precision
        self._record = record
        self._second_thread = second_thread or SecondThread(enabled=False)
        self._captured: dict[tuple[bool, float], CapturedFunction] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build_networks()
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.value_offset = torch.zeros((), device=self.device)
        self._centred = not config.centre_values
        # On the CPU, so that shifts and noise do not depend on the device.
        self.generator = torch.Generator().manual_seed(seed)
        self._encoder_parameters: list[torch.Tensor] = list(self.encoder.parameters())
        self._critic_parameters: list[torch.Tensor] = list(self.critic.parameters())
        self._target_parameters: list[torch.Tensor] = list(self.critic_target.parameters())
        self._actor_parameters: list[torch.Tensor] = list(self.actor.parameters())
        self._acting_average = self._acting_weights() if config.acting_ema_decay > 0 else {}
        self.encoder_opt = self._make_optimiser(self._encoder_parameters)
        self.critic_opt = self._make_optimiser(self._critic_parameters)
        self.actor_opt = self._make_optimiser(self._actor_parameters)

    def _make_optimiser(self, parameters: list[torch.Tensor]) -> torch.optim.Adam:
        capturable = self.device.type == "cuda"
        return torch.optim.Adam(parameters, lr=self.config.lr, fused=True, capturable=capturable)

    def _build_networks(self) -> None:
        config = self.config
        encoder = Encoder(
            self.resolution_px, config.encoder_channels, config.encoder_strides, self._second_thread
        )
        sizes = (encoder.repr_dim, self.action_dim, config.feature_dim, config.hidden_dim)
        self.encoder = encoder.to(self.device)
        self.actor = Actor(*sizes).to(self.device)
        self.critic = Critic(*sizes).to(self.device)
        self.critic_target = Critic(*sizes).to(self.device).requires_grad_(False)

    def compile(self) -> None:
        """Compiles the networks with torch.compile; parameter names stay as they are."""
        for network in (self.encoder, self.actor, self.critic, self.critic_target):
            network.compile()

    def update(
        self,
        batch: TensorBatch,
        agent_steps: int,
        bonus: torch.Tensor | None = None,
        bonus_weight: float = 1.0,
        shifts: tuple[torch.Tensor, torch.Tensor] | None = None,
        noise: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """One gradient step of critic, encoder and actor, and one of the target's moving average.

        Args:
            batch: B transitions on the agent's device.
            agent_steps: Global agent steps so far; sets the stddev of the noise.
            bonus: (B, 1) float32 learned bonus, added once to the n-step reward, or None.
            bonus_weight: Factor alpha of the bonus.
            shifts: (B, 2) int64 offsets (x, y) for obs and next_obs, 0..2*pad; drawn if None.
            noise: (B, A) standard normals of the target action and of the actor update; drawn if None.

        Returns:
            Scalar tensors on the agent's device (reading one waits for the device). Those of a captured update
            are valid until the next one.
        """
        if not self._centred:
            self._centre_values(batch)
        shifts = shifts or (self._draw_shifts(batch), self._draw_shifts(batch))
        noise = noise or (self._draw_noise(batch), self._draw_noise(batch))
        stddev = torch.tensor(self.config.stddev(agent_steps), dtype=torch.float32)
        inputs = [*batch, *shifts, *noise, stddev]
        if bonus is not None:
            inputs.append(bonus)
        if self._record is None:
            placed = [tensor.to(self.device, non_blocking=True) for tensor in inputs]
            return self._step(bonus_weight, *placed)
        key = (bonus is not None, bonus_weight)
        if key not in self._captured:
            self._captured[key] = CapturedFunction(partial(self._step, bonus_weight), self._record)
        return self._captured[key](self.device, inputs)

    def _centre_values(self, batch: TensorBatch) -> None:
        """Sets the offset to the value v of the batch's mean reward, for which v = r + discount v on average.

        Without the bonus, which vanishes while training. Where episodes end by time alone an offset changes no
        policy, and without it all that critics and encoder learn from at first is the common sign of the rewards.
        """
        reward, horizon = batch.reward.sum(), (1.0 - batch.discount).sum()
        # Without discounting there is no such value.
        self.value_offset.copy_(torch.where(horizon > 0, reward / horizon, 0.0))
        self._centred = True

    def _step(self, bonus_weight: float, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The update as a function of tensors on the device alone, so that it can be captured.

        Args:
            bonus_weight: Factor of the bonus.
            inputs: The five tensors of a batch, two of shifts, two of noise, the stddev, and the bonus if there is one.
        """
        batch, (shift, next_shift, target_noise, actor_noise, stddev) = TensorBatch(*inputs[:5]), inputs[5:10]
        metrics = {}
        if len(inputs) > 10:
            bonus = inputs[10]
            metrics["expl_reward"] = bonus.mean()
            batch = batch._replace(reward=batch.reward + bonus_weight * bonus)
        metrics["batch_reward"] = batch.reward.mean()
        target_q = self._second_thread.start(
            partial(self._target_values, batch, next_shift, stddev, target_noise)
        )
        features = self._encode(random_shift(batch.obs, shift, self.config.shift_pad_px))
        # Gradients stop here at first: the encoder's can then be computed beside the actor's update.
        obs = features.detach().requires_grad_()
        metrics |= self._critic_gradients(obs, batch.action, target_q)
        rest = self._second_thread.start(
            partial(self._move_critic_and_actor, obs.detach(), stddev, actor_noise)
        )
        self.encoder_opt.zero_grad(set_to_none=True)
        features.backward(obs.grad)
        self.encoder_opt.step()
        metrics |= rest.result()
        self._average_acting_weights()
        return metrics

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, repr_dim) float32. Only the encoder is worth bfloat16, and only it bears it: a value of 50 would be rounded
        to a quarter, more than most temporal differences."""
        enabled = self.precision == "bfloat16"
        # Weights cast for one pass must not serve after an update.
        with torch.autocast(self.device.type, torch.bfloat16, enabled, cache_enabled=False):
            features: torch.Tensor = self.encoder(images)
        return features.float()

    @torch.no_grad()
    def _target_values(
        self, batch: TensorBatch, shift: torch.Tensor, stddev: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """(B, 1) clipped double-Q targets (arXiv 2107.09645, eq. 1)."""
        next_obs = self._encode(random_shift(batch.next_obs, shift, self.config.shift_pad_px))
        next_action = noisy_action(self.actor(next_obs), stddev, noise, self.config.stddev_clip)
        return batch.reward + batch.discount * torch.minimum(
            *self._values(self.critic_target, next_obs, next_action)
        )

    def _values(
        self, critic: Critic, features: torch.Tensor, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, repr_dim), (B, A) float32 -> two (B, 1) float32 values, scaled and offset."""
        q1, q2 = critic(features, action)
        scale = self.config.value_scale
        return q1 * scale + self.value_offset, q2 * scale + self.value_offset

    def _critic_gradients(
        self, obs: torch.Tensor, action: torch.Tensor, targets: Task[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Gradients of the two squared errors to the targets (arXiv 2107.09645, eq. 1-2), for critic and observation."""
        q1, q2 = self._values(self.critic, obs, action)
        target_q = targets.result()
        loss = F.mse_loss(q1, target_q) + F.mse_loss(q2, target_q)
        self.critic_opt.zero_grad(set_to_none=True)
        loss.backward()
        values = {"critic_target_q": target_q, "critic_q1": q1, "critic_q2": q2, "critic_loss": loss}
        return {name: value.detach().mean() for name, value in values.items()}

    def _move_critic_and_actor(
        self, obs: torch.Tensor, stddev: torch.Tensor, noise: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """What follows the critic's gradients and does not touch the encoder."""
        self.critic_opt.step()
        metrics = self._update_actor(obs, stddev, noise)
        self._update_target()
        return metrics

    def _update_actor(
        self, obs: torch.Tensor, stddev: torch.Tensor, noise: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Maximises the smaller value of the noisy action (arXiv 2107.09645, eq. 3), kept where tanh has a slope."""
        outputs: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output.detach()))
            for layer in self.actor.linear_layers()
        ]
        pre_tanh = self.actor.pre_tanh(obs)
        for hook in hooks:
            hook.remove()
        mean = torch.tanh(pre_tanh)
        action = noisy_action(mean, stddev, noise, self.config.stddev_clip)
        loss = -torch.minimum(*self._values(self.critic, obs, action)).mean()
        if self.config.saturation_weight > 0:
            excess = (pre_tanh.abs() - SATURATED_FROM).clamp(min=0.0)
            loss = loss + self.config.saturation_weight * excess.square().sum(-1).mean()
        self.actor_opt.zero_grad(set_to_none=True)
        # Only the actor's gradients are computed; the critic's would be thrown away.
        loss.backward(inputs=self._actor_parameters)
        self.actor_opt.step()
        return {
            "actor_dormant_ratio": dormant_ratio(outputs, self.config.dormant_threshold),
            "actor_saturation": (pre_tanh.detach().abs() > SATURATED_FROM).float().mean(),
            "actor_loss": loss.detach(),
            **policy_statistics(action.detach(), mean.detach(), stddev),
        }

    @torch.no_grad()
    def _update_target(self) -> None:
        """Moving average of the critic's weights (arXiv 2107.09645, section 3.1)."""
        torch._foreach_lerp_(self._target_parameters, self._critic_parameters, self.config.critic_target_tau)

    def _acting_weights(self) -> dict[str, torch.Tensor]:
        """Copies of the last weights of encoder and actor by the names that `learner.policy.Policy.load` expects."""
        networks = (("encoder", self.encoder), ("actor", self.actor))
        return {
            f"{prefix}.{name}": value.detach().clone()
            for prefix, network in networks
            for name, value in network.state_dict().items()
        }

    @torch.no_grad()
    def _average_acting_weights(self) -> None:
        """Moving average over updates, into tensors that stay where they are, so that it can be captured."""
        if self._acting_average:
            last = [*self._encoder_parameters, *self._actor_parameters]
            torch._foreach_lerp_(list(self._acting_average.values()), last, 1 - self.config.acting_ema_decay)

    def _draw_shifts(self, batch: TensorBatch) -> torch.Tensor:
        high = 2 * self.config.shift_pad_px + 1
        size = (len(batch.obs), 2)
        return torch.randint(0, high, size, generator=self.generator)

    def _draw_noise(self, batch: TensorBatch) -> torch.Tensor:
        return torch.randn(batch.action.shape, generator=self.generator)

    def policy_config(self) -> dict[str, Any]:
        """What `learner.policy.build_policy` needs to rebuild the acting half of this agent."""
        return policy_config(self.config, self.resolution_px, self.action_dim)

    def actor_weights(self) -> dict[str, np.ndarray]:
        """Weights of encoder and actor to act with as float32 numpy arrays, a copy, for `Policy.load`."""
        weights = self._acting_average or self._acting_weights()
        return {name: value.cpu().contiguous().numpy().copy() for name, value in weights.items()}

    def _parts(self) -> dict[str, Any]:
        names = ("encoder", "actor", "critic", "critic_target", "encoder_opt", "actor_opt", "critic_opt")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Everything an identical continuation needs: weights, optimisers and the random state."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        values = {"value_offset": self.value_offset.clone(), "centred": self._centred}
        if self._acting_average:
            values["acting_average"] = {name: value.clone() for name, value in self._acting_average.items()}
        return {**state, **values, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`, also one of another device."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
            if isinstance(part, torch.optim.Optimizer):
                for group in part.param_groups:
                    group["capturable"] = self.device.type == "cuda"  # of the device that it was saved on
        # Checkpoints without an average go on from the last weights.
        average = state.get("acting_average") or self._acting_weights()
        for name, value in self._acting_average.items():
            value.copy_(average[name])
        # Checkpoints from before there was an offset have none.
        self.value_offset.copy_(state.get("value_offset", torch.zeros(())))
        self._centred = state.get("centred", True)
        self.generator.set_state(state["generator"].cpu())
        self._captured.clear()  # A recording goes on writing into the moments that were just replaced.
