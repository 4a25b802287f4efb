"""The worked example of CONTRIBUTING.md, run as it stands there in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from models.episode import Episode
from models.files import read_json
from models.videos import RenderSettings, write_videos

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("actors", "configs", "launch", "learner", "models", "reward_service")


def files_of_the_example() -> dict[str, str]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```(?:python|yaml)\n# ([\w/.]+)\n(.*?)```", text, flags=re.DOTALL)
    return dict(blocks)


def expert_videos(folder: Path) -> None:
    """A bar that grows to the right: each picture is nearer to the last one."""
    frames = np.zeros((9, 64, 64, 3), np.uint8)
    for step in range(9):
        frames[step, :, : 6 * step + 8] = 255
    zeros = np.zeros(8, np.float32)
    episodes = [
        Episode(f"e/{i}", "door-close", frames, zeros[:, None].repeat(4, 1), zeros, zeros + 1, zeros > 0)
        for i in range(4)
    ]
    write_videos(
        folder,
        episodes,
        task="door-close",
        domain="metaworld",
        mode="expert",
        render=RenderSettings(),
        action_repeat=3,
        validation_every=2,
    )


def test_a_reward_is_one_file_and_one_yaml(tmp_path):
    files = files_of_the_example()
    assert sorted(files) == ["configs/reward/goal_image.yaml", "reward_service/goal_image_reward.py"]
    project = tmp_path / "project"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, project / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in files.items():
        assert not (project / name).exists()
        (project / name).write_text(text)
    expert_videos(project / "data/door-close/expert")

    def run(verb: str, *overrides: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, f"launch/{verb}.py", *overrides],
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"},
        )

    videos = ["videos=data/door-close/expert", "split=validation", "against=[frozen,reversed]"]
    scored = run("score", "reward=goal_image", *videos, "out=scores/a")
    assert scored.returncode == 0, scored.stderr
    summary = read_json(project / "scores/a/summary.json")
    assert summary["progress_correlation"]["per_episode"] == 1.0
    assert [row["auc_per_episode"] for row in summary["against"]] == [1.0, 0.5]
    config = run("train", "reward=goal_image", "frame_reward.power=0.5", "--cfg")
    assert "power: 0.5" in config.stdout and config.returncode == 0
    wrong = run("train", "reward=goal_image", "task=adroit-door", "reward.checkpoint=data/door-close/expert")
    assert wrong.returncode == 2 and "was trained on 'metaworld' videos" in wrong.stderr
