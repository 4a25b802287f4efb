from __future__ import annotations

import pytest
import torch

from models.vqgan import VQGAN, save_codec
from tests.models.toy_videos import CODEC, video_set


@pytest.fixture()
def codec_folder(tmp_path):
    torch.manual_seed(0)
    save_codec(tmp_path / "codec", VQGAN(CODEC), {"note": "toy"})
    return tmp_path / "codec"


@pytest.fixture()
def videos(tmp_path):
    return [video_set(tmp_path)]
