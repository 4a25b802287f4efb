"""What an update tells about the actor: how many of its units respond, how likely and how noisy its actions are."""

from __future__ import annotations

import torch


def dormant_ratio(outputs: list[torch.Tensor], threshold: float) -> torch.Tensor:
    """Fraction of neurons whose mean absolute output is small for their layer (DrM, arXiv 2310.19668).

    Args:
        outputs: (B, width) float32 output of each linear layer.
        threshold: Fraction of the layer's mean below which a neuron is dormant.

    Returns:
        Scalar float32 tensor in [0, 1].
    """
    activity = [output.abs().mean(dim=0) for output in outputs]
    dormant = [(layer < layer.mean() * threshold).sum() for layer in activity]
    return torch.stack(dormant).sum() / sum(len(layer) for layer in activity)


def policy_statistics(
    action: torch.Tensor, mean: torch.Tensor, stddev: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Mean log-density of the actions, and entropy, under a Gaussian policy.

    Args:
        action: (B, A) float32 actions.
        mean: (B, A) float32 mean actions.
        stddev: Scalar float32 tensor, the standard deviation of the noise.

    Returns:
        "actor_logprob" and "actor_ent", scalar float32 tensors in nats, summed over the A entries.
    """
    stddev = stddev.clamp(min=1e-6)  # no noise at all has no density
    policy = torch.distributions.Normal(mean, stddev, validate_args=False)
    return {
        "actor_logprob": policy.log_prob(action).sum(-1).mean(),
        "actor_ent": policy.entropy().sum(-1).mean(),
    }
