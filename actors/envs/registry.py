"""One table of tasks: task name -> domain -> environment class, and the configuration of an environment."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.videos import RECORDED, RenderSettings

METAWORLD_PAPER_TASKS = (
    "assembly",
    "coffee-push",
    "dial-turn",
    "door-close",
    "lever-pull",
    "peg-unplug-side",
    "reach",
)
METAWORLD_UNSEEN_TASKS = (
    "button-press",
    "coffee-button",
    "door-lock",
    "drawer-open",
    "faucet-open",
    "handle-press",
    "reach-wall",
    "window-open",
)
# Easy extra: the sparse reward alone solves it in minutes, which makes it a quick check of the whole loop.
METAWORLD_EXTRA_TASKS = ("drawer-close",)
ADROIT_PAPER_TASKS = ("adroit-door", "adroit-hammer", "adroit-pen")


@dataclass(frozen=True)
class Domain:
    """A family of tasks that share a simulator.

    Attributes:
        name: "metaworld", ...
        tasks: Length of the action vector by task name; names are unique over all domains.
        environment: "module:class", imported only when an environment is made. The class takes an `EnvConfig`.
        cuts_expert_videos: What is done with an expert video whose success does not last to its end: cut it just
            after the first success (True; some tasks of MetaWorld let go), or leave it out (False).
        camera: The view of the paper's experiments, for `RenderSettings.camera`.
    """

    name: str
    tasks: Mapping[str, int]
    environment: str
    cuts_expert_videos: bool
    camera: str


DOMAINS = (
    Domain(
        name="metaworld",
        tasks=dict.fromkeys(METAWORLD_PAPER_TASKS + METAWORLD_UNSEEN_TASKS + METAWORLD_EXTRA_TASKS, 4),
        environment="actors.envs.metaworld:MetaWorldEnv",
        cuts_expert_videos=True,
        camera="corner2",
    ),
    Domain(
        name="adroit",
        tasks={"adroit-door": 28, "adroit-hammer": 26, "adroit-pen": 24, "adroit-relocate": 30},
        environment="actors.envs.adroit:AdroitEnv",
        cuts_expert_videos=False,
        camera="paper",
    ),
)


# Named sets of tasks, for one codec and one video model over several tasks (Diffusion Reward, arXiv 2312.14134).
TASK_SETS: dict[str, tuple[str, ...]] = {
    "metaworld7": METAWORLD_PAPER_TASKS,
    "metaworld_unseen8": METAWORLD_UNSEEN_TASKS,
    "adroit3": ADROIT_PAPER_TASKS,
}


def task_set(name: str) -> tuple[str, ...]:
    """The tasks of a set.

    Raises:
        ValueError: if there is no such set, naming the nearest one.
    """
    if name not in TASK_SETS:
        near = difflib.get_close_matches(str(name), TASK_SETS, n=1)  # task_set=3 comes as a number
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"task_set {name!r} is unknown; {hint}Known sets: {', '.join(TASK_SETS)}")
    return TASK_SETS[name]


def task_names() -> tuple[str, ...]:
    """All task names, sorted."""
    return tuple(sorted(task for domain in DOMAINS for task in domain.tasks))


def domain_of(task: str) -> Domain:
    """The domain of a task.

    Raises:
        ValueError: if the task is unknown; names the nearest tasks and all of them.
    """
    for domain in DOMAINS:
        if task in domain.tasks:
            return domain
    names = task_names()
    near = difflib.get_close_matches(task.removesuffix("-v3").removesuffix("-v2"), names, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    raise ValueError(f"task {task!r} is unknown; {hint}Known tasks: {', '.join(names)}")


@dataclass(frozen=True)
class EnvConfig:
    """An environment as the policy and the reward model see it. Defaults are the paper's for MetaWorld.

    Attributes:
        task: Task name, one of `task_names()`.
        action_repeat: Simulator frames per agent step, 1 or more (paper: MetaWorld 3, Adroit 2).
        episode_steps: Agent steps until the time limit, 1 or more (paper: 100).
        render: How frames are drawn; must equal the setting of the reward model's videos.
        success_is_final: Whether the simulator stands still from the first success on, every later frame of it a success, as
            in an expert video that is cut there. Otherwise a success lasts as long as the arm holds it, a few frames on
            some tasks (False in the paper).
        success_hold_steps: Agent steps, 1 or more, for which a final success is shown before its episode terminates; at
            least n - 1 where n-step returns are learned from. None: the episode lasts until the time limit. (Of the step in
            which a success comes only what follows it is rewarded, so that step's reward says nothing about those after it.)
    """

    task: str
    action_repeat: int = 3
    episode_steps: int = 100
    render: RenderSettings = field(default_factory=RenderSettings)
    success_is_final: bool = False
    success_hold_steps: int | None = None

    def __post_init__(self) -> None:
        domain_of(self.task)
        if self.render.quality == RECORDED:
            raise ValueError(
                f"render quality {RECORDED!r} is for people's own videos; a simulator draws 'fast' or 'full'"
            )
        for key in ("action_repeat", "episode_steps"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{key} is {value!r}, expected a whole number of 1 or more")
        if self.success_hold_steps is not None:
            if self.success_hold_steps < 1:
                raise ValueError(
                    f"success_hold_steps is {self.success_hold_steps!r}, expected 1 or more, or null"
                )
            if not self.success_is_final:
                raise ValueError(
                    f"success_hold_steps={self.success_hold_steps} needs success_is_final=true: a success that may be "
                    "lost again ends nothing"
                )

    @property
    def domain(self) -> str:
        """Name of the domain, for example "metaworld"."""
        return domain_of(self.task).name

    @property
    def action_dim(self) -> int:
        """Length of the action vector."""
        return domain_of(self.task).tasks[self.task]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EnvConfig:
        """Builds a config from `dataclasses.asdict` of one."""
        return cls(**{**values, "render": RenderSettings(**values["render"])})


def make_env(config: EnvConfig, seed: int | None = None) -> Any:
    """Makes one environment.

    Args:
        config: Task, action repeat, time limit and renderer setting.
        seed: Seeds the goals of later `reset()` calls that name no seed of their own; None draws one.

    Returns:
        A `gymnasium.Env` with (H, W, 3) uint8 observations; see `MetaWorldEnv` for what `step` returns.
    """
    module, name = domain_of(config.task).environment.split(":")
    return getattr(importlib.import_module(module), name)(config, seed)
