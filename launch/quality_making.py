"""The commands that make what `quality.py` judges with: videos and models that are missing, and what differs in those there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from actors.envs.registry import EnvConfig
from actors.experts import BEHAVIOURS, LEARNED_FROM
from launch import cli
from launch.cli import UsageError, build, path_override
from launch.paths import absolute_path
from launch.pretrain import with_choices_of_the_stage
from launch.pretrain_stages import asked_settings
from launch.sections import section_class
from models.checkpoints import flatten
from models.files import read_json
from models.training_folder import SETTINGS_FILE, SUMMARY_FILE
from reward_service.config import FrameRewardConfig
from reward_service.statistics import Statistics, is_complete

# Videos of a policy that was trained on a learned reward, judged and among the base's where `collect.py source=run` has put some.
POLICY = "policy"
# What a kind of model is trained from, in the order in which they are made; a codec reads videos only.
NEEDS = {"codec": (), "video": ("codec",), "videogpt": ("codec",), "base": ("codec",), "relative": ("base",)}
# Whose videos a kind sees, where not only the expert's. Random and wandering arms show the codec what else a picture may be.
SEEN = {"codec": ("expert", "random", "wander"), "base": LEARNED_FROM, "relative": LEARNED_FROM}
# What a step is called, and the verb with its overrides.
Command = tuple[str, list[str]]


@dataclass(frozen=True)
class Videos:
    """Where the videos lie.

    Attributes:
        root: <root>/<task>/<behaviour>.
        policy_root: <policy_root>/<task> are those of policies; None: the behaviour "policy", as any other.
    """

    root: Path
    policy_root: Path | None = None

    def folder(self, task: str, behaviour: str) -> Path:
        """Of a task's videos of a behaviour."""
        if behaviour == POLICY and self.policy_root is not None:
            return self.policy_root / task
        return self.root / task / behaviour

    def has_policy(self, task: str) -> bool:
        """Whether there are videos of a policy."""
        return (self.folder(task, POLICY) / "index.json").exists()

    def behaviours(self, task: str) -> tuple[str, ...]:
        """All whose videos are judged."""
        return (*BEHAVIOURS, POLICY) if self.has_policy(task) else BEHAVIOURS

    def learned_by(self, kind: str, tasks: Sequence[str]) -> list[Path]:
        """Folders of the videos that a kind of model learns from."""
        return [
            self.folder(task, behaviour)
            for task in tasks
            for behaviour in (
                *SEEN.get(kind, ("expert",)),
                *([POLICY] if kind in ("base", "relative") and self.has_policy(task) else []),
            )
        ]


def collecting(config: DictConfig, task: str, data: Videos) -> list[Command]:
    """Commands for a task's missing videos.

    Raises:
        UsageError: if those that are there show another view, or are drawn otherwise.
    """
    commands: list[Command] = []
    for behaviour in BEHAVIOURS:
        folder = data.folder(task, behaviour)
        is_expert = behaviour == "expert"
        # (how many, every which one is held out)
        episodes, validation_every = {
            "expert": (config.expert_episodes, 5),
            "wander": _many(config.wander_episodes),
            "linger": _many(config.linger_episodes),
        }.get(behaviour, (config.other_episodes, 2))
        arguments = [
            f"task={task}",
            f"preset={config.preset_name}",
            f"behaviour={behaviour}",
            f"episodes={episodes}",
            f"validation_every={validation_every}",
            f"seed={config.seed if is_expert else config.seed + 1}",
            path_override("out", folder),
        ]
        if config.camera is not None:
            arguments.append(f"env.render.camera={config.camera}")
        if (folder / "index.json").exists():
            _require_same_view(config, arguments, folder)
        else:
            commands.append((f"{behaviour} videos of {task}", ["collect", *arguments]))
    return commands


def _many(episodes: int) -> tuple[int, int]:
    return episodes, 2 if episodes < 16 else 8


def _require_same_view(config: DictConfig, arguments: Sequence[str], folder: Path) -> None:
    """Refuses videos that are not what the command would collect."""
    there = read_json(folder / "index.json")
    env = build(EnvConfig, cli.compose("collect", arguments).env, "env.")
    wanted = {"quality": env.render.quality, "camera": config.camera}
    for key, value in wanted.items():
        if value is not None and there["render"][key] != value:
            name = "camera" if key == "camera" else "env.render.quality"
            raise UsageError(
                f"{name}={value}, but the videos in {folder} are of {there['render'][key]!r}; give another data="
            )


def settings_of(config: DictConfig, verb: str, reward: str, task: str) -> DictConfig:
    """A verb's settings composed for an entry of `rewards`: a name, then overrides."""
    name, *overrides = reward.split()
    return cli.compose(verb, [f"reward={name}", f"preset={config.preset_name}", f"task={task}", *overrides])


def frame_reward_of(config: DictConfig, reward: str) -> FrameRewardConfig:
    """How an entry of `rewards` that is frozen scores frames, validated.

    Raises:
        UsageError: for a value that is not allowed.
    """
    composed = settings_of(config, "score", reward, config.env.task)
    cls = section_class("frame_reward", composed.reward.frozen)
    settings: FrameRewardConfig = build(cls, composed.frame_reward, "frame_reward.")
    return settings


