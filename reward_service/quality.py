"""How well a reward tells expert videos from others: areas under the ROC curve, and correlation with progress."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a random positive value exceeds a random negative one; ties count one half.

    The Mann-Whitney statistic over ranks, O(n log n).

    Args:
        positive: (P,) values that should be high.
        negative: (N,) values that should be low.

    Returns:
        0 to 1; 0.5 means that the two sets cannot be told apart.

    Raises:
        ValueError: if a set is empty or holds a value that is not finite.
    """
    positive, negative = _values("positive", positive), _values("negative", negative)
    ranks = rankdata(np.concatenate([positive, negative]), method="average")
    count = len(positive)
    wins = ranks[:count].sum() - count * (count + 1) / 2
    return float(wins / (count * len(negative)))


def auc_per_frame(positive: Sequence[np.ndarray], negative: Sequence[np.ndarray]) -> float:
    """AUC over all frames pooled.

    Args:
        positive: One (T_i,) reward array per episode that should score high.
        negative: The same for episodes that should score low.
    """
    return auc(np.concatenate(positive), np.concatenate(negative))


def auc_per_step(positive: Sequence[np.ndarray], negative: Sequence[np.ndarray]) -> np.ndarray:
    """AUC at each time step: frames of the same step are compared with each other only.

    Not fooled by a reward that only tells how far an episode has come.

    Args:
        positive: One (T_i,) reward array per episode; lengths may differ.
        negative: The same for episodes that should score low.

    Returns:
        (S,) float64, S = the longest length that both sets reach.
    """
    _episodes("positive", positive)
    _episodes("negative", negative)
    steps = min(max(map(len, positive)), max(map(len, negative)))
    return np.array([auc(_at_step(positive, step), _at_step(negative, step)) for step in range(steps)])


def auc_per_episode(positive: Sequence[np.ndarray], negative: Sequence[np.ndarray]) -> float:
    """AUC over episodes, each judged by its mean reward (videos trimmed at success are shorter, so not the sum).

    Args:
        positive: One (T_i,) reward array per episode that should score high.
        negative: The same for episodes that should score low.
    """
    _episodes("positive", positive)
    _episodes("negative", negative)
    return auc(np.array([e.mean() for e in positive]), np.array([e.mean() for e in negative]))


def progress_correlation(episodes: Sequence[np.ndarray]) -> dict[str, float]:
    """Spearman rank correlation of reward and time in expert episodes.

    Args:
        episodes: One (T_i,) reward array per expert episode.

    Returns:
        "per_episode": mean of the correlation within each episode; "pooled": one correlation over all frames,
        time as a fraction of the episode. A constant reward correlates 0.

    Raises:
        ValueError: if there is no episode of at least two frames.
    """
    _episodes("expert", episodes)
    long = [_values("expert", episode) for episode in episodes if len(episode) > 1]
    if not long:
        raise ValueError(
            "progress correlation needs an episode of at least two frames, all given ones have one"
        )
    times = [np.linspace(0.0, 1.0, len(episode)) for episode in long]
    within = [_spearman(episode, time) for episode, time in zip(long, times)]
    return {
        "per_episode": float(np.mean(within)),
        "pooled": _spearman(np.concatenate(long), np.concatenate(times)),
    }


def compare(positive: Sequence[np.ndarray], negative: Sequence[np.ndarray]) -> dict[str, float]:
    """All measures of how well a reward tells two sets of episodes apart.

    Args:
        positive: One (T_i,) reward array per expert episode.
        negative: One (T_i,) reward array per other episode.

    Returns:
        "auc_per_frame", "auc_per_step" (mean over the steps), "auc_per_episode", the mean reward per frame
        of both sets, and the progress correlations of the positive set.

    Raises:
        ValueError: if a set is empty or holds a value that is not finite.
    """
    by_step = auc_per_step(positive, negative)
    progress = progress_correlation(positive)
    return {
        "auc_per_frame": auc_per_frame(positive, negative),
        "auc_per_step": float(by_step.mean()),
        "auc_per_episode": auc_per_episode(positive, negative),
        "mean_positive": float(np.concatenate(positive).mean()),
        "mean_negative": float(np.concatenate(negative).mean()),
        "progress_per_episode": progress["per_episode"],
        "progress_pooled": progress["pooled"],
    }


def _at_step(episodes: Sequence[np.ndarray], step: int) -> np.ndarray:
    return np.array([episode[step] for episode in episodes if len(episode) > step])


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks_a, ranks_b = rankdata(a), rankdata(b)
    if np.ptp(ranks_a) == 0 or np.ptp(ranks_b) == 0:
        return 0.0
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])


def _values(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(values) == 0:
        raise ValueError(f"the {name} set is empty: comparing rewards needs at least one value on each side")
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"the {name} set holds {values[bad]} at position {bad}; rewards must be finite")
    return values


def _episodes(name: str, episodes: Sequence[np.ndarray]) -> None:
    if len(episodes) == 0 or any(len(episode) == 0 for episode in episodes):
        raise ValueError(
            f"the {name} set has no episodes, or an empty one: give at least one non-empty episode"
        )
