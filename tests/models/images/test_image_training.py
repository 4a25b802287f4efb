"""The class-conditional model and the reward: what they learn, resume and refuse, at the smallest sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.checkpoints import load_tensors
from models.images.config import (
    ImageModelConfig,
    ImageRewardTrainingConfig,
    ImageTrainingConfig,
    PairConfig,
    SafeGuidanceConfig,
)
from models.images.ddim import DDIMSteps, scaled_linear_abar
from models.images.image_training import LabelledImages, draw_conditions, train_image_model
from models.images.pairs import LatentStatistics, make_pairs
from models.images.pictures import contact_sheet
from models.images.reward import ImageReward, load_image_reward, rewards_of
from models.images.reward_training import train_image_reward
from models.images.sampling import class_predictor, sample_base
from models.images.unet import ClassUNet2D, class_set, load_image_model
from models.relative.config import RelativeRewardConfig

MODEL = ImageModelConfig(resolution_px=4, num_classes=4, width=8, multipliers=(1, 2))
TRAINING = ImageTrainingConfig(
    train_steps=6, batch_images=8, log_every_steps=2, validate_every_steps=3, save_every_steps=3
)
NETWORK = RelativeRewardConfig(network="half_2d", width=8, multipliers=(1, 2), time_dim=8)
REWARD_TRAINING = ImageRewardTrainingConfig(
    train_steps=6,
    batch_pairs=8,
    validation_pairs=16,
    log_every_steps=2,
    validate_every_steps=3,
    save_every_steps=3,
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(count=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return LabelledImages(torch.rand(count, 1, 4, 4, generator=generator) * 2 - 1, torch.arange(count) % 4)


class Killed(Exception):
    pass


def kill_at(step):
    def progress(done, total, values):
        if done >= step:
            raise Killed

    return progress


def test_conditions_are_none_the_class_or_a_set_that_holds_it():
    torch.manual_seed(0)
    labels = torch.arange(4).repeat(2000)
    config = ImageTrainingConfig(null_probability=0.2, set_probability=0.3)
    conditions = draw_conditions(labels, config, 4)
    sizes = conditions.sum(1)
    assert (sizes == 0).float().mean() == pytest.approx(0.2, abs=0.02)
    assert (sizes > 1).float().mean() == pytest.approx(0.3, abs=0.02)
    assert sizes.max() == 3  # all classes together would be no condition
    given = sizes > 0
    assert bool((conditions[given, labels[given]] == 1).all())


def test_the_untrained_model_predicts_nothing_and_takes_sets():
    model = ClassUNet2D(MODEL)
    conditions = torch.cat([class_set((), 4), class_set((2,), 4), class_set((0, 3), 4)])
    assert conditions.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]
    noise = model(torch.randn(3, 1, 4, 4), torch.tensor([0, 5, 999]), conditions)
    assert noise.shape == (3, 1, 4, 4) and bool((noise == 0).all())
    with pytest.raises(ValueError, match=r"classes must be in \[0, 3\], got \[4\]"):
        class_set((4,), 4)


def test_the_three_noises_are_those_of_single_passes():
    torch.manual_seed(0)
    model = ClassUNet2D(MODEL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    prompts = torch.cat([class_set((1,), 4), class_set((2,), 4)])
    latents = torch.randn(2, 1, 4, 4)
    null, prompt, concept = class_predictor(model, prompts, (0, 3))(latents, 500)
    levels = torch.full((2,), 500)
    torch.testing.assert_close(null, model(latents, levels, torch.zeros(2, 4)))
    torch.testing.assert_close(prompt, model(latents, levels, prompts))
    torch.testing.assert_close(concept, model(latents, levels, class_set((0, 3), 4, 2)))
    assert not torch.allclose(prompt, concept)


def test_model_training_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = train_image_model(TRAINING, MODEL, images(), images(8, 1), tmp_path / "whole")
    with pytest.raises(Killed):
        train_image_model(TRAINING, MODEL, images(), images(8, 1), tmp_path / "cut", progress=kill_at(4))
    again = train_image_model(TRAINING, MODEL, images(), images(8, 1), tmp_path / "cut")
    assert again["best_validation_loss"] == whole["best_validation_loss"]
    one, two = (load_tensors(tmp_path / n / "training_state.pt")["model"] for n in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    model, meta = load_image_model(tmp_path / "cut")
    assert meta["kind"] == "image_diffuser" and meta["data"]["train_images"] == 16
    assert sample_base(model, class_set((1,), 4), num_steps=3, cfg_scale=2.0, seed=0).shape == (1, 1, 4, 4)


def test_a_finished_model_is_kept_or_taken_as_it_is(tmp_path):
    done = train_image_model(TRAINING, MODEL, images(), images(8, 1), tmp_path)
    with pytest.raises(FileExistsError, match="already holds a finished image model"):
        train_image_model(TRAINING, MODEL, images(), images(8, 1), tmp_path)
    assert train_image_model(TRAINING, MODEL, images(), images(8, 1), tmp_path, reuse=True) == done
    with pytest.raises(ValueError, match="seed: 0 there, 1 asked for"):
        train_image_model(TRAINING, MODEL, images(), images(8, 1), tmp_path, reuse=True, seed=1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LabelledImages(torch.zeros(2, 1, 8, 8), torch.zeros(2).long()), "set resolution_px"),
        (LabelledImages(torch.zeros(2, 1, 4, 4), torch.tensor([0, 4])), "raise num_classes"),
    ],
)
def test_images_that_do_not_fit(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        train_image_model(TRAINING, MODEL, data, images(), tmp_path / "model")


def towards(prompts):
    """A predictor whose expert always moves against the concept by the same amount: the reward is linear."""

    def predict(latents, level):
        null = 0.1 * latents
        concept = null.clone()
        concept[..., 0] += 0.5
        return null, null, concept

    return predict


def linear_pairs(folder, trajectories=40):
    steps = DDIMSteps(scaled_linear_abar(1000, 0.00085, 0.012), 4)
    guidance = SafeGuidanceConfig(num_steps=4, cfg_scale=2.0, momentum_scale=0.0)
    config = PairConfig(trajectories=trajectories, shard_trajectories=20)
    return make_pairs(folder, towards, steps, guidance, config, (1, 4, 4), 1, {})


def test_the_reward_grows_where_the_expert_goes(tmp_path):
    pairs = linear_pairs(tmp_path / "pairs", 100)
    training = ImageRewardTrainingConfig(
        train_steps=200, batch_pairs=32, learning_rate=3e-3, clip_grad_value=None, validate_every_steps=100
    )
    summary = train_image_reward(training, NETWORK, pairs, tmp_path / "reward")
    assert summary["best_validation_explained"] > 0.9
    reward, meta = load_image_reward(tmp_path / "reward")
    assert meta["pairs"]["shape"] == [1, 4, 4] and reward.num_steps == 4
    chosen = pairs.trajectories("validation")
    batch = pairs.gather(chosen, np.full(len(chosen), 1))
    wanted = batch.safe - batch.base
    found = reward.direction(batch.current, batch.steps)
    assert (found - wanted).square().mean() < 0.1 * wanted.square().mean()
    # less of what the concept has more of is better
    better = batch.current.clone()
    better[..., 0] += wanted[..., 0].sign() * 0.5
    assert (rewards_of(reward, better, 1) > rewards_of(reward, batch.current, 1)).all()


def test_reward_training_goes_on_as_if_nothing_had_happened(tmp_path):
    pairs = linear_pairs(tmp_path / "pairs")
    whole = train_image_reward(REWARD_TRAINING, NETWORK, pairs, tmp_path / "whole")
    with pytest.raises(Killed):
        train_image_reward(REWARD_TRAINING, NETWORK, pairs, tmp_path / "cut", progress=kill_at(4))
    again = train_image_reward(REWARD_TRAINING, NETWORK, pairs, tmp_path / "cut")
    assert again["best_validation_loss"] == whole["best_validation_loss"]
    one, two = (load_tensors(tmp_path / n / "training_state.pt")["model"] for n in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert train_image_reward(REWARD_TRAINING, NETWORK, pairs, tmp_path / "cut", reuse=True) == again


def test_nothing_to_learn_where_base_and_expert_agree(tmp_path):
    steps = DDIMSteps(scaled_linear_abar(1000, 0.00085, 0.012), 4)
    config = PairConfig(trajectories=20, shard_trajectories=20)
    guidance = SafeGuidanceConfig(num_steps=4, safety_scale=0.0)
    pairs = make_pairs(tmp_path / "pairs", towards, steps, guidance, config, (1, 4, 4), 1, {})
    with pytest.raises(ValueError, match="never differ"):
        train_image_reward(REWARD_TRAINING, NETWORK, pairs, tmp_path / "reward")


def test_the_target_is_in_standardised_units_and_points_to_the_expert():
    statistics = LatentStatistics(
        torch.full((2, 1, 4, 4), 3.0), torch.full((2, 1, 4, 4), 2.0), torch.full((2, 1, 4, 4), 0.5)
    )
    reward = ImageReward(NETWORK, statistics)
    steps, base = torch.tensor([0, 1]), torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(reward.target(base, base + 1, steps), torch.full((2, 1, 4, 4), 2.0))
    assert torch.equal(reward.target(base, base, steps), torch.zeros(2, 1, 4, 4))
    torch.testing.assert_close(reward.target(base + 1, base, steps), -reward.target(base, base + 1, steps))
    torch.testing.assert_close(
        reward.standardise(torch.full((2, 1, 4, 4), 5.0), steps), torch.ones(2, 1, 4, 4)
    )


def test_only_the_half_unet_is_for_images():
    blank = torch.ones(2, 1, 4, 4)
    with pytest.raises(ValueError, match="must be 'half_2d' for images, got 'mlp'"):
        ImageReward(RelativeRewardConfig(), LatentStatistics(blank, blank, blank))


def test_contact_sheet():
    pictures = torch.tensor([-1.0, 0.0, 5.0]).view(3, 1, 1, 1)
    sheet = contact_sheet(pictures, columns=2, scale=2)
    assert sheet.shape == (7, 7, 3)
    assert [sheet[1, 1, 0], sheet[2, 5, 0], sheet[4, 2, 0], sheet[4, 4, 0]] == [0, 128, 255, 128]
    with pytest.raises(ValueError, match="1 or 3"):
        contact_sheet(torch.zeros(1, 4, 2, 2), 1)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (ImageModelConfig, {"resolution_px": 6}, "resolution_px must be divisible by 4"),
        (ImageModelConfig, {"width": 12}, "width must be a multiple of 8"),
        (
            ImageTrainingConfig,
            {"null_probability": 0.8, "set_probability": 0.5},
            "must not exceed 1, got 0.8 \\+ 0.5",
        ),
        (PairConfig, {"follow": "neither"}, "follow must be one of"),
        (PairConfig, {"trajectories": 5}, "trajectories must be at least validation_every=10"),
        (ImageRewardTrainingConfig, {"clip_grad_value": 0.0}, "clip_grad_value must be above 0"),
    ],
)
def test_bad_values(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)


def test_a_model_of_few_noise_levels_draws_its_samples_with_fewer_steps(tmp_path):
    few = ImageModelConfig(resolution_px=4, num_classes=4, width=8, multipliers=(1, 2), num_train_steps=6)
    assert train_image_model(TRAINING, few, images(), images(8, 1), tmp_path)["steps"] == 6
    with pytest.raises(ValueError, match="num_train_steps must be at least 2"):
        ImageModelConfig(num_train_steps=1)
