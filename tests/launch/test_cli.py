"""Bad input on the command line: the nearest valid names, before anything else happens."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from launch import cli, train, train_expert
from launch.cli import UsageError, build, compose, path_override
from launch.diffuser_stage import with_family_of_the_data
from launch.relative import with_action_and_family
from tests.launch.conftest import ROOT


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("task=door-clos", "door-close"),
        ("task=dor-lock", "door-lock"),
        ("reward=difusion", "diffusion"),
        ("preset=labtop", "laptop"),
        ("cluster=locl", "local"),
        ("agent.batchsize=3", "agent.batch_size"),
        ("eval_episode=3", "eval_episodes"),
        ("num_actors=3", "rollout.num_actors"),
    ],
)
def test_unknown_names_get_the_nearest_valid_ones(override, nearest):
    with pytest.raises(UsageError, match="did you mean") as caught:
        compose("train", [override])
    assert repr(nearest) in str(caught.value)


def test_a_key_of_another_choice_says_where_those_of_this_one_are_listed():
    assert compose("train", ["reward=diffusion", "frame_reward.num_samples=3"]).frame_reward.num_samples == 3
    with pytest.raises(UsageError, match="`--cfg` in its place lists every key of your choice of groups"):
        compose("train", ["reward=viper", "frame_reward.num_samples=3"])


@pytest.mark.parametrize("override", ["task", "+new_key=1", "~task"])
def test_arguments_that_are_no_override(override):
    with pytest.raises(UsageError):
        compose("train", [override])


@pytest.mark.parametrize(
    ("verb", "override", "message"),
    [
        ("evaluate", "episodes=ten", "episodes must be a number, got 'ten'"),
        ("benchmark", "rounds=null", "rounds must be a number, got None"),
        ("collect", "keep_failures=3", "keep_failures must be true or false, got 3"),
    ],
)
def test_values_of_another_type(verb, override, message):
    with pytest.raises(UsageError, match=message):
        compose(verb, [override])


@pytest.mark.parametrize(
    ("override", "quoted", "value"),
    [
        ("out=/tmp/ü (x)", "out='/tmp/ü (x)'", "/tmp/ü (x)"),
        ("out=it's; x=y", "out='it\\'s; x=y'", "it's; x=y"),
        ("out=a,b", "out='a,b'", "a,b"),  # in Hydra's grammar two runs
        ("console=[1", "console='[1'", "[1"),
        ("bonus=a(b)", "bonus='a(b)'", None),
    ],
)
def test_a_value_that_cannot_be_read_is_told_how_to_be_quoted(override, quoted, value):
    with pytest.raises(UsageError, match="cannot read") as caught:
        compose("train", [override])
    assert f'quotes for the shell: "{quoted}"' in str(caught.value)
    if value is not None:
        assert compose("train", [quoted])[override.partition("=")[0]] == value


@pytest.mark.parametrize(
    ("expand", "others", "key"),
    [
        (train.with_overrides_of_the_run, [], "resume"),
        (train_expert.with_overrides_of_the_run, [], "resume"),
        (with_family_of_the_data, ["stage=diffuser"], "data"),
        (with_action_and_family, ["train", "domain=maze"], "base"),
    ],
)
def test_a_quoted_folder_that_is_looked_into_before_composing(tmp_path, expand, others, key):
    path = f"{tmp_path}/Müller's (2)"
    with pytest.raises((UsageError, FileNotFoundError)) as caught:
        expand([*others, path_override(key, path)])
    assert f" {path} " in f" {caught.value}".replace(":", " ")


@dataclass(frozen=True)
class Inner:
    size: int = 1
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")


@dataclass(frozen=True)
class Outer:
    inner: Inner
    name: str = "x"
    levels: tuple[int, ...] = (1, 2)


def test_build_nested():
    built = build(Outer, {"inner": {"size": 3, "ratio": 2}, "levels": [4, 5]})
    assert built == Outer(Inner(3, 2.0), "x", (4, 5))
    assert isinstance(built.inner.ratio, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"siz": 3}}, "unknown key 'inner.siz'; did you mean 'size'"),
        ({"inner": {"size": 0}}, "inner: size must be at least 1, got 0"),
        ({"inner": {"size": "many"}}, "inner.size must be int, got 'many'"),
        ({"inner": {}, "name": 3}, "name must be str, got 3"),
        ({}, "inner"),
    ],
)
def test_build_names_key_and_value(values, message):
    with pytest.raises(UsageError) as caught:
        build(Outer, values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "verb",
    [
        "train",
        "collect",
        "pretrain",
        "score",
        "evaluate",
        "demo",
        "convert",
        "imitate",
        "quality",
        "train_expert",
        "relative",
        "stable_diffusion",
        "benchmark",
    ],
)
def test_help_lists_groups_and_keys(verb):
    text = cli.help_text(verb, "What it does.")
    assert text.startswith("What it does.")
    assert f"launch/{verb}.py" in text
    if verb == "train":
        assert "door-close" in text and "laptop" in text and "total_agent_steps" in text


@pytest.mark.parametrize("flag", ["--help", "--cfg"])
def test_a_reader_that_stops_early_gets_no_traceback(flag):
    command = [sys.executable, "launch/train.py", flag]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0
