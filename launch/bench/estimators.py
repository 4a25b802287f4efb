"""Ways to estimate one reward from one video model: what each costs, and how well it judges videos.

Needs a video model trained at all diffusion steps and the videos of `launch/quality.py`:

    python launch/benchmark.py what=estimators checkpoint=checkpoints/video/door-close data=data/door-close
    python launch/benchmark.py what=estimators against=[chain-bfloat16,one-forward] checkpoint=... data=... episodes=2
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from launch.bench.harness import Row
from launch.bench.settings import BenchSettings
from models.episode import Episode
from models.videos import read_videos
from reward_service.config import DiffusionRewardConfig
from reward_service.contract import episode_seed
from reward_service.corruptions import CORRUPTIONS
from reward_service.diffusion_reward import DiffusionReward
from reward_service.quality import auc_per_episode, progress_correlation

OTHERS = ("random", "noisy")
# The chain of the paper (eleven steps) comes first and always runs: the others are ranked against it.
ESTIMATORS: dict[str, Mapping[str, object]] = {
    "chain": {},
    "chain-other-noise": {},
    "chain-bfloat16": {"precision": "bfloat16"},
    "exact-11": {"posterior": "exact"},
    "exact-6": {"posterior": "exact", "skip_step": 19},
    "exact-3": {"posterior": "exact", "skip_step": 49},
    "one-forward": {"estimator": "one_forward"},
    "one-forward-bfloat16": {"estimator": "one_forward", "precision": "bfloat16"},
}

PEERS = tuple(ESTIMATORS)


def measure(settings: BenchSettings) -> list[Row]:
    """Frames per second, rank correlation with the paper's chain, and AUC of each estimator in both modes."""
    assert settings.checkpoint is not None and settings.data is not None  # benchmark.py requires both
    videos = _videos(settings.data, settings.episodes)
    rows = []
    for mode in ("entropy", "likelihood"):
        reference: np.ndarray | None = None
        wanted = [name for name in ESTIMATORS if name == "chain" or settings.wants(name)]
        for name, keys in ((name, ESTIMATORS[name]) for name in wanted):
            reward = DiffusionReward.from_checkpoint(
                settings.checkpoint, DiffusionRewardConfig.from_dict({"mode": mode, **keys}), settings.device
            )
            noise_seed = settings.seed + ("other-noise" in name)
            scores, frames_per_s = _score(reward, videos, noise_seed)
            pooled = np.concatenate([row for kind in videos for row in scores[kind]])
            reference = pooled if reference is None else reference
            values = {
                "frames_per_s": frames_per_s,
                "spearman": float(spearmanr(pooled, reference).statistic),
                "spearman_episodes": _episode_spearman(pooled, reference, scores),
                **{
                    f"auc_{kind}": auc_per_episode(scores["expert"], scores[kind])
                    for kind in [*OTHERS, "frozen"]
                },
                "progress": progress_correlation(scores["expert"])["per_episode"],
            }
            rows.append(Row("estimators", f"{mode}, {name}", values))
            settings.report(f"{mode}, {name}: " + ", ".join(f"{k} {v:.3g}" for k, v in values.items()))
    return rows


def _videos(folder: Path, episodes: int) -> dict[str, Sequence[Episode]]:
    """Held-out videos of each behaviour, and the expert's standing still."""
    videos: dict[str, Sequence[Episode]] = {
        kind: read_videos(folder / kind).split("validation")[:episodes] for kind in ("expert", *OTHERS)
    }
    for kind, found in videos.items():
        if len(found) < episodes:
            raise RuntimeError(
                f"{folder / kind} has {len(found)} held-out videos, episodes={episodes} are wanted; give fewer"
            )
    still = [
        Episode(
            **{**vars(e), "frames": CORRUPTIONS["frozen"](e.frames), "episode_id": f"{e.episode_id}/frozen"}
        )
        for e in videos["expert"]
    ]
    return {**videos, "frozen": still}


def _score(
    reward: DiffusionReward, videos: Mapping[str, Sequence[Episode]], seed: int
) -> tuple[dict[str, list[np.ndarray]], float]:
    """Raw rewards of each kind, and frames per second over all of them after a warm-up."""
    first = videos["expert"][0]
    reward.raw([first.frames[:8]], [0])
    start, frames, scores = time.perf_counter(), 0, {}
    for kind, episodes in videos.items():
        scores[kind] = reward.raw(
            [e.frames for e in episodes], [episode_seed(e.episode_id, seed) for e in episodes]
        )
        frames += sum(len(e.frames) for e in episodes)
    return scores, frames / (time.perf_counter() - start)


def _episode_spearman(
    pooled: np.ndarray, reference: np.ndarray, scores: Mapping[str, list[np.ndarray]]
) -> float:
    """Rank correlation of the episodes' means."""
    ends = np.cumsum([len(row) for kind in scores for row in scores[kind]])[:-1]
    means = [[part.mean() for part in np.split(values, ends)] for values in (pooled, reference)]
    return float(spearmanr(*means).statistic)
