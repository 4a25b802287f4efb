"""VideoGPT against golden tensors, and what the golden tensors cannot show."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from models.checkpoints import apply_weights
from models.training_folder import clip_gradients
from models.videogpt import VideoGPT, VideoGPTConfig
from models.videogpt.checkpoint import from_official, load_videogpt, save_videogpt
from models.vqgan import VQGAN, VQGANConfig

GOLDEN = VideoGPTConfig(num_codes=64, latent_dim=16, num_layers=2, width=32, num_heads=4)
TINY = VideoGPTConfig(num_codes=8, latent_size=3, latent_dim=4, num_layers=2, width=16, num_heads=2)


def tensors(path):
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def close(actual, expected, tolerance=5e-5):
    """Golden tolerance: |a - b| / max(1, |b|)."""
    assert actual.shape == expected.shape
    error = (actual.detach() - expected).abs() / expected.abs().clamp_min(1)
    assert error.max() < tolerance, float(error.max())


@pytest.fixture(scope="module")
def official(golden):
    return tensors(golden("viper") / "videogpt_state.npz")


@pytest.fixture()
def model(golden, official):
    codes = tensors(golden("vqgan") / "vqgan_state.npz")["codebook.embedding.weight"]
    model = VideoGPT(GOLDEN, codes)
    apply_weights(model, from_official(official, GOLDEN, "golden"), "golden")
    return model.eval()


@pytest.fixture(scope="module")
def io(golden):
    return tensors(golden("viper") / "io.npz")


def tiny(seed: int = 0, **changes) -> VideoGPT:
    torch.manual_seed(seed)
    config = VideoGPTConfig(**{**TINY.__dict__, **changes})
    model = VideoGPT(config, torch.randn(config.num_codes, config.latent_dim))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def some_tokens(rows: int = 3, length: int = TINY.block_size) -> torch.Tensor:
    return torch.randint(TINY.num_codes, (rows, length), generator=torch.Generator().manual_seed(1))


def test_names_are_the_official_ones(model, official):
    assert set(model.state_dict()) == {name for name in official if not name.endswith(".attn.mask")}


def test_golden_logits_log_probabilities_and_entropies(model, io):
    with torch.no_grad():
        likelihood, entropy = io["likelihood/batch_indices"], io["entropy/batch_indices"]
        close(model.logits(likelihood)[5], io["likelihood/logits_row5"])
        close(model.logits(entropy)[5], io["entropy/logits_row5"])
        close(model.log_probs(likelihood), io["likelihood/token_logprob"])
        close(model.token_entropy(entropy), io["entropy/token_entropy"])
        close(model.log_probs(likelihood, 64), io["likelihood/token_logprob"][:, -64:])
        close(model.token_entropy(entropy, 64), io["entropy/token_entropy"][:, -64:])


def test_input_is_the_codecs_latents(model, io):
    close(model.codes[io["likelihood/batch_indices"][3]], io["likelihood/batch_embs_row3"])


def test_golden_training_loss_and_gradients(model, golden):
    recorded = tensors(golden("viper") / "training_loss.npz")
    model.train()
    keep = recorded["keep_mask"].bool()
    close(model.logits(recorded["target"], keep=keep)[0], recorded["logits_sample0"])
    loss = model.training_loss(recorded["target"], keep)
    close(loss, recorded["loss"])
    loss.backward()
    gradients = {f"grad/{name}": p.grad for name, p in model.named_parameters()}
    assert set(gradients) == {name for name in recorded if name.startswith("grad/")}
    for name, gradient in gradients.items():
        close(gradient, recorded[name])


def test_the_first_token_sees_the_start_vector_only():
    model, tokens = tiny(), some_tokens()
    first = model.logits(tokens)[:, 0]
    assert torch.allclose(first[0], first[1]) and torch.allclose(first[0], first[2])
    hidden = model.transformer.tok_emb.bias + model.transformer.pos_emb[:, :1]  # the embedding of zeros
    for block in model.transformer.blocks:
        hidden, _ = block(hidden, 1)
    assert torch.allclose(first[:1], model.transformer.head(model.transformer.ln_f(hidden))[:, 0], atol=1e-5)


@pytest.mark.parametrize("place", [0, 10, TINY.block_size - 2])
def test_a_token_changes_later_predictions_only(place):
    model, tokens = tiny(), some_tokens(1)
    changed = tokens.clone()
    changed[0, place] = (changed[0, place] + 1) % TINY.num_codes
    moved = (model.logits(tokens) - model.logits(changed)).abs().amax(-1)[0] > 1e-6
    assert not moved[: place + 1].any() and moved[place + 1 :].all()


def test_the_last_logits_alone_are_the_last_of_all():
    model, tokens = tiny(), some_tokens()
    whole = model.logits(tokens)
    for last in (1, 9, TINY.block_size - 1):
        assert torch.allclose(model.logits(tokens, last), whole[:, -last:], atol=1e-5)


def test_keep_replaces_latents_by_zeros():
    model, tokens = tiny(keep_prob=0.5), some_tokens()
    keep = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    dropped = tokens.masked_fill(~keep, 7)
    with torch.no_grad():
        model.codes[7] = 0.0
        assert torch.allclose(
            model.logits(tokens, keep=keep & (tokens != 7)), model.logits(dropped), atol=1e-5
        )


def test_dropping_tokens_happens_in_training_only():
    model, tokens = tiny(keep_prob=0.5), some_tokens()
    assert model.training_loss(tokens) == model.training_loss(tokens)
    model.train()
    assert model.training_loss(tokens) != model.training_loss(tokens)


def test_sampling_follows_the_predicted_probabilities():
    """Frames drawn with cached keys and values have the frequencies that the whole-sequence logits give them."""
    model = tiny(latent_size=1, num_history_frames=3)
    history = some_tokens(1, 3)
    with torch.no_grad():
        expected = model.logits(torch.cat([history, history[:, :1]], 1), 1)[0, 0].softmax(-1)
    torch.manual_seed(0)
    drawn = model.sample_frame(history.expand(4000, -1)).flatten()
    frequencies = torch.bincount(drawn, minlength=TINY.num_codes) / 4000
    assert (frequencies - expected).abs().max() < 0.03


def test_cached_steps_give_the_logits_of_the_whole_sequence():
    model, tokens = tiny(), some_tokens()
    inputs = torch.cat([torch.full((3, 1), TINY.num_codes), tokens[:, :-1]], 1)
    table, past, steps = model._table(), None, []
    for part in inputs.split([18, 1, 1, 7], dim=1):
        logits, past = model.transformer(part, table, part.shape[1], past)
        steps.append(logits)
    assert torch.allclose(torch.cat(steps, 1), model.logits(tokens), atol=1e-5)


def test_official_positions_are_cut_to_the_window_and_foreign_masks_refused(official, golden, io):
    longer = dict(official)
    longer["transformer.pos_emb"] = torch.cat([official["transformer.pos_emb"], torch.zeros(1, 100, 32)], 1)
    cut = from_official(longer, GOLDEN, "golden")
    assert torch.equal(cut["transformer.pos_emb"], official["transformer.pos_emb"])
    with pytest.raises(ValueError, match="a window has 256 tokens"):
        from_official(official, VideoGPTConfig(num_history_frames=3), "golden")
    open_mask = {"transformer.blocks.0.attn.mask": torch.ones(1, 1, 4, 4)}
    with pytest.raises(ValueError, match=r"mine\.pt: .*blocks\.0\.attn\.mask is not a causal mask"):
        from_official(open_mask, GOLDEN, "mine.pt")


def test_a_folder_is_self_contained_and_refuses_what_does_not_fit(tmp_path):
    torch.manual_seed(0)
    sizes = {"resolution_px": 12, "latent_size": 3, "latent_dim": 4, "num_codes": 8}
    codec = VQGAN(VQGANConfig(architecture="compact", channels=(8, 8), **sizes)).eval()
    model = VideoGPT(TINY, codec.codebook.embedding.weight).eval()
    save_videogpt(tmp_path / "gpt", model, codec, {"tasks": ["bar"]}, codec_extra={"note": "toy"})
    with pytest.raises(FileExistsError):
        save_videogpt(tmp_path / "gpt", model, codec, {})
    loaded, loaded_codec, meta = load_videogpt(tmp_path / "gpt")
    assert meta["kind"] == "videogpt" and meta["tasks"] == ["bar"] and loaded.config == TINY
    assert torch.equal(loaded.codes, codec.codebook.embedding.weight) and loaded_codec.config == codec.config
    assert torch.equal(loaded.logits(some_tokens()), model.logits(some_tokens()))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())

    with pytest.raises(ValueError, match="latent_dim=5 does not fit the codec's latent_dim=4"):
        other = VideoGPT(VideoGPTConfig(**{**TINY.__dict__, "latent_dim": 5}), torch.zeros(8, 5))
        save_videogpt(tmp_path / "other", other, codec, {})
    with pytest.raises(ValueError, match="'vqgan' model, expected 'videogpt'"):
        load_videogpt(tmp_path / "gpt" / "codec")
    config = json.loads((tmp_path / "gpt" / "config.json").read_text())
    config["model"]["depth"] = 3
    (tmp_path / "gpt" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"unknown model keys \['depth'\]"):
        load_videogpt(tmp_path / "gpt")


def test_sequences_longer_than_the_window_and_foreign_codes_are_refused():
    with pytest.raises(ValueError, match="28 tokens are more than a window of 27"):
        tiny().logits(some_tokens(1, TINY.block_size + 1))
    with pytest.raises(ValueError, match=r"codes are \(8, 5\).*latent_dim=4"):
        VideoGPT(TINY, torch.zeros(8, 5))


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_layers", 0), ("num_heads", 3), ("keep_prob", 0.0), ("dropout", 1.0), ("history_padding", "last")],
)
def test_bad_config_names_key_and_value(key, value):
    with pytest.raises(ValueError, match=key):
        VideoGPTConfig(**{key: value})


def test_the_first_gradient_at_paper_size_is_finite_and_moderate():
    torch.manual_seed(0)
    config = VideoGPTConfig()
    codes = torch.empty(config.num_codes, config.latent_dim).uniform_(
        -1 / 1024, 1 / 1024
    )  # an untrained codec's
    model = VideoGPT(config, codes)
    model.training_loss(torch.randint(config.num_codes, (1, config.block_size))).backward()
    norm = clip_gradients(model.parameters(), None)
    assert 0 < norm < 100


def test_measuring_an_infinite_norm_leaves_the_gradients_alone():
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1e30, 1.0])
    clip_gradients([weight], None)  # the sum of squares is beyond float32
    assert weight.grad.tolist() == [torch.tensor(1e30).item(), 1.0]
    weight.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([weight], 1.0) == 5.0
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]))
