"""Judges every reward on held-out videos: AUC against eight kinds of others, and rank correlation with progress.

    python launch/quality.py task_set=metaworld7
    python launch/quality.py task=adroit-door rewards=[diffusion,viper,amp]
    python launch/quality.py task_set=metaworld_unseen8 models_of=metaworld7      # tasks that the models have not seen

Videos and models that are missing are collected and trained first. Writes quality.json and quality.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from omegaconf import DictConfig

from actors.envs.registry import task_set
from actors.experts import BEHAVIOURS
from launch import cli
from launch.cli import UsageError, group_options, suggest
from launch.paths import absolute_path
from launch.quality_making import (
    POLICY,
    Videos,
    collecting,
    frame_reward_of,
    measuring,
    require_accepted,
    settings_of,
    training,
)
from launch.quality_rewards import Scorer, frozen_scorer, learning_scorer, sparse_scorer
from launch.steps import run_step
from models.episode import Episode
from models.files import read_json, write_atomic, write_json
from models.videos import VideoSet, read_videos
from reward_service.corruptions import CORRUPTIONS
from reward_service.quality import compare, progress_correlation

OTHERS = tuple(behaviour for behaviour in BEHAVIOURS if behaviour != "expert")
EDITED = ("reversed", "frozen")
RESULT_FILE = "quality.json"


def main() -> None:
    """Entry point of `python launch/quality.py`."""
    cli.main("quality", __doc__ or "", quality)


def quality(config: DictConfig) -> int:
    """Makes what is missing, judges every reward on every task, writes the tables.

    Raises:
        UsageError: for an unknown reward or set, an output folder that exists, or videos of a policy that are missing.
        RuntimeError: if collecting or training fails.
    """
    rewards = [str(name) for name in config.rewards]
    for name in (reward.split()[0] for reward in rewards):
        if name not in group_options("reward"):
            raise UsageError(f"unknown reward {name!r}; {suggest(name, group_options('reward'))}")
    _require_own_keys(config)
    own = config.env.task
    name = config.task_set if config.task_set is not None else own
    tasks = task_set(config.task_set) if config.task_set is not None else (own,)
    judged = tasks if config.judged is None else tuple(config.judged)
    for task in judged:
        if task not in tasks:
            raise UsageError(
                f"judged has {task!r}, which is not among the tasks of {name}; {suggest(task, tasks)}"
            )
    default = f"quality/{name}_{time.strftime('%Y%m%d-%H%M%S')}"
    out = absolute_path(config.out if config.out is not None else default, "out")
    _require_free(out, config)
    data = _videos(config, tasks)
    checkpoints = absolute_path(str(config.checkpoints), "checkpoints")
    models = name if config.models_of is None else str(config.models_of)
    frozen = {reward: _checkpoint(config, reward, checkpoints, models) for reward in rewards}
    if models != name:
        _require_models(frozen, models)
    shown = tasks if models == name else judged
    commands = [command for task in shown for command in collecting(config, task, data)]
    otherwise: dict[str, list[str]] = {}
    if models == name:
        trainings, otherwise = training(config, tasks, data, checkpoints, name, frozen)
        commands += trainings
    require_accepted(commands)
    for folder, differences in otherwise.items():
        print(f"[quality] {folder} is used as it was trained: {'; '.join(differences)}", flush=True)
    for step, arguments in commands:
        run_step(step, arguments)
    for step, arguments in measuring(config, judged, data, frozen):
        run_step(step, arguments)
    out.mkdir(parents=True, exist_ok=True)
    facts = {
        **{"preset": config.preset_name, "models": models, "trained_otherwise": otherwise},
        "overrides": list(config.overrides),
    }
    rows = _judge_all(
        config, judged, frozen, data, lambda rows: write_json(out / RESULT_FILE, {**facts, "rows": rows})
    )
    text = f"{table(means(rows, name))}\n\n{table(rows)}\n"
    write_atomic(out / "quality.md", lambda file: file.write(text.encode()))
    print(f"\n{text}\nwritten: {out}/quality.md, quality.json")
    return 0


def _require_free(out: Path, config: DictConfig) -> None:
    """Refuses a folder that holds anything but what the same command had judged when it was cut off.

    Raises:
        UsageError: naming the folder.
    """
    if not out.exists():
        return
    visible = [path.name for path in out.iterdir() if not path.name.startswith(".")] if out.is_dir() else [""]
    is_begun = visible == [RESULT_FILE] and read_json(out / RESULT_FILE).get("overrides") == list(
        config.overrides
    )
    if visible and not is_begun:
        raise UsageError(f"{out} already exists; nothing is overwritten. Choose another folder with out=...")


def _judge_all(
    config: DictConfig,
    tasks: Sequence[str],
    frozen: Mapping[str, Path | None],
    data: Videos,
    keep: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Every reward on every task; `keep` is given the rows so far after each."""
    rows: list[dict[str, Any]] = []
    for task in tasks:
        videos = {b: read_videos(data.folder(task, b)) for b in data.behaviours(task)}
        for reward in frozen:
            score = _scorer(config, reward, frozen[reward], task, videos["random"], data)
            row = {
                "task": task,
                "reward": reward,
                **judge(score, videos, can_edit=reward.split()[0] != "sparse"),
            }
            rows.append(row)
            print(f"[quality] {task:<16} {reward:<21} {_line(row)}", flush=True)
            keep(rows)
    return rows


