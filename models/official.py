"""Files of the official implementation of Diffusion Reward (arXiv 2312.14134) as models of this project.

`vqgan.pt` is a state dict of the codec, `best.pth` holds `model`, `ema` and `last_epoch` of the video model, codec
included, and `videogpt.pt` is a state dict of VideoGPT, codec included. Sizes are read off the tensors' shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoints import apply_weights, load_tensors
from models.videogpt.checkpoint import from_official, require_codec_fits
from models.videogpt.config import VideoGPTConfig
from models.videogpt.gpt import VideoGPT
from models.vqdiffusion.config import VQDiffusionConfig
from models.vqdiffusion.diffusion import VQDiffusion
from models.vqdiffusion.schedule import log_tables
from models.vqgan import VQGAN, VQGANConfig

Weights = Mapping[str, Tensor]
WEIGHTS = ("ema", "model")
# Every part is found by one tensor that only it has, since prefixes differ between the official files.
CODEC_MARK = "codebook.embedding.weight"
DIFFUSION_MARK = "transformer.content_emb.emb.weight"
VIDEOGPT_MARK = "transformer.pos_emb"
# VideoGPT shares its prefix (there is none) with the codec, so more of its names is needed to tell it.
_COMMON_START = {CODEC_MARK: "", DIFFUSION_MARK: "", VIDEOGPT_MARK: "transformer."}
# Buffers of the official attention layers that its network never reads.
UNUSED_MASK = re.compile(r"\.attn[12]\.mask$")


@dataclass(frozen=True)
class OfficialFile:
    """What an official file holds.

    Attributes:
        path: The file.
        weights: State dict to convert, official names.
        fallback: State dict in which parts are looked up that `weights` lacks (the codec, where EMA weights are taken).
        kind: "plain" (a bare state dict), "ema" or "model".
        last_epoch: Epoch of the checkpoint, or None.
    """

    path: Path
    weights: Weights
    fallback: Weights
    kind: str
    last_epoch: int | None = None

    def part(self, mark: str) -> dict[str, Tensor] | None:
        """The tensors beside the one named `mark`, without their common prefix; None if there are none."""
        return find_part(self.weights, mark) or find_part(self.fallback, mark)

    def require(self, mark: str, what: str) -> dict[str, Tensor]:
        """As `part`.

        Raises:
            ValueError: if the file has no such part, naming what it has.
        """
        part = self.part(mark)
        if part is None:
            tops = sorted({name.partition(".")[0] for name in {**self.weights, **self.fallback}})
            raise ValueError(
                f"{self.path} holds no {what}: no tensor is named ...{mark}. It has {tops}; check kind= and source="
            )
        return part

    def other_names(self, *marks: str) -> list[str]:
        """Names in `weights` that belong to none of the parts with these marks, sorted."""
        prefixes = {mark: _prefix(self.weights, mark) for mark in marks}
        starts = tuple(f"{p}{_COMMON_START[mark]}" for mark, p in prefixes.items() if p is not None)
        return sorted(name for name in self.weights if not name.startswith(starts))


def read_official(path: str | Path, weights: str = "ema") -> OfficialFile:
    """Reads an official file; nothing in it can run code.

    Args:
        path: `vqgan.pt`, `best.pth` or `videogpt.pt`.
        weights: Which weights of a training checkpoint: "ema" or "model". Bare state dicts have only one kind.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is not of tensors only, or lacks the weights asked for.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r} is not allowed: expected one of {WEIGHTS}")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no official file at {path}: correct source= (or codec_source=)")
    values = load_tensors(path)
    if _is_state_dict(values):
        return OfficialFile(path, values, {}, "plain")
    found = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
    if not isinstance(values, Mapping) or "model" not in values:
        raise ValueError(
            f"{path} is neither a state dict nor a training checkpoint with 'model' and 'ema': found {found}"
        )
    if not _is_state_dict(values.get(weights)):
        raise ValueError(
            f"{path} has no state dict under {weights!r} (it has {found}); choose the other kind with "
            f"weights={'model' if weights == 'ema' else 'ema'}"
        )
    fallback = values["model"] if _is_state_dict(values["model"]) else {}
    epoch = values.get("last_epoch")
    return OfficialFile(path, values[weights], fallback, weights, epoch if isinstance(epoch, int) else None)