def measuring(
    config: DictConfig, tasks: Sequence[str], data: Videos, frozen: Mapping[str, Path | None]
) -> list[Command]:
    """Commands for the statistics that judging needs and a finished model's folder lacks.

    A training leaves those of its stage's own reward; other rewards of the same model, such as the likelihood along a
    chain, and tasks that the model has not seen, have none yet.
    """
    commands: list[Command] = []
    planned: set[tuple[Path, str, str]] = set()
    for reward, folder in frozen.items():
        if folder is None:
            continue
        settings = frame_reward_of(config, reward)
        if not settings.standardise or settings.statistics_task is not None:
            continue  # none are looked up, or those of a task that was named
        known = Statistics.read(folder)
        for task in tasks:
            if known.has(settings, task) or (folder, task, settings.signature()) in planned:
                continue
            planned |= {(folder, task, sibling.signature()) for sibling in settings.cheap_siblings()}
            name, *overrides = reward.split()
            arguments = [
                f"task={task}",
                f"preset={config.preset_name}",
                f"device={config.device}",
                "stage=statistics",
                f"reward={name}",
                *(key for key in overrides if key.startswith("frame_reward.")),
                path_override("data", data.learned_by(folder.parent.name, [task])),
                path_override("out", folder),
            ]
            what = f"statistics of {task} for {folder}, {settings.signature()}"
            commands.append((what, ["pretrain", *arguments]))
    return commands


def training(
    config: DictConfig,
    tasks: Sequence[str],
    data: Videos,
    checkpoints: Path,
    name: str,
    frozen: Mapping[str, Path | None],
) -> tuple[list[Command], dict[str, list[str]]]:
    """Commands for missing models, each after those that it needs.

    Returns:
        The commands, and for every model that is there and was trained with other settings than would be asked for now:
        its folder -> what differs.
    """
    commands: list[Command] = []
    otherwise: dict[str, list[str]] = {}
    kinds = {path.parent.name for path in frozen.values() if path is not None}
    for kind in reversed(NEEDS):
        kinds |= set(NEEDS[kind]) if kind in kinds else set()
    common = [
        f"task={tasks[0]}",
        f"preset={config.preset_name}",
        f"seed={config.seed}",
        f"device={config.device}",
    ]
    codec = checkpoints / "codec" / name
    if config.codec_checkpoint is not None:
        kinds.discard("codec")
        codec = absolute_path(str(config.codec_checkpoint), "codec_checkpoint")
    for kind in (kind for kind in NEEDS if kind in kinds):
        folder = checkpoints / kind / name
        stage = "video" if kind == "base" else kind
        videos = path_override("data", data.learned_by(kind, tasks))
        arguments = [f"stage={stage}", videos, path_override("out", folder)]
        if "codec" in NEEDS[kind]:
            arguments.append(path_override("codec_checkpoint", codec))
        if kind == "base":
            arguments.append(f"expert_videos={config.base_expert_videos}")
        if kind == "relative":
            arguments.append(path_override("base", checkpoints / "base" / name))
        pair = kind in ("base", "relative")
        # The codec's sizes are part of every other model's: they all get its overrides.
        arguments += config.codec_overrides
        arguments += config.video_overrides if kind == "video" else config.base_overrides if pair else []
        arguments += config.expert_overrides if kind == "relative" else []
        steps = config[f"{kind}_steps"]
        if steps is not None:
            section = "video" if pair else kind
            arguments.append(f"{section}_training.train_steps={steps}")
        arguments = [*common, *arguments]
        if (folder / SUMMARY_FILE).exists() if kind in ("codec", "base") else is_complete(folder):
            if differences := _differences(folder, arguments):
                otherwise[str(folder)] = differences
        else:
            commands.append((f"{kind} of {name}", ["pretrain", *arguments]))
    return commands, otherwise


def require_accepted(commands: Sequence[Command]) -> None:
    """Refuses what a command would refuse of its keys, before the first one has run.

    Raises:
        UsageError: as the command would.
    """
    for _, (verb, *arguments) in commands:
        given = with_choices_of_the_stage(arguments) if verb == "pretrain" else arguments
        composed = cli.compose(verb, given)
        if verb == "pretrain" and composed.stage != "statistics":
            asked_settings(composed)


def _differences(folder: Path, arguments: Sequence[str]) -> list[str]:
    """What a finished training was asked for, where this command would ask for something else."""
    if not (folder / SETTINGS_FILE).exists():  # converted, not trained here
        return []
    there = flatten(read_json(folder / SETTINGS_FILE))
    asked = flatten(asked_settings(cli.compose("pretrain", with_choices_of_the_stage(list(arguments)))))
    return [
        f"{key} is {there[key]!r}, {asked[key]!r} would be asked for"
        for key in asked
        if key in there and there[key] != asked[key]
    ]