def _require_own_keys(config: DictConfig) -> None:
    """Refuses keys of the environment, which the commands of this verb would not get, and too few videos to hold some out."""
    names = [override.partition("=")[0] for override in config.overrides]
    if others := [name for name in names if name.startswith("env.") and name != "env.task"]:
        raise UsageError(f"{', '.join(others)} mean nothing to quality.py; the view of the videos is camera=")
    for key, least in (
        ("expert_episodes", 5),
        *((f"{k}_episodes", 2) for k in ("other", "wander", "linger")),
    ):
        if config[key] < least:
            raise UsageError(
                f"{key} is {config[key]}, expected at least {least}: some are held out and judged"
            )


def _videos(config: DictConfig, tasks: Sequence[str]) -> Videos:
    root = absolute_path(str(config.data), "data")
    if config.policy_data is None:
        return Videos(root)
    data = Videos(root, absolute_path(str(config.policy_data), "policy_data"))
    for task in tasks:
        if not data.has_policy(task):
            raise UsageError(
                f"policy_data={config.policy_data}, but {data.folder(task, POLICY)} has no videos; make them with "
                f"`python launch/collect.py source=run path=<run> behaviour={POLICY} out=...`, or leave policy_data out"
            )
    return data


def judge(score: Scorer, videos: Mapping[str, VideoSet], *, can_edit: bool = True) -> dict[str, Any]:
    """AUCs of the expert's held-out videos against each kind of others, and progress correlation.

    Args:
        score: The reward.
        videos: Behaviour -> videos; the validation split of each is judged.
        can_edit: Whether the reward has values for edited frames (the environment's own reward has none).

    Returns:
        "against": {kind: {"auc_per_episode", "auc_per_frame", ...}}, "progress": mean rank correlation within an
        episode, "mean": mean reward per frame of the expert.

    Raises:
        UsageError: if a behaviour has no validation videos.
    """
    held_out = {behaviour: _held_out(of_behaviour) for behaviour, of_behaviour in videos.items()}
    expert = score(held_out["expert"])
    others = {behaviour: score(held_out[behaviour]) for behaviour in videos if behaviour != "expert"}
    if can_edit:
        others |= {kind: score([_edited(e, kind) for e in held_out["expert"]]) for kind in EDITED}
    return {
        "against": {kind: compare(expert, values) for kind, values in others.items()},
        "progress": progress_correlation(expert)["per_episode"],
        "mean": float(np.concatenate(expert).mean()),
        "videos": {behaviour: len(episodes) for behaviour, episodes in held_out.items()},
    }


