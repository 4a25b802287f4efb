"""Pairs of next latents from Stable Diffusion and Safe Stable Diffusion, for people who have the weights.

Nothing is downloaded: `model` is a folder in the layout of `diffusers` (or the name of one that is in the local
cache already), and only safetensors files are read. Base and expert start from the same latents at every step; the
expert adds the safety guidance of Safe Latent Diffusion (arXiv 2211.05105). Then
`python launch/relative.py train domain=images preset=paper images.data=<out> out=<folder>` trains a reward on the pairs.
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from launch import cli
from launch.cli import UsageError, build, suggest
from launch.paths import absolute_path
from launch.pretrain import choose_device
from launch.progress import Progress
from models.images.config import PairConfig, SafeGuidanceConfig
from models.images.ddim import DDIMSteps
from models.images.pairs import PairSet, make_pairs
from models.images.sampling import Predict

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main() -> None:
    """Entry point of `python launch/stable_diffusion.py`."""
    cli.main("stable_diffusion", __doc__ or "", run)


def run(config: DictConfig) -> int:
    """Loads the pair, reads the prompts and makes the pairs.

    Raises:
        UsageError: for missing keys, an unknown dtype or an empty prompt file.
        ImportError: if diffusers or transformers are not installed.
        FileNotFoundError: if weights or prompts are missing.
    """
    for key in ("model", "prompts", "out"):
        if config[key] is None:
            raise UsageError(f"{key} is missing: give {key}=..., see --help")
    if config.dtype not in DTYPES:
        raise UsageError(f"unknown dtype {config.dtype!r}; {suggest(str(config.dtype), DTYPES)}")
    guidance = build(SafeGuidanceConfig, config.guidance, "guidance.")
    pairs = build(PairConfig, config.pairs, "pairs.")
    prompts = read_prompts(absolute_path(str(config.prompts), "prompts"))
    device, dtype = choose_device(config.device), DTYPES[config.dtype]
    base = load_stable_diffusion(str(config.model), device, dtype)
    expert = None
    if config.expert is not None:
        expert = load_stable_diffusion(str(config.expert), device, dtype)
        require_same_latents(base, expert)
    made = stable_diffusion_pairs(
        absolute_path(str(config.out), "out"),
        base,
        prompts,
        str(config.concept),
        guidance,
        pairs,
        expert=expert,
        size_px=config.size_px,
        seed=int(config.seed),
        progress=Progress("pairs", "trajectories"),
    )
    print(f"[pairs] {len(made)} trajectories of {made.num_steps} steps, latents {made.shape}: {made.folder}")
    return 0


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        FileNotFoundError: if it is missing.
        UsageError: if there are none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no prompts at {path}: give prompts=<text file, one prompt a line>")
    prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise UsageError(f"{path} holds no prompts: write one a line")
    return prompts


@dataclass(frozen=True)
class StableDiffusion:
    """The parts of a Stable Diffusion checkpoint that sampling needs.

    Attributes:
        source: Folder or name it was loaded from.
        unet: `UNet2DConditionModel`.
        vae: `AutoencoderKL`.
        text_encoder: `CLIPTextModel`.
        tokenizer: `CLIPTokenizer`.
        scheduler: `DDIMScheduler`; only its noise levels are used, it keeps no state here.
    """

    source: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.unet.parameters()).device

    def latent_shape(self, size_px: int | None = None) -> tuple[int, int, int]:
        """(C, H, W) of latents.

        Args:
            size_px: Height and width of images; None for the size that the network was made for.

        Raises:
            UsageError: if the size does not divide into latents.
        """
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        if size_px is None:
            size = int(self.unet.config.sample_size)
        elif size_px % factor or size_px <= 0:
            raise UsageError(f"size_px must be a positive multiple of {factor}, got {size_px}")
        else:
            size = size_px // factor
        return int(self.unet.config.in_channels), size, size

    def steps(self, config: SafeGuidanceConfig) -> DDIMSteps:
        """The noise levels of sampling, as in `DDIMScheduler` with leading spacing."""
        return DDIMSteps(
            self.scheduler.alphas_cumprod.double(),
            config.num_steps,
            config.clip_x0,
            int(self.scheduler.config.steps_offset),
            float(self.scheduler.final_alpha_cumprod),
        )

    def weights(self) -> str:
        """Checksum of the networks that next latents depend on (CRC-32, 8 hex digits); seconds for those of full size."""
        checksum = 0
        for network in (self.unet, self.text_encoder):
            for value in network.state_dict().values():
                checksum = zlib.crc32(value.cpu().flatten().view(torch.uint8).numpy(), checksum)
        return f"{checksum:08x}"

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Tensor:
        """(B, tokens, width) text embeddings; texts that are too long are cut off, as in `diffusers`."""
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.text_encoder.config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder(tokens.to(self.device))[0]

    def predictor(self, prompts: list[str], concept: str) -> Predict:
        """Predicted noise for a batch of prompts: without condition, with the prompt, with the concept."""
        null, unsafe = self.encode_text(["", concept]).chunk(2)
        rows = len(prompts)
        texts = torch.cat([null.expand(rows, -1, -1), self.encode_text(prompts), unsafe.expand(rows, -1, -1)])

        def predict(latents: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
            # Three passes instead of one of three times the size: a batch is as large as fits.
            noise = [
                self.unet(
                    latents.to(part.dtype), torch.tensor(level, device=latents.device), part
                ).sample.float()
                for part in texts.chunk(3)
            ]
            return noise[0], noise[1], noise[2]

        return predict

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents.

        Args:
            latents: (B, C, H, W).

        Returns:
            (B, 3, height, width) float32, about [-1, 1].
        """
        values = latents.to(self.device, next(self.vae.parameters()).dtype)
        return self.vae.decode(values / self.vae.config.scaling_factor).sample.float().cpu()


