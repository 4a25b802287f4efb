"""VQ-Diffusion against golden tensors, and its posteriors against brute force over all transitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from models.vqdiffusion import Condition, VQDiffusion, VQDiffusionConfig, sample_tokens
from models.vqdiffusion.schedule import alpha1_probabilities, importance_distribution
from tests.models.dense import moved, one_hot_log, paper_schedule, token_posterior

SMALL = {"num_layers": 2, "width": 16, "num_heads": 2, "condition_dim": 12, "num_codes": 6, "latent_size": 2}


def close(actual, expected, tolerance=5e-5):
    """Golden tolerance: |a - b| / max(1, |b|), infinities equal."""
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert a.shape == b.shape
    finite = np.isfinite(b)
    np.testing.assert_array_equal(a[~finite], b[~finite])
    error = np.abs(a[finite] - b[finite]) / np.maximum(1, np.abs(b[finite]))
    assert error.max() < tolerance, error.max()


def tensors(path):
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays}


@pytest.fixture(scope="module")
def folder(golden):
    return golden("vqdiffusion")


@pytest.fixture()
def model(folder):
    torch.manual_seed(0)
    config = VQDiffusionConfig(num_codes=64, num_layers=2, width=32, num_heads=4, condition_dim=64)
    model = VQDiffusion(config)
    state = tensors(folder / "transformer_state.npz")
    assert set(model.state_dict()) == set(state)
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def io(folder):
    return tensors(folder / "io.npz")


def test_schedule_matches_golden(io):
    schedule = paper_schedule(100, 64)
    exact = alpha1_probabilities(100, 64)
    for name in ("at", "bt", "ct", "att", "btt", "ctt"):
        np.testing.assert_allclose(exact[name], io[f"schedule_float64/{name}"], rtol=1e-6, atol=1e-20)
    for name in [key.split("/")[1] for key in io if key.startswith("schedule/")]:
        close(getattr(schedule, name), io[f"schedule/{name}"])


def test_network_and_prediction_match_golden(model, io):
    with torch.no_grad():
        condition = model.condition(io["cond_tokens"])
        logits = model.transformer(io["x_t"], io["t"], condition)
        log_x0 = model.predict_log_x0(io["x_t"], io["t"], condition)
        first = Condition(*(part[:, :1] for part in condition))
        at_mask = model.predict_log_x0(model.all_mask(1), torch.tensor([99]), first)
    close(logits.transpose(1, 2), io["logits"])
    close(log_x0, io["predict_start"][:, :-1])
    close(at_mask, io["allmask/predict_start_t99_row0"][:, :-1])


def test_forward_process_matches_golden(io):
    schedule, t = paper_schedule(100, 64), io["t"]
    clean = one_hot_log(io["x0"], 65)
    close(moved(schedule.cumulative(t), clean), io["q_pred_onehot_x0"])
    close(moved(schedule.cumulative(t - 1), clean), io["q_pred_onehot_x0_tminus1"])
    close(moved(schedule.cumulative(t), io["predict_start"]), io["q_pred_soft"])
    close(moved(schedule.step(t), one_hot_log(io["x_t"], 65)), io["q_pred_one_timestep"])


def test_posteriors_match_golden(io):
    schedule, t, log_x0 = paper_schedule(100, 64), io["t"], io["predict_start"][:, :-1]
    close(schedule.posterior(log_x0, io["x_t"], t), io["q_posterior_pred"])
    close(token_posterior(schedule, io["x0"], io["x_t"], t), io["q_posterior_onehot_x0"])
    at_90 = schedule.posterior(log_x0, io["x_t"], torch.full((6,), 90))
    close(at_90[3:4], io["q_posterior_of_predicted_x0_at_t90_row3"])
    all_mask = schedule.posterior(
        io["allmask/predict_start_t99_row0"][:, :-1], torch.full((1, 64), 64), torch.tensor([90])
    )
    close(all_mask, io["allmask/q_posterior_t90_row0"])


def test_importance_distribution_matches_golden(io):
    history = io["importance/Lt_history"]
    close(importance_distribution(history, torch.full((100,), 11.0)), io["importance/pt_all"])
    rarely = torch.full((100,), 11.0).index_fill(0, torch.tensor([7]), 10.0)
    assert torch.equal(importance_distribution(history, rarely), torch.full((100,), 0.01))


def test_training_loss_and_gradients_match_golden(model, folder):
    gold = tensors(folder / "training_loss.npz")
    model.train()
    loss, metrics = model.training_loss(
        gold["x0"], gold["cond_tokens"], t=gold["t"], pt=gold["pt"], x_t=gold["x_t"]
    )
    loss.backward()
    for name in ("kl", "decoder_nll", "kl_or_nll", "aux_kl", "aux_or_nll", "vb_loss"):
        close(metrics[name], gold[name])
    close(loss.detach(), gold["loss"])
    close(model.Lt_history, gold["Lt_history_after"])
    close(model.Lt_count, gold["Lt_count_after"])
    expected = {name[5:] for name in gold if name.startswith("grad/")}
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(got) == expected
    for name in expected:
        close(got[name], gold[f"grad/{name}"], 2e-4)


def test_validation_leaves_the_loss_history_alone(model, folder):
    gold = tensors(folder / "training_loss.npz")
    before = model.Lt_history.clone(), model.Lt_count.clone()
    with torch.no_grad():
        model.training_loss(gold["x0"], gold["cond_tokens"])
    assert torch.equal(before[0], model.Lt_history) and torch.equal(before[1], model.Lt_count)


@pytest.mark.parametrize(
    "run", ["entropy_noise0", "entropy_noise1", "likelihood_noise0", "likelihood_noise1"]
)
def test_denoising_chain_matches_golden(model, golden, run):
    reward = tensors(golden("diffusion_reward") / "io.npz")
    config = json.loads((golden("diffusion_reward") / "config.json").read_text())
    assert config["skip_step"] == 9
    mode, noise = run[:-7], run.endswith("1")
    # the entropy of the model's own sample, or the likelihood of the frame that was observed
    target = reward[f"{run}/z_final"].long() if mode == "entropy" else reward["likelihood/content_tokens"]
    schedule, z = model.schedule, model.all_mask(12)
    with torch.no_grad():
        condition = model.condition(reward[f"{mode}/condition_tokens"])
        for step in range(11):
            assert torch.equal(z, reward[f"{run}/z_in"][step].long())
            t = torch.full((12,), int(reward[f"{run}/diffusion_index"][step]))
            t_posterior = torch.full((12,), int(reward[f"{run}/t_posterior"][step]))
            log_x0 = model.predict_log_x0(z, t, condition)
            log_model = schedule.posterior(log_x0, z, t_posterior)
            if noise and f"{run}/posterior_logprob_row3" in reward:
                close(log_model[3], reward[f"{run}/posterior_logprob_row3"][step])
            sample = sample_tokens(log_model, reward["uniform"][step], noise=noise)
            if step == 10:
                picked = log_model.gather(1, target[:, None])[:, 0]
                close(picked, reward[f"{run}/final_loglik_per_token"])
            else:
                kl = schedule.posterior_kl(target, z, log_model, t_posterior)
                close(kl, reward[f"{run}/kl_per_token"][step])
            z = sample
    assert torch.equal(z, reward[f"{run}/z_final"].long())


def brute_force_posterior(p_x0: np.ndarray, x_t: int, t: int, s: int, codes: int) -> np.ndarray:
    """sum over x0 of p(x0) q(x_s | x_t, x0), by multiplying dense one-step matrices in float64."""
    p = alpha1_probabilities(100, codes)

    def matrix(first: int, last: int) -> np.ndarray:
        product = np.eye(codes + 1)
        for i in range(first, last + 1):
            step = np.full((codes + 1, codes + 1), p["bt"][i])
            step[np.arange(codes), np.arange(codes)] += p["at"][i]
            step[:, codes] = p["ct"][i]
            step[codes] = 0
            step[codes, codes] = 1
            product = product @ step
        return product

    to_s, s_to_t = matrix(0, s), matrix(s + 1, t)
    result = np.zeros(codes + 1)
    for x0 in range(codes):
        joint = to_s[x0] * s_to_t[:, x_t]
        result += p_x0[x0] * joint / joint.sum()
    return result


@pytest.mark.parametrize("t, s", [(99, 89), (90, 80), (37, 9), (9, 0), (5, 4), (60, 59)])
@pytest.mark.parametrize("x_t", [6, 2])
def test_jump_posterior_is_exact(t, s, x_t):
    schedule = paper_schedule(100, 6)
    log_x0 = torch.log_softmax(torch.randn(1, 6, 1, generator=torch.Generator().manual_seed(3)), 1)
    times = torch.tensor([t]), torch.tensor([s])
    tokens = torch.tensor([[x_t]])
    got = schedule.posterior(log_x0, tokens, *times).exp()[0, :, 0]
    np.testing.assert_allclose(
        got, brute_force_posterior(log_x0.exp()[0, :, 0].numpy(), x_t, t, s, 6), rtol=2e-4, atol=1e-9
    )
    for x0 in (2, 4):
        got = token_posterior(schedule, torch.tensor([[x0]]), tokens, *times).exp()[0, :, 0]
        np.testing.assert_allclose(
            got, brute_force_posterior(np.eye(6)[x0], x_t, t, s, 6), rtol=2e-4, atol=1e-9
        )


def test_jump_of_one_step_is_the_official_posterior(io):
    schedule, t = paper_schedule(100, 64), io["t"]
    log_x0 = io["predict_start"][:, :-1]
    close(schedule.posterior(log_x0, io["x_t"], t, t - 1), schedule.posterior(log_x0, io["x_t"], t), 2e-4)


@pytest.mark.parametrize("s", [None, 30])
def test_posterior_kl_equals_the_dense_sum(s):
    schedule, generator = paper_schedule(100, 6), torch.Generator().manual_seed(1)
    log_x0 = torch.log_softmax(torch.randn(3, 6, 8, generator=generator), 1)
    x0 = torch.randint(6, (3, 8), generator=generator)
    x_t = torch.randint(7, (3, 8), generator=generator)
    x_t[:, :2] = x0[:, :2]
    t = torch.tensor([40, 77, 99])
    s = None if s is None else torch.full((3,), s)
    model = schedule.posterior(log_x0, x_t, t, s)
    truth = token_posterior(schedule, x0, x_t, t, s)
    close(schedule.posterior_kl(x0, x_t, model, t, s), (truth.exp() * (truth - model)).sum(1), 1e-5)


def test_noisy_tokens_follow_the_schedule():
    schedule = paper_schedule(100, 6)
    x0 = torch.full((4, 50_000), 2)
    x_t = schedule.noisy_tokens(x0, torch.tensor([0, 25, 60, 99]), torch.Generator().manual_seed(0))
    masked = (x_t == 6).float().mean(1)
    np.testing.assert_allclose(masked, [0.0, 0.2525, 0.606, 1.0], atol=0.01)
    assert (x_t[1][x_t[1] != 6] == 2).float().mean() > 0.999


def test_history_order_matters_only_with_learned_positions():
    tokens = torch.randint(6, (5, 8), generator=torch.Generator().manual_seed(0))
    swapped = torch.cat([tokens[:, 4:], tokens[:, :4]], 1)
    for position, differs in (("none", False), ("learned", True)):
        torch.manual_seed(1)
        model = VQDiffusion(VQDiffusionConfig(**SMALL, condition_position=position)).eval()
        for parameter in model.transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        t = torch.full((5,), 99)
        with torch.no_grad():
            a = model.predict_log_x0(model.all_mask(5), t, model.condition(tokens))
            b = model.predict_log_x0(model.all_mask(5), t, model.condition(swapped))
        assert bool((a - b).abs().max() > 1e-3) == differs


@pytest.mark.parametrize("position", ["none", "learned"])
def test_condition_tables_follow_every_weight_change(position):
    torch.manual_seed(0)
    model = VQDiffusion(VQDiffusionConfig(**SMALL, condition_position=position)).eval()
    tokens = torch.randint(6, (3, 8))
    with torch.no_grad():
        before = model.condition(tokens)
        model.transformer.blocks[1].attn2.value.weight.mul_(2)
        after = model.condition(tokens)
    exact = model.condition(tokens[:, :8])
    assert torch.equal(before.keys, after.keys)
    assert not torch.allclose(before.values[1], after.values[1])
    torch.testing.assert_close(after.values, exact.values.detach())


def test_a_model_made_in_inference_mode_works():
    with torch.inference_mode():
        model = VQDiffusion(VQDiffusionConfig(**SMALL)).eval()
        first = model.condition(torch.zeros(1, 8, dtype=torch.int64))
        model.transformer.blocks[0].attn2.value.bias.add_(1.0)
        second = model.condition(torch.zeros(1, 8, dtype=torch.int64))
    torch.testing.assert_close(second.values[0], first.values[0] + 1.0)


def test_learned_positions_mean_the_age_of_a_frame():
    torch.manual_seed(0)
    model = VQDiffusion(VQDiffusionConfig(**SMALL, condition_position="learned")).eval()
    tokens = torch.randint(6, (3, 8))
    with torch.no_grad():
        last = model.condition(tokens[:, 4:])
        whole = model.condition(tokens)
    torch.testing.assert_close(last.keys, whole.keys[:, :, :, 4:])
    with pytest.raises(ValueError, match="3 frames, but this model has learned positions for 2"):
        model.condition(torch.zeros(1, 12, dtype=torch.int64))
    with pytest.raises(ValueError, match="whole frames of 4 tokens"):
        model.condition(torch.zeros(1, 6, dtype=torch.int64))


def test_all_mask_loss_is_the_cross_entropy_of_the_prediction():
    torch.manual_seed(0)
    model = VQDiffusion(VQDiffusionConfig(**SMALL, mlp_type="linear")).eval()
    x0, history = torch.randint(6, (5, 4)), torch.randint(6, (5, 8))
    with torch.no_grad():
        log_x0 = model.predict_log_x0(model.all_mask(5), torch.full((5,), 99), model.condition(history))
        from_mask = model.predict_log_x0(model.all_mask(1), torch.tensor([99]), model.condition(history))
        loss = model.all_mask_loss(x0, history)
    torch.testing.assert_close(from_mask, log_x0)
    torch.testing.assert_close(loss, -log_x0.gather(1, x0[:, None]).mean())


@pytest.mark.parametrize(
    "key, value",
    [
        ("num_heads", 3),
        ("mlp_type", "mixer"),
        ("condition_position", "yes"),
        ("dropout", 1.0),
        ("history", "old"),
    ],
)
def test_bad_config_names_key_and_value(key, value):
    with pytest.raises(ValueError, match=key) as error:
        VQDiffusionConfig(**{key: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"history": "first"}, "history='first' has 1 frames, got num_history_frames=2: set it to 1"),
        ({"history": "clock", "num_history_frames": 1}, "'clock' has 2 frames, got num_history_frames=1"),
        ({"history": "clock"}, "needs condition_position='learned': without places the clock"),
    ],
)
def test_a_history_has_its_number_of_frames(values, message):
    with pytest.raises(ValueError, match=message):
        VQDiffusionConfig(**values)


def test_tables_made_under_autocast_are_not_used_outside_it():
    """Validation in bfloat16 once left tables behind that float32 could not read."""
    torch.manual_seed(0)
    model = VQDiffusion(VQDiffusionConfig(**SMALL)).eval()
    history, state, t = torch.randint(6, (3, 8)), torch.randint(7, (3, 4)), torch.full((3,), 50)
    with torch.no_grad():
        wanted = model.predict_log_x0(state, t, model.condition(history))
        with torch.autocast("cpu", torch.bfloat16):
            half = model.predict_log_x0(state, t, model.condition(history))
        again = model.predict_log_x0(state, t, model.condition(history))
    assert torch.equal(wanted, again)
    np.testing.assert_allclose(half, wanted, atol=0.05)
