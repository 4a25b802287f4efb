"""The relative reward of two models known in closed form: trained, drawn and steered with in about a minute."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from launch.cli import UsageError, build
from launch.paths import absolute_path
from launch.progress import LastValues
from launch.relative_settings import is_trained
from models.files import write_json
from models.relative.config import RelativeTrainingConfig
from models.relative.reward import RewardField
from models.relative.toy import (
    ToyConfig,
    expert_mode_share,
    load_toy_reward,
    log_ratio_correlations,
    steered_samples,
    toy_pair,
    train_toy,
)

DEFAULT_FOLDER = "runs/relative/toy"
# Seed of the evaluation's noise, apart from that of the training.
EVALUATION_SEED = 1_000_000
# Share of the diffusion steps at which the picture shows the reward.
SHOWN_TIME = 0.4
GRID_POINTS = 120
# Keys of the toy that its training does not depend on.
OF_THE_EVALUATION = ("scales", "samples")
DRAWN_SAMPLES = 1500


def _settings(config: DictConfig) -> tuple[RelativeTrainingConfig, ToyConfig]:
    """The sections `relative_training` and `toy`.

    Raises:
        UsageError: for bad values, or a discriminator, which the toy does not have.
    """
    values = {**config.relative_training, "seed": config.seed}
    training = build(RelativeTrainingConfig, values, "relative_training.")
    if training.objective != "relative":
        raise UsageError(
            f"relative_training.objective={training.objective}: the toy has the relative reward only; the domains "
            "maze and locomotion have the discriminator as well"
        )
    return training, build(ToyConfig, OmegaConf.to_container(config.toy), "toy.")  # type: ignore[arg-type]


def train(config: DictConfig) -> int:
    """Trains the toy's reward into the output folder."""
    training, toy = _settings(config)
    shown = LastValues("toy", ("loss", "validation_loss", "explained"))
    print(f"[toy] {train_toy(training, toy, _folder(config), shown)}", flush=True)
    return 0


def evaluate(config: DictConfig) -> int:
    """Prints the table of a trained toy and draws its picture; scales and samples are those of the command."""
    folder = _folder(config)
    asked = _settings(config)[1]
    field, trained = load_toy_reward(folder)
    toy = replace(trained, **{key: getattr(asked, key) for key in OF_THE_EVALUATION})
    seed = EVALUATION_SEED + int(config.seed)
    base, expert = toy_pair(toy)
    samples = {scale: steered_samples(field, toy, scale, seed) for scale in toy.scales}
    of_expert = expert.sample(toy.samples, torch.Generator().manual_seed(seed))
    correlations = log_ratio_correlations(field, toy, seed)
    results = {
        "seed": int(config.seed),
        "toy": asdict(toy),
        "command": ["launch/relative.py", *config.overrides],
        "expert_mode_share": {f"scale {scale:g}": expert_mode_share(s, base) for scale, s in samples.items()}
        | {"expert": expert_mode_share(of_expert, base)},
        "log_ratio_correlation": correlations,
    }
    write_json(folder / "results.json", results)
    picture = folder / "toy.png"
    draw(field, toy, samples, of_expert, picture)
    print(table(results))
    print(f"[toy] written: {folder / 'results.json'}, {picture}", flush=True)
    return 0


def run_all(config: DictConfig) -> int:
    """Trains, unless that is done, and evaluates.

    Raises:
        ValueError: if the folder holds a toy that was trained with other settings, naming each key.
    """
    training, toy = _settings(config)
    kept = {key: value for key, value in asdict(toy).items() if key not in OF_THE_EVALUATION}
    wanted = {"training": asdict(training), "toy": kept}
    if not is_trained(_folder(config), "toy", wanted, "trained already"):
        train(config)
    return evaluate(config)


def _folder(config: DictConfig) -> Path:
    return absolute_path(str(config.out) if config.out is not None else DEFAULT_FOLDER, "out")


def table(results: dict[str, Any]) -> str:
    """What `evaluate` prints."""
    lines = ["", "share of samples at the expert's mode"]
    lines += [f"  {name:<10} {share:.3f}" for name, share in results["expert_mode_share"].items()]
    lines += ["correlation of the reward with the true log ratio, by diffusion step t"]
    lines += [f"  t = {t:<5d}  {value:.3f}" for t, value in enumerate(results["log_ratio_correlation"])]
    return "\n".join(lines)


def draw(
    field: RewardField,
    toy: ToyConfig,
    samples: dict[float, torch.Tensor],
    of_expert: torch.Tensor,
    path: Path,
) -> None:
    """One picture: learned reward and true log ratio, then samples at every scale and of the expert.

    Args:
        field: The reward.
        toy: What it is a reward of.
        samples: Scale -> (N, 2).
        of_expert: (N, 2).
        path: PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    reach = toy.radius * 1.5
    clouds = {f"steered, scale {scale:g}" if scale else "base": s for scale, s in samples.items()}
    clouds["expert"] = of_expert
    figure, axes = pyplot.subplots(1, 2 + len(clouds), figsize=(2.6 * (2 + len(clouds)), 3), dpi=70)
    step = round(SHOWN_TIME * (toy.num_steps - 1))
    for axis, (title, values) in zip(axes, _fields(field, toy, step, reach).items()):
        axis.imshow(values, origin="lower", extent=(-reach, reach, -reach, reach), cmap="viridis")
        axis.set_title(f"{title}, t = {step}", fontsize=9)
    for axis, (title, cloud) in zip(axes[2:], clouds.items()):
        x, y = cloud[:DRAWN_SAMPLES].T
        axis.scatter(x, y, s=2, alpha=0.5, linewidths=0)
        axis.set_title(title, fontsize=9)
    for axis in axes:
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


@torch.no_grad()
def _fields(field: RewardField, toy: ToyConfig, step: int, reach: float) -> dict[str, np.ndarray]:
    """Learned reward and true log ratio on a grid."""
    line = torch.linspace(-reach, reach, GRID_POINTS)
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()], dim=1)
    t = torch.full((len(points),), step)
    base, expert = toy_pair(toy)
    values = {
        "learned reward": field(points, t),
        "true log ratio": expert.log_density(points, t) - base.log_density(points, t),
    }
    return {name: value.view(GRID_POINTS, GRID_POINTS).numpy() for name, value in values.items()}
