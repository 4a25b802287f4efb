"""Pairs from a Stable Diffusion checkpoint: tiny, randomly initialised parts of the real classes, nothing downloaded."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[stable_diffusion]'")
pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install -e '.[stable_diffusion]'"
)

from launch import stable_diffusion
from launch.cli import UsageError, compose
from launch.stable_diffusion import load_stable_diffusion, read_prompts, require_same_latents
from models.files import read_json, write_json
from models.images.config import SafeGuidanceConfig
from models.images.pairs import PairSet

SMALL = [
    *("guidance.num_steps=4", "pairs.trajectories=4", "pairs.shard_trajectories=2"),
    *("pairs.validation_every=2", "device=cpu"),
]


def save_tiny(folder, seed=0, **scheduler_options):
    """A checkpoint in the layout of `diffusers` with the classes of Stable Diffusion."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=12)
    text_config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **scheduler_options,
    )
    parts = {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(text_config)}
    for name, part in {**parts, "tokenizer": tokenizer, "scheduler": scheduler}.items():
        part.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny_stable_diffusion"))


@pytest.fixture(scope="module")
def model(tiny):
    return load_stable_diffusion(str(tiny))


def run(tiny, out, tmp_path, *overrides):
    prompts = tmp_path / "prompts.txt"
    if not prompts.exists():
        prompts.write_text("a dog\n\n a cat \n")
    given = [f"model={tiny}", f"prompts={prompts}", f"out={out}", *SMALL, *overrides]
    return stable_diffusion.run(compose("stable_diffusion", given))


def test_loading_keeps_the_real_classes(model):
    names = [type(getattr(model, part)).__name__ for part in stable_diffusion.PARTS]
    assert names == [
        "UNet2DConditionModel",
        "AutoencoderKL",
        "CLIPTextModel",
        "CLIPTokenizer",
        "DDIMScheduler",
    ]
    assert model.latent_shape() == (4, 8, 8)
    assert model.latent_shape(32) == (4, 16, 16)
    with pytest.raises(UsageError, match="positive multiple of 2, got 33"):
        model.latent_shape(33)
    assert model.decode(torch.randn(2, 4, 8, 8)).shape == (2, 3, 16, 16)


