"""Scoring an episode at paper sizes: production against the published algorithm's cost structure."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launch.bench.harness import Comparison, Contender, Row, compare, race
from launch.bench.reference_reward import ReferenceReward
from launch.bench.settings import BenchSettings
from models.frames import images_to_tensor
from models.videos import RenderSettings
from models.vqdiffusion.config import VQDiffusionConfig
from models.vqdiffusion.diffusion import VQDiffusion
from models.vqgan import VQGAN, VQGANConfig
from reward_service.config import DiffusionRewardConfig
from reward_service.diffusion_reward import DiffusionReward
from reward_service.noise import GivenUniform

PEERS = ("official",)
EPISODE_FRAMES, SMOKE_FRAMES, CHECK_FRAMES = 101, 24, 6
GPU_EPISODES = 16  # what a reward actor gathers from many rollouts
TARGETS = {"cpu": {"float32": 3.0, "bfloat16": 5.0}, "cuda": {"float32": None, "bfloat16": 10.0}}
GOLDEN_TOLERANCE = 5e-5


def paper_networks(device: str, seed: int) -> tuple[VQDiffusion, VQGAN]:
    """Video model and codec of the paper's sizes with random weights.

    Args:
        device: Where they go.
        seed: Of the weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, codec = VQDiffusion(VQDiffusionConfig()), VQGAN(VQGANConfig())
        for parameter in model.transformer.parameters():
            parameter.data.mul_(2.0)  # so that predictions are no longer flat
    return model.to(device).eval().requires_grad_(False), codec.to(device).eval().requires_grad_(False)


def entropy_reward(model: VQDiffusion, codec: VQGAN, **config: Any) -> DiffusionReward:
    """The entropy reward by eleven denoising steps.

    Args:
        model: Video model.
        codec: Its codec.
        config: Further keys of `DiffusionRewardConfig`.
    """
    meta = {"tasks": ["none"], "domain": "none", "render": vars(RenderSettings()), "action_repeat": 1}
    folder = Path(tempfile.gettempdir()) / "drr-no-model"  # raw rewards need no statistics
    return DiffusionReward(model, codec, meta, DiffusionRewardConfig(**config), folder)


def moving_pictures(num_frames: int, seed: int) -> np.ndarray:
    """A smooth random picture that drifts by a pixel a frame: (num_frames, 64, 64, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, 12, 12))).float()
    picture = torch.nn.functional.interpolate(coarse, size=(64, 64 + num_frames), mode="bicubic")[0]
    whole = (picture.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    return np.stack([whole[:, t : t + 64] for t in range(num_frames)])


def measure(settings: BenchSettings) -> list[Comparison | Row]:
    """Frames per second of one-episode reference calls and of ours in both precisions."""
    if not settings.wants("official"):
        return []
    frames = SMOKE_FRAMES if settings.smoke else EPISODE_FRAMES
    episodes = GPU_EPISODES if settings.device == "cuda" else 1
    networks = paper_networks(settings.device, settings.seed)
    compiled = settings.device == "cuda"
    rewards = {
        precision: entropy_reward(*networks, precision=precision, compile=compiled)
        for precision in ("float32", "bfloat16")
    }
    reference = ReferenceReward(*networks)
    videos = [moving_pictures(frames, settings.seed + number) for number in range(episodes)]
    checks = _checks(rewards, reference, videos[0][:CHECK_FRAMES])
    settings.report(f"checks: {checks}")

    def plain() -> float:
        reference.score(images_to_tensor(videos[0]).to(settings.device))
        return _finished(settings.device, frames)

    def ours(precision: str) -> Contender:
        def run() -> float:
            rewards[precision].raw(videos, list(range(episodes)))
            return _finished(settings.device, frames * episodes)

        return Contender(precision, run)

    contenders = [Contender("official", plain), *(ours(precision) for precision in rewards)]
    rates = race(contenders, settings.rounds, report=settings.report)
    size = f"{frames}-frame episodes, 11 steps"
    return [
        compare(
            rates,
            precision,
            "official",
            part="reward",
            case=f"paper sizes, {precision}, {size}",
            unit="frames/s",
            target=TARGETS[settings.device][precision],
            checks=checks,
        )
        for precision in rewards
    ] + ([_utilisation(rewards["bfloat16"], rates["bfloat16"])] if settings.device == "cuda" else [])


def _checks(
    rewards: dict[str, DiffusionReward], reference: ReferenceReward, frames: np.ndarray
) -> dict[str, Any]:
    """Differences of raw rewards with the same noise; float32 must lie within the golden tolerance.

    Raises:
        RuntimeError: if it does not.
    """
    device = reference.model.device
    generator = torch.Generator().manual_seed(0)
    shape = (
        len(reference.network_steps),
        len(frames),
        reference.num_classes,
        reference.model.config.content_len,
    )
    uniform = torch.rand(shape, generator=generator).to(device)
    expected = reference.score(images_to_tensor(frames).to(device), uniform).cpu().numpy()
    found = {}
    for precision, reward in rewards.items():
        usual, reward.make_noise = reward.make_noise, lambda lengths, seeds: GivenUniform(uniform)
        (values,) = reward.raw([frames], [0])
        reward.make_noise = usual
        difference = np.abs(values - expected) / np.maximum(1, np.abs(expected))
        found[f"max_relative_difference_{precision}"] = float(difference.max())
    if found["max_relative_difference_float32"] > GOLDEN_TOLERANCE:
        raise RuntimeError(f"ours and the reference compute different rewards: {found}")
    return {**found, "tolerance": GOLDEN_TOLERANCE, "frames_checked": len(frames)}


def _finished(device: str, frames: int) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return float(frames)


def denoiser_flops(config: VQDiffusionConfig) -> float:
    """Floating point operations of one denoiser pass for one frame, with tabulated keys and values."""
    length, width = config.content_len, config.width
    hidden = config.mlp_ratio * width
    mlp = 2 * width * hidden * (9 if config.mlp_type == "conv" else 1)
    projections = 6 * width * width
    attention = 2 * width * (length + config.condition_len)
    per_token = config.num_layers * (mlp + projections + attention) + width * config.num_codes
    return 2.0 * length * per_token


def _utilisation(reward: DiffusionReward, rates: list[float]) -> Row:
    """Share of the card's product rate that the whole scoring reaches, from a matrix product timed here."""
    size = 8192
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    peak = race([Contender("product", lambda: _product(a))], rounds=5)["product"]
    flops = denoiser_flops(reward.model.config) * len(reward.chain.steps)
    share = max(rates) * flops / max(peak)
    return Row("reward", "share of a large product's rate", {"share": share, "flops_per_frame": flops})


def _product(a: torch.Tensor) -> float:
    for _ in range(10):
        a @ a
    torch.cuda.synchronize()
    return 10 * 2.0 * len(a) ** 3
