"""What the rewards of images know: harmless against harmful classes on held-out latents, and samples."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from launch import relative_images_pictures as pictures
from launch.digits import NUM_CLASSES, Judge, digit_splits
from launch.relative_images import ImagesJob, choice_name, predictor
from models.checkpoints import WEIGHTS_FILE
from models.files import checksum, write_atomic, write_json
from models.images.ddim import DDIMSteps, add_noise
from models.images.image_training import LabelledImages
from models.images.pairs import PairSet
from models.images.reward import ImageReward, load_image_reward, rewards_of
from models.images.sampling import paired_trajectories, start_latents, steered_trajectories
from models.images.unet import ClassUNet2D, load_image_model
from reward_service.quality import auc

# Noise of evaluation never occurs in a training: shards of pairs count from 0.
EVALUATION_PART = 1_000_000
SAMPLERS = ("base", "safe", "steered")


@dataclass(frozen=True)
class Samples:
    """New trajectories for prompts that are single classes, from the same noise with every sampler.

    Attributes:
        prompts: (N,) int64 classes.
        latents: (N, S, 1, H, W) float32 of the base, position t is step t.
        results: Sampler -> (N, 1, H, W) float32.
    """

    prompts: np.ndarray
    latents: Tensor
    results: dict[str, Tensor]


def evaluate_choices(job: ImagesJob) -> int:
    """Evaluates the reward of every choice of unsafe classes; writes JSON, CSV and pictures, prints a table.

    Raises:
        FileNotFoundError: if a model or a reward is missing.
        ValueError: if a reward was trained for other steps or another resolution, or on pairs of another model.
    """
    model, _ = load_image_model(job.base, job.device)
    digits = digit_splits(job.settings.model.resolution_px)
    judge = Judge(digits["validation"])
    test = digits["test"]
    print(f"[evaluate] judge: {judge.accuracy(test):.3f} of {len(test)} held-out digits right", flush=True)
    # All before the first is judged: a missing one, or one that does not fit, is said at once.
    rewards = {unsafe: fitting_reward(job, unsafe) for unsafe in job.settings.unsafe_choices()}
    rows, curves = [], []
    for unsafe, reward in rewards.items():
        row, curve = evaluate_choice(job, model, reward, unsafe, test, judge)
        rows.append({"seed": job.seed, "unsafe": "+".join(map(str, unsafe)), **row})
        curves += [{"seed": job.seed, "unsafe": "+".join(map(str, unsafe)), **line} for line in curve]
    job.results.mkdir(parents=True, exist_ok=True)
    facts = {
        "settings": asdict(job.settings),
        "seed": job.seed,
        "judge_accuracy": judge.accuracy(test),
        "test_digits": len(test),
        "results": rows,
    }
    write_json(job.results / "evaluation.json", facts)
    write_csv(job.results / "evaluation.csv", rows)
    write_csv(job.results / "auc_per_step.csv", curves)
    pictures.auc_curves(job.results / "auc_per_step.png", curves)
    print(table(rows, job.settings.headline_step))
    print(f"[evaluate] {job.results}")
    return 0


def fitting_reward(job: ImagesJob, unsafe: tuple[int, ...]) -> ImageReward:
    """The trained reward of a choice.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it was trained for other steps or another resolution, or on pairs of another model.
    """
    folder, settings = job.rewards / choice_name(unsafe), job.settings
    reward, meta = load_image_reward(folder, job.device)
    size_px = settings.model.resolution_px
    wanted = (settings.guidance.num_steps, settings.model.channels, size_px, size_px)
    if tuple(reward.mean.shape) != wanted:
        raise ValueError(
            f"the reward of {folder} is for (steps, channels, height, width) {tuple(reward.mean.shape)}, asked for are "
            f"{wanted}: evaluate with the images.guidance.num_steps and images.model.resolution_px of its training"
        )
    weights = checksum(job.base / WEIGHTS_FILE)
    before = meta.get("pairs", {}).get("facts", {}).get("weights", weights)  # older ones remember none
    if before != weights:
        raise ValueError(
            f"the reward of {folder} was trained on pairs of a model with weights {before}, {job.base} has {weights}: "
            "give base=<the model that made its pairs>"
        )
    return reward


def evaluate_choice(
    job: ImagesJob,
    model: ClassUNet2D,
    reward: ImageReward,
    unsafe: tuple[int, ...],
    test: LabelledImages,
    judge: Judge,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One choice: its row of the table and its AUC at every step; writes its pictures.

    Args:
        job: Settings and places.
        model: Base and expert share it.
        reward: Of this choice.
        unsafe: Its classes.
        test: Held-out digits.
        judge: Says which digit an image shows.
    """
    settings = job.settings
    steps = DDIMSteps(model.abar.cpu(), settings.guidance.num_steps, settings.guidance.clip_x0)
    samples = draw_samples(job, model, reward, unsafe, steps)
    harmful = {
        "digits": np.isin(test.labels.numpy(), unsafe),
        "generated": np.isin(samples.prompts, unsafe),
    }
    rewards = {
        "digits": digit_rewards(reward, test, steps, job.seed),
        "generated": np.stack([rewards_of(reward, samples.latents[:, t], t) for t in range(steps.num_steps)]),
    }
    headline = settings.headline_step
    row: dict[str, Any] = {}
    for name, values in rewards.items():
        bad = harmful[name]
        row[f"{name}_auc"] = auc(values[headline][~bad], values[headline][bad])
        row[f"{name}_auc_all_steps"] = auc(values.mean(axis=0)[~bad], values.mean(axis=0)[bad])
    bad = harmful["generated"]
    final = {name: rewards_of(reward, images, 0) for name, images in samples.results.items()}
    row["expert_auc_harmful_prompts"] = auc(final["safe"][bad], final["base"][bad])
    row |= judged(samples, judge, unsafe)
    curve = [
        {
            "step": step,
            "abar": steps.step_abar(step),
            **{f"{n}_auc": auc(v[step][~harmful[n]], v[step][harmful[n]]) for n, v in rewards.items()},
        }
        for step in range(steps.num_steps)
    ]
    name = choice_name(unsafe)
    job.results.mkdir(parents=True, exist_ok=True)
    shown = {kind: (values[headline], harmful[kind]) for kind, values in rewards.items()}
    pictures.histograms(job.results / f"{name}-histogram.png", shown, unsafe, headline)
    pictures.samples(job.results / f"{name}-samples.png", samples.prompts, samples.results)
    return {key: round(float(value), 4) for key, value in row.items()}, curve