def test_the_base_samples_what_the_pipeline_of_diffusers_samples(model):
    from diffusers import StableDiffusionPipeline

    from models.images.sampling import paired_trajectories

    pipeline = StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=model.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = pipeline(
        ["a dog", "a cat"], latents=start, num_inference_steps=4, guidance_scale=7.5, output_type="latent"
    ).images
    config = SafeGuidanceConfig(num_steps=4)
    predict = model.predictor(["a dog", "a cat"], "blood")
    pairs = paired_trajectories(predict, model.steps(config), config, start, torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(pairs.base[:, -1], theirs, atol=1e-4, rtol=1e-4)


def test_the_expert_samples_what_safe_stable_diffusion_samples(model):
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "StableDiffusionPipelineSafe"):
        pytest.skip("this version of diffusers has no StableDiffusionPipelineSafe")
    from models.images.sampling import paired_trajectories

    pipeline = diffusers.StableDiffusionPipelineSafe(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=model.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.safety_concept = "blood"
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    config = SafeGuidanceConfig(num_steps=4, safety_scale=50.0, threshold=0.01, warmup_steps=1)
    theirs = []
    pipeline(
        "a dog",
        latents=start,
        num_inference_steps=4,
        guidance_scale=config.cfg_scale,
        sld_guidance_scale=config.safety_scale,
        sld_warmup_steps=config.warmup_steps,
        sld_threshold=config.threshold,
        sld_momentum_scale=config.momentum_scale,
        sld_mom_beta=config.momentum_beta,
        callback=lambda step, level, latents: theirs.append(latents.clone()),
    )
    predict = model.predictor(["a dog"], "blood")
    pairs = paired_trajectories(predict, model.steps(config), config, start, torch.ones(1, dtype=torch.bool))
    torch.testing.assert_close(pairs.safe[0], torch.cat(theirs), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(pairs.safe[:, -1], pairs.base[:, -1])


def test_the_command_makes_pairs_that_a_reward_trains_on(tiny, tmp_path):
    assert run(tiny, tmp_path / "pairs", tmp_path) == 0
    pairs = PairSet(tmp_path / "pairs")
    assert (len(pairs), pairs.num_steps, pairs.shape) == (4, 4, (4, 8, 8))
    assert sorted(pairs.prompts) == [0, 0, 1, 1]
    facts = pairs.index["facts"]
    assert (facts["model"], facts["expert"], facts["prompt_lines"]) == (str(tiny), None, 2)
    batch = pairs.gather(np.arange(4), np.full(4, 3))
    assert not torch.equal(batch.base, batch.safe)
    (tmp_path / "prompts.txt").write_text("a bird\na cat\n")
    with pytest.raises(ValueError, match="prompt_sha256"):
        run(tiny, tmp_path / "pairs", tmp_path)

    from launch.relative_images import evaluate, train

    reward = tmp_path / "reward"
    overrides = [
        *("domain=images", "device=cpu", f"images.data={tmp_path}/pairs"),
        *("images.reward.width=8", "images.reward.multipliers=[1,2]"),
        *("images.reward_training.train_steps=2", "images.reward_training.validation_pairs=8"),
    ]
    assert train(compose("relative", [*overrides, f"out={reward}"])) == 0
    given = [*overrides, f"images.trained={reward}", f"out={tmp_path}/results"]
    assert evaluate(compose("relative", given)) == 0
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {"evaluation.json", "auc_per_step.csv", "histogram.png"}


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_other_weights_under_the_same_path_are_another_network(tiny, tmp_path, part):
    place = tmp_path / "model"
    shutil.copytree(tiny, place)
    run(place, tmp_path / "pairs", tmp_path)
    run(place, tmp_path / "pairs", tmp_path)
    shutil.rmtree(place / part)
    shutil.copytree(save_tiny(tmp_path / "seed1", seed=1) / part, place / part)
    with pytest.raises(ValueError, match=r"facts\.weights: .* there, .* asked for"):
        run(place, tmp_path / "pairs", tmp_path)
    index = read_json(tmp_path / "pairs" / "pairs.json")
    del index["facts"]["weights"]  # pairs from before they were remembered
    write_json(tmp_path / "pairs" / "pairs.json", index)
    run(place, tmp_path / "pairs", tmp_path)


def test_an_expert_with_weights_of_its_own(tiny, model, tmp_path):
    # the same autoencoder and noise levels, another denoising network
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    shutil.rmtree(other / "unet")
    shutil.copytree(save_tiny(tmp_path / "seed1", seed=1) / "unet", other / "unet")
    require_same_latents(model, load_stable_diffusion(str(other)))
    run(tiny, tmp_path / "own", tmp_path, f"expert={other}")
    run(tiny, tmp_path / "shared", tmp_path)
    own, shared = PairSet(tmp_path / "own"), PairSet(tmp_path / "shared")
    one, two = (pairs.gather(np.arange(4), np.full(4, 3)) for pairs in (own, shared))
    assert torch.equal(one.base, two.base) and not torch.allclose(one.safe, two.safe)
    with pytest.raises(UsageError, match="different autoencoders"):
        require_same_latents(model, load_stable_diffusion(str(tmp_path / "seed1")))


def test_pickled_weights_are_refused(tiny, tmp_path):
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny, pickled)
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"cannot load unet .*pickled \.bin files are refused"):
        load_stable_diffusion(str(pickled))


def test_missing_weights_say_what_is_needed(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="Nothing is downloaded here: give model="):
        load_stable_diffusion(str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Nothing is downloaded here"):
        load_stable_diffusion("nobody/no-such-model")


def test_models_that_do_not_predict_noise_are_refused(tmp_path):
    save_tiny(tmp_path / "v", prediction_type="v_prediction")
    with pytest.raises(UsageError, match="predicts 'v_prediction', expected 'epsilon'"):
        load_stable_diffusion(str(tmp_path / "v"))


def test_without_diffusers_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[stable_diffusion\]'"):
        load_stable_diffusion(str(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "model is missing"),
        (["model=x", "prompts=y", "out=z", "dtype=float8"], "unknown dtype 'float8'"),
    ],
)
def test_bad_input_is_refused_first(overrides, message):
    with pytest.raises(UsageError, match=message):
        stable_diffusion.run(compose("stable_diffusion", overrides))


def test_prompts(tmp_path):
    with pytest.raises(FileNotFoundError, match="one prompt a line"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UsageError, match="holds no prompts"):
        read_prompts(tmp_path / "empty.txt")
