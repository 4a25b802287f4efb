"""reward=amp from the command line: what does not fit is refused before anything starts."""

from __future__ import annotations

import pytest

from launch.cli import UsageError, compose
from launch.settings import train_settings
from launch.train import run_training, video_folders
from models.amp import AMPConfig
from tests.learner.test_amp_bonus import write_expert


def test_presets():
    paper = train_settings(compose("train", ["preset=paper", "reward=amp"]))
    assert paper.bonus.amp == AMPConfig()
    assert (paper.bonus.train_every_updates, paper.bonus.norm, paper.bonus.reward_on) == (5, "none", "obs")
    # r = r_amp + r_sparse
    assert (
        paper.bonus_config.weight,
        paper.replay_config.env_weight,
        paper.replay_config.learned_weight,
    ) == (
        1.0,
        1.0,
        0.0,
    )
    laptop = train_settings(compose("train", ["preset=laptop", "reward=amp", "task=adroit-door"]))
    assert laptop.bonus.amp.hidden_dim == 64
    assert laptop.bonus.train_every_updates == 5  # RND's interval on Adroit is RND's only.


def test_amp_can_stand_in_for_rnd():
    settings = train_settings(compose("train", ["reward=diffusion", "bonus.name=amp", "bonus.videos=[a,b]"]))
    assert settings.bonus.folders == ("a", "b")


def test_video_folders_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert video_folders("data/{task}/expert", "reach") == f"{tmp_path}/data/reach/expert"
    assert video_folders(["/a", "b"], "reach") == ["/a", f"{tmp_path}/b"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["bonus.videos={tmp}/absent"], "no videos at"),
        (["task=reach", "bonus.videos={tmp}/expert"], "have task='door-close', this run has task='reach'"),
        (["bonus.videos={tmp}/expert", "env.render.quality=full"], "quality: 'fast' against 'full'"),
        (
            ["bonus.videos={tmp}/expert", "env.action_repeat=2"],
            "action_repeat=3, this run has action_repeat=2",
        ),
        (["bonus.videos=null"], "bonus.videos=None is not allowed"),
        (["bonus.amp.penalty=none"], "amp.penalty='none' is not allowed"),
    ],
)
def test_refusals_before_the_run_starts(tmp_path, overrides, message):
    write_expert(tmp_path / "expert")
    given = [o.replace("{tmp}", str(tmp_path)) for o in overrides]
    with pytest.raises((ValueError, FileNotFoundError, UsageError)) as caught:
        run_training(compose("train", ["reward=amp", f"out={tmp_path}/run", *given]))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()
