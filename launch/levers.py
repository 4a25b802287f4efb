"""Changes one thing at a time about the video model and judges its rewards on held-out videos.

    python launch/levers.py
    python launch/levers.py "only=['as the preset','frame skip 1']"
    python launch/levers.py "more=['wide and long: video.width=192 video_training.train_steps=6000']"

Every lever is a run of quality.py with a model of its own. Levers that are finished are not made again; the table has all
that are.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from omegaconf import DictConfig

from launch import cli
from launch.cli import UsageError, group_options, path_override, suggest
from launch.paths import absolute_path
from launch.quality import EDITED, OTHERS
from launch.steps import run_step
from models.files import read_json, write_atomic, write_json
from models.training_folder import SETTINGS_FILE, SUMMARY_FILE

SCORING = "frame_reward."
KINDS = (*OTHERS, *EDITED)


def main() -> None:
    """Entry point of `python launch/levers.py`."""
    cli.main("levers", __doc__ or "", pull_levers)


def pull_levers(config: DictConfig) -> int:
    """Trains and judges what is missing, then writes the table.

    Raises:
        UsageError: for a reward that does not exist or a lever that is no list.
        RuntimeError: if a training or a judgement fails.
    """
    for reward in config.rewards:
        if str(reward) not in group_options("reward"):
            raise UsageError(f"unknown reward {reward!r}; {suggest(str(reward), group_options('reward'))}")
    levers = {str(name): [str(o) for o in overrides] for name, overrides in config.levers.items()}
    for line in config.more:
        name, colon, overrides = str(line).partition(": ")
        if not colon:
            raise UsageError(f"more has {line!r}; expected 'name: overrides'")
        levers[name] = overrides.split()
    for name in config.only or ():
        if name not in levers:
            raise UsageError(f"only has {name!r}; {suggest(str(name), levers)}")
    if len({folder_name(name) for name in levers}) != len(levers):
        raise UsageError(f"two levers would have one folder: {sorted(map(folder_name, levers))}")
    root, out = absolute_path(str(config.checkpoints), "checkpoints"), absolute_path(str(config.out), "out")
    first, chosen = next(iter(levers)), [n for n in levers if config.only is None or n in config.only]
    codec = config.codec_checkpoint or f"{root / folder_name(first)}/codec/{config.task_set}"
    if first not in chosen and not (Path(codec) / SUMMARY_FILE).is_file():
        raise UsageError(
            f"no codec in {codec}: one serves all levers, so that only one thing changes at a time, and {first!r} makes it; "
            f"name that lever in only= as well, or give codec_checkpoint="
        )
    for name in chosen:
        folder, overrides = root / folder_name(name), levers[name]
        if (folder / "quality" / "quality.md").is_file():
            continue
        run_step(f"lever: {name}", ["quality", *quality_arguments(config, folder, overrides, str(codec))])
        write(out, config, levers, root)
    text = write(out, config, levers, root)
    print(f"{text}\nwritten: {out}.json, {out.name}.md")
    return 0


def quality_arguments(config: DictConfig, folder: Path, overrides: Sequence[str], codec: str) -> list[str]:
    """What quality.py is given for one lever."""
    scoring = " ".join(o for o in overrides if o.startswith(SCORING))
    rewards = ",".join(f"'{reward} {scoring}'" if scoring else str(reward) for reward in config.rewards)
    training = ",".join(f"'{o}'" for o in overrides if not o.startswith(SCORING))
    judged = "null" if config.judged is None else f"[{','.join(config.judged)}]"
    arguments = [
        *(f"task_set={config.task_set}", f"preset={config.preset_name}", f"rewards=[{rewards}]"),
        *(f"judged={judged}", f"video_steps={config.video_steps}", f"video_overrides=[{training}]"),
        *(
            path_override("data", config.data),
            path_override("checkpoints", folder),
            path_override("out", folder / "quality"),
        ),
        *(f"seed={config.seed}", f"device={config.device}"),
    ]
    if config.camera is not None:
        arguments.append(f"camera={config.camera}")
    is_own = Path(codec).parents[1] == folder  # then quality.py makes it, if it is missing
    return arguments if is_own else [*arguments, path_override("codec_checkpoint", codec)]


def folder_name(lever: str) -> str:
    """A lever's name as that of a folder."""
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in lever)


def write(out: Path, config: DictConfig, levers: Mapping[str, Sequence[str]], root: Path) -> str:
    """Raw numbers and table of the levers that are finished; returns the table."""
    found = {
        name: read_json(root / folder_name(name) / "quality" / "quality.json")["rows"]
        for name in levers
        if (root / folder_name(name) / "quality" / "quality.md").is_file()
    }
    facts = {"task_set": config.task_set, "preset": config.preset_name}
    raw = {
        name: {"overrides": levers[name], **_made_with(config, root / folder_name(name)), "rows": rows}
        for name, rows in found.items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out.with_suffix(".json"), {**facts, "levers": raw})
    text = table(found)
    write_atomic(out.with_suffix(".md"), lambda file: file.write(text.encode()))
    return text


def _made_with(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Steps and seed of a finished lever's video model, which may be those of an earlier call."""
    made = folder / "video" / str(config.task_set) / SETTINGS_FILE
    training = read_json(made)["training"] if made.is_file() else {}
    return {"video_steps": training.get("train_steps"), "seed": training.get("seed")}


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: mean (and lowest) AUC per episode over the tasks against each kind, and the same of progress."""
    lines = [
        "| lever | reward | " + " | ".join(KINDS) + " | progress |",
        "| --- | --- |" + " --- |" * (len(KINDS) + 1),
    ]
    for name, rows in found.items():
        for reward in dict.fromkeys(row["reward"] for row in rows):
            mine = [row for row in rows if row["reward"] == reward]
            cells = [_cell([row["against"][kind]["auc_per_episode"] for row in mine], "") for kind in KINDS]
            progress = _cell([row["progress"] for row in mine], "+")
            lines.append(f"| {name} | {reward.split()[0]} | {' | '.join(cells)} | {progress} |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], sign: str) -> str:
    return f"{np.mean(values):{sign}.2f} ({min(values):{sign}.2f})"


if __name__ == "__main__":
    main()