def load_stable_diffusion(
    source: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> StableDiffusion:
    """Loads a checkpoint without touching the network, from safetensors files only.

    Args:
        source: Folder in the layout of `diffusers`, or the name of one in the local cache of the Hugging Face hub.
        device: Where the networks go.
        dtype: Of the networks.

    Raises:
        ImportError: if diffusers or transformers are not installed.
        FileNotFoundError: if a part is not there as safetensors.
        UsageError: if the model does not predict noise.
    """
    try:
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise ImportError(
            f"Stable Diffusion needs diffusers and transformers ({error}): pip install -e '.[stable_diffusion]'"
        ) from error
    classes = (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTokenizer, DDIMScheduler)
    folder = Path(source).expanduser()
    place = str(folder) if folder.exists() else source
    loaded: dict[str, Any] = {}
    for part, cls in zip(PARTS, classes):
        options: dict[str, Any] = {"subfolder": part, "local_files_only": True}
        if part in ("unet", "vae", "text_encoder"):
            options["use_safetensors"] = True
        try:
            loaded[part] = cls.from_pretrained(place, **options)
        except (OSError, ValueError, TypeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise FileNotFoundError(
                f"cannot load {part} of {source} ({first}). Nothing is downloaded here: give model=<folder with "
                f"{', '.join(PARTS)}>, the networks as .safetensors files (pickled .bin files are refused)"
            ) from error
    kind = loaded["scheduler"].config.prediction_type
    if kind != "epsilon":
        raise UsageError(f"{source} predicts {kind!r}, expected 'epsilon' as in Stable Diffusion 1.x")
    for part in ("unet", "vae", "text_encoder"):
        loaded[part] = loaded[part].to(device=device, dtype=dtype).eval().requires_grad_(False)
    return StableDiffusion(source, **loaded)


def require_same_latents(base: StableDiffusion, expert: StableDiffusion) -> None:
    """Refuses an expert whose latents mean something else than the base's.

    Raises:
        UsageError: naming what differs.
    """
    if base.latent_shape() != expert.latent_shape():
        raise UsageError(
            f"latents of {base.source} are {base.latent_shape()}, of {expert.source} {expert.latent_shape()}; "
            "use two models of one family"
        )
    if not torch.equal(base.scheduler.alphas_cumprod, expert.scheduler.alphas_cumprod):
        raise UsageError(
            f"{base.source} and {expert.source} have different noise levels; use models of one family"
        )
    mine, theirs = base.vae.state_dict(), expert.vae.state_dict()
    if mine.keys() != theirs.keys() or any(not torch.equal(mine[name], theirs[name]) for name in mine):
        raise UsageError(
            f"{base.source} and {expert.source} have different autoencoders; use models of one family"
        )


def stable_diffusion_pairs(
    out: Path,
    base: StableDiffusion,
    prompts: list[str],
    concept: str,
    guidance: SafeGuidanceConfig,
    config: PairConfig,
    *,
    expert: StableDiffusion | None = None,
    size_px: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PairSet:
    """Makes the pairs, or those that are missing.

    Args:
        out: Folder of pairs.
        base: The base model.
        prompts: Texts; each gets about the same number of trajectories.
        concept: What is unsafe, in words.
        guidance: Guidance of base and expert.
        config: How many.
        expert: Null if the expert shares the base's network, as Safe Stable Diffusion does.
        size_px: Height and width of images; None for the model's own.
        seed: Of prompts and noise.
        progress: Called with (trajectories done, trajectories planned).

    Raises:
        ValueError: if `out` was made with other settings.
    """
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    facts = {
        "model": base.source,
        "expert": None if expert is None else expert.source,
        "weights": [model.weights() for model in (base, expert) if model is not None],
        "concept": concept,
        "prompt_lines": len(prompts),
        "prompt_sha256": digest,
    }

    def predictor_of(model: StableDiffusion) -> Any:
        return lambda chosen: model.predictor(
            [prompts[int(number)] for number in np.asarray(chosen)], concept
        )

    return make_pairs(
        out,
        predictor_of(base),
        base.steps(guidance),
        guidance,
        config,
        base.latent_shape(size_px),
        len(prompts),
        facts,
        seed=seed,
        device=base.device,
        progress=progress,
        expert=None if expert is None else predictor_of(expert),
    )


if __name__ == "__main__":
    main()
