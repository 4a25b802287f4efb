"""Makes a small expert network that imitates a reference policy, from states alone, and measures both.

python launch/imitate.py task=adroit-door reference=door.npz out=experts/adroit-door.npz
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig

from actors.envs.registry import EnvConfig
from actors.expert_sources import load_expert
from actors.imitation import ImitationConfig, Policy, Success, imitate, measure_success
from actors.policy_file import save_policy_file
from actors.seeding import indexed_seed
from launch import cli
from launch.cli import UsageError, build
from launch.paths import absolute_path
from launch.progress import Progress


@dataclass(frozen=True)
class ImitateSettings:
    """What to imitate.

    Attributes:
        env: Task, action repeat and time limit; nothing is drawn.
        imitation: How the student is trained.
        reference: The expert to imitate, as for `expert=` of collect.py: a policy file, ... or "module:function".
        eval_episodes: Evaluation episodes, at least 1.
        required_share: Least share of the reference's success, 0 to 1.
        seed: Base of all random numbers, at least 0 and below 2^24.
    """

    env: EnvConfig
    imitation: ImitationConfig
    reference: str | None = None
    eval_episodes: int = 100
    required_share: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reference is None:
            raise ValueError(
                "reference is missing; name the expert to imitate, for example reference=door.npz"
            )
        if self.eval_episodes < 1:
            raise ValueError(f"eval_episodes must be at least 1, got {self.eval_episodes}")
        if not 0 <= self.required_share <= 1:
            raise ValueError(f"required_share must be in [0, 1], got {self.required_share}")
        indexed_seed("evaluation", self.seed, self.eval_episodes - 1)


def main() -> None:
    """Entry point of `python launch/imitate.py`."""
    cli.main("imitate", __doc__ or "", run)


def run(config: DictConfig) -> int:
    """Trains, writes and measures a student; 1 if it falls short of `required_share`.

    Raises:
        UsageError: if a setting is bad, or the file exists or is not called .npz.
        ValueError: if the reference does not fit the task.
    """
    names = ("env", "imitation", "reference", "eval_episodes", "required_share", "seed")
    settings = build(ImitateSettings, {name: config[name] for name in names})
    assert settings.reference is not None
    reference = load_expert(settings.reference, settings.env.task)
    default = f"checkpoints/experts/{settings.env.task}.npz"
    out = absolute_path(config.out if config.out is not None else default, "out")
    if out.suffix != ".npz":
        raise UsageError(f"out={config.out} must end in .npz: that is how expert= knows a policy file")
    if out.exists():
        raise UsageError(f"{out} already exists; nothing is overwritten. Choose another file with out=...")

    progress = _PhaseProgress()
    student = imitate(settings.env, reference, settings.imitation, settings.seed, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_policy_file(out, student.to_arrays())
    print(f"[imitate] student of {settings.reference}: {out} ({out.stat().st_size:,} bytes)", flush=True)

    taught = _measure("reference", settings, reference, progress)
    learned = _measure("student", settings, student, progress)
    print(f"[imitate] success of {settings.env.task} over {settings.eval_episodes} episodes, same scenes:")
    print("            at any step  at the last step")
    for name, success in (("reference", taught), ("student", learned)):
        print(f"  {name:10}  {success.any:9.1%}  {success.end:12.1%}")
    if learned.any >= settings.required_share * taught.any:
        return 0
    print(
        f"[imitate] the student falls short of {settings.required_share:.0%} of the reference: try more "
        "imitation.rounds, imitation.episodes or imitation.hidden_size",
        file=sys.stderr,
    )
    return 1


class _PhaseProgress:
    """One progress line per phase."""

    def __init__(self) -> None:
        self._phase, self._progress = "", Progress("imitate", "")

    def __call__(self, phase: str, done: int, total: int, values: dict[str, float]) -> None:
        if phase != self._phase:
            unit = "updates" if phase.endswith("training") else "episodes"
            self._phase, self._progress = phase, Progress(f"imitate, {phase}", unit)
        self._progress(done, total, values)


def _measure(name: str, settings: ImitateSettings, policy: Policy, progress: _PhaseProgress) -> Success:
    def report(done: int) -> None:
        progress(f"{name} evaluation", done, settings.eval_episodes, {})

    return measure_success(settings.env, policy, settings.eval_episodes, settings.seed, report)


if __name__ == "__main__":
    main()