def find_part(weights: Weights, mark: str) -> dict[str, Tensor] | None:
    """Tensors that share the prefix of the one whose name ends with `mark`, without that prefix.

    Where a part was saved under two prefixes, the shortest one counts, if the marked tensors are equal.

    Raises:
        ValueError: if the marked tensors differ, so that it is unclear which part is meant.
    """
    prefix = _prefix(weights, mark)
    if prefix is None:
        return None
    start = f"{prefix}{_COMMON_START[mark]}"
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(start)}


def _prefix(weights: Weights, mark: str) -> str | None:
    found = sorted((n for n in weights if n == mark or n.endswith(f".{mark}")), key=lambda n: (len(n), n))
    for other in found[1:]:
        if not torch.equal(weights[other], weights[found[0]]):
            raise ValueError(f"{found[0]} and {other} differ: unclear which of the two parts is meant")
    return found[0].removesuffix(mark) if found else None


def build_codec(
    weights: Weights, source: str | Path, resolution_px: int = 64, upside_down: bool = False
) -> VQGAN:
    """The codec of an official state dict.

    Args:
        weights: Official names, without prefix.
        source: Named in errors.
        resolution_px: Side of the pictures, which the weights do not tell (the network is convolutional).
        upside_down: Whether it was trained on upside-down pictures.

    Raises:
        ValueError: listing missing and unexpected keys and shapes that differ.
    """
    codec = VQGAN(codec_config(weights, source, resolution_px, upside_down))
    apply_weights(codec, weights, source)
    _freeze(codec)
    return codec


def codec_config(
    weights: Weights, source: str | Path, resolution_px: int = 64, upside_down: bool = False
) -> VQGANConfig:
    """Sizes of an official codec, read off its encoder layer by layer.

    Raises:
        ValueError: if a tensor that tells a size is missing.
    """
    layers = _encoder_layers(weights)
    channels = [_shape(weights, "encoder.model.0.weight", source)[0]]
    blocks, side = 0, resolution_px
    blocks_of_levels: set[int] = set()
    attention: set[int] = set()
    width = channels[0]
    last_down = max((i for i, kind in enumerate(layers) if kind == "down"), default=0)
    for number, kind in enumerate(layers[: last_down + 1]):
        if kind == "block":
            blocks += 1
            width = _shape(weights, f"encoder.model.{number}.block.5.weight", source)[0]
        elif kind == "attention":
            attention.add(side)
        elif kind == "down":
            channels.append(width)
            blocks_of_levels.add(blocks)
            blocks, side = 0, side // 2
    if len(blocks_of_levels) != 1:
        raise ValueError(
            f"{source} is not an official codec: expected levels of equally many residual blocks in the encoder, "
            f"found {sorted(blocks_of_levels)}"
        )
    num_codes, latent_dim = _shape(weights, CODEC_MARK, source)
    return VQGANConfig(
        resolution_px=resolution_px,
        latent_size=side,
        image_channels=_shape(weights, "encoder.model.0.weight", source)[1],
        latent_dim=latent_dim,
        num_codes=num_codes,
        channels=tuple(channels),
        residual_blocks=blocks_of_levels.pop(),
        attention_resolutions=tuple(sorted(attention)),
        upside_down=upside_down,
    )


def build_video_model(
    weights: Weights,
    source: str | Path,
    num_heads: int = 16,
    num_history_frames: int = 2,
    frame_skip: int = 1,
) -> tuple[VQDiffusion, list[str]]:
    """The video diffusion model of an official state dict.

    Args:
        weights: Official names (`transformer.*`, `condition_emb.*`, schedule tables), without further prefix.
        source: Named in errors.
        num_heads: Attention heads; no shape tells them.
        num_history_frames: History frames; no shape tells them.
        frame_skip: Distance of neighbouring frames; no shape tells it.

    Returns:
        The model, and the names that were left out because nothing reads them.

    Raises:
        ValueError: for missing or unexpected keys, shapes that differ, or another noise schedule.
    """
    unused = sorted(name for name in weights if UNUSED_MASK.search(name))
    kept = {name: value for name, value in weights.items() if name not in unused}
    config = video_config(kept, source, num_heads, num_history_frames, frame_skip)
    _require_schedule(kept, config, source)
    model = VQDiffusion(config)
    # Nothing reads the masks; the model's own stand in for them, so that files with and without them load.
    own_masks = {name: value for name, value in model.state_dict().items() if UNUSED_MASK.search(name)}
    apply_weights(model, kept | own_masks, source)
    _freeze(model)
    return model, unused


