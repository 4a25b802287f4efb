"""Experts from elsewhere: what they do on a state, what is refused, and what the message says."""

from __future__ import annotations

import io
import json
import sys
import zipfile

import numpy as np
import pytest
import torch

from actors.collecting import collect_episodes
from actors.envs.registry import EnvConfig
from actors.expert_sources import load_expert
from actors.policy_file import save_policy_file
from actors.sb3_policy import load_sb3_policy
from models.videos import RenderSettings

STATE = 39  # MetaWorld
ACTION = 4


def box(bound: str = "1.0") -> dict:
    """The action space as Stable-Baselines3 writes it: a pickle that nobody should open, and plain text beside it."""
    return {
        ":type:": "<class 'gymnasium.spaces.box.Box'>",
        ":serialized:": "gASVEQAAAAAAAACMBXNoYXBllEsESwSGlC4=",
        "_shape": [ACTION],
        "low": f"[-{bound} -{bound} -{bound} -{bound}]",
        "high": f"[{bound} {bound} {bound} {bound}]",
        "low_repr": f"-{bound}",
        "high_repr": bound,
    }


def write_zip(path, weights: dict, data: dict | None = None):
    packed = io.BytesIO()
    torch.save(weights, packed)
    content = {"action_space": box(), "policy_kwargs": {}, "use_sde": False} | (data or {})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(content))
        archive.writestr("policy.pth", packed.getvalue())
        archive.writestr("_stable_baselines3_version", "2.7.0")
    return path


def layer(name: str, weight: list, bias: list) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.tensor(weight), f"{name}.bias": torch.tensor(bias)}


def random_layers(*named: tuple[str, int, int]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    for name, inputs, outputs in named:
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator) / 6
        weights[f"{name}.bias"] = torch.randn(outputs, generator=generator) / 6
    return weights


PPO = {
    **layer("mlp_extractor.policy_net.0", [[1.0, -1.0]], [0.5]),
    **layer("mlp_extractor.value_net.0", [[9.0, 9.0]], [9.0]),
    **layer("action_net", [[2.0], [-3.0]], [0.0, 1.0]),
    **layer("value_net", [[9.0]], [9.0]),
    "log_std": torch.zeros(2),
}
SAC = {
    **layer("actor.latent_pi.0", [[1.0, -1.0], [-1.0, 1.0]], [0.5, 0.0]),
    **layer("actor.mu", [[2.0, 1.0]], [-0.5]),
    **layer("actor.log_std", [[9.0, 9.0]], [9.0]),
    **layer("critic.qf0.0", [[9.0, 9.0, 9.0]], [9.0]),
}
TD3 = {
    **layer("actor.mu.0", [[1.0, -1.0]], [0.5]),
    **layer("actor.mu.2", [[2.0]], [-0.5]),
    **layer("actor_target.mu.0", [[9.0, 9.0]], [9.0]),
}


@pytest.mark.parametrize(
    ("weights", "data", "expected"),
    [
        # 1 - 2 + 0.5 = -0.5; tanh; [2 h, 1 - 3 h] clipped
        (PPO, {}, [2 * np.tanh(-0.5), 1.0]),
        # relu([-0.5, 1]) = [0, 1]; tanh(1 - 0.5)
        (SAC, {}, [np.tanh(0.5)]),
        # relu(-0.5) = 0; tanh(-0.5)
        (TD3, {}, [np.tanh(-0.5)]),
        # the activation that the file names: elu(-0.5) = exp(-0.5) - 1
        (
            TD3,
            {
                "policy_kwargs": {
                    ":serialized:": "x",
                    "activation_fn": "<class 'torch.nn.modules.activation.ELU'>",
                }
            },
            [np.tanh(2 * (np.exp(-0.5) - 1) - 0.5)],
        ),
    ],
)
def test_actions_of_known_weights_by_hand(tmp_path, weights, data, expected):
    policy = load_sb3_policy(write_zip(tmp_path / "model.zip", weights, data))
    action = policy(np.array([1.0, 2.0]))
    assert action.dtype == np.float32
    np.testing.assert_allclose(action, expected, atol=1e-6)
    assert ("default" in str(policy)) == (not data)


def test_deeper_policies_keep_the_order_of_their_layers(tmp_path):
    names = (
        ("actor.latent_pi.0", 5, 7),
        ("actor.latent_pi.2", 7, 6),
        ("actor.latent_pi.10", 6, 3),
        ("actor.mu", 3, 2),
    )
    weights = random_layers(*reversed(names))
    policy = load_sb3_policy(write_zip(tmp_path / "model.zip", weights))
    layers: list[torch.nn.Module] = []
    for name, inputs, outputs in names:
        linear = torch.nn.Linear(inputs, outputs)
        linear.load_state_dict({k: weights[f"{name}.{k}"] for k in ("weight", "bias")})
        layers += [linear, torch.nn.ReLU()]
    state = np.linspace(-2, 2, 5)
    with torch.no_grad():
        expected = torch.nn.Sequential(*layers[:-1])(torch.tensor(state, dtype=torch.float32)).tanh()
    np.testing.assert_allclose(policy(state), expected.numpy(), atol=1e-6)
    assert (policy.state_size, policy.action_size) == (5, 2)


class Exploit:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    touched = tmp_path / "touched"
    write_zip(tmp_path / "model.zip", {**PPO, "extra": Exploit(touched)})
    with pytest.raises(ValueError, match=r"policy\.pth of .*model\.zip was refused"):
        load_expert(str(tmp_path / "model.zip"), "reach")
    assert not touched.exists()


