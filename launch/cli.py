"""The command line shared by every verb: Hydra overrides in, a validated settings object out.

Hydra composes `configs/<verb>.yaml`; this file turns what can go wrong on the way into one readable line.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from actors.envs.locomotion import LOCOMOTION_TASKS
from actors.envs.pointmaze import PREFIX
from launch.sections import CHOSEN, SECTIONS, section_class, verb_defaults

CONFIG_DIR = Path(__file__).resolve().parents[1] / "configs"
T = TypeVar("T")


class UsageError(ValueError):
    """Bad input of the user; printed without a traceback."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """A sentence with the nearest valid names, then all of them."""
    valid = sorted(valid)
    near = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    shown = ", ".join(valid[:40]) + (", ..." if len(valid) > 40 else "")
    return f"{hint}Valid: {shown}"


def group_options(group: str) -> list[str]:
    """Names that can be chosen for a config group, for example every task."""
    return sorted(p.stem for p in (CONFIG_DIR / group).glob("*.yaml") if not p.stem.startswith("_"))


def _flatten(config: DictConfig, prefix: str = "") -> Iterable[str]:
    for key in config:
        node = config._get_node(key)
        yield f"{prefix}{key}"
        if isinstance(node, DictConfig) and not node._is_none():
            yield from _flatten(node, f"{prefix}{key}.")


def _check_key(key: str, base: DictConfig) -> None:
    """Refuses a key that does not exist, naming the nearest ones."""
    keys = list(_flatten(base))
    if key in keys:
        return
    # A typo in the last part is as likely as a wrong path: compare both.
    tails = [k for k in keys if k.rpartition(".")[2] == key.rpartition(".")[2]]
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.6)
    hint = " or ".join(repr(k) for k in dict.fromkeys(tails[:3] + near))
    raise UsageError(
        f"unknown key {key!r}; "
        + (f"did you mean {hint}? " if hint else "")
        + "`--cfg` in its place lists every key of your choice of groups, `--help` those of the defaults"
    )


def _check_type(key: str, config: DictConfig, value: Any) -> None:
    """Refuses a word where a verb's own key has a number, or a number where it is true or false.

    Sections are checked when their dataclass is built.
    """
    if "." in key or OmegaConf.is_missing(config, key):
        return
    default = config[key]
    if isinstance(default, bool):
        fits, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, (int, float)):
        fits, expected = type(value) in (int, float), "a number"
    else:
        return
    if not fits:
        raise UsageError(f"{key} must be {expected}, got {value!r}")


def path_override(key: str, value: object) -> str:
    """An override with a path, or a list of paths, whatever letters they have."""
    if isinstance(value, (list, tuple)):
        return f"{key}=[{','.join(map(_quoted, value))}]"
    return f"{key}={_quoted(value)}"


def _quoted(value: object) -> str:
    text = str(value)
    escaped = text.replace("'", "\\'")
    return text if re.fullmatch(r"[A-Za-z0-9_./:-]+", text) else f"'{escaped}'"


def read_value(override: str) -> Any:
    """What Hydra's grammar makes of the value of an override.

    Raises:
        UsageError: saying how to quote what it does not have, or takes for several values.
    """
    key, _, text = override.partition("=")
    try:
        parsed = OverridesParser.create().parse_override(override)
        if not parsed.is_sweep_override():
            return parsed.value()
        problem = "it stands for several values"
    except HydraException as error:
        problem = str(error).strip().splitlines()[0]
    raise UsageError(
        f"cannot read {override!r}: {problem}. A value with other characters than letters, digits and -_./: needs quotes, "
        f'and these need quotes for the shell: "{key}={_quoted(text)}"; a list needs brackets: {key}=[1,2]'
    )


def _verb_groups(verb: str) -> list[str]:
    defaults = OmegaConf.load(CONFIG_DIR / f"{verb}.yaml").get("defaults", [])
    groups = [next(iter(entry)) for entry in defaults if not isinstance(entry, str)]
    return [group for group in groups if not group.startswith("optional ")]  # those follow from the others


def _choose_classes(composed: DictConfig, verb: str, selectors: Mapping[str, Any]) -> dict[str, str | None]:
    """Which reward and bonus the sections of `CHOSEN` describe.

    Where a selector was given on the command line, keys of the YAML's own choice are dropped from the section.
    """
    choices: dict[str, str | None] = {}
    for section, (selector, _) in CHOSEN.items():
        if section not in SECTIONS[verb]:
            continue
        is_given = selector in selectors
        choices[section] = selectors[selector] if is_given else OmegaConf.select(composed, selector)
        if is_given and composed.get(section) is not None:
            known = {f.name for f in dataclasses.fields(section_class(section, choices[section]))}
            with open_dict(composed):
                for key in [key for key in composed[section] if key not in known]:
                    del composed[section][key]
    return choices


def _compose(verb: str, choices: Sequence[str], selectors: Mapping[str, Any] | None = None) -> DictConfig:
    """Dataclass defaults, then the YAML files of the chosen groups."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        composed = hydra.compose(verb, overrides=list(choices))
    defaults = OmegaConf.create(verb_defaults(verb, _choose_classes(composed, verb, selectors or {})))
    own = {*OmegaConf.load(CONFIG_DIR / f"{verb}.yaml"), *defaults, "domain", "preset_name"}
    # A preset serves all verbs; each sees only its own keys.
    with open_dict(composed):
        for key in [key for key in composed if key not in own]:
            del composed[key]
    merged = OmegaConf.merge(defaults, composed)
    assert isinstance(merged, DictConfig)
    return merged


