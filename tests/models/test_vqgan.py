"""The image codec against golden tensors, and its folder on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from models.checkpoints import apply_weights
from models.codec_losses import CodecLosses
from models.codec_training import CodecTrainingConfig
from models.discriminator import PatchDiscriminator, hinge_losses
from models.frames import images_to_tensor, tensor_to_images
from models.vqgan import VQGAN, VQGANConfig, load_codec, save_codec

GOLDEN_CONFIG = VQGANConfig(latent_dim=16, num_codes=64, channels=(32, 32, 64, 64))
COMPACT = VQGANConfig(
    architecture="compact",
    resolution_px=16,
    latent_size=4,
    latent_dim=4,
    num_codes=8,
    channels=(8, 8),
    residual_blocks=1,
    codebook="ema",
)


def close(actual: torch.Tensor, expected: np.ndarray, tolerance: float = 5e-5) -> None:
    """|a - b| / max(1, |b|) below the tolerance everywhere."""
    error = np.abs(actual.detach().numpy() - expected) / np.maximum(1.0, np.abs(expected))
    assert error.max() <= tolerance


def state(path) -> dict[str, torch.Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="module")
def fixture(golden):
    folder = golden("vqgan")
    with np.load(folder / "io.npz", allow_pickle=False) as arrays:
        io = {name: arrays[name] for name in arrays}
    model = VQGAN(GOLDEN_CONFIG)
    apply_weights(model, state(folder / "vqgan_state.npz"), folder)
    return folder, io, model


def test_paper_sizes():
    model = VQGAN(VQGANConfig())
    assert sum(p.numel() for p in model.parameters()) == 20_481_219  # specification: 20.5 M
    assert model.config.num_tokens == 64


def test_pictures_to_tokens_and_back(fixture):
    _, io, model = fixture
    images = images_to_tensor(io["images_u8"])
    close(images, io["x"], 1e-7)
    close(model.encode(images), io["z_e"])
    reconstruction, tokens, q_loss = model(images)
    assert np.array_equal(tokens.numpy(), io["tokens"])
    assert np.array_equal(model.encode_tokens(images).numpy(), io["tokens"])
    close(reconstruction, io["rec"])
    close(q_loss, io["scalar/q_loss"])
    close(model.codebook(model.encode(images))[0], io["z_q"])
    decoded = model.decode_tokens(torch.from_numpy(io["tokens"][:1]))
    close((decoded + 1.0) * 127.5, io["decode_tokens_0_255_first_image"], 3e-4)


def test_beta_weighs_the_term_that_is_named():
    latents = torch.tensor([[[[1.0]], [[0.0]]]], requires_grad=True)  # nearest code (0, 0): distance 1
    for weighed, encoder_pull, code_pull in (("codebook", 1.0, 0.25), ("commitment", 0.25, 1.0)):
        config = VQGANConfig(latent_dim=2, num_codes=2, beta_weighs=weighed)
        codebook = VQGAN(config).codebook
        with torch.no_grad():
            codebook.embedding.weight.copy_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]))
        latents.grad = None
        codebook(latents)[2].backward()
        # d/dx of the mean over two dimensions of (x - 0)^2 at x = 1 is 1.
        assert latents.grad.flatten().tolist() == pytest.approx([encoder_pull, 0.0])
        assert codebook.embedding.weight.grad[0].tolist() == pytest.approx([-code_pull, 0.0])


def test_discriminator_maps_and_buffers(fixture):
    folder, io, _ = fixture
    disc = PatchDiscriminator(filters=8)
    apply_weights(disc, state(folder / "discriminator_state.npz"), folder)
    images, reconstruction = torch.from_numpy(io["x"]), torch.from_numpy(io["rec"])
    disc.eval()
    close(disc(images), io["disc_real_evalmode"])
    close(disc(reconstruction), io["disc_fake_evalmode"])
    disc.train()
    real = disc(images)
    fake = disc(reconstruction)
    close(real, io["disc_real"])
    close(fake, io["disc_fake"])
    for name, value in disc.named_buffers():
        close(value, io[f"bn_after_real_then_fake/{name}"])
    loss_real, loss_fake = hinge_losses(real, fake)
    close(loss_real, io["scalar/d_loss_real"])
    close(loss_fake, io["scalar/d_loss_fake"])


def golden_losses(fixture, detach: bool) -> tuple[VQGAN, CodecLosses, dict]:
    folder, io, _ = fixture
    model = VQGAN(GOLDEN_CONFIG)
    apply_weights(model, state(folder / "vqgan_state.npz"), folder)
    config = CodecTrainingConfig(disc_filters=8, disc_start_step=1000, detach_discriminator=detach)
    losses = CodecLosses(model, config)
    apply_weights(losses.discriminator, state(folder / "discriminator_state.npz"), folder)
    return model, losses, io


def check_gradients(module: torch.nn.Module, io: dict, prefix: str) -> None:
    names = [name for name in io if name.startswith(prefix)]
    assert names
    parameters = dict(module.named_parameters())
    for name in names:
        close(parameters[name.removeprefix(prefix)].grad, io[name])


@pytest.mark.parametrize(("detach", "prefix"), [(True, "grad_vq_loss_only/"), (False, "grad_official/")])
def test_gradients_after_the_discriminator_started(fixture, detach, prefix):
    model, losses, io = golden_losses(fixture, detach)
    metrics, _, _ = losses.backward(torch.from_numpy(io["x"]), None, step=1000)
    close(metrics["l1"], io["scalar/rec_l1_mean"])
    close(metrics["generator_loss"], io["scalar/g_loss"])
    close(metrics["adaptive_weight"], io["scalar/lambda_"])
    close(metrics["loss"], io["scalar/vq_loss_after_disc_start"])
    close(metrics["disc_loss"], io["scalar/d_loss_after_disc_start"])
    check_gradients(model, io, prefix)
    check_gradients(losses.discriminator, io, "grad_disc/")


def test_gradient_norms_of_every_parameter(fixture):
    norms = json.loads((fixture[0] / "config.json").read_text())["gradient_l2_norms"]
    for step, period in ((0, "before_disc_start"), (1000, "after_disc_start")):
        model, losses, io = golden_losses(fixture, detach=False)
        losses.backward(torch.from_numpy(io["x"]), None, step)
        for name, parameter in model.named_parameters():
            expected = norms[period]["vqgan_official"][name]
            assert (parameter.grad is None) == (expected is None), name
            if expected is not None:
                assert parameter.grad.norm().item() == pytest.approx(expected, rel=2e-3, abs=2e-6), name


def test_one_official_training_step(fixture):
    model, losses, io = golden_losses(fixture, detach=False)
    optimisers = [torch.optim.Adam(m.parameters(), 1e-4, (0.5, 0.9)) for m in (model, losses.discriminator)]
    losses.backward(torch.from_numpy(io["x"]), None, step=1000)
    for optimiser in optimisers:
        optimiser.step()
    values = {f"vqgan/{name}": value for name, value in model.state_dict().items()}
    values |= {f"disc/{name}": value for name, value in losses.discriminator.state_dict().items()}
    after = [name for name in io if name.startswith("after_step/")]
    assert after
    for name in after:
        # A weight with a tiny gradient may move by another fraction of the learning rate of 1e-4.
        close(values[name.removeprefix("after_step/")], io[name], 1e-5)


def test_ema_codebook_moves_to_the_mean_of_its_vectors():
    config = VQGANConfig(latent_dim=1, num_codes=2, codebook="ema", ema_decay=0.5)
    codebook = VQGAN(config).codebook
    codebook.set_codes(torch.tensor([0, 1]), torch.tensor([[0.0], [10.0]]))
    codebook.ema_update(torch.tensor([[1.0], [3.0], [2.0]]), torch.tensor([0, 0, 0]))
    # counts (1 + 3) / 2 = 2 and (1 + 0) / 2; sums (0 + 6) / 2 = 3 and 10 / 2 = 5.
    assert codebook.embedding.weight.flatten().tolist() == pytest.approx([1.5, 10.0], abs=1e-3)


def test_codec_folder_round_trip_and_refusals(tmp_path):
    torch.manual_seed(0)
    model = VQGAN(COMPACT)
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    save_codec(tmp_path / "codec", model, {"tasks": ["door-close"]})
    loaded = load_codec(tmp_path / "codec")
    tokens = loaded.encode_tokens(images_to_tensor(frames))
    assert tokens.shape == (3, 16) and tokens.dtype == torch.int64
    assert torch.equal(tokens, model.encode_tokens(images_to_tensor(frames)))
    decoded = tensor_to_images(loaded.decode_tokens(tokens))
    assert decoded.shape == frames.shape and decoded.dtype == np.uint8
    with pytest.raises(FileExistsError, match="already exists"):
        save_codec(tmp_path / "codec", model)
    with pytest.raises(ValueError, match=r"\(N, 3, 16, 16\), got \(1, 3, 64, 64\)"):
        loaded.encode_tokens(torch.zeros(1, 3, 64, 64))
    with pytest.raises(FileNotFoundError, match="no vqgan checkpoint"):
        load_codec(tmp_path / "absent")


def test_frames_and_tensors_are_inverse():
    frames = np.arange(2 * 256 * 3, dtype=np.int64).reshape(1, 2, 16, 16, 3).astype(np.uint8)
    tensor = images_to_tensor(frames)
    assert tensor.shape == (2, 3, 16, 16)
    assert tensor.min() == -1.0 and tensor.max() == 1.0
    assert np.array_equal(tensor_to_images(tensor), frames[0])
    with pytest.raises(ValueError, match="uint8"):
        images_to_tensor(frames.astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "big"}, "architecture='big'.*official"),
        ({"channels": (128, 128, 256)}, "32 pixels, but resolution_px=64"),
        ({"channels": (40, 40, 40, 40)}, "multiples of 32"),
        ({"architecture": "compact", "channels": (8, 8), "resolution_px": 24}, "multiple of .* 16"),
        ({"num_codes": 1}, "num_codes=1"),
        ({"beta_weighs": "both"}, "beta_weighs='both'"),
    ],
)
def test_bad_sizes_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        VQGANConfig(**changes)