def means(rows: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """One row per reward: the mean over the tasks."""
    averaged = []
    for reward in dict.fromkeys(row["reward"] for row in rows):
        mine = [row for row in rows if row["reward"] == reward]
        keys = ("auc_per_episode", "auc_per_frame")
        against = {
            kind: {
                key: float(np.mean([row["against"][kind][key] for row in mine if kind in row["against"]]))
                for key in keys
            }
            for kind in dict.fromkeys(kind for row in mine for kind in row["against"])
        }
        progress = float(np.mean([row["progress"] for row in mine]))
        averaged.append(
            {"task": f"mean of {name}", "reward": reward, "against": against, "progress": progress}
        )
    return averaged


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: AUC per episode / per frame against each kind, and progress correlation."""
    kinds = [*OTHERS, *EDITED]
    if any(POLICY in row["against"] for row in rows):
        kinds.append(POLICY)
    lines = [
        "| task | reward | " + " | ".join(kinds) + " | progress |",
        "| --- | --- |" + " --- |" * (len(kinds) + 1),
    ]
    for row in rows:
        cells = [_cell(row["against"].get(kind)) for kind in kinds]
        lines.append(
            f"| {row['task']} | {row['reward']} | " + " | ".join(cells) + f" | {row['progress']:+.2f} |"
        )
    return "\n".join(lines)


def _cell(measured: Mapping[str, float] | None) -> str:
    return f"{measured['auc_per_episode']:.2f} / {measured['auc_per_frame']:.2f}" if measured else "-"


def _line(row: Mapping[str, Any]) -> str:
    parts = [f"{kind} {_cell(measured)}" for kind, measured in row["against"].items()]
    return "  ".join([*parts, f"progress {row['progress']:+.2f}"])


def _held_out(videos: VideoSet) -> tuple[Episode, ...]:
    episodes = videos.split("validation")
    if not episodes:
        raise UsageError(
            f"{videos.folder} has no held-out videos; collect it again with validation_every=2, or give another data="
        )
    return episodes


def _edited(episode: Episode, kind: str) -> Episode:
    frames = CORRUPTIONS[kind](episode.frames)
    return Episode(**{**vars(episode), "frames": frames, "episode_id": f"{episode.episode_id}/{kind}"})


def _checkpoint(config: DictConfig, reward: str, checkpoints: Path, name: str) -> Path | None:
    """<checkpoints>/<kind>/<name> of a frozen reward, None of another one."""
    pattern = settings_of(config, "train", reward, config.env.task).reward.checkpoint
    if pattern is not None:
        frame_reward_of(config, reward)  # refuses values that judging would refuse
    return None if pattern is None else checkpoints / Path(pattern).parent.name / name


def _require_models(frozen: Mapping[str, Path | None], models: str) -> None:
    folders = dict.fromkeys(path for path in frozen.values() if path is not None)
    missing = [str(path) for path in folders if not (path / "summary.json").exists()]
    if missing:
        raise UsageError(
            f"models_of={models} needs models that are there: not found: {', '.join(missing)}; make them with "
            f"`python launch/quality.py task_set={models}`, or give another checkpoints="
        )


def _scorer(
    config: DictConfig,
    reward: str,
    checkpoint: Path | None,
    task: str,
    random_videos: VideoSet,
    data: Videos,
) -> Scorer:
    if checkpoint is not None:
        settings = settings_of(config, "score", reward, task)
        settings.device = config.device
        return frozen_scorer(settings, checkpoint, task)
    settings = settings_of(config, "train", reward, task)
    if settings.bonus.name == "none":
        return sparse_scorer
    if "videos" in settings.bonus:
        settings.bonus.videos = str(data.folder(task, "expert"))
    return learning_scorer(settings, random_videos, config.bonus_updates, config.seed)


if __name__ == "__main__":
    main()
