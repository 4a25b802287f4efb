"""Part `learner`: one DrQ-v2 update as the learner runs it, against a plain eager update of the same agent."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from launch.bench.harness import Comparison, Contender, Row, compare, race
from launch.bench.reference_learner import PlainBatch, PlainDrQV2, PlainRND, PlainSettings
from launch.bench.settings import BenchSettings
from launch.cli import compose
from launch.settings import TrainSettings, train_settings
from learner.batch import Batch, TensorBatch
from learner.learner_core import Learner
from learner.rnd_bonus import RNDBonus
from learner.staging import to_tensors
from models.memory import keep_freed_memory
from models.precision import bfloat16_pays

# Peer -> whether it reads every metric at every update, as the original does.
PEERS = ("eager", "eager-unread")
ACTION_DIM = 4
RESOLUTION_PX = 64
AGENT_STEPS = 2000
NETWORKS = ("encoder", "actor", "critic", "critic_target")
TARGET = {"cpu": 1.3, "cuda": 3.0}
TURN_S = 1.5
SMOKE_TURN_S = 0.8
CHECKED_UPDATES = 3
# Share of the distance that the weights moved: bilinear sampling at integer positions rounds pixels by up to 1e-3 / 255,
# and Adam turns the sign of a gradient near zero into a whole step.
TOLERANCE = {"float32": 0.1, "bfloat16": 0.6}


@dataclass(frozen=True)
class Case:
    """One race.

    Attributes:
        preset: Whose sizes.
        reward: "sparse" (no bonus) or "rnd".
        threads: Of torch, or None for all that the benchmark has.
        precision: Of ours; the peer stays in float32.
        has_target: Whether the project promises a ratio here.
    """

    preset: str
    reward: str = "sparse"
    threads: int | None = None
    precision: str = "float32"
    has_target: bool = False

    def name(self, settings: BenchSettings) -> str:
        """For example "paper, 2 threads"."""
        threads = self.threads or settings.threads
        parts = [self.preset]
        if settings.device == "cpu":
            parts.append(f"{threads} thread{'s' if threads > 1 else ''}")
        if self.reward != "sparse":
            parts.append(self.reward)
        if self.precision != "float32":
            parts.append(self.precision)
        return ", ".join(parts)


def measure(settings: BenchSettings) -> list[Comparison | Row]:
    """Races the updates of both presets; the last rows are operations, bytes and the share of what the machine does.

    Args:
        settings: `threads` holds for both contenders, except where a case names its own.
    """
    keep_freed_memory()  # As the learner's process does; it helps the peer as well.
    results: list[Comparison | Row] = []
    for case in _cases(settings):
        torch.set_num_threads(case.threads or settings.threads)
        results += _race(settings, case)
    torch.set_num_threads(settings.threads)
    if not settings.smoke:
        results += [roofline(settings, preset) for preset in ("paper", "laptop")]
        if bfloat16_pays(settings.device):
            results.append(precision_row(settings))
    return results


def _cases(settings: BenchSettings) -> list[Case]:
    if settings.smoke:
        return [Case("paper", has_target=True), Case("laptop", threads=1)]
    cases = [
        *(Case("paper", has_target=True), Case("paper", "rnd", has_target=True)),
        *(Case("laptop"), Case("laptop", "rnd")),
    ]
    if settings.device == "cpu":
        cases += [Case("paper", threads=1), Case("laptop", threads=1)]
    if bfloat16_pays(settings.device):
        cases += [Case("paper", precision="bfloat16"), Case("laptop", precision="bfloat16")]
        if settings.device == "cpu":
            cases.append(Case("laptop", threads=1, precision="bfloat16"))
    return list(dict.fromkeys(cases)) if settings.threads > 1 else [c for c in cases if c.threads is None]


def case_settings(case: Case) -> TrainSettings:
    """What `python launch/train.py preset=... reward=...` trains with; the bonus as in the paper, not normalised."""
    overrides = [f"preset={case.preset}", f"reward={case.reward}", "task=door-close"]
    composed = train_settings(compose("train", overrides))
    return replace(
        composed,
        bonus=replace(composed.bonus, norm="none", train_every_updates=1),
        # Both sides have the same threads, and nothing beside them.
        learner=replace(composed.learner, precision=case.precision, second_thread=False),
        # What preset=laptop adds to the agent is not in the peer.
        agent=replace(composed.agent, value_scale=1.0, centre_values=False, saturation_weight=0.0),
    )


def make_batches(batch_size: int, count: int, seed: int) -> list[Batch]:
    """Batches of smooth random pictures, as replay hands them to the learner."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        coarse = torch.rand(2 * batch_size, 3, 8, 8, generator=generator) * 255
        smooth = torch.nn.functional.interpolate(coarse, RESOLUTION_PX, mode="bilinear")
        frames = rearrange(smooth.to(torch.uint8), "rows c h w -> rows h w c").contiguous().numpy()
        action = torch.rand(batch_size, ACTION_DIM, generator=generator).mul_(2).sub_(1).numpy()
        reward = torch.rand(batch_size, 1, generator=generator).numpy()
        discount = np.full((batch_size, 1), 0.99**3, np.float32)
        batches.append(Batch(frames[:batch_size], action, reward, discount, frames[batch_size:]))
    return batches


