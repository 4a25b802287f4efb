"""Stand-ins for an environment and a policy, with literal behaviour."""

from __future__ import annotations

import numpy as np


class FakeEnv:
    """Frames are filled with the step number; the reward of a step is given by `rewards`."""

    def __init__(self, rewards):
        self.rewards = rewards
        self.seeds = []

    def reset(self, *, seed=None):
        self.seeds.append(seed)
        self.steps = 0
        return np.zeros((8, 8, 3), np.uint8), {"seed": seed}

    def step(self, action):
        reward = float(self.rewards[self.steps])
        self.steps += 1
        info = {"success": reward > 0, "dense_reward": 0.5, "discount": 1.0}
        frame = np.full((8, 8, 3), self.steps, np.uint8)
        return frame, reward, False, self.steps == len(self.rewards), info


class FakePolicy:
    """Remembers what it was asked; acts with its loaded number, plus noise."""

    def __init__(self):
        self.value = np.nan
        self.calls = []

    def load(self, weights):
        self.value = float(weights["value"])

    def act(self, frames, stddev, noise=None, uniform=False):
        assert frames.dtype == np.uint8 and frames.ndim == 4
        self.calls.append((len(frames), None if stddev is None else round(stddev, 6), uniform, self.value))
        if uniform:
            return np.tanh(noise)
        scaled = 0.0 if stddev is None else stddev * noise
        return np.clip(np.full((len(frames), 4), self.value) + scaled, -1, 1).astype(np.float32)
