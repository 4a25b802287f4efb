"""The main job from start to end on this machine: expert videos -> video diffusion reward -> policy.

Runs the same commands that a person would, one after the other, and ends with a table.

    make demo                     (or: python launch/demo.py task=door-close seed=0 out=<folder>)

The same command with the folder of a demo that was cut off goes on with it.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from launch import cli
from launch.cli import UsageError, group_options, path_override, suggest
from launch.experiment import state_of
from launch.paths import absolute_path
from launch.run_folder import RunFolder
from launch.steps import Step, run_step
from models.checkpoints import require_same_config
from models.files import read_json, write_json
from models.training_folder import SUMMARY_FILE
from reward_service.statistics import is_complete

OTHERS = ("random", "half", "noisy")
# Rewards of the video model that the demo trains; others are compared with it.
FROZEN = ("diffusion", "diffusion_likelihood")
SETTINGS_FILE = "demo.json"


class Demo:
    """Runs the commands that are not done yet and remembers their times.

    Args:
        config: Composed `configs/demo.yaml`.
        out: Folder for everything the demo makes.
    """

    def __init__(self, config: DictConfig, out: Path) -> None:
        self.config, self.out = config, out
        self.steps: list[Step] = []

    def run(self) -> None:
        """All steps in order, but for those that an earlier call with the same folder has done.

        Raises:
            UsageError: if one of the commands would refuse its keys; none has run then.
            RuntimeError: naming the command that failed.
        """
        commands = self.commands()
        for _, (verb, *arguments), _ in commands:
            cli.compose(verb, arguments)
        for name, arguments, is_done in commands:
            if is_done():
                print(f"[demo] {name}: done before", flush=True)
            elif arguments[0] == "train" and state_of(self.out / "run") == "interrupted":
                self.steps.append(run_step(name, ["train", path_override("resume", self.out / "run")]))
            else:
                self.steps.append(run_step(name, arguments))

    def commands(self) -> list[tuple[str, list[str], Callable[[], bool]]]:
        """Name of each step, its verb with overrides, and whether it is done."""
        return [*self._collect(), *self._pretrain(), *self._train()]

    @property
    def _common(self) -> list[str]:
        return [f"task={self.config.env.task}", f"preset={self.config.preset_name}"]

    @property
    def _env(self) -> list[str]:
        """What was given of the environment, for the commands that have one."""
        return [o for o in self.config.overrides if o.startswith("env.") and not o.startswith("env.task=")]

    def _collect(self) -> Iterator[tuple[str, list[str], Callable[[], bool]]]:
        config, data = self.config, self.out / "data"
        for behaviour in ("expert", *OTHERS):
            is_expert = behaviour == "expert"
            given = [
                f"behaviour={behaviour}",
                f"episodes={config.expert_episodes if is_expert else config.other_episodes}",
                f"validation_every={config.validation_every if is_expert else 0}",
                f"seed={config.seed if is_expert else config.seed + 1}",
                path_override("out", data / behaviour),
            ]
            done = (data / behaviour / "index.json").exists
            yield f"{behaviour} videos", ["collect", *self._common, *self._env, *given], done

    def _pretrain(self) -> Iterator[tuple[str, list[str], Callable[[], bool]]]:
        out, data = self.out, self.out / "data"
        given = [*self._common, path_override("data", data / "expert"), f"seed={self.config.seed}"]
        codec = ["pretrain", *given, "stage=codec", path_override("out", out / "codec")]
        yield "codec", codec, (out / "codec" / SUMMARY_FILE).exists
        made = path_override("codec_checkpoint", out / "codec")
        video = ["pretrain", *given, "stage=video", made, path_override("out", out / "video")]
        yield "video model", video, partial(is_complete, out / "video")
        against = path_override("against", [*(data / behaviour for behaviour in OTHERS), "frozen"])
        videos = [path_override("videos", data / "expert"), "split=validation", against]
        if self.config.reward_name in FROZEN:
            videos.append(f"reward={self.config.reward_name}")
        model = path_override("checkpoint", out / "video")
        score = ["score", *self._common, model, *videos, path_override("out", out / "score")]
        yield "reward quality", score, (out / "score" / "summary.json").exists

    def _train(self) -> Iterator[tuple[str, list[str], Callable[[], bool]]]:
        config, out = self.config, self.out
        reward = [f"reward={config.reward_name}"]
        if config.reward_name in FROZEN:
            reward.append(path_override("reward.checkpoint", out / "video"))
        given = [*self._common, *self._env, *reward, f"seed={config.seed}"]
        train = ["train", *given, path_override("out", out / "run")]
        yield "reinforcement learning", train, lambda: state_of(out / "run") == "finished"
        videos = min(3, config.final_episodes)
        final = [
            f"episodes={config.final_episodes}",
            f"videos={videos}",
            path_override("out", out / "evaluation"),
        ]
        evaluation = ["evaluate", path_override("run", out / "run"), *final]
        yield "evaluation", evaluation, (out / "evaluation" / "summary.json").exists

    def table(self, total_s: float) -> Table:
        """What was found, for the end of the demo."""
        rows = list(RunFolder(self.out / "run").metric_lines())
        evaluations = [row for row in rows if row["phase"] == "eval"]
        training = [row for row in rows if row["phase"] == "train"]
        last = training[-1]
        evaluation = read_json(self.out / "evaluation" / "summary.json")
        table = Table(title=f"{self.config.env.task}, reward={self.config.reward_name}", show_header=False)
        for row in read_json(self.out / "score" / "summary.json")["against"]:
            table.add_row(
                f"reward AUC, held-out expert against {row['name']}",
                f"{row['auc_per_episode']:.2f} per episode, {row['auc_per_frame']:.2f} per frame",
            )
        before = evaluations[0]
        table.add_row(
            "success before training", f"{before['success_rate']:.0%} of {before['episodes']} episodes"
        )
        table.add_row(
            "success after training",
            f"{evaluation['success_rate']:.0%} of {evaluation['episodes']} episodes "
            f"[95 %: {evaluation['success_low']:.0%} to {evaluation['success_high']:.0%}]",
        )
        table.add_row(
            "agent steps, frames, updates",
            f"{last['agent_steps']:,}, {last['frames']:,}, {last['updates']:,}",
        )
        table.add_row("agent steps/s", _mean(training, "agent_steps_per_s"))
        table.add_row("updates/s", _mean(training, "updates_per_s"))
        table.add_row("reward frames/s (while computing)", _mean(training, "reward_frames_per_s"))
        table.add_row(
            "time", f"{total_s:.0f} s: " + ", ".join(f"{s.name} {s.seconds:.0f} s" for s in self.steps)
        )
        return table

    def places(self) -> str:
        """Where to look next; plain lines, so that long paths stay whole."""
        tensorboard = Path(sys.executable).parent / "tensorboard"
        return (
            f"run folder   {self.out / 'run'}\nvideos       {self.out / 'evaluation'}\n"
            f"TensorBoard  {shlex.join([str(tensorboard), '--logdir', str(self.out)])}"
        )


def _mean(rows: list[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in rows if row.get(name)]
    return f"{sum(values) / len(values):,.1f}" if values else "not measured"


def run_demo(config: DictConfig) -> int:
    """Runs the demo into a new folder, or goes on in the folder of one that was cut off, and prints the table.

    Raises:
        UsageError: for bad values, or a folder that holds something else or a demo of other settings.
    """
    require_settings(config)
    default = f"runs/demo_{config.env.task}_{time.strftime('%Y%m%d-%H%M%S')}"
    out = absolute_path(config.out if config.out is not None else default, "out")
    claim(out, config)
    start_s = time.monotonic()
    demo = Demo(config, out)
    demo.run()
    print()
    Console().print(demo.table(time.monotonic() - start_s))
    print(demo.places())
    return 0


def require_settings(config: DictConfig) -> None:
    """Refuses values that only a late command would refuse.

    Raises:
        UsageError: naming the key.
    """
    rewards = [
        name
        for name in group_options("reward")
        if name in FROZEN or cli.compose("train", [f"reward={name}"]).reward.frozen is None
    ]
    if config.reward_name not in rewards:
        raise UsageError(
            f"reward_name={config.reward_name!r} needs a model that the demo does not train; "
            f"{suggest(str(config.reward_name), rewards)}"
        )
    for key in ("expert_episodes", "other_episodes", "final_episodes"):
        if config[key] < 1:
            raise UsageError(f"{key} must be at least 1, got {config[key]}")


def claim(out: Path, config: DictConfig) -> None:
    """Makes the folder and writes the settings into it, or checks that it holds a demo of the same ones.

    Raises:
        UsageError: if it does not.
    """
    left_out = ("out", "overrides")
    wanted = OmegaConf.to_container(OmegaConf.masked_copy(config, [k for k in config if k not in left_out]))
    assert isinstance(wanted, dict)
    if (out / SETTINGS_FILE).exists():
        require_same_config(read_json(out / SETTINGS_FILE), wanted, out)
        print(f"[demo] going on in {out}", flush=True)
        return
    if out.exists():
        raise UsageError(f"{out} already exists; nothing is overwritten. Choose another folder with out=...")
    out.mkdir(parents=True)
    write_json(out / SETTINGS_FILE, wanted)


def main() -> None:
    """Entry point of `make demo`."""
    cli.main("demo", __doc__ or "", run_demo)


if __name__ == "__main__":
    main()