@pytest.mark.parametrize(
    ("weights", "data", "message"),
    [
        ({**PPO, **layer("features_extractor.cnn.0", [[1.0]], [1.0])}, {}, r"features_extractor\.cnn"),
        ({"q_net.q_net.0.weight": torch.zeros(1, 1)}, {}, r"no policy that is supported.*q_net"),
        ({**PPO, "mlp_extractor.policy_net.0.weight": torch.zeros(1)}, {}, "is no linear layer"),
        ({**PPO, "action_net.weight": torch.zeros(2, 7)}, {}, "1 outputs is followed by one with 7 inputs"),
        ({**PPO, "action_net.bias": torch.tensor([np.nan, 0.0])}, {}, "not finite"),
        (PPO, {"use_sde": True}, "use_sde"),
        (PPO, {"action_space": {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>"}}, "Discrete"),
        (PPO, {"action_space": box("2.0")}, r"low -2\.0, expected -1"),
        (
            PPO,
            {"policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.Softmax'>"}},
            "Softmax",
        ),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, weights, data, message):
    with pytest.raises(ValueError, match=message):
        load_sb3_policy(write_zip(tmp_path / "model.zip", weights, data))


def test_files_that_are_something_else(tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match="damaged or another kind"):
        load_sb3_policy(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"holds readme\.txt; expected a file written by model\.save"):
        load_sb3_policy(tmp_path / "other.zip")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="unknown kind"):
        load_expert(str(tmp_path / "notes.txt"), "reach")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz.*module:function"):
        load_expert(str(tmp_path / "nowhere.npz"), "reach")


def test_sizes_are_compared_with_the_environment(tmp_path):
    def sized(name, state, action):
        layers = ("mlp_extractor.policy_net.0", state, 8), ("action_net", 8, action)
        return str(write_zip(tmp_path / name, random_layers(*layers)))

    assert load_expert(sized("fits.zip", STATE, ACTION), "reach")(np.zeros(STATE)).shape == (ACTION,)
    with pytest.raises(ValueError, match="states of 46 numbers, the environment 39"):
        load_expert(sized("state.zip", 46, ACTION), "reach")
    with pytest.raises(ValueError, match="actions of 26 numbers, the environment 4"):
        load_expert(sized("action.zip", STATE, 26), "reach")


def test_a_policy_file_and_the_folder_that_train_expert_makes(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "w0": (8, STATE),
        "b0": 8,
        "w1": (8, 8),
        "b1": 8,
        "w2": (ACTION, 8),
        "b2": ACTION,
        "in_shift": STATE,
    }
    arrays |= {"in_scale": STATE, "out_shift": ACTION, "out_scale": ACTION, "log_std": ACTION}
    filled = {key: rng.normal(size=shape).astype(np.float32) for key, shape in arrays.items()}
    sizes = np.array([STATE, 8, 8, ACTION], np.int32)
    save_policy_file(
        tmp_path / "expert.npz", {**filled, "nonlinearity": np.array("relu"), "layer_sizes": sizes}
    )
    state = rng.normal(size=STATE)
    one, two = (load_expert(str(path), "reach") for path in (tmp_path / "expert.npz", tmp_path))
    np.testing.assert_array_equal(one(state), two(state))
    with pytest.raises(ValueError, match="does not fit task 'adroit-door'"):
        load_expert(str(tmp_path), "adroit-door")


MODULE = """
import numpy as np

class Counting:
    def __init__(self):
        self.resets = 0
    def reset(self):
        self.resets += 1
    def __call__(self, state):
        return np.full(4, 5.0)

made = []
def expert(task):
    made.append(Counting())
    return made[-1]
def nothing(task):
    return None
def short(task):
    return lambda state: np.zeros(3)
def broken(task):
    return lambda state: state @ np.zeros((5, 4))
def infinite(task):
    return lambda state: np.full(4, np.nan)
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_experts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_experts", None)


def test_a_function_of_ones_own(own_module):
    expert = load_expert("my_experts:expert", "reach")
    action = expert(np.zeros(STATE))
    np.testing.assert_array_equal(action, np.ones(4))
    assert action.dtype == np.float32
    config = EnvConfig("reach", episode_steps=3, render=RenderSettings(height_px=16, width_px=16))
    episodes = list(collect_episodes(config, "half", 2, seed=0, expert=expert))
    assert all((episode.actions == 1.0).all() for episode, _ in episodes)
    assert sys.modules["my_experts"].made[0].resets == 2  # one for each episode


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:expert", "cannot import 'no_such_module'"),
        ("my_experts:nobody", "has no function 'nobody'"),
        ("my_experts:nothing", "returned None; expected a callable"),
        ("my_experts:short", r"shape \(3,\).*expected 4 finite numbers"),
        ("my_experts:infinite", "expected 4 finite numbers"),
        ("my_experts:broken", r"fails on a state of task 'reach' \(39 numbers\)"),
    ],
)
def test_functions_that_do_not_work_are_named(own_module, spec, message):
    with pytest.raises(ValueError, match=message) as error:
        load_expert(spec, "reach")
    assert spec in str(error.value)


def test_rllib_checkpoints_are_unpickled_only_with_trust(tmp_path):
    # Where nothing reads them, trust would not help.
    with pytest.raises(ValueError, match="RLlib checkpoints can not be read here"):
        load_expert(str(tmp_path), "reach")
    seen = []

    def load(path):
        seen.append(path)
        return lambda state: np.zeros(4)

    with pytest.raises(ValueError, match=r"runs whatever code.*trust_expert=true"):
        load_expert(str(tmp_path), "reach", load_checkpoint=load)
    assert not seen
    load_expert(str(tmp_path), "reach", trust=True, load_checkpoint=load)
    assert seen == [tmp_path]
