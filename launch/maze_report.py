"""Tables of what was found about the rewards of a maze: per goal, and over all goals with intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.files import write_atomic, write_json
from models.intervals import bootstrap_interval, wilson_interval

# Names of the diffusion times a heatmap is made at: a band of small ones, and the last step.
TIMES = ("band", "zero")
PLANNERS = ("base", "steered", "expert")


def write_tables(
    folder: Path, results: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes `heatmaps.csv`, `plans.csv` and `results.json`, replacing those of fewer goals.

    Args:
        folder: Of the evaluation.
        results: One per goal, as `evaluate_goal` gives them.
        facts: Task, settings, seed, command, ...

    Returns:
        What `results.json` holds.
    """
    heatmaps = [
        {"task": facts["task"], "goal": result["goal"], "reward": reward, "time": time, **judged[time]}
        for result in results
        for reward, judged in result["heatmaps"].items()
        for time in TIMES
    ]
    plans = [
        {"task": facts["task"], "goal": result["goal"], "plans_of": name, **scores}
        for result in results
        for name, scores in result["plans"].items()
    ]
    _write_csv(folder / "heatmaps.csv", heatmaps)
    _write_csv(folder / "plans.csv", plans)
    report = {**facts, "summary": summarise(results), "goals": list(results)}
    write_json(folder / "results.json", report)
    return report


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over goals, with 95 % intervals.

    Args:
        results: One per goal.

    Returns:
        `heatmaps`: by reward and time, `recovered`, `goals`, `recovered_interval` (Wilson), and means of distance and
        percentile (intervals by bootstrap over goals), `chance`; `plans`: by whose plans, means likewise.
    """
    heatmaps: dict[str, Any] = {}
    for reward in results[0]["heatmaps"]:
        heatmaps[reward] = {}
        for time in TIMES:
            judged = [r["heatmaps"][reward][time] for r in results]
            recovered = sum(j["recovered"] for j in judged)
            heatmaps[reward][time] = {
                "recovered": recovered,
                "goals": len(judged),
                "recovered_interval": wilson_interval(recovered, len(judged)),
                **_means(judged, ("distance_cells", "percentile")),
                "chance": sum(j["chance"] for j in judged) / len(judged),
            }
    plans = {
        name: _means([r["plans"][name] for r in results], ("at_goal", "distance_m", "in_walls"))
        for name in results[0]["plans"]
    }
    return {"heatmaps": heatmaps, "plans": plans}


def _means(rows: Sequence[Mapping[str, float]], keys: Sequence[str]) -> dict[str, Any]:
    means: dict[str, Any] = {}
    for key in keys:
        values = [row[key] for row in rows]
        means[key] = sum(values) / len(values)
        means[f"{key}_interval"] = bootstrap_interval(values)
    return means


def table_text(report: Mapping[str, Any]) -> str:
    """The tables as text for a terminal."""
    rewards = list(report["goals"][0]["heatmaps"])
    lines = [
        f"{report['task']}: distance (cells) from the best place of the heatmap to the goal, * within one cell; "
        "percentile of the goal",
        f"{'goal':>9}  " + "  ".join(f"{f'{reward} {time}':>24}" for reward in rewards for time in TIMES),
    ]
    for result in report["goals"]:
        cells = []
        for reward in rewards:
            for time in TIMES:
                judged = result["heatmaps"][reward][time]
                mark = "*" if judged["recovered"] else " "
                cells.append(f"{judged['distance_cells']:.1f}{mark} p{judged['percentile']:.0f}")
        lines.append(f"{_goal(result['goal']):>9}  " + "  ".join(f"{cell:>24}" for cell in cells))
    lines += _summary_lines(report["summary"], rewards)
    return "\n".join(lines)


def _summary_lines(summary: Mapping[str, Any], rewards: Sequence[str]) -> list[str]:
    lines = []
    for reward in rewards:
        for time in TIMES:
            s = summary["heatmaps"][reward][time]
            low, high = s["recovered_interval"]
            p_low, p_high = s["percentile_interval"]
            lines.append(
                f"{reward} {time}: {s['recovered']} of {s['goals']} goals recovered ({low:.0%} to {high:.0%}; blind "
                f"guess {s['chance']:.0%}), mean percentile {s['percentile']:.0f} ({p_low:.0f} to {p_high:.0f})"
            )
    for name, s in summary["plans"].items():
        low, high = s["at_goal_interval"]
        lines.append(
            f"plans of {name}: {s['at_goal']:.0%} end within 0.5 m of the goal ({low:.0%} to {high:.0%}), mean "
            f"distance {s['distance_m']:.2f} m, {s['in_walls']:.1%} of steps in walls"
        )
    return lines


def _goal(goal: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in goal)
