"""Products by oneDNN are those of torch's own functions, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models import products


@pytest.fixture(params=[True, False], ids=["onednn", "own"])
def library(request, monkeypatch):
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: request.param)
    return request.param


@pytest.mark.parametrize("shape", [(64, 256, 256), (4, 16, 256, 256), (3, 5, 7)])
def test_a_linear_layer_and_its_gradients(library, shape):
    *rows, inner, outer = shape
    generator = torch.Generator().manual_seed(0)
    layer = products.Linear(inner, outer)
    x = torch.randn(*rows, inner, generator=generator)
    above = torch.randn(*rows, outer, generator=generator)
    results = []
    for function in (layer, lambda x: F.linear(x, layer.weight, layer.bias)):
        inputs = x.clone().requires_grad_()
        layer.zero_grad()
        output = function(inputs)
        output.backward(above)
        with torch.no_grad():
            torch.testing.assert_close(function(x), output)
        results.append((output, inputs.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
    took_ours = "_Linear" in type(layer(x).grad_fn).__name__
    assert took_ours == (library and x.numel() * outer >= products.SMALLEST)


def test_only_the_gradients_that_are_wanted(library):
    layer = products.Linear(256, 256).requires_grad_(False)
    x = torch.ones(64, 256, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad[0], layer.weight.sum(0))
    assert layer.weight.grad is None and layer.bias.grad is None


def test_products_of_matrices(library):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(36, 128, 160, generator=generator), torch.randn(36, 160, 128, generator=generator))
    torch.testing.assert_close(products.batched_product(a, b), torch.bmm(a, b), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(products.product(a[0], b[0]), a[0] @ b[0], rtol=1e-4, atol=1e-4)


def test_autocast_and_other_formats_are_torchs_own(library):
    layer, x = products.Linear(256, 256), torch.ones(64, 256)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert products.linear(x.double(), layer.weight.double()).dtype == torch.float64
