"""Tables and curves of an experiment, from raw numbers that stay in the repository.

    python launch/report.py experiment=metaworld_laptop

Reads the run folders that are on this machine into docs/results/<experiment>.csv (rows of other runs stay), then makes
<experiment>.md and <experiment>.png beside it from the CSV alone, so that both can be made again without any run.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from omegaconf import DictConfig

from launch import cli
from launch.cli import UsageError
from launch.experiment import Plan, Run, plan_of, state_of
from launch.paths import absolute_path
from launch.run_folder import RunFolder
from models.files import write_atomic
from models.intervals import bootstrap_interval, wilson_interval

COLUMNS = (
    *("task", "reward", "seed", "phase", "agent_steps", "frames", "updates", "wall_s"),
    *("success", "episodes", "env_return", "learned_return"),
)
# What a success rate is called in the rows of each phase.
SUCCESS = {"train": "episode_success", "eval": "success_rate"}
SOLVED = 0.8
OVERSHOOT = 1.02  # an evaluation is the budget's own up to here
COLOURS = ("#1b6ca8", "#d1495b", "#66a182", "#8d6a9f", "#edae49", "#5c5c5c", "#00798c", "#a5682a")
Row = dict[str, Any]
# (task, reward) -> seed -> last evaluation.
Final = Mapping[tuple[str, str], Mapping[int, Row]]


def main() -> None:
    """Entry point of `python launch/report.py`."""
    cli.main("report", __doc__ or "", report)


def report(config: DictConfig) -> int:
    """Brings the CSV up to date, then writes table and curves.

    Raises:
        UsageError: if there is neither a CSV nor a run of the plan's tasks, or the CSV is not one of this verb.
    """
    plan = plan_of(config)
    out = absolute_path(str(config.out), "out")
    path = out / f"{plan.name}.csv"
    rows = read_rows(path)
    root = absolute_path(f"{config.runs}/{plan.name}", "runs")
    for run in plan.runs():
        if state_of(root / run.folder_name) != "new":
            found = run_rows(run, RunFolder(root / run.folder_name), config.train_every_agent_steps)
            rows = replaced(rows, run, within_budget(list(found), budget(plan)))
    if not any(row["task"] in plan.tasks for row in rows):
        raise UsageError(
            f"no runs of {', '.join(plan.tasks)} in {root} or {path}: run launch/experiment.py experiment={plan.name} first"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_rows(path, rows)
    rows = read_rows(path)  # rounded: the page is that of the file
    curves(plan, rows, path.with_suffix(".png"))
    text = markdown(plan, rows)
    write_atomic(path.with_suffix(".md"), lambda file: file.write(text.encode()))
    print(f"{text}\nwritten: {path}, {path.stem}.md, {path.stem}.png")
    return 0


def run_rows(run: Run, folder: RunFolder, train_every_agent_steps: int) -> Iterable[Row]:
    """Rows of the CSV of one run: every evaluation, and training episodes every so many agent steps."""
    last = -1
    for line in folder.metric_lines():
        if line["phase"] not in SUCCESS or SUCCESS[line["phase"]] not in line:
            continue
        if line["phase"] == "train":
            if line["agent_steps"] // train_every_agent_steps == last:
                continue
            last = line["agent_steps"] // train_every_agent_steps
        success = line[SUCCESS[line["phase"]]]
        row = {"task": run.task, "reward": run.reward, "seed": run.seed, **line, "success": round(success, 4)}
        yield {key: row.get(key, "") for key in COLUMNS}


def within_budget(rows: Sequence[Row], total_agent_steps: int) -> list[Row]:
    """The rows up to the budget and its evaluation.

    Blocks are whole episodes, so that a run ends a few of them beyond its budget. It may also have been resumed far beyond
    since: that is for another experiment's table.
    """
    evaluated = [row["agent_steps"] for row in rows if row["phase"] == "eval"]
    beyond = min((step for step in evaluated if step >= total_agent_steps), default=0)
    last = beyond if beyond <= OVERSHOOT * total_agent_steps else 0
    return [row for row in rows if row["agent_steps"] <= max(last, total_agent_steps)]


def replaced(rows: Sequence[Row], run: Run, found: Sequence[Row]) -> list[Row]:
    """`rows` with those of one run exchanged; an earlier, longer run of the same name is kept."""
    mine = [row for row in rows if _key(row) == (run.task, run.reward, run.seed)]
    if max((row["agent_steps"] for row in found), default=0) < max(
        (r["agent_steps"] for r in mine), default=0
    ):
        return list(rows)
    return [row for row in rows if _key(row) != (run.task, run.reward, run.seed)] + list(found)


def _key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["task"], row["reward"], row["seed"]


def read_rows(path: Path) -> list[Row]:
    """The CSV, numbers as numbers; empty if there is none."""
    if not path.is_file():
        return []
    whole = ("seed", "agent_steps", "frames", "updates")
    rows: list[Row] = []
    lines = csv.DictReader(io.StringIO(path.read_text()))
    if tuple(lines.fieldnames or ()) != COLUMNS:
        raise UsageError(
            f"{path} has columns {lines.fieldnames}, expected {list(COLUMNS)}; move it elsewhere"
        )
    for line in lines:
        row: Row = dict(line)
        if None in (*row, *row.values()):
            raise UsageError(f"{path} has a line of another length than its head: line {lines.line_num}")
        for key in COLUMNS[2:]:
            if key != "phase" and row[key] != "":
                row[key] = int(row[key]) if key in whole else float(row[key])
        rows.append(row)
    return rows


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Writes the CSV, in the order of task, reward, seed and agent steps."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in sorted(rows, key=lambda row: (*_key(row), row["agent_steps"], row["phase"])):
        writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))


def final_success(rows: Sequence[Row], total_agent_steps: int) -> dict[tuple[str, str], dict[int, Row]]:
    """(task, reward) -> seed -> last evaluation, of runs that were evaluated at their end."""
    found: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        if row["phase"] == "eval" and row["agent_steps"] >= total_agent_steps:
            found.setdefault((row["task"], row["reward"]), {})[row["seed"]] = row
    return found


def markdown(plan: Plan, rows: Sequence[Row]) -> str:
    """The page: what was run, success at the end, agent steps until it is solved, curves."""
    total = budget(plan)
    final = final_success(rows, total)
    done = [row for seeds in final.values() for row in seeds.values()]
    missing = sum(run.seed not in final.get((run.task, run.reward), {}) for run in plan.runs())
    own = "; ".join(f"{reward}: `{' '.join(keys)}`" for reward, keys in (plan.own or {}).items())
    return f"""# {plan.title}

