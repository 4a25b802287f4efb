"""Evaluates the newest checkpoint of a run: success rate with a 95 % interval, and videos with the learned reward.

python launch/evaluate.py run=runs/<run> episodes=10
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from omegaconf import DictConfig

from launch import cli
from launch.cli import UsageError
from launch.paths import absolute_path
from launch.progress import Progress
from launch.run_folder import RunFolder
from launch.settings import FINAL_SEED_OFFSET, TrainSettings, train_settings
from models.episode import Episode
from models.files import new_folder, write_json


def main() -> None:
    """Entry point of `python launch/evaluate.py`."""
    cli.main("evaluate", __doc__ or "", evaluate_run)


def evaluate_run(config: DictConfig) -> int:
    """Rolls out the policy's mean action on fresh scenes and writes summary and videos, in a folder that appears when it is whole.

    Raises:
        UsageError: if the run or its checkpoint is missing, the output folder exists, or a number is bad.
    """
    numbers = (config.episodes, config.videos, 0 if config.seed is None else config.seed)
    are_whole = all(type(number) is int for number in numbers)
    if not are_whole or config.episodes < 1 or not 0 <= config.videos <= config.episodes:
        raise UsageError(
            f"got episodes={config.episodes} videos={config.videos} seed={config.seed}; expected whole numbers, episodes >= 1 "
            "and 0 <= videos <= episodes"
        )
    folder = RunFolder.open(absolute_path(str(config.run), "run"))
    settings = train_settings(folder.config())
    # Its numbers and weights are read before the rollouts: a run that still trains keeps its newest checkpoints only.
    checkpoint = folder.latest_checkpoint()
    if checkpoint is None:
        raise UsageError(f"{folder.path} has no checkpoint yet; train it first")
    default = folder.path / "evaluations" / time.strftime("%Y%m%d-%H%M%S")
    out = absolute_path(config.out, "out") if config.out is not None else default
    if out.exists():
        raise UsageError(f"{out} already exists; nothing is overwritten. Choose another folder with out=...")
    reward = _load_reward(settings)
    seed = config.seed if config.seed is not None else settings.seed + FINAL_SEED_OFFSET
    counts = _counts(folder, checkpoint)

    summary, episodes = roll_out(settings, checkpoint, int(config.episodes), int(seed))
    summary |= {"checkpoint": str(checkpoint), "seed": int(seed), **counts}
    with new_folder(out) as partial:
        _write_videos(partial, settings, reward, episodes[: config.videos])
        write_json(partial / "summary.json", summary)
    print(
        f"{settings.env.task}: success {summary['success_rate']:.0%} of {summary['episodes']} episodes "
        f"[95 %: {summary['success_low']:.0%} to {summary['success_high']:.0%}] after {summary['agent_steps']:,} agent "
        f"steps, {summary['updates']:,} updates\nwritten: {out}"
    )
    return 0


def roll_out(
    settings: TrainSettings, checkpoint: Path, episodes: int, seed: int
) -> tuple[dict[str, Any], list[Episode]]:
    """Runs the deterministic policy of a checkpoint.

    Args:
        settings: Of the run.
        checkpoint: Checkpoint folder.
        episodes: How many.
        seed: Base of the scene seeds.

    Returns:
        Metrics, and the episodes with their frames.
    """
    from actors.evaluation import Evaluator
    from learner.drqv2_config import policy_config
    from learner.learner_core import load_actor_weights
    from learner.policy import build_policy

    policy = build_policy(
        policy_config(settings.agent, settings.env.render.height_px, settings.env.action_dim)
    )
    version, weights = load_actor_weights(checkpoint)
    policy.load(weights)
    progress = Progress("evaluate", "episodes")
    result = Evaluator(settings.env).evaluate(
        policy, episodes, seed, version, on_progress=lambda done: progress(done, episodes)
    )
    return result.metrics(), list(result.episodes)


def _counts(folder: RunFolder, checkpoint: Path) -> dict[str, int]:
    counters = folder.counters(checkpoint)
    return {name: int(counters[name]) for name in ("agent_steps", "frames", "updates")}


def _load_reward(settings: TrainSettings) -> Any:
    if settings.reward.frozen is None:
        return None
    from dataclasses import asdict

    from reward_service.contract import reward_class

    frozen = reward_class(settings.reward.frozen)
    return frozen.from_checkpoint(
        str(settings.reward.checkpoint), asdict(settings.frame_reward), device="cpu"
    )


def _write_videos(out: Path, settings: TrainSettings, reward: Any, episodes: list[Episode]) -> None:
    from actors.overlay import draw_rewards, write_video
    from reward_service.contract import episode_seed

    rewards: list[np.ndarray | None] = [None] * len(episodes)
    if reward is not None and episodes:
        seeds = [episode_seed(e.episode_id, settings.seed) for e in episodes]
        rewards = list(reward.score([e.frames for e in episodes], [e.task for e in episodes], seeds))
    for number, (episode, frame_rewards) in enumerate(zip(episodes, rewards)):
        name = f"episode_{number}_{'success' if episode.is_success else 'failure'}.mp4"
        write_video(out / name, draw_rewards(episode, frame_rewards), settings.video_fps)


if __name__ == "__main__":
    main()
