"""RND against the golden tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.rnd import RND, RNDConfig


@pytest.fixture(scope="module")
def data(golden):
    torch.set_num_threads(1)
    folder = golden("rnd")
    return dict(np.load(folder / "rnd_state.npz")), dict(np.load(folder / "io.npz"))


def test_five_updates_match(data):
    state, io = data
    rnd = RND(RNDConfig())
    rnd.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    frames = torch.from_numpy(io["next_obs_u8"].transpose(0, 2, 3, 1).copy())
    predicted, target = rnd.features(frames)
    np.testing.assert_allclose(predicted.detach(), io["predictor_features"], atol=5e-5)
    np.testing.assert_allclose(target, io["target_features"], atol=5e-5)
    np.testing.assert_allclose(rnd.bonus(frames), io["reward"], rtol=5e-5)
    for update, loss in enumerate(io["loss_per_update"], start=1):
        assert float(rnd.update(frames)) == pytest.approx(loss, abs=5e-5)
        if update == 1:
            check(io, "grad_update1", {name: p.grad for name, p in rnd.predictor.named_parameters()}, state)
            check(io, "after_update1", dict(rnd.predictor.named_parameters()), state)
            np.testing.assert_allclose(rnd.bonus(frames), io["reward_after_update1"], rtol=5e-5)
    np.testing.assert_allclose(rnd.bonus(frames), io["reward_after_update5"], rtol=5e-5)
    for name, value in rnd.target.state_dict().items():
        np.testing.assert_array_equal(value, state[f"target.{name}"])


def check(io, key: str, values: dict[str, torch.Tensor], state) -> None:
    for name, value in values.items():
        full, array = f"{key}/predictor.{name}", value.detach().numpy()
        if f"{full}@flat_every_101" in io:
            array, expected = array.flatten()[::101], io[f"{full}@flat_every_101"]
        elif f"{full}@delta_f16" in io:
            expected = state[f"predictor.{name}"] + io[f"{full}@delta_f16"].astype(np.float32)
        else:
            expected = io[full]
        np.testing.assert_allclose(array, expected, atol=5e-5, rtol=1e-4, err_msg=full)


def test_small_sizes_and_refusals():
    rnd = RND(RNDConfig(channels=(8, 8, 8), feature_dim=16))
    assert rnd.bonus(torch.zeros(3, 64, 64, 3, dtype=torch.uint8)).shape == (3, 1)
    with pytest.raises(ValueError, match=r"rnd\.channels"):
        RNDConfig(channels=(8, 8))
    with pytest.raises(ValueError, match="resolution_px=16"):
        RND(RNDConfig(), resolution_px=16)
