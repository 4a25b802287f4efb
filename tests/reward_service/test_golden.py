"""Diffusion Reward against golden tensors: four runs of a denoising chain, step by step."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from models.vqdiffusion import VQDiffusion, VQDiffusionConfig
from models.vqgan import VQGAN, VQGANConfig
from reward_service.config import DiffusionRewardConfig
from reward_service.diffusion_reward import DiffusionReward
from reward_service.noise import GivenUniform, MostProbable
from reward_service.statistics import MeanStd
from tests.reward_service.support import META, tensors

RUNS = [(mode, noise) for mode in ("entropy", "likelihood") for noise in (0, 1)]


def close(actual, expected, tolerance=5e-5):
    """Golden tolerance: |a - b| / max(1, |b|)."""
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert a.shape == b.shape
    error = np.abs(a - b) / np.maximum(1, np.abs(b))
    assert error.max() < tolerance, error.max()


@pytest.fixture(scope="module")
def io(golden):
    return tensors(golden("diffusion_reward") / "io.npz")


@pytest.fixture(scope="module")
def networks(golden):
    sizes = {"num_codes": 64, "num_layers": 2, "width": 32, "num_heads": 4, "condition_dim": 64}
    model = VQDiffusion(VQDiffusionConfig(**sizes))
    model.load_state_dict(tensors(golden("vqdiffusion") / "transformer_state.npz"))
    codec = VQGAN(VQGANConfig(num_codes=64, latent_dim=16, channels=(32, 32, 64, 64)))
    codec.load_state_dict(tensors(golden("vqgan") / "vqgan_state.npz"))
    return model.eval(), codec.eval()


def build(networks, tmp_path, mode, noise, **changes):
    config = DiffusionRewardConfig(
        mode=mode, noise=bool(noise), likelihood_leak=mode == "likelihood", batch_rows=5, **changes
    )
    return DiffusionReward(*networks, META, config, tmp_path)


@pytest.mark.parametrize(("mode", "noise"), RUNS)
def test_raw_and_final_reward(networks, io, golden, tmp_path, mode, noise):
    """The whole way from frames to the standardised reward, in chunks smaller than the episode."""
    config = json.loads((golden("diffusion_reward") / "config.json").read_text())
    reward = build(networks, tmp_path, mode, noise)
    if noise:
        reward.make_noise = lambda lengths, seeds: GivenUniform(io["uniform"])
    (raw,) = reward.raw([io["frames_u8"].numpy()], [0])
    run = f"{mode}_noise{noise}"
    assert raw.shape == (12,) and raw.dtype == np.float32
    close(raw, io[f"{run}/raw_reward"].reshape(12))
    scale = MeanStd(config["stat_mean"], config["stat_std"])
    final = (1 - config["expl_scale"]) * reward._standardise(raw, scale)
    close(final, io[f"{run}/final_reward"].reshape(12))


@pytest.mark.parametrize(("mode", "noise"), RUNS)
def test_every_step_of_the_chain(networks, io, tmp_path, mode, noise):
    run, reward = f"{mode}_noise{noise}", build(networks, tmp_path, mode, noise)
    source = GivenUniform(io["uniform"]) if noise else MostProbable()
    rows = slice(0, 12)
    with torch.inference_mode():
        terms = reward.chain.terms(
            reward.denoiser.history(io[f"{mode}/condition_tokens"]),
            lambda posterior, step: source.choose(posterior, rows, 0, step),
            io["likelihood/content_tokens"] if mode == "likelihood" else None,
        )
    assert [step.network for step in reward.chain.steps] == io[f"{run}/diffusion_index"].tolist()
    assert [step.source for step in reward.chain.steps] == io[f"{run}/t_posterior"].tolist()
    np.testing.assert_array_equal(terms.tokens, io[f"{run}/z_in"])
    np.testing.assert_array_equal(terms.final, io[f"{run}/z_final"])
    close(terms.kl, io[f"{run}/kl_per_token"])
    close(terms.kl.sum(-1), io[f"{run}/kl_per_step"])
    close(terms.log_likelihood, io[f"{run}/final_loglik_per_token"])


@pytest.mark.parametrize("mode", ["entropy", "likelihood"])
def test_condition_tokens(networks, io, tmp_path, mode):
    reward = build(networks, tmp_path, mode, 0)
    tokens = reward.encode(reward.codec, [io["frames_u8"].numpy()])
    np.testing.assert_array_equal(tokens, io["likelihood/content_tokens"])
    history = tokens[reward._histories([12])].reshape(12, -1)
    np.testing.assert_array_equal(history, io[f"{mode}/condition_tokens"])