{plan.about.strip()}

```
python launch/experiment.py experiment={plan.name}      # every run; goes on where it was cut off
python launch/report.py     experiment={plan.name}      # this page
```

Every run: `{" ".join(plan.train)}`. Own keys: {own or "none"}.

## Success after {total:,} agent steps

Mean over seeds of the last evaluation, each seed in brackets. **Bold**: solved, a mean of {SOLVED:.0%} or more over every seed of the plan ({len(plan.seeds)}); where
fewer have finished, the cell says how many, and the task does not count as solved. Second line of a cell: 95 % Wilson interval of all its evaluation
episodes, as if they were independent. Last row: mean over all runs with a 95 % bootstrap interval over runs.

{_success_table(plan, final)}

## Agent steps until an evaluation reaches {SOLVED:.0%}

Median over the seeds that have finished; `-`: not by half of them or more, or none has finished.

{_speed_table(plan, rows, final)}

{len(done)} finished runs, {missing} of the plan not run; {sum(row["wall_s"] for row in done) / 3600:.1f} hours of wall time.
{_cut_off(rows, final)}
![success and learned return against frames]({plan.name}.png)

Top: success; dots are evaluations without noise (mean of seeds), lines the last 20 training episodes with exploration noise, bands the lowest and highest
seed. Bottom: return of the learned reward in the same training episodes.
"""


def _cut_off(rows: Sequence[Row], final: Final) -> str:
    """A paragraph that names the runs which the tables leave out because they were not evaluated at their end."""
    last: dict[tuple[str, str, int], Row] = {}
    for row in rows:
        if row["phase"] == "eval" and row["seed"] not in final.get((row["task"], row["reward"]), {}):
            last[_key(row)] = max(last.get(_key(row), row), row, key=lambda r: r["agent_steps"])
    runs = [
        f"{task} `{reward}` seed {seed} ({row['success']:.0%} at {row['agent_steps']:,} agent steps)"
        for (task, reward, seed), row in last.items()
    ]
    return f"\nCut off, and in no table above: {', '.join(runs)}.\n" if runs else ""


def _success_table(plan: Plan, final: Final) -> str:
    lines = [
        (task, [_cell(plan, final.get((task, reward))) for reward in plan.rewards])
        for task in _tasks(plan, final)
    ]
    are_solved = {
        reward: [_is_solved(plan, final[task, reward]) for task in plan.tasks if (task, reward) in final]
        for reward in plan.rewards
    }
    solved = [
        f"{sum(are_solved[reward])} of {len(are_solved[reward])}" if are_solved[reward] else "-"
        for reward in plan.rewards
    ]
    overall = [_overall(final, plan.tasks, reward) for reward in plan.rewards]
    return _table(plan.rewards, [*lines, ("tasks solved", solved), ("mean of runs", overall)])


def _speed_table(plan: Plan, rows: Sequence[Row], final: Final) -> str:
    lines = [
        (task, [_first_solved(plan, rows, task, reward, final) for reward in plan.rewards])
        for task in _tasks(plan, final)
    ]
    return _table(plan.rewards, lines)


def _tasks(plan: Plan, final: Final) -> list[str]:
    """Those with a finished run."""
    return [task for task in plan.tasks if any((task, reward) in final for reward in plan.rewards)]


def _table(rewards: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Markdown: a line per task, a column per reward."""
    table = [("task", rewards), ("---", ["---"] * len(rewards)), *lines]
    return "\n".join(f"| {' | '.join([name, *cells])} |" for name, cells in table)