def video_config(
    weights: Weights, source: str | Path, num_heads: int, num_history_frames: int, frame_skip: int
) -> VQDiffusionConfig:
    """Sizes of an official video model, read off its shapes.

    Raises:
        ValueError: if a tensor that tells a size is missing.
    """
    classes, width = _shape(weights, DIFFUSION_MARK, source)
    return VQDiffusionConfig(
        num_codes=classes - 1,
        latent_size=_shape(weights, "transformer.content_emb.height_emb.weight", source)[0],
        num_history_frames=num_history_frames,
        frame_skip=frame_skip,
        num_diffusion_steps=_shape(weights, "log_at", source)[0],
        num_layers=_count(weights, r"transformer\.blocks\.(\d+)\."),
        width=width,
        num_heads=num_heads,
        condition_dim=_shape(weights, "condition_emb.emb.weight", source)[1],
        mlp_ratio=_shape(weights, "transformer.blocks.0.mlp.conv1.weight", source)[0] // width,
    )


def build_videogpt(
    weights: Weights, codec: VQGAN, source: str | Path, num_heads: int = 8, num_history_frames: int = 2
) -> tuple[VideoGPT, list[str]]:
    """VideoGPT of an official state dict.

    Args:
        weights: Official names (`transformer.*`), without further prefix.
        codec: Its codec.
        source: Named in errors.
        num_heads: Attention heads; no shape tells them.
        num_history_frames: Frames before the predicted one; no shape tells them, since official weights hold
            more positions than a window has tokens.

    Returns:
        The model, and the names that were left out because nothing reads them.

    Raises:
        ValueError: for missing or unexpected keys, shapes that differ, or masks that are not causal.
    """
    width, latent_dim = _shape(weights, "transformer.tok_emb.weight", source)
    config = VideoGPTConfig(
        num_codes=_shape(weights, "transformer.head.weight", source)[0],
        latent_size=codec.config.latent_size,
        latent_dim=latent_dim,
        num_history_frames=num_history_frames,
        num_layers=_count(weights, r"transformer\.blocks\.(\d+)\."),
        width=width,
        num_heads=num_heads,
        mlp_ratio=_shape(weights, "transformer.blocks.0.mlp.0.weight", source)[0] // width,
    )
    require_codec_fits(config, codec)
    kept = from_official(weights, config, str(source))
    model = VideoGPT(config, codec.codebook.embedding.weight)
    apply_weights(model, kept, source)
    _freeze(model)
    return model, sorted(set(weights) - set(kept))


def _require_schedule(weights: Weights, config: VQDiffusionConfig, source: str | Path) -> None:
    for name, table in log_tables(config.num_diffusion_steps, config.num_codes).items():
        stored = weights.get(name)
        if stored is None or stored.shape != table.shape:
            continue  # apply_weights says so
        if not torch.allclose(stored.double().exp(), table.double().exp(), rtol=1e-3, atol=1e-5):
            raise ValueError(
                f"{source}: the noise schedule differs from the official one in {name}; only alpha1 schedules from "
                "0.99999 to 0.000009 are known here"
            )


def _encoder_layers(weights: Weights) -> list[str]:
    """Kind of each layer of `encoder.model`, by the names of its parameters."""
    kinds = {"block.5.weight": "block", "q.weight": "attention", "conv.weight": "down"}
    layers = ["other"] * _count(weights, r"encoder\.model\.(\d+)\.")
    for name in weights:
        match = re.match(r"encoder\.model\.(\d+)\.(.+)$", name)
        if match and match[2] in kinds:
            layers[int(match[1])] = kinds[match[2]]
    return layers


def _count(weights: Weights, pattern: str) -> int:
    return max((int(m[1]) + 1 for m in (re.match(pattern, name) for name in weights) if m), default=0)


def _shape(weights: Weights, name: str, source: str | Path) -> tuple[int, ...]:
    if name not in weights:
        near = sorted(weights)[:3]
        raise ValueError(f"{source} lacks {name}, which tells a size; its names begin with {near}")
    return tuple(weights[name].shape)


def _is_state_dict(values: object) -> bool:
    return (
        isinstance(values, Mapping)
        and bool(values)
        and all(isinstance(value, Tensor) for value in values.values())
    )


def _freeze(module: nn.Module) -> None:
    module.eval().requires_grad_(False)