def draw_samples(
    job: ImagesJob, model: ClassUNet2D, reward: ImageReward, unsafe: tuple[int, ...], steps: DDIMSteps
) -> Samples:
    """Trajectories of base, expert and the base steered with the reward, in batches."""
    settings, size = job.settings, job.settings.model.resolution_px
    prompts = np.arange(settings.evaluation_trajectories) % NUM_CLASSES
    latents: list[Tensor] = []
    results: dict[str, list[Tensor]] = {name: [] for name in SAMPLERS}

    def steer(values: Tensor, step: int) -> Tensor:
        at = torch.full((len(values),), step, dtype=torch.int64, device=values.device)
        return settings.steer_scale * reward.direction(values, at)

    for part, chosen in enumerate(np.array_split(prompts, max(1, len(prompts) // 200))):
        shape = (len(chosen), 1, size, size)
        start = start_latents(shape, job.seed, EVALUATION_PART + part, job.device)
        predict = predictor(model, unsafe, chosen)
        for name, follows in (("base", False), ("safe", True)):
            pairs = paired_trajectories(
                predict, steps, settings.guidance, start, torch.full((len(chosen),), follows)
            )
            results[name].append(getattr(pairs, name)[:, -1])
            if name == "base":
                latents.append(pairs.current.flip(1))
        steered = steered_trajectories(predict, steps, settings.guidance, start, steer)
        results["steered"].append(steered.cpu())
    return Samples(prompts, torch.cat(latents), {name: torch.cat(parts) for name, parts in results.items()})


def digit_rewards(reward: ImageReward, test: LabelledImages, steps: DDIMSteps, seed: int) -> np.ndarray:
    """(S, N) rewards of held-out digits, noised afresh to every step."""
    rows = []
    for step in range(steps.num_steps):
        noise = start_latents(tuple(test.images.shape), seed, 2 * EVALUATION_PART + step)
        abar = torch.full((len(test),), steps.step_abar(step))
        rows.append(rewards_of(reward, add_noise(test.images, noise, abar), step))
    return np.stack(rows)


def judged(samples: Samples, judge: Judge, unsafe: tuple[int, ...]) -> dict[str, float]:
    """What the judge sees in the samples of every sampler.

    Returns:
        `<sampler>_unsafe`: share of all samples that show an unsafe digit; `<sampler>_unsafe_of_harmful_prompts`: the
        same where that digit was asked for; `<sampler>_kept`: share of the samples of harmless prompts that show
        the digit asked for.
    """
    bad = np.isin(samples.prompts, unsafe)
    values = {}
    for name, images in samples.results.items():
        seen = judge.classes(images)
        is_unsafe = np.isin(seen, unsafe)
        values[f"{name}_unsafe"] = is_unsafe.mean()
        values[f"{name}_unsafe_of_harmful_prompts"] = is_unsafe[bad].mean()
        values[f"{name}_kept"] = (seen == samples.prompts)[~bad].mean()
    return {key: float(value) for key, value in values.items()}


def evaluate_pairs(job: ImagesJob, pairs: PairSet, folder: Path) -> int:
    """A reward on pairs whose prompts have no known classes: can it tell the expert's latents from the base's?

    Args:
        job: Device and the folder of results.
        pairs: Their held-out trajectories are used; they must follow both.
        folder: Of the reward.

    Raises:
        ValueError: if reward and pairs do not belong together, or only one of the two was followed.
    """
    reward, _ = load_image_reward(folder, job.device)
    if tuple(reward.mean.shape) != (pairs.num_steps, *pairs.shape):
        raise ValueError(
            f"the reward of {folder} is for latents {tuple(reward.mean.shape)}, those of {pairs.folder} are "
            f"{(pairs.num_steps, *pairs.shape)}; use pairs of the same model and number of steps"
        )
    held_out = pairs.trajectories("validation")
    safe = pairs.follows_safe[held_out]
    if safe.all() or not safe.any():
        raise ValueError(
            f"held-out trajectories of {pairs.folder} all follow the same model, so there is nothing to compare: "
            "make pairs with pairs.follow=both and an even pairs.trajectories / validation_every"
        )
    curve = []
    for step in range(pairs.num_steps):
        values = rewards_of(reward, pairs.current(step, held_out), step)
        curve.append({"step": step, "expert_auc": auc(values[safe], values[~safe])})
    final = rewards_of(reward, pairs.results(held_out), 0)
    facts = {
        "pairs": str(pairs.folder),
        "reward": str(folder),
        "expert_auc": auc(final[safe], final[~safe]),
        "trajectories": {"expert": int(safe.sum()), "base": int((~safe).sum())},
    }
    job.results.mkdir(parents=True, exist_ok=True)
    write_json(job.results / "evaluation.json", facts)
    write_csv(job.results / "auc_per_step.csv", curve)
    pictures.expert_histogram(job.results / "histogram.png", final, safe)
    print(f"[evaluate] expert against base on {len(final)} held-out results: AUC {facts['expert_auc']:.3f}")
    print(f"[evaluate] {job.results}")
    return 0


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows with the same keys as CSV, atomically."""
    lines = [",".join(rows[0]), *(",".join(_cell(value) for value in row.values()) for row in rows)]
    write_atomic(path, lambda file: file.write(("\n".join(lines) + "\n").encode()))


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def table(rows: list[dict[str, Any]], headline_step: int) -> str:
    """The table that is printed: AUC, and the share of unsafe digits in samples."""
    lines = [
        f"AUC of harmless against harmful at step {headline_step} (all steps); unsafe digits in samples of harmful prompts",
        "unsafe     held-out digits   generated        expert   base   safe   steered",
    ]
    for row in rows:
        shares = "  ".join(f"{row[f'{name}_unsafe_of_harmful_prompts']:5.2f}" for name in SAMPLERS)
        lines.append(
            f"{row['unsafe']:9}  {row['digits_auc']:.3f} ({row['digits_auc_all_steps']:.3f})     "
            f"{row['generated_auc']:.3f} ({row['generated_auc_all_steps']:.3f})    "
            f"{row['expert_auc_harmful_prompts']:.3f}   {shares}"
        )
    return "\n".join(lines)
