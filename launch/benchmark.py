"""Measures every part beside its peers in one run: interleaved, warmed up, median and spread, ratios.

    python launch/benchmark.py what=reward
    python launch/benchmark.py what=[replay,learner] against=[torchrl,eager] --json
    python launch/benchmark.py what=curves plots=docs/performance
    python launch/benchmark.py what=scaling                       (1,000 simulated rollout actors)
    python launch/benchmark.py what=chaos minutes=30              (kills processes and nodes, counts episodes)

The JSON holds commit, command, hardware and versions. docs/performance.md explains the figures.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from omegaconf import DictConfig, ListConfig

from launch import cli
from launch.bench.harness import Comparison, Curve, Row
from launch.bench.machine import hardware, provenance
from launch.bench.settings import BenchSettings
from launch.cli import UsageError, suggest
from launch.paths import absolute_path
from launch.ray_access import protect_local_ray
from models.files import read_json, write_json

# Part -> its module in launch/bench: PEERS (names) and measure(settings) -> comparisons, curves and rows.
PARTS = (
    *("reward", "render", "env", "replay", "learner", "system"),
    *("curves", "estimators", "scaling", "chaos"),
)
Result = Comparison | Curve | Row


def main() -> None:
    """Entry point of `python launch/benchmark.py`."""
    cli.main("benchmark", __doc__ or "", benchmark, expand=_expand)


def _expand(overrides: list[str]) -> list[str]:
    return ["json=true" if override == "--json" else override for override in overrides]


def benchmark(config: DictConfig) -> int:
    """Measures the parts asked for, prints tables, writes the JSON.

    Returns:
        0, or 1 if a ratio fell under `min_share` of the recorded one.

    Raises:
        UsageError: for unknown parts or peers, an output file that exists, or nothing recorded to compare with.
    """
    parts = _names(config.what)
    against = None if config.against is None else tuple(_names(config.against))
    modules = _modules(parts, against)
    out = absolute_path(
        config.out if config.out is not None else f"benchmarks/{time.strftime('%Y%m%d-%H%M%S')}.json", "out"
    )
    if out.exists():
        raise UsageError(f"{out} already exists; nothing is overwritten. Choose another file with out=...")
    plots = None if config.plots is None else absolute_path(config.plots, "plots")
    recorded = _recorded(config, parts)
    settings = _settings(config, against)
    facts = provenance([Path(sys.executable).name, *sys.argv])
    say = settings.report
    say(f"{facts['hardware']['cpu']}, {settings.threads} threads, load {facts['hardware']['load_1_minute']}")

    results: list[Result] = []
    for name, module in modules.items():
        say(f"== {name}")
        # Each part starts alike, whatever the one before it did to the settings of torch.
        torch.set_num_threads(settings.threads)
        results += module.measure(settings)
        # After each part: hours of figures outlive a failure in the last one.
        report = {**facts, **_plain(settings, results)}
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, report)
    say("\n" + tables(results) + f"\n\nwritten: {out}")
    if plots is not None:
        from launch.bench.curves import plot_curves

        for path in plot_curves(report["curves"], plots):
            say(f"drawn: {path}")
    if config.json:
        print(json.dumps(report, indent=1))
    return _check(report["comparisons"], recorded, config.min_share) if recorded else 0


def _modules(parts: Sequence[str], against: Sequence[str] | None) -> dict[str, Any]:
    """The modules of the parts asked for.

    Raises:
        UsageError: for an unknown part, or a peer that none of them has.
    """
    for name in parts:
        if name not in PARTS:
            raise UsageError(f"unknown part {name!r}; {suggest(name, PARTS)}")
    protect_local_ray("local")  # Ray reads it when a part imports it
    modules = {name: importlib.import_module(f"launch.bench.{name}") for name in parts}
    known = sorted({peer for module in modules.values() for peer in module.PEERS})
    for peer in against or ():
        if peer not in known:
            raise UsageError(f"unknown peer {peer!r} of {', '.join(parts)}; {suggest(peer, known)}")
    return modules


def _plain(settings: BenchSettings, results: Sequence[Result]) -> dict[str, Any]:
    """Settings and results as plain values for JSON."""
    left_out = ("report", "against", "checkpoint", "data")
    return {
        "settings": {key: value for key, value in vars(settings).items() if key not in left_out},
        "comparisons": [result.to_dict() for result in results if isinstance(result, Comparison)],
        "curves": [result.to_dict() for result in results if isinstance(result, Curve)],
        "rows": [result._asdict() for result in results if isinstance(result, Row)],
    }


def _check(measured: Sequence[dict[str, Any]], recorded: Sequence[dict[str, Any]], min_share: float) -> int:
    """Compares with the recorded ratios and says what could not be compared; 0, or 1 if something failed."""
    slower = regressions(measured, recorded, min_share)
    for line in slower:
        print(f"slower than recorded: {line}", file=sys.stderr)
    missing = [key for key in map(_key, recorded) if key not in set(map(_key, measured))]
    for key in missing:
        print(f"recorded but not measured, so not checked: {key}", file=sys.stderr)
    if len(missing) == len(recorded):
        print("nothing of what is recorded was measured: the check has failed", file=sys.stderr)
    return 1 if slower or len(missing) == len(recorded) else 0


def regressions(
    measured: Sequence[dict[str, Any]], recorded: Sequence[dict[str, Any]], min_share: float
) -> list[str]:
    """Lines about ratios that fell under a share of the recorded ones.

    Args:
        measured: Comparisons as plain values.
        recorded: The same of an earlier run.
        min_share: Share of the recorded ratio that is still good, in (0, 1].
    """
    before = {_key(comparison): comparison["ratio"]["median"] for comparison in recorded}
    lines = []
    for comparison in measured:
        key, ratio = _key(comparison), comparison["ratio"]["median"]
        if key in before and ratio < min_share * before[key]:
            lines.append(
                f"{key}: ratio {ratio:.2f}, recorded {before[key]:.2f}, allowed {min_share:.0%} of it"
            )
    return lines


def tables(results: Sequence[Result]) -> str:
    """Markdown tables of everything measured."""
    lines: list[str] = []
    comparisons = [result for result in results if isinstance(result, Comparison)]
    if comparisons:
        lines += [
            "| part | case | unit | ours | peer | peer's | ratio (quartiles) | target |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        lines += [_comparison_line(comparison) for comparison in comparisons]
    for curve in (result for result in results if isinstance(result, Curve)):
        lines += ["", f"{curve.part} against {curve.x}. {curve.note}".rstrip(), "", *_grid(curve.points)]
    rows = [result for result in results if isinstance(result, Row)]
    for part in dict.fromkeys(row.part for row in rows):
        lines += ["", f"{part}:", ""]
        lines += _grid([{"case": row.case, **row.values} for row in rows if row.part == part])
    return "\n".join(lines)


def _comparison_line(comparison: Comparison) -> str:
    ratio = comparison.ratio
    target = "-" if comparison.target is None else f"{comparison.target:g}"
    return (
        f"| {comparison.part} | {comparison.case} | {comparison.unit} | {comparison.ours_rate.median:.4g} | "
        f"{comparison.peer} | {comparison.peer_rate.median:.4g} | "
        f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f}) | {target} |"
    )


def _grid(points: Sequence[Any]) -> list[str]:
    names = list(dict.fromkeys(name for point in points for name in point))
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for point in points:
        cells = [_cell(point.get(name)) for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _key(comparison: dict[str, Any]) -> str:
    return " | ".join(comparison[name] for name in ("part", "case", "peer"))


def _names(value: Any) -> list[str]:
    return [str(name) for name in value] if isinstance(value, (list, ListConfig)) else [str(value)]


def _recorded(config: DictConfig, parts: Sequence[str]) -> list[dict[str, Any]]:
    """Comparisons to check against; empty without a check."""
    if config.min_share is None:
        return []
    if not 0 < config.min_share <= 1:
        raise UsageError(f"min_share is {config.min_share}, expected a share in (0, 1]")
    paths = [absolute_path(name, "recorded") for name in _names(config.recorded)]
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist; record a run first with out={path}")
    processor = hardware()["cpu"]
    of_this = [path for path in paths if read_json(path)["hardware"]["cpu"] == processor]
    path = (of_this or paths)[0]
    if not of_this:
        print(
            f"{path} was recorded on another processor than this {processor}: ratios may differ",
            file=sys.stderr,
        )
    found = [entry for entry in read_json(path)["comparisons"] if entry["part"] in parts]
    if not found:
        raise UsageError(f"{path} holds nothing about {', '.join(parts)}; give another recorded=")
    return found


def _settings(config: DictConfig, against: tuple[str, ...] | None) -> BenchSettings:
    for key in ("rounds", "threads", "episodes"):
        if config[key] is not None and config[key] < 1:
            raise UsageError(f"{key} is {config[key]}, expected 1 or more")
    if config.minutes <= 0 or config.kill_every_s < 0:
        raise UsageError(
            f"expected minutes above 0 and kill_every_s of 0 or more, got {config.minutes} and {config.kill_every_s}"
        )
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UsageError(f"device is {device!r}, expected cpu, cuda or auto")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is 'cuda', but no CUDA device is visible; use device=cpu")
    if "estimators" in _names(config.what) and None in (config.checkpoint, config.data):
        raise UsageError(
            "what=estimators judges videos with a trained video model: give checkpoint=<folder of pretrain.py "
            "stage=video> and data=<folder with expert/, random/ and noisy/ of collect.py>"
        )
    folders = {
        key: None if config[key] is None else absolute_path(str(config[key]), key)
        for key in ("checkpoint", "data")
    }
    for key, folder in folders.items():
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{key}: there is no folder {folder}")
    stream = sys.stderr if config.json else sys.stdout
    return BenchSettings(
        rounds=config.rounds,
        threads=config.threads or len(os.sched_getaffinity(0)),
        device=device,
        smoke=config.smoke,
        against=against,
        seed=config.seed,
        report=lambda line: print(line, file=stream, flush=True),
        checkpoint=folders["checkpoint"],
        data=folders["data"],
        episodes=config.episodes,
        minutes=float(config.minutes),
        kill_every_s=float(config.kill_every_s),
    )


if __name__ == "__main__":
    main()