def make_learner(train: TrainSettings, batches: list[Batch], settings: BenchSettings) -> Learner:
    """The learner that a training run has, on batches that are there already."""
    return Learner(
        *(RESOLUTION_PX, ACTION_DIM, train.agent, train.bonus),
        fetch_batch=lambda index: batches[index % len(batches)],
        config=train.learner,
        seed=settings.seed,
        device=settings.device,
    )


def frames_first(batch: Batch) -> list[np.ndarray]:
    """A batch as the original replay stores it: channels before height and width."""
    layout = "rows h w c -> rows c h w"
    return [np.ascontiguousarray(rearrange(a, layout)) if a.ndim == 4 else a for a in batch]


class Plain:
    """The peer with the learner's weights, on the same batches.

    Args:
        learner: Whose weights are taken.
        train: Sizes.
        batches: As the learner's.
        read_metrics: See `PlainDrQV2`.
    """

    def __init__(
        self, learner: Learner, train: TrainSettings, batches: list[Batch], read_metrics: bool
    ) -> None:
        agent, self.device = train.agent, learner.device
        self._stddev, self._pad_px = agent.stddev(AGENT_STEPS), agent.shift_pad_px
        sizes = PlainSettings(
            *(RESOLUTION_PX, ACTION_DIM, agent.lr, agent.encoder_channels, agent.encoder_strides),
            *(agent.feature_dim, agent.hidden_dim, agent.critic_target_tau, agent.stddev_clip),
            *(agent.shift_pad_px, agent.dormant_threshold),
        )
        self.agent = PlainDrQV2(sizes, str(self.device), read_metrics)
        for name in NETWORKS:
            state = getattr(learner.agent, name).state_dict()
            getattr(self.agent, name).load_state_dict(
                {key: value.contiguous() for key, value in state.items()}
            )
        self.rnd: PlainRND | None = None
        self._bonus_calls, self._bonus_every = 0, train.bonus.train_every_updates
        self.weight = float(learner.bonus.weight)
        if isinstance(learner.bonus, RNDBonus):
            networks = learner.bonus.rnd
            plain = (
                copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
                for network in (networks.target, networks.predictor)
            )
            self.rnd = PlainRND(*plain, lr=networks.config.lr)
        self._batches = [frames_first(batch) for batch in batches]
        self._updates = 0
        self._generator = torch.Generator(device=self.device).manual_seed(0)

    def draw(self, rows: int) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Shifts and noise of one update on a batch of so many rows."""
        how: dict[str, Any] = {"device": self.device, "generator": self._generator}
        shifts = [torch.randint(0, 2 * self._pad_px + 1, (rows, 2), **how) for _ in range(2)]
        noise = [torch.randn(rows, ACTION_DIM, **how) for _ in range(2)]
        return (shifts[0], shifts[1]), (noise[0], noise[1])

    def update(self, draws: Any = None) -> dict[str, Any]:
        """One update on the next batch; with RND first the bonus, then its training, as the learner does it."""
        arrays = self._batches[self._updates % len(self._batches)]
        self._updates += 1
        return self.update_on(arrays, draws)

    def update_on(self, arrays: list[np.ndarray], draws: Any = None) -> dict[str, Any]:
        """The same on a batch given as `frames_first` makes it."""
        batch = PlainBatch(*(torch.as_tensor(array, device=self.device) for array in arrays))
        if self.rnd is not None:
            bonus = self.rnd.bonus(batch.next_obs)
            if self._bonus_calls % self._bonus_every == 0:
                self.rnd.update(batch.next_obs)
            self._bonus_calls += 1
            batch = batch._replace(reward=batch.reward + self.weight * bonus)
        return self.agent.update(batch, self._stddev, *(draws or self.draw(len(arrays[0]))))


def check(case: Case, settings: BenchSettings) -> dict[str, float]:
    """Runs both from the same weights on the same batches with the same noise and shifts.

    Returns:
        How far apart the weights end, as a share of how far they moved, and the largest difference of a loss.

    Raises:
        RuntimeError: if that is more than the tolerance.
    """
    train = case_settings(case)
    batches = make_batches(train.agent.batch_size, CHECKED_UPDATES, settings.seed)
    learner = make_learner(train, batches, settings)
    plain = Plain(learner, train, batches, read_metrics=True)
    start = [copy.deepcopy(getattr(plain.agent, name).state_dict()) for name in NETWORKS]
    loss_difference = 0.0
    for batch in batches:
        draws = plain.draw(len(batch.obs))
        tensors = to_tensors(batch, learner.device)
        bonus = learner.bonus.bonus(tensors)
        learner.bonus.update(tensors)
        metrics = learner.agent.update(tensors, AGENT_STEPS, bonus, learner.bonus.weight, *draws)
        expected = plain.update(draws)
        for name in ("critic_loss", "critic_target_q"):
            loss_difference = max(loss_difference, abs(float(metrics[name]) - expected[name]))
    learner.close()
    apart = moved = 0.0
    for name, before in zip(NETWORKS, start):
        ours, theirs = getattr(learner.agent, name).state_dict(), getattr(plain.agent, name).state_dict()
        apart += sum(float((ours[key] - theirs[key]).square().sum()) for key in before)
        moved += sum(float((theirs[key] - before[key]).square().sum()) for key in before)
    share = (apart / moved) ** 0.5
    if not share <= TOLERANCE[case.precision]:
        raise RuntimeError(
            f"after {CHECKED_UPDATES} updates the weights of the two agents are {share:.3f} of their movement apart, "
            f"expected at most {TOLERANCE[case.precision]}: they do not compute the same update"
        )
    return {"weights_apart_share": share, "critic_difference": loss_difference, "updates": CHECKED_UPDATES}


def _race(settings: BenchSettings, case: Case) -> list[Comparison]:
    peers = [peer for peer in PEERS if settings.wants(peer)]
    if not peers:
        return []
    if settings.device == "cpu" and "eager" in peers and (settings.smoke or case.has_target is False):
        peers = ["eager"]  # Without a device to wait for, reading a metric costs nothing.
    checks = check(case, settings)
    train = case_settings(case)
    batches = make_batches(train.agent.batch_size, 4, settings.seed)
    learner = make_learner(train, batches, settings)
    plain = {peer: Plain(learner, train, batches, peer == "eager") for peer in peers}
    turn_s = SMOKE_TURN_S if settings.smoke else TURN_S

    def ours(updates: int) -> None:
        learner.run_updates(updates, AGENT_STEPS)

    def theirs(peer: str) -> Callable[[int], None]:
        def run(updates: int) -> None:
            for _ in range(updates):
                plain[peer].update()

        return run

    contenders = [_contender("ours", ours, turn_s, settings.device)]
    contenders += [_contender(peer, theirs(peer), turn_s, settings.device) for peer in peers]
    rates = race(contenders, settings.rounds, report=settings.report)
    learner.close()
    return [
        compare(
            *(rates, "ours", peer),
            part="learner",
            case=case.name(settings),
            unit="updates/s",
            target=TARGET[settings.device] if case.has_target else None,
            checks=checks,
        )
        for peer in peers
    ]


def _contender(name: str, run: Callable[[int], None], turn_s: float, device: str) -> Contender:
    """A contender whose turn takes about `turn_s`; the number of updates is settled here and stays."""

    def finished(updates: int) -> float:
        run(updates)
        if device == "cuda":
            torch.cuda.synchronize()
        return float(updates)

    finished(5)  # A captured update is recorded at the fourth.
    start_s = time.perf_counter()
    finished(2)
    updates = max(2, round(turn_s / ((time.perf_counter() - start_s) / 2)))
    return Contender(name, lambda: finished(updates))


class _Traffic(TorchDispatchMode):
    """Adds up the bytes that operations read and write; views move nothing."""

    total_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.name() not in ("aten::empty.memory_format", "aten::detach"):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.total_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def roofline(settings: BenchSettings, preset: str) -> Row:
    """Operations and bytes of an update, and its time against what the machine's products take for them."""
    case = Case(preset)
    train = case_settings(case)
    batches = make_batches(train.agent.batch_size, 1, settings.seed)
    train = replace(train, learner=replace(train.learner, cuda_graph=False))
    learner = make_learner(train, batches, settings)
    batch: TensorBatch = to_tensors(batches[0], learner.device)
    learner.agent.update(batch, AGENT_STEPS)
    with FlopCounterMode(display=False) as flops:
        learner.agent.update(batch, AGENT_STEPS)
    with _Traffic() as traffic:
        learner.agent.update(batch, AGENT_STEPS)
    update_s = _seconds(lambda: learner.agent.update(batch, AGENT_STEPS), settings.device)
    learner.close()
    peak = _peak_flops(settings.device, train.agent.batch_size)
    achieved = flops.get_total_flops() / update_s
    return Row(
        "learner",
        f"roofline, {preset}, float32",
        {
            "gflop_per_update": flops.get_total_flops() / 1e9,
            "gb_per_update": traffic.total_bytes / 1e9,
            "ms_per_update": update_s * 1e3,
            "gflop_per_s": achieved / 1e9,
            **{f"{name}_gflop_per_s": value / 1e9 for name, value in peak.items()},
            "share_of_best": achieved / max(peak.values()),
        },
    )


