"""AMP against the golden tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.amp import AMP, AMPConfig

METRICS = {
    "amp_expert_loss": "disc_expert_loss",
    "amp_policy_loss": "disc_policy_loss",
    "amp_penalty": "grad_pen",
}


@pytest.fixture(scope="module")
def data(golden):
    torch.set_num_threads(1)
    folder = golden("amp")
    return dict(np.load(folder / "amp_state.npz")), dict(np.load(folder / "io.npz"))


@pytest.fixture
def amp(data):
    amp = AMP(AMPConfig(hidden_dim=16))
    amp.load_state_dict({name: torch.from_numpy(value) for name, value in data[0].items()})
    return amp


@pytest.fixture(scope="module")
def frames(data):
    policy = torch.from_numpy(data[1]["policy_obs_u8"].transpose(0, 2, 3, 1).copy())
    return policy, torch.from_numpy(data[1]["expert_obs_u8_nhwc"])


def test_scores_and_rewards_match(data, amp, frames):
    from models.amp import to_pixels

    for kind, pictures in zip(("policy", "expert"), frames):
        np.testing.assert_allclose(amp.disc(to_pixels(pictures)).detach(), data[1][f"disc_{kind}"], atol=5e-5)
        np.testing.assert_allclose(amp.reward(pictures), data[1][f"reward_{kind}_obs"], atol=5e-5)


def test_five_updates_match(data, amp, frames):
    state, io = data
    mixup = torch.from_numpy(io["mixup_alpha"]).flatten()
    for update in range(5):
        metrics = amp.update(*frames, mixup)
        for mine, theirs in METRICS.items():
            expected = io[f"metric_per_update/{theirs}"][update]
            assert float(metrics[mine]) == pytest.approx(expected, abs=5e-5), (mine, update)
        if update == 0:
            check(io, "grad_update1", {name: p.grad for name, p in amp.named_parameters()}, state)
            check(io, "after_update1", dict(amp.named_parameters()), state)
            np.testing.assert_allclose(
                amp.reward(frames[0]), io["reward_policy_obs_after_update1"], atol=5e-5
            )
    np.testing.assert_allclose(amp.reward(frames[0]), io["reward_policy_obs_after_update5"], atol=5e-5)


def check(io, key: str, values: dict[str, torch.Tensor], state) -> None:
    for name, value in values.items():
        full, array = f"{key}/{name}", value.detach().numpy()
        if f"{full}@sum_and_sumsq" in io:
            total = [array.sum(dtype=np.float64), np.square(array, dtype=np.float64).sum()]
            np.testing.assert_allclose(total, io[f"{full}@sum_and_sumsq"], rtol=1e-3, err_msg=full)
        if f"{full}@flat_every_37" in io:
            array, expected = array.flatten()[::37], io[f"{full}@flat_every_37"]
        elif f"{full}@delta_f16" in io:
            expected = state[name] + io[f"{full}@delta_f16"].astype(np.float32)
        else:
            expected = io[full]
        np.testing.assert_allclose(array, expected, atol=5e-5, rtol=1e-4, err_msg=full)


def test_sound_penalty_changes_the_gradient_and_official_one_is_nearly_constant(data, frames):
    penalties = {}
    for penalty in ("per_pixel", "per_picture"):
        amp = AMP(AMPConfig(hidden_dim=16, penalty=penalty))
        amp.load_state_dict({name: torch.from_numpy(value) for name, value in data[0].items()})
        mixup = torch.from_numpy(data[1]["mixup_alpha"]).flatten()
        penalties[penalty] = float(amp.update(*frames, mixup)["amp_penalty"])
    # |dD/dx| of one pixel is about 0.01, so its penalty is 0.1 * (0 - 1)^2 whatever the discriminator does.
    assert penalties["per_pixel"] == pytest.approx(0.1, abs=3e-3)
    assert penalties["per_picture"] < 0.01


def test_learns_to_tell_two_kinds_of_pictures():
    torch.manual_seed(0)
    amp = AMP(AMPConfig(channels=(8, 8, 8), strides=(2, 2, 1), hidden_dim=16, lr=1e-3))
    dark = torch.randint(0, 120, (16, 64, 64, 3), dtype=torch.uint8)
    light = torch.randint(100, 255, (16, 64, 64, 3), dtype=torch.uint8)
    for _ in range(30):
        amp.update(dark, light, torch.rand(16))
    assert float(amp.reward(light).min()) > 0.9
    assert float(amp.reward(dark).max()) < 0.1


def test_refusals():
    with pytest.raises(ValueError, match=r"amp\.penalty='l2'.*per_picture"):
        AMPConfig(penalty="l2")
    with pytest.raises(ValueError, match=r"amp\.channels"):
        AMPConfig(channels=(8, 8))
    with pytest.raises(ValueError, match="16 px"):
        AMP(AMPConfig(strides=(4, 4, 4)), resolution_px=16)
