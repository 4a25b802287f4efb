"""The main job from start to end on this machine: expert videos -> video diffusion reward -> policy.

Runs the same commands that a person would, one after the other, and ends with a table.

    make demo                     (or: python launch/demo.py task=door-close seed=0 out=<new folder>)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from launch import cli
from launch.cli import UsageError
from launch.paths import absolute_path
from launch.run_folder import RunFolder
from launch.steps import Step, run_step
from models.files import read_json

OTHERS = ("random", "half", "noisy")
# Rewards of the video model that the demo trains; others are compared with it.
FROZEN = ("diffusion", "diffusion_likelihood")


class Demo:
    """Runs the commands and remembers their times.

    Args:
        config: Composed `configs/demo.yaml`.
        out: New folder for everything the demo makes.
    """

    def __init__(self, config: DictConfig, out: Path) -> None:
        self.config, self.out = config, out
        self.steps: list[Step] = []

    def run(self) -> None:
        """All steps in order.

        Raises:
            RuntimeError: naming the command that failed.
        """
        self._collect()
        self._pretrain()
        self._train()

    @property
    def _common(self) -> list[str]:
        return [f"task={self.config.env.task}", f"preset={self.config.preset_name}"]

    def _collect(self) -> None:
        config, data = self.config, self.out / "data"
        expert = [
            f"episodes={config.expert_episodes}",
            f"validation_every={config.validation_every}",
            f"seed={config.seed}",
            f"out={data}/expert",
        ]
        self._step("expert videos", ["collect", *self._common, *expert])
        for behaviour in OTHERS:
            other = [
                f"behaviour={behaviour}",
                f"episodes={config.other_episodes}",
                "validation_every=0",
                f"seed={config.seed + 1}",
                f"out={data}/{behaviour}",
            ]
            self._step(f"{behaviour} videos", ["collect", *self._common, *other])

    def _pretrain(self) -> None:
        out, data = self.out, self.out / "data"
        given = [*self._common, f"data={data}/expert", f"seed={self.config.seed}"]
        self._step("codec", ["pretrain", *given, "stage=codec", f"out={out}/codec"])
        self._step(
            "video model",
            ["pretrain", *given, "stage=video", f"codec_checkpoint={out}/codec", f"out={out}/video"],
        )
        against = ",".join([*(f"{data}/{behaviour}" for behaviour in OTHERS), "frozen"])
        videos = [f"videos={data}/expert", "split=validation", f"against=[{against}]"]
        if self.config.reward_name in FROZEN:
            videos.append(f"reward={self.config.reward_name}")
        self._step(
            "reward quality", ["score", *self._common, f"checkpoint={out}/video", *videos, f"out={out}/score"]
        )

    def _train(self) -> None:
        config, out = self.config, self.out
        reward = [f"reward={config.reward_name}"]
        if config.reward_name in FROZEN:
            reward.append(f"reward.checkpoint={out}/video")
        self._step(
            "reinforcement learning",
            ["train", *self._common, *reward, f"seed={config.seed}", f"out={out}/run"],
        )
        final = [f"episodes={config.final_episodes}", "videos=3", f"out={out}/evaluation"]
        self._step("evaluation", ["evaluate", f"run={out}/run", *final])

    def _step(self, name: str, arguments: list[str]) -> None:
        self.steps.append(run_step(name, arguments))

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
            f"TensorBoard  {tensorboard} --logdir {self.out}"
        )


def _mean(rows: list[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in rows if row.get(name)]
    return f"{sum(values) / len(values):,.1f}" if values else "not measured"


def run_demo(config: DictConfig) -> int:
    """Runs the demo into a new folder and prints the table.

    Raises:
        UsageError: if the folder exists.
    """
    default = f"runs/demo_{config.env.task}_{time.strftime('%Y%m%d-%H%M%S')}"
    out = absolute_path(config.out if config.out is not None else default, "out")
    if out.exists():
        raise UsageError(f"{out} already exists; nothing is overwritten. Choose another folder with out=...")
    out.mkdir(parents=True)
    start_s = time.monotonic()
    demo = Demo(config, out)
    demo.run()
    print()
    Console().print(demo.table(time.monotonic() - start_s))
    print(demo.places())
    return 0


def main() -> None:
    """Entry point of `make demo`."""
    cli.main("demo", __doc__ or "", run_demo)


if __name__ == "__main__":
    main()
