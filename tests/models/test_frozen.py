"""The frozen denoiser and its parts compute what the trained network computes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from models.products import SMALLEST
from models.vqdiffusion import VQDiffusion, VQDiffusionConfig
from models.vqdiffusion.frozen import FrozenDenoiser
from models.vqgan import VQGAN, VQGANConfig
from models.winograd import WinogradConv2d, WinogradGrid

SIZES = {"num_layers": 2, "width": 32, "num_heads": 4, "condition_dim": 24, "num_codes": 20}
KINDS = {
    "official": {},
    "positions": {"condition_position": "learned", "num_history_frames": 2},
    "linear": {"mlp_type": "linear"},
    "small grid": {"latent_size": 2},
    "large grid": {"latent_size": 12, "num_layers": 1},
}


def make(kind="official", gain=3.0):
    torch.manual_seed(0)
    model = VQDiffusion(VQDiffusionConfig(**{**SIZES, **KINDS[kind]})).eval()
    for parameter in model.transformer.parameters():
        parameter.data.mul_(gain)
        parameter.data.add_(0.01 * torch.randn_like(parameter))  # biases and norms count too
    return model


def inputs(model, rows=5):
    generator = torch.Generator().manual_seed(1)
    length = model.config.content_len
    state = torch.randint(model.num_codes + 1, (rows, length), generator=generator)
    history = torch.randint(model.num_codes, (rows, 2 * length), generator=generator)
    return state, history


def expected(model, state, step, history):
    with torch.no_grad():
        log_x0 = model.predict_log_x0(state, torch.full((len(state),), step), model.condition(history))
    return log_x0.transpose(1, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [0, 37, 99])
def test_equals_the_network_that_was_trained(kind, step):
    model = make(kind)
    state, history = inputs(model)
    frozen = FrozenDenoiser(model)
    with torch.inference_mode():
        seen = frozen.history(history)
        log_probs = frozen.log_probabilities(state, step, seen)
        probs = frozen.probabilities(state, step, seen)
    wanted = expected(model, state, step, history)
    assert wanted.std() > 0.3
    np.testing.assert_allclose(log_probs, wanted, rtol=5e-5, atol=5e-5)
    np.testing.assert_allclose(probs.log(), wanted, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("kind", ["official", "linear"])
def test_one_state_for_all_rows_may_be_given_once(kind):
    model = make(kind)
    _, history = inputs(model)
    frozen, state = FrozenDenoiser(model), model.all_mask(1)
    with torch.inference_mode():
        seen = frozen.history(history)
        once, all_rows = (frozen.logits(s, 99, seen) for s in (state, state.expand(5, -1)))
    np.testing.assert_allclose(once, all_rows, rtol=1e-5, atol=1e-5)


def test_is_a_snapshot():
    model = make()
    state, history = inputs(model)
    frozen = FrozenDenoiser(model)
    with torch.no_grad():
        before = frozen.logits(state, 5, frozen.history(history))
        for parameter in model.parameters():
            parameter.zero_()
        after = frozen.logits(state, 5, frozen.history(history))
    assert torch.equal(before, after)


@pytest.mark.parametrize("kind", ["official", "positions", "linear"])
def test_bfloat16_is_close(kind):
    model = make(kind)
    state, history = inputs(model)
    frozen = FrozenDenoiser(model, "bfloat16")
    with torch.inference_mode():
        log_probs = frozen.log_probabilities(state, 50, frozen.history(history))
    wanted = expected(model, state, 50, history)
    error = (log_probs - wanted).abs()
    assert log_probs.dtype == torch.float32
    assert 0 < error.mean() < 0.05 * wanted.std()


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision is 'float16', expected one of"):
        FrozenDenoiser(make(), "float16")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_network_equals_the_plain_one_at_every_batch_size(precision):
    """The same function that a GPU compiles; sizes between powers of two are padded."""
    model = make("linear")
    plain, compiled = FrozenDenoiser(model, precision), FrozenDenoiser(model, precision, compiled=True)
    for rows in (3, 4):
        state, history = inputs(model, rows)
        with torch.inference_mode():
            for x, step in ((state, 7), (model.all_mask(1), 99)):
                a = plain.logits(x, step, plain.history(history))
                b = compiled.logits(x, step, compiled.history(history))
                assert b.shape == (rows, 64, 20)
                tolerance = 1e-4 if precision == "float32" else 0.1
                np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture()
def graphs(monkeypatch):
    """How often each graph was run that Dynamo handed to its backend, which leaves them as they are."""
    runs = []

    def backend(graph, inputs):
        number = len(runs)
        runs.append(0)

        def run(*values):
            runs[number] += 1
            return graph(*values)

        return run

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield runs
    torch.compiler.reset()


def test_a_compiled_chain_is_one_graph_per_batch_size(graphs):
    model = make("linear")
    frozen = FrozenDenoiser(model, compiled=True)
    assert 16 * model.config.content_len * 32 * 96 >= SMALLEST  # products that oneDNN might get
    for rows in (16, 5):
        state, history = inputs(model, rows)
        with torch.inference_mode():
            seen = frozen.history(history)
            for step in range(99, -1, -9):
                frozen.logits(model.all_mask(1) if step == 99 else state, step, seen)
    assert graphs == [12, 12]


def test_two_models_are_compiled_at_every_batch_size(graphs):
    pair = [make("small grid", gain) for gain in (2.0, 3.0)]
    networks = [(FrozenDenoiser(m), FrozenDenoiser(m, compiled=True)) for m in pair]
    for rows in (2**n for n in range(12)):
        state, history = inputs(pair[0], rows)
        with torch.inference_mode():
            for plain, compiled in networks:
                a, b = (frozen.logits(state, 50, frozen.history(history)) for frozen in (plain, compiled))
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert sum(graphs) == 12 * 2


@pytest.mark.parametrize("side", [4, 8, 12])
def test_winograd_convolution_equals_the_direct_one(side):
    torch.manual_seed(side)
    conv = nn.Conv2d(16, 24, 3, padding=1).double()
    x = torch.randn(3, 16, side, side, dtype=torch.float64)
    with torch.no_grad():
        wanted = conv(x)
        conv = conv.float()
        y = WinogradGrid(conv, side)(x.float().flatten(2).permute(2, 0, 1))
    np.testing.assert_allclose(y.permute(1, 2, 0).unflatten(2, (side, side)), wanted, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize(
    ("conv", "side", "message"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, stride=2), 8, "stride 1"),
        (nn.Conv2d(4, 4, 5, padding=2), 8, "3x3"),
        (nn.Conv2d(4, 4, 3, padding=1), 6, "side is 6, expected a multiple of 4"),
    ],
)
def test_winograd_refuses_what_it_cannot_do(conv, side, message):
    with pytest.raises(ValueError, match=message):
        WinogradGrid(conv, side)


@pytest.mark.parametrize("shape", [(3, 8, 4, 4), (5, 8, 8, 16), (40, 8, 12, 12)])
def test_winograd_convolution_of_pictures_equals_the_direct_one(shape, monkeypatch):
    monkeypatch.setattr("models.winograd.CACHE_BYTES", 200_000)  # several goes
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 6, 3, padding=1), torch.randn(shape)
    with torch.no_grad():
        wanted, y = conv.double()(x.double()), WinogradConv2d(conv.float())(x)
    assert y.shape == wanted.shape and y.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("architecture", ["official", "compact"])
def test_codec_for_encoding_finds_the_same_codes(architecture):
    torch.manual_seed(0)
    channels = (32, 32, 64, 64) if architecture == "official" else (48, 64)
    codec = VQGAN(
        VQGANConfig(architecture=architecture, num_codes=64, latent_dim=16, channels=channels)
    ).eval()
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        codec.codebook.embedding.weight.copy_(codec.encode(images).permute(0, 2, 3, 1).reshape(-1, 16)[::4])
        latents, tokens = codec.encode(images), codec.encode_tokens(images)
        fast, half = codec.for_encoding(), codec.for_encoding("bfloat16")
        np.testing.assert_allclose(fast.encode(images), latents, rtol=1e-4, atol=1e-4)
        assert torch.equal(fast.encode_tokens(images), tokens)
        assert (half.encode_tokens(images) == tokens).float().mean() > 0.9
        assert torch.equal(codec.encode_tokens(images), tokens), "the codec itself stays as it is"
    has_winograd = any(isinstance(layer, WinogradConv2d) for layer in fast.modules())
    assert has_winograd == (architecture == "official")
    assert len(tokens.unique()) > 30
