"""A restored training state has each part where the training needs it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.training_state import TrainingState


def state(folder, device):
    model = nn.Linear(2, 1, device=device)
    optimiser = torch.optim.AdamW(model.parameters())
    return TrainingState("toy", model, optimiser, folder, torch.device(device))


@pytest.mark.filterwarnings("ignore:.*no-op")  # weights on "meta", which stands for a GPU, have no values
def test_step_counters_of_the_optimiser_stay_on_the_cpu(tmp_path):
    first = state(tmp_path, "cpu")
    loss = first.model(torch.ones(3, 2)).sum()
    loss.backward()
    first.optimiser.step()
    first.count(loss)
    first.save()
    second = state(tmp_path, "meta")
    second.restore()
    for moments in second.optimiser.state.values():
        assert (moments["step"].item(), moments["step"].device.type) == (1, "cpu")
        assert moments["exp_avg"].device.type == "meta"
    assert (second.step, second.loss_steps, second.loss_sum.device.type) == (1, 1, "meta")
