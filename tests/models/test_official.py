"""Official files: sizes are inferred, weights land where they belong, everything else is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import official
from models.official import read_official
from models.videogpt import VideoGPT, VideoGPTConfig
from models.vqdiffusion import VQDiffusion, VQDiffusionConfig
from models.vqgan import VQGAN, VQGANConfig, images_to_tensor
from tests.models.test_videogpt import close, tensors


@pytest.fixture(scope="module")
def codec_state(golden):
    torch.set_num_threads(1)
    return tensors(golden("vqgan") / "vqgan_state.npz")


@pytest.fixture(scope="module")
def diffusion_state(golden):
    return tensors(golden("vqdiffusion") / "transformer_state.npz")


def with_prefix(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def meta_state(make):
    """State dict of a full-size model, shapes only."""
    with torch.device("meta"):
        return make().state_dict()


def test_full_sizes_are_inferred():
    codec = meta_state(lambda: VQGAN(VQGANConfig()))
    assert official.codec_config(codec, "f") == VQGANConfig()
    video = meta_state(lambda: VQDiffusion(VQDiffusionConfig()))
    assert official.video_config(video, "f", 16, 2, 1) == VQDiffusionConfig()


@pytest.mark.parametrize(
    "config",
    [
        VQGANConfig(channels=(32, 64, 96), latent_size=16, residual_blocks=1, attention_resolutions=()),
        VQGANConfig(resolution_px=128, channels=(32,) * 4, latent_size=16, attention_resolutions=(32, 64)),
    ],
)
def test_other_codec_sizes_are_inferred(config):
    state = meta_state(lambda: VQGAN(config))
    assert official.codec_config(state, "f", config.resolution_px) == config


def test_codec_gives_the_golden_tokens(codec_state, golden):
    io = np.load(golden("vqgan") / "io.npz")
    codec = official.build_codec(codec_state, "vqgan.pt")
    assert codec.config == VQGANConfig(num_codes=64, latent_dim=16, channels=(32, 32, 64, 64))
    assert torch.equal(codec.encode_tokens(images_to_tensor(io["images_u8"])), torch.from_numpy(io["tokens"]))


def test_upside_down_codec_takes_and_gives_upright_pictures(codec_state, golden):
    images = images_to_tensor(np.load(golden("vqgan") / "io.npz")["images_u8"])
    official_codec = official.build_codec(codec_state, "f")
    turned = official.build_codec(codec_state, "f", upside_down=True)
    tokens = official_codec.encode_tokens(images)
    assert torch.equal(turned.encode_tokens(images.flip(2)), tokens)
    assert not torch.equal(turned.encode_tokens(images), tokens)
    assert torch.equal(turned.decode_tokens(tokens).flip(2), official_codec.decode_tokens(tokens))


def test_video_model_predicts_the_golden_numbers(diffusion_state, golden):
    io = tensors(golden("vqdiffusion") / "io.npz")
    model, unused = official.build_video_model(diffusion_state, "best.pth", num_heads=4)
    assert unused == [f"transformer.blocks.{i}.attn2.mask" for i in range(2)]
    with torch.no_grad():
        log_x0 = model.predict_log_x0(io["x_t"], io["t"], model.condition(io["cond_tokens"]))
    close(log_x0, io["predict_start"][:, :-1])  # without the row of the mask class


def test_files_without_the_unused_masks_load_too(diffusion_state):
    bare = {name: value for name, value in diffusion_state.items() if not name.endswith(".mask")}
    model, unused = official.build_video_model(bare, "best.pth", num_heads=4)
    assert (unused, model.config.num_layers) == ([], 2)


def test_videogpt_gives_the_golden_log_probabilities(codec_state, golden):
    io = tensors(golden("viper") / "io.npz")
    state = tensors(golden("viper") / "videogpt_state.npz")
    # Officially there are 5120 positions, of which a window uses the first ones.
    positions = torch.cat([state["transformer.pos_emb"], torch.ones(1, 8, 32)], 1)
    whole = {**state, "transformer.pos_emb": positions, **with_prefix("vqgan.", codec_state)}
    codec = official.build_codec(official.find_part(whole, official.CODEC_MARK), "f")
    part = official.find_part(whole, official.VIDEOGPT_MARK)
    model, unused = official.build_videogpt(part, codec, "videogpt.pt", num_heads=4)
    assert isinstance(model, VideoGPT)
    assert model.config == VideoGPTConfig(num_codes=64, latent_dim=16, num_layers=2, width=32, num_heads=4)
    assert unused == [f"transformer.blocks.{i}.attn.mask" for i in range(2)]
    with torch.no_grad():
        close(model.log_probs(io["likelihood/batch_indices"]), io["likelihood/token_logprob"])


def test_training_checkpoints_have_two_kinds_of_weights(diffusion_state, codec_state, tmp_path):
    changed = {name: value.clone() for name, value in diffusion_state.items()}
    changed["transformer.to_logits.0.bias"] += 1
    model = with_prefix("transformer.", changed) | with_prefix("content_codec.", codec_state)
    torch.save({"model": model, "ema": diffusion_state, "last_epoch": 7}, tmp_path / "best.pth")
    for kind, expected in (("ema", diffusion_state), ("model", changed)):
        file = read_official(tmp_path / "best.pth", kind)
        found = file.require(official.DIFFUSION_MARK, "video model")
        assert (file.kind, file.last_epoch, set(found)) == (kind, 7, set(expected))
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert set(file.require(official.CODEC_MARK, "codec")) == set(codec_state)


def test_codec_saved_twice_counts_once_and_two_codecs_are_refused(codec_state):
    twice = with_prefix("content_codec.", codec_state) | with_prefix("condition_codec.codec.", codec_state)
    assert set(official.find_part(twice, official.CODEC_MARK)) == set(codec_state)
    other = {name: value + 1 for name, value in codec_state.items()}
    with pytest.raises(ValueError, match="unclear which"):
        official.find_part(twice | with_prefix("b.", other), official.CODEC_MARK)


def test_missing_unexpected_and_misshapen_keys_are_listed(codec_state, diffusion_state):
    wrong = {n: v for n, v in codec_state.items() if n != "quant_conv.bias"} | {"extra": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"1 missing: quant_conv\.bias; 1 unexpected: extra"):
        official.build_codec(wrong, "vqgan.pt")
    wrong = diffusion_state | {"transformer.blocks.1.ln2.weight": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"1 of another shape: transformer\.blocks\.1\.ln2\.weight"):
        official.build_video_model(wrong, "best.pth", num_heads=4)
    with pytest.raises(ValueError, match=r"best\.pth lacks log_at"):
        official.build_video_model(
            {n: v for n, v in diffusion_state.items() if n != "log_at"}, "best.pth", num_heads=4
        )


def test_another_noise_schedule_is_refused(diffusion_state):
    wrong = diffusion_state | {"log_cumprod_at": diffusion_state["log_cumprod_at"] * 2}
    with pytest.raises(ValueError, match="schedule differs from the official one in log_cumprod_at"):
        official.build_video_model(wrong, "best.pth", num_heads=4)


class Evil:
    """Pickles as a call of `print`."""

    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_unsafe_and_foreign_files_are_refused(tmp_path, codec_state, capsys):
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="refused because they could run code"):
        read_official(tmp_path / "evil.pt")
    assert "ran" not in capsys.readouterr().out
    torch.save({"optimizer": 1}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=r"neither a state dict nor.*found \['optimizer'\]"):
        read_official(tmp_path / "foreign.pt")
    torch.save({"model": codec_state}, tmp_path / "no_ema.pt")
    with pytest.raises(ValueError, match=r"no state dict under 'ema'.*weights=model"):
        read_official(tmp_path / "no_ema.pt")
    with pytest.raises(ValueError, match=r"holds no VideoGPT.*\['codebook', 'decoder'"):
        read_official(tmp_path / "no_ema.pt", "model").require(official.VIDEOGPT_MARK, "VideoGPT")
    with pytest.raises(FileNotFoundError, match="no official file"):
        read_official(tmp_path / "absent.pt")
