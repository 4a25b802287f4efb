"""The image domain of relative.py: the smallest run of every stage, skipping, tables and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install -e '.[images]'")

from launch import cli, relative_images, relative_images_evaluation
from launch.cli import UsageError, build, compose
from launch.digits import Judge, digit_splits
from launch.relative_images import ImagesSettings, job_of
from launch.relative_images_evaluation import Samples, evaluate_choices, judged, write_csv
from models.images.pairs import LatentStatistics
from models.images.reward import ImageReward, save_image_reward
from models.images.unet import ClassUNet2D, load_image_model, save_image_model
from tests.launch.conftest import run_verb

TINY = [
    *("domain=images", "device=cpu", "threads=1", "images.unsafe=[38]", "images.guidance.num_steps=5"),
    *("images.model.width=8", "images.model_training.train_steps=4", "images.evaluation_trajectories=20"),
    *("images.pairs.trajectories=20", "images.pairs.shard_trajectories=10", "images.reward.width=8"),
    *("images.reward_training.train_steps=4", "images.reward_training.validation_pairs=16"),
]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_all_goes_from_nothing_to_a_table_and_skips_what_is_done(tmp_path, capsys):
    out = tmp_path / "out"
    done = run_verb("relative", "all", *TINY, f"out={out}")
    assert "AUC of harmless against harmful" in done.stdout and "\n3+8 " in done.stdout
    names = {path.name for path in (out / "results").iterdir()}
    assert names == {
        *("evaluation.json", "evaluation.csv", "auc_per_step.csv", "auc_per_step.png"),
        *("unsafe-3-8-histogram.png", "unsafe-3-8-samples.png"),
    }
    assert all(path.stat().st_size < 150_000 for path in (out / "results").iterdir())
    [row] = csv.DictReader((out / "results" / "evaluation.csv").open())
    assert row["unsafe"] == "3+8" and 0 <= float(row["digits_auc"]) <= 1
    facts = json.loads((out / "results" / "evaluation.json").read_text())
    assert facts["judge_accuracy"] > 0.95 and facts["settings"]["guidance"]["num_steps"] == 5
    steps = [int(line["step"]) for line in csv.DictReader((out / "results" / "auc_per_step.csv").open())]
    assert steps == [0, 1, 2, 3, 4]

    # a second run trains nothing, and gives the same numbers
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    assert relative_images.run_all(compose("relative", [*TINY, f"out={out}"])) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")} == kept
    assert json.loads((out / "results" / "evaluation.json").read_text())["results"] == facts["results"]

    # other settings in the same folder are refused, not mixed
    changed = compose("relative", [*TINY, f"out={out}", "images.reward_training.learning_rate=0.5"])
    with pytest.raises(ValueError, match=r"training\.learning_rate"):
        relative_images.run_all(changed)

    # a reward speaks of its own steps only
    shorter = compose("relative", [*TINY, "images.guidance.num_steps=4", f"base={out / 'model'}"])
    job = replace(job_of(shorter), rewards=out / "rewards", results=tmp_path / "shorter")
    with pytest.raises(ValueError, match=r"evaluate with the images\.guidance\.num_steps"):
        evaluate_choices(job)

    # a reward speaks of its own model only, and pairs of a model that was trained again are not taken for the new one's
    model, meta = load_image_model(out / "model")
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    save_image_model(out / "model", model, {"data": meta["data"]}, overwrite=True)
    same = compose("relative", [*TINY, f"base={out / 'model'}"])
    with pytest.raises(ValueError, match="give base=<the model that made its pairs>"):
        evaluate_choices(replace(job_of(same), rewards=out / "rewards", results=tmp_path / "other"))
    with pytest.raises(ValueError, match=r"facts\.weights: .* there, .* asked for"):
        relative_images.run_all(compose("relative", [*TINY, f"out={out}"]))


def test_a_missing_reward_is_said_before_any_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(relative_images_evaluation, "evaluate_choice", pytest.fail)
    config = compose("relative", [*TINY, "images.unsafe=[0,38]", f"base={tmp_path / 'model'}"])
    job = replace(job_of(config), rewards=tmp_path / "rewards")
    save_image_model(job.base, ClassUNet2D(job.settings.model), {})
    blank = torch.ones(5, 1, 8, 8)
    reward = ImageReward(job.settings.reward, LatentStatistics(blank, blank, blank))
    save_image_reward(job.rewards / "unsafe-0", reward, {})
    with pytest.raises(FileNotFoundError, match="unsafe-3-8"):
        evaluate_choices(job)


def test_the_digits_are_split_within_each_class_and_always_the_same():
    splits = digit_splits()
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [1078, 360, 359]
    for images in splits.values():
        assert images.images.shape[1:] == (1, 8, 8)
        assert (images.images.min(), images.images.max()) == (-1.0, 1.0)
        shares = np.bincount(images.labels.numpy()) / len(images)
        assert np.abs(shares - 0.1).max() < 0.01
    rows = torch.cat([images.images for images in splits.values()]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == len(rows)  # no digit is in two splits
    again = digit_splits()
    assert all(torch.equal(splits[name].images, again[name].images) for name in splits)
    assert digit_splits(16)["test"].images.shape == (359, 1, 16, 16)


def test_the_judge_knows_digits_it_never_saw():
    splits = digit_splits()
    judge = Judge(splits["validation"])
    assert judge.accuracy(splits["test"]) > 0.95 and judge.accuracy(splits["train"]) > 0.95


def test_what_the_judge_counts():
    class Fixed:
        def classes(self, images):
            return images[:, 0, 0, 0].numpy().astype(int)

    def shows(*digits):
        return torch.tensor(digits).float().view(-1, 1, 1, 1)

    prompts = np.array([3, 3, 1, 2])
    samples = Samples(prompts, torch.zeros(0), {"base": shows(3, 3, 1, 3), "safe": shows(5, 3, 1, 2)})
    found = judged(samples, Fixed(), (3,))
    assert found == {
        "base_unsafe": 0.75,
        "base_unsafe_of_harmful_prompts": 1.0,
        "base_kept": 0.5,
        "safe_unsafe": 0.25,
        "safe_unsafe_of_harmful_prompts": 0.5,
        "safe_kept": 1.0,
    }


def test_csv(tmp_path):
    write_csv(tmp_path / "rows.csv", [{"unsafe": "3+8", "auc": 0.123456, "step": 1}])
    assert (tmp_path / "rows.csv").read_text() == "unsafe,auc,step\n3+8,0.1235,1\n"


def test_choices_of_unsafe_classes():
    assert ImagesSettings(unsafe=(0, 7, 83, 569)).unsafe_choices() == [(0,), (7,), (3, 8), (5, 6, 9)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("images.unsafe=[33]", "unsafe must list whole numbers of different digits"),
        ("images.unsafe=[]", "unsafe must list"),
        ("images.unsafe=[1234567890]", "not all ten"),
        ("images.unsafe=[-3]", "unsafe must list"),
        ("images.model.num_classes=5", "the digits have 10 classes"),
        ("images.evaluation_trajectories=5", "evaluation_trajectories must be at least 10"),
        ("images.headline_share=1.0", "headline_share must be in"),
        ("images.guidance.num_steps=1000", r"num_steps must be below model\.num_train_steps=1000"),
        ("images.reward.network=mlp", r"reward\.network must be 'half_2d'"),
        ("images.guidance.momentum_beta=2", "momentum_beta must be in"),
        ("expert=somewhere", "the base with safety guidance"),
    ],
)
def test_bad_values_are_refused(override, message):
    with pytest.raises(UsageError, match=message):
        job_of(compose("relative", ["domain=images", override]))


@pytest.mark.parametrize(
    ("action", "overrides", "message"),
    [
        ("train", [], "out is missing"),
        ("evaluate", ["out=/tmp/nowhere"], r"images\.trained=<folder of its reward>"),
        ("run_all", [], "for the actions train and evaluate"),
    ],
)
def test_pairs_from_elsewhere_need_their_folders(action, overrides, message):
    config = compose("relative", ["domain=images", "device=cpu", "images.data=/tmp/pairs", *overrides])
    with pytest.raises(UsageError, match=message):
        getattr(relative_images, action)(config)


def test_paper_preset_is_the_paper():
    settings = build(ImagesSettings, compose("relative", ["domain=images", "preset=paper"]).images)
    guidance, reward, training = settings.guidance, settings.reward, settings.reward_training
    assert (guidance.num_steps, guidance.cfg_scale, guidance.safety_scale) == (50, 7.5, 5000)
    assert (guidance.threshold, guidance.momentum_scale, guidance.momentum_beta) == (1.0, 0.5, 0.7)
    assert guidance.warmup_steps == 0
    assert (reward.network, reward.width, reward.multipliers) == ("half_2d", 32, (1, 2, 4, 8))
    assert (training.batch_pairs, training.learning_rate, training.clip_grad_value) == (64, 1e-4, 0.002)


@pytest.mark.parametrize("verb", ["relative", "stable_diffusion"])
def test_help_names_the_guidance(verb):
    assert "safety_scale: 5000.0" in cli.help_text(verb, "What it does.")


def test_laptop_preset_keeps_the_guidance_of_the_paper():
    laptop, paper = (
        build(ImagesSettings, compose("relative", ["domain=images", f"preset={name}"]).images)
        for name in ("laptop", "paper")
    )
    assert laptop.guidance == paper.guidance