def _peak_flops(device: str, batch_size: int) -> dict[str, float]:
    """Operations per second of a large product, and of the encoder's second convolution, in float32."""
    square = torch.randn(2048, 2048, device=device)
    frames = torch.randn(batch_size, 32, 31, 31, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(32, 32, 3, 3, device=device).to(memory_format=torch.channels_last)
    product_s = _seconds(lambda: square @ square, device)
    convolution_s = _seconds(lambda: torch.conv2d(frames, weight), device)
    operations = 2 * batch_size * 29 * 29 * 9 * 32 * 32
    return {"product": 2 * 2048**3 / product_s, "convolution": operations / convolution_s}


def _seconds(run: Callable[[], Any], device: str, repeats: int = 7) -> float:
    """Median time of a call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start_s = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start_s)
    return float(np.median(times[1:]))


def precision_row(settings: BenchSettings, preset: str = "laptop", updates: int = 200) -> Row:
    """Losses of the same updates in bfloat16 and in float32, at the beginning and at the end."""
    values: dict[str, float] = {"updates": updates}
    for precision in TOLERANCE:
        train = case_settings(Case(preset, precision=precision))
        batches = make_batches(train.agent.batch_size, 16, settings.seed)
        learner = make_learner(train, batches, settings)
        for label, count in (("first", updates // 10), ("rest", updates - 2 * (updates // 10)), ("last", 0)):
            metrics = learner.run_updates(count or updates // 10, AGENT_STEPS)
            if label != "rest":
                for name in ("critic_loss", "critic_q1", "actor_loss"):
                    values[f"{name}_{label}_{precision}"] = metrics[name]
        learner.close()
    return Row("learner", f"bfloat16 beside float32, {preset}", values)