def budget(plan: Plan) -> int:
    """Agent steps of every run, from its overrides.

    Raises:
        UsageError: if they do not say.
    """
    given = [o.partition("=")[2] for o in plan.train if o.startswith("total_agent_steps=")]
    if not given:
        raise UsageError("plan.train must set total_agent_steps, so that runs can be compared at their end")
    return int(given[-1])


def _mean(seeds: Mapping[int, Row]) -> float:
    return float(np.mean([row["success"] for row in seeds.values()]))


def _is_solved(plan: Plan, seeds: Mapping[int, Row]) -> bool:
    """Whether every seed of the plan has finished, with a high enough mean."""
    return set(plan.seeds) <= set(seeds) and _mean(seeds) >= SOLVED


def _unfinished(plan: Plan, seeds: Mapping[int, Row]) -> str:
    """How many of the plan's seeds there are; empty if all."""
    there = len(set(plan.seeds) & set(seeds))
    return "" if there == len(plan.seeds) else f"{there} of {len(plan.seeds)} seeds"


def _cell(plan: Plan, seeds: Mapping[int, Row] | None) -> str:
    if not seeds:
        return "-"
    each = ", ".join(f"{seeds[seed]['success']:.0%}" for seed in sorted(seeds))
    episodes = sum(int(row["episodes"]) for row in seeds.values())
    successes = round(sum(row["success"] * row["episodes"] for row in seeds.values()))
    low, high = wilson_interval(successes, episodes)
    mean = f"{_mean(seeds):.0%}"
    shown = f"**{mean}**" if _is_solved(plan, seeds) else mean
    part = _unfinished(plan, seeds)
    return f"{shown} ({each}){f', {part}' if part else ''}<br>{low:.0%} to {high:.0%}"


def _overall(final: Final, tasks: Sequence[str], reward: str) -> str:
    values = [row["success"] for task in tasks for row in final.get((task, reward), {}).values()]
    if not values:
        return "-"
    low, high = bootstrap_interval(values)
    return f"{np.mean(values):.0%} ({low:.0%} to {high:.0%})"


def _first_solved(plan: Plan, rows: Sequence[Row], task: str, reward: str, final: Final) -> str:
    seeds = final.get((task, reward))
    if not seeds:
        return "-"
    firsts = []
    for seed in seeds:
        mine = [r for r in rows if _key(r) == (task, reward, seed) and r["phase"] == "eval"]
        firsts.append(min((r["agent_steps"] for r in mine if r["success"] >= SOLVED), default=np.inf))
    median = float(np.median(firsts))
    part = _unfinished(plan, seeds)
    return (f"{median:,.0f}" if np.isfinite(median) else "-") + (f" ({part})" if part else "")


def curves(plan: Plan, rows: Sequence[Row], path: Path) -> None:
    """A picture: success and learned return against frames, a column per task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = [task for task in plan.tasks if any(row["task"] == task for row in rows)]
    figure, axes = plt.subplots(
        2, len(tasks), figsize=(3.2 * len(tasks) + 1, 5.6), sharex=True, squeeze=False, layout="constrained"
    )
    for column, task in enumerate(tasks):
        for colour, reward in zip(cycle(COLOURS), plan.rewards):
            mine = [row for row in rows if (row["task"], row["reward"]) == (task, reward)]
            train = [row for row in mine if row["phase"] == "train"]
            _draw(axes[0, column], train, "success", colour, reward)
            _draw(axes[1, column], train, "learned_return", colour, reward)
            at = sorted({row["frames"] for row in mine if row["phase"] == "eval"})
            points = [[r["success"] for r in mine if r["phase"] == "eval" and r["frames"] == f] for f in at]
            axes[0, column].plot(at, [np.mean(p) for p in points], "o", color=colour, markersize=4)
        axes[0, column].set(title=task, ylim=(-0.04, 1.04))
        axes[1, column].set(xlabel="frames")
    axes[0, 0].set(ylabel="success")
    axes[1, 0].set(ylabel="learned return")
    # Not every task has been run with every reward.
    lines = {line.get_label(): line for axis in axes[0] for line in axis.get_legend_handles_labels()[0]}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines))
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=80))
    plt.close(figure)


def _draw(axis: Any, rows: Sequence[Row], key: str, colour: str, label: str) -> None:
    """Mean over seeds with a band from the lowest to the highest, on a common grid of frames."""
    seeds: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if row[key] != "":
            seeds.setdefault(row["seed"], []).append((row["frames"], row[key]))
    if not seeds:
        return
    end = min(max(frames for frames, _ in points) for points in seeds.values())
    grid = np.linspace(0, end, 60)
    values = np.stack([np.interp(grid, *np.array(sorted(points)).T) for points in seeds.values()])
    axis.plot(grid, values.mean(0), color=colour, label=label)
    axis.fill_between(grid, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)


if __name__ == "__main__":
    main()