def compose(verb: str, overrides: Sequence[str]) -> DictConfig:
    """Composes `configs/<verb>.yaml` with overrides and resolves interpolations.

    Args:
        verb: Name of the root config, for example "train".
        overrides: `key=value` strings in Hydra's syntax.

    Raises:
        UsageError: for unknown groups, options or keys and for values that cannot be parsed.
    """
    groups = _verb_groups(verb)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise UsageError(f"argument {override!r} is not of the form key=value; see --help")
        if key.startswith(("+", "~")):
            raise UsageError(
                f"argument {override!r}: '+' and '~' are not supported, every key is known beforehand"
            )
        if key == "task" and key in groups and (value.startswith(PREFIX) or value in LOCOMOTION_TASKS):
            raise UsageError(
                f"{value!r} has states instead of pictures, so {verb}.py has nothing to do with it: use collect.py "
                "mode=base|expert, pretrain.py stage=diffuser data=..., relative.py"
            )
        if key in groups and value not in group_options(key):
            raise UsageError(f"unknown {key} {value!r}; {suggest(value, group_options(key))}")
    chosen = {
        o.partition("=")[0]: o for o in overrides if o.partition("=")[0] in groups
    }  # the last one counts
    try:
        selecting = {selector for selector, _ in CHOSEN.values()}
        selectors = {
            o.partition("=")[0]: read_value(o) for o in overrides if o.partition("=")[0] in selecting
        }
        config = _compose(verb, list(chosen.values()), selectors)
        for override in overrides:
            key = override.partition("=")[0]
            if key not in groups:
                _check_key(key, config)
                value = read_value(override)
                _check_type(key, config, value)
                OmegaConf.update(config, key, value)
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(f"cannot compose the configuration: {str(error).strip().splitlines()[0]}") from error
    return config


def build(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """Builds a (nested) frozen dataclass from a mapping, refusing unknown or missing keys by name.

    Args:
        cls: The dataclass; nested dataclass fields are built recursively, lists become tuples.
        values: Values by field name.
        path: Dotted path of `values`, for messages.

    Raises:
        UsageError: naming the key, the value and what is allowed.
    """
    names = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    for key in values:
        if key not in names:
            raise UsageError(f"unknown key {path + key!r}; {suggest(key, names)}")
    built: dict[str, Any] = {}
    for key, value in values.items():
        built[key] = _convert(hints[key], value, f"{path}{key}")
    try:
        return cls(**built)
    except (TypeError, ValueError) as error:
        where = path.rstrip(".") or "configuration"
        raise UsageError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, path: str) -> Any:
    options = [hint, *get_args(hint)]
    if value is None and type(None) not in options and hint is not Any:
        raise UsageError(f"{path} must not be null; expected {getattr(hint, '__name__', hint)}")
    nested = next((o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)), None)
    if nested is not None and isinstance(value, (Mapping, DictConfig)):
        return build(nested, value, f"{path}.")
    if isinstance(value, (list, ListConfig)):
        return tuple(value)
    if isinstance(value, DictConfig):
        return OmegaConf.to_container(value, resolve=True)
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = {int, float, str, bool}
    if (
        plain & set(options)
        and value is not None
        and not any(isinstance(value, o) for o in plain & set(options))
    ):
        expected = " or ".join(sorted(o.__name__ for o in plain & set(options)))
        raise UsageError(f"{path} must be {expected}, got {value!r}")
    return value


def help_text(verb: str, description: str) -> str:
    """What `--help` prints: usage, groups with their options, every key of the default groups with its default."""
    lines = [description.strip(), "", f"usage: python launch/{verb}.py [key=value ...] [--cfg] [--help]", ""]
    for group in _verb_groups(verb):
        lines.append(f"  {group}= {' | '.join(group_options(group))}")
    lines += [
        "",
        "Keys and defaults (comments in configs/ and docstrings of the settings say more). Another choice of groups may",
    ]
    lines += ["have other keys: add --cfg to a command to see all of its own.", ""]
    text = OmegaConf.to_yaml(_compose(verb, []))
    lines += [f"  {line}" for line in text.splitlines()]
    return "\n".join(lines)


def show(text: str) -> None:
    """Prints a long text, of which a reader such as `head` may not want the end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # Python flushes once more when it exits.


def main(
    verb: str,
    description: str,
    run: Callable[[DictConfig], int | None],
    expand: Callable[[list[str]], list[str]] = list,
) -> None:
    """Entry point of a script: parse, compose, run; user errors end with exit code 2 and one message.

    Args:
        verb: Root config name.
        description: Shown by `--help`.
        run: Called with the composed config; may return an exit code.
        expand: Rewrites the overrides before they are composed.
    """
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        show(help_text(verb, description))
        return
    show_config = "--cfg" in arguments
    overrides = [a for a in arguments if a != "--cfg"]
    try:
        overrides = expand(overrides)
        config = compose(verb, overrides)
        if "overrides" in config:
            config.overrides = overrides
        if show_config:
            show(OmegaConf.to_yaml(config))
            return
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise UsageError(f"missing: {', '.join(f'{key}=' for key in missing)}; see --help")
        code = run(config)
    except (ValueError, ArithmeticError, OSError, RuntimeError) as error:
        if os.environ.get("DRR_DEBUG"):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)
