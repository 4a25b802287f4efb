"""Official files through the verb: convert, then statistics and scores on an official dataset, as a user would."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoints import CONFIG_FILE
from models.videogpt.checkpoint import load_videogpt
from models.videos import read_videos
from models.vqdiffusion.checkpoint import load_video_model
from models.vqgan import images_to_tensor, load_codec
from tests.launch.conftest import refused, run_here, run_verb
from tests.models.test_videogpt import close, tensors


def with_prefix(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.fixture(scope="module")
def files(golden, tmp_path_factory):
    """vqgan.pt, best.pth and videogpt.pt as the official code would have written them, and a dataset."""
    folder = tmp_path_factory.mktemp("official")
    codec = tensors(golden("vqgan") / "vqgan_state.npz")
    ema = tensors(golden("vqdiffusion") / "transformer_state.npz")
    model = with_prefix("transformer.", ema) | with_prefix("content_codec.", codec)
    gpt = tensors(golden("viper") / "videogpt_state.npz")
    torch.save(codec, folder / "vqgan.pt")
    torch.save({"model": model, "ema": ema, "last_epoch": 99}, folder / "best.pth")
    more = {"lpips.weight": torch.zeros(1)}
    torch.save(gpt | with_prefix("vqgan.", codec) | more, folder / "videogpt.pt")
    torch.save(gpt, folder / "videogpt_without_codec.pt")
    frames = np.load(golden("diffusion_reward") / "io.npz")["frames_u8"]
    for split in ("train", "test"):
        for episode in range(2):
            path = folder / "data" / "metaworld" / "door-close-v2" / split / str(episode)
            path.mkdir(parents=True)
            for number, frame in enumerate(frames):
                Image.fromarray(frame).save(path / f"{number}.png")
    return folder


def test_codec(files, golden, tmp_path):
    done = run_verb("convert", "kind=codec", f"source={files}/vqgan.pt", f"out={tmp_path}/codec")
    assert "weights know upright pictures (default of the domain" in done.stdout
    io = np.load(golden("vqgan") / "io.npz")
    tokens = load_codec(tmp_path / "codec").encode_tokens(images_to_tensor(io["images_u8"]))
    assert torch.equal(tokens, torch.from_numpy(io["tokens"]))
    config = json.loads((tmp_path / "codec" / CONFIG_FILE).read_text())
    assert (config["domain"], config["action_repeat"], config["render"]["quality"]) == (
        "metaworld",
        3,
        "full",
    )
    again = refused("convert", "kind=codec", f"source={files}/vqgan.pt", f"out={tmp_path}/codec")
    assert "already exists; nothing is overwritten" in again


def test_video_model_gets_statistics_and_scores_the_golden_episode(files, golden, tmp_path):
    out = tmp_path / "video"
    run_here("convert", "kind=video", f"source={files}/best.pth", "num_heads=4", f"out={out}")
    model, _, meta = load_video_model(out)
    assert model.config.num_layers == 2
    assert meta["official"] == {"file": "best.pth", "weights": "ema", "last_epoch": 99}
    assert meta["tasks"] == sorted(meta["tasks"]) and len(meta["tasks"]) == 7
    # Without noise the chain is deterministic, so the raw reward must be the golden one.
    common = [
        *("task=door-close", "preset=paper", "reward=diffusion", "device=cpu"),
        *("frame_reward.noise=false", "frame_reward.batch_rows=8"),
    ]
    run_verb(
        *("pretrain", *common, "stage=statistics"),
        *(f"data={files}/data/metaworld", f"out={out}", "threads=1"),
    )
    run_here(
        *("score", *common, f"checkpoint={out}", f"videos={files}/data/metaworld/door-close-v2"),
        *("split=validation", "against=frozen", f"out={tmp_path}/score"),
    )
    (numbers,) = (
        tasks["door-close"]
        for signature, tasks in json.loads((out / "statistics.json").read_text()).items()
        if signature.startswith("entropy")
    )
    lines = (tmp_path / "score" / "rewards.csv").read_text().splitlines()[1:13]
    scored = np.array([float(line.split(",")[3]) for line in lines])
    raw = np.load(golden("diffusion_reward") / "io.npz")["entropy_noise0/raw_reward"].reshape(-1)
    np.testing.assert_allclose(scored * numbers["std"] + numbers["mean"], raw, rtol=1e-4)


def test_videogpt(files, golden, tmp_path):
    out = tmp_path / "gpt"
    output = run_here(
        *("convert", "kind=videogpt", "domain=adroit", "tasks=[door,pen]", f"source={files}/videogpt.pt"),
        *("num_heads=4", f"out={out}"),
    )
    assert "weights know upside-down pictures" in output
    assert "left out, unknown: 1 tensors (lpips.weight)" in output
    assert "nothing reads them: 2 tensors (transformer.blocks.0.attn.mask" in output
    model, codec, meta = load_videogpt(out)
    assert (meta["tasks"], meta["action_repeat"]) == (["adroit-door", "adroit-pen"], 2)
    assert meta["render"]["camera"] == "paper"
    assert codec.config.upside_down
    io = tensors(golden("viper") / "io.npz")
    with torch.no_grad():
        close(model.log_probs(io["likelihood/batch_indices"]), io["likelihood/token_logprob"])


def test_codec_from_a_file_of_its_own(files, tmp_path):
    common = ("kind=videogpt", f"source={files}/videogpt_without_codec.pt", "num_heads=4")
    assert "codec_source=<vqgan.pt>" in refused("convert", *common, f"out={tmp_path}/a")
    run_here("convert", *common, f"codec_source={files}/vqgan.pt", f"out={tmp_path}/a")
    load_videogpt(tmp_path / "a")


def test_dataset_becomes_video_folders(files, golden, tmp_path):
    output = run_here("convert", "kind=dataset", f"source={files}/data", f"out={tmp_path}")
    assert f"4 videos of door-close: {tmp_path}/door-close/expert" in output
    videos = read_videos(tmp_path / "door-close" / "expert")
    assert (videos.task, videos.domain, videos.render.quality) == ("door-close", "metaworld", "full")
    assert (len(videos.split("train")), len(videos.split("validation"))) == (2, 2)
    frames = np.load(golden("diffusion_reward") / "io.npz")["frames_u8"]
    assert all(np.array_equal(episode.frames, frames) for episode in videos.episodes)
    assert all(record["success"] is None for record in videos.records)
    again = refused("convert", "kind=dataset", f"source={files}/data", f"out={tmp_path}")
    assert "nothing is overwritten" in again
    assert sorted(path.name for path in (tmp_path / "door-close").iterdir()) == ["expert"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["kind=codex", "source=x"], "did you mean 'codec'"),
        (["kind=codec", "source=/nope.pt"], "no official file at /nope.pt"),
        (["kind=codec", "source={files}/vqgan.pt", "domain=dmc"], "expected one of metaworld, adroit"),
        (["kind=codec", "source={files}/vqgan.pt", "tasks=[raech]"], "did you mean 'reach'"),
        (["kind=codec", "source={files}/vqgan.pt", "weights=best"], "weights='best' is not allowed"),
        (["kind=dataset", "source={files}/vqgan.pt"], "no official dataset"),
        (["kind=dataset", "source={files}/data", "tasks=[reach]"], "has no videos of reach"),
        (["kind=video", "source={files}/vqgan.pt"], "holds no video diffusion model"),
        (["kind=video", "source={files}/best.pth", "num_heads=5"], "expected a multiple of num_heads=5"),
    ],
)
def test_refusals(files, tmp_path, overrides, message):
    from launch.cli import compose
    from launch.convert import convert

    given = [o.replace("{files}", str(files)) for o in overrides]
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        convert(compose("convert", [*given, f"out={tmp_path}/out"]))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()
