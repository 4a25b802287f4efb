"""Adroit: cameras, what can be seen, scenes, state replay, success."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from actors.envs.adroit import EXPERT_POLICIES, AdroitEnv
from actors.envs.registry import EnvConfig, domain_of, make_env
from actors.experts import NOISE_STDDEV, Behaviour, ScriptedExpert
from models.videos import RenderSettings

TASKS = tuple(domain_of("adroit-door").tasks)
STATE_SIZES = {"adroit-door": 39, "adroit-hammer": 46, "adroit-pen": 45, "adroit-relocate": 39}
# MuJoCo's own contact solver forgets its warm start; positions are in metres and radians.
REPLAY_TOLERANCE = 2e-3


def adroit(task, episode_steps=100, action_repeat=2, **render):
    settings = RenderSettings(**{"camera": "paper", "height_px": 64, "width_px": 64, **render})
    return make_env(EnvConfig(task, action_repeat, episode_steps, settings))


def run_expert(env, seed, steps):
    expert = ScriptedExpert(env.config.task)
    env.reset_state(seed)
    actions = []
    for _ in range(steps):
        actions.append(expert.act(env.state))
        env.advance(actions[-1])
    return actions


def test_tasks_and_sizes():
    assert TASKS == ("adroit-door", "adroit-hammer", "adroit-pen", "adroit-relocate")
    for task, size in STATE_SIZES.items():
        env = adroit(task)
        env.reset_state(0)
        assert env.state.shape == (size,)
        assert env.action_space.shape == env._sim.action_space.shape == (env.config.action_dim,)


@pytest.mark.parametrize(
    ("task", "position", "direction"),
    [
        ("adroit-door", (0, 0, 1.5), (0, 0, -1)),
        ("adroit-hammer", (0, 0, 1.1), (0, 0, -1)),
        ("adroit-pen", (0, -0.8, 0.8), (0, 0.5**0.5, -(0.5**0.5))),
        ("adroit-relocate", (0, -0.4, 1.05), (0, 0.4067, -0.9135)),
    ],
)
def test_the_paper_camera_is_each_tasks_own_view(task, position, direction):
    env = adroit(task)
    env.reset(seed=0)
    data, camera = env._sim.data, env._camera_id
    np.testing.assert_allclose(data.cam_xpos[camera], position)
    np.testing.assert_allclose(-data.cam_xmat[camera].reshape(3, 3)[:, 2], direction, atol=2e-3)
    assert env._sim.model.cam_fovy[camera] == 45


def test_cameras_of_the_model_are_left_where_they_are():
    own = adroit("adroit-pen", camera="fixed")
    frame, _ = own.reset(seed=0)
    np.testing.assert_allclose(own._sim.data.cam_xpos[own._camera_id], (0, -0.7, 0.7))
    assert np.abs(frame.astype(int) - adroit("adroit-pen").reset(seed=0)[0]).mean() > 5
    assert adroit("adroit-pen", camera="view_1").reset(seed=0)[0].shape == (64, 64, 3)


@pytest.mark.parametrize(("task", "camera"), [("adroit-door", "corner2"), ("adroit-hammer", "view_1")])
def test_an_unknown_camera_is_refused_and_the_known_are_listed(task, camera):
    with pytest.raises(
        ValueError, match=f"'{camera}' is unknown for task '{task}'.*paper, fixed, vil_camera"
    ):
        AdroitEnv(EnvConfig(task, render=RenderSettings(camera=camera)))


def share(mask):
    return mask.sum() / mask.size


def colours(task, quality="fast"):
    frame = adroit(task, quality=quality).reset(seed=3)[0].astype(int)
    return frame, frame[..., 0], frame[..., 1], frame[..., 2]


@pytest.mark.parametrize("quality", ["fast", "full"])
def test_hand_pen_and_target_can_be_seen(quality):
    _, r, g, b = colours("adroit-pen", quality)
    assert share((b > 120) & (b > r + 60) & (b > g + 30)) > 0.003  # the pen's blue cap
    assert share((g > 120) & (g > r + 60) & (g > b + 20)) > 0.002  # the target's green cap
    assert share((r > b + 40) & (r > g + 15)) > 0.02  # the forearm, below the middle
    rows, _ = np.nonzero((r > b + 40) & (r > g + 15))
    assert rows.mean() > 32


def test_object_and_goal_of_the_other_tasks_can_be_seen():
    frame, r, g, b = colours("adroit-relocate")
    assert share((g > r + 20) & (g > b + 20)) > 0.01  # the goal ball
    assert share((b > 60) & (b > r + 30) & (b > g + 30)) > 0.001  # the blue ball
    assert frame.mean() > 120  # the table fills the picture, not the black sky

    frame, r, g, b = colours("adroit-hammer")
    brown = (r > b + 60) & (r > g + 40)
    assert share(brown) > 0.005  # board and handle
    assert share((abs(r - g) < 12) & (abs(b - g) < 12) & (g < 150)) > 0.003  # the head

    frame, r, g, b = colours("adroit-door")
    rows, _ = np.nonzero((r > b + 60) & (r > g + 40))
    assert rows.mean() > 45  # the door, at the bottom of the picture
    assert share((abs(r - g) < 20) & (abs(b - g) < 30) & (g > 60) & (g < 190)) > 0.01  # latch and handle


def test_pen_and_target_are_drawn_opaque():
    model = adroit("adroit-pen")._sim.model
    assert [model.geom(name).rgba[3] for name in ("pen", "target")] == [1.0, 1.0]


def test_drawing_does_not_change_what_happens():
    drawn, blind = adroit("adroit-relocate", height_px=16, width_px=16), adroit("adroit-relocate")
    drawn.reset(seed=4)
    blind.reset_state(seed=4)
    expert = ScriptedExpert("adroit-relocate")
    for _ in range(25):
        action = expert.act(blind.state)
        drawn.step(action)
        blind.advance(action)
        np.testing.assert_array_equal(drawn.state, blind.state)


@pytest.mark.parametrize("task", TASKS)
def test_a_state_goes_back_into_another_episode(task):
    env, other = adroit(task), adroit(task)
    run_expert(env, 5, 20)
    state = env.get_state()
    frame = env.render()
    expert = ScriptedExpert(task)
    actions = [expert.act(env.state)] * 5
    later = []
    for action in actions:
        env.advance(action)
        later.append(env.get_state()["qpos"])

    other.reset_state(6)
    for _ in range(2):  # the same again, whatever was before
        other.set_state(state)
        np.testing.assert_array_equal(other.render(), frame)
        replayed = []
        for action in actions:
            other.advance(action)
            replayed.append(other.get_state()["qpos"])
        np.testing.assert_allclose(replayed, later, atol=REPLAY_TOLERANCE)


@pytest.mark.parametrize("task", TASKS)
def test_the_simulators_own_states_are_accepted_with_their_further_keys(task):
    env, other = adroit(task), adroit(task)
    env.reset_state(5)
    native = env._sim.get_env_state()
    other.reset_state(6)
    other.set_state(native)
    np.testing.assert_allclose(other.state, env.state, atol=1e-9)


def test_an_object_that_has_moved_stays_where_it_was():
    env, other = adroit("adroit-relocate"), adroit("adroit-relocate")
    run_expert(env, 5, 40)
    env.render()
    before = env._sim.data.body("Object").xpos.copy()
    assert before[2] > 0.08  # lifted
    other.reset_state(6)
    other.set_state(env.get_state())
    np.testing.assert_allclose(other._sim.data.body("Object").xpos, before, atol=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_scenes_depend_on_the_seed_alone_even_after_states_were_set(task):
    env = adroit(task)
    env.reset_state(7)
    expected = env.state
    strange = env.get_state()
    for key in set(strange) - {"qpos", "qvel"}:
        strange[key] = strange[key] + 0.05
    env.set_state(strange)
    env.advance(np.zeros(env.config.action_dim))
    env.reset_state(7)
    np.testing.assert_array_equal(env.state, expected)


def test_bad_states_are_refused_by_key():
    env = adroit("adroit-hammer")
    with pytest.raises(RuntimeError, match="reset_state"):
        env.set_state({})
    env.reset_state(0)
    state = env.get_state()
    assert sorted(state) == ["board_pos", "qpos", "qvel"]
    with pytest.raises(ValueError, match=r"no 'qvel'; got keys \['board_pos', 'qpos'\]"):
        env.set_state({k: v for k, v in state.items() if k != "qvel"})
    with pytest.raises(ValueError, match=r"qpos of the state has shape \(30,\), expected finite \(33,\)"):
        env.set_state({**state, "qpos": state["qpos"][:30]})
    with pytest.raises(ValueError, match="board_pos"):
        env.set_state({**state, "board_pos": np.full(3, np.nan)})


@pytest.mark.parametrize(("hinge_rad", "count"), [(0.0, 0), (1.2, 0), (1.5, 2)])
def test_success_of_the_door_is_its_hinge_and_the_reward_counts_repeats(hinge_rad, count):
    env = adroit("adroit-door", episode_steps=1)
    env.reset_state(0)
    state = env.get_state()
    state["qpos"][-2] = hinge_rad
    state["qvel"][:] = 0
    env.set_state(state)
    reward, truncated, info = env.advance(np.zeros(28))
    assert (reward, info["success_count"], info["success"], truncated) == (
        float(count),
        count,
        count > 0,
        True,
    )


def test_reward_and_dense_reward_are_sums_over_the_repeats():
    coarse, fine = adroit("adroit-door"), adroit("adroit-door", action_repeat=1, episode_steps=200)
    expert = ScriptedExpert("adroit-door")
    coarse.reset_state(2)
    fine.reset_state(2)
    counts = set()
    for _ in range(40):
        action = expert.act(coarse.state)
        reward, _, info = coarse.advance(action)
        single = [fine.advance(action) for _ in range(2)]
        assert reward == sum(r for r, _, _ in single)
        assert info["dense_reward"] == pytest.approx(sum(i["dense_reward"] for _, _, i in single))
        counts.add(reward)
    assert counts >= {0.0, 2.0}


def test_a_dropped_pen_does_not_end_the_episode():
    env = adroit("adroit-pen", episode_steps=50, height_px=16, width_px=16)
    env.reset_state(0)
    state = env.get_state()
    state["qpos"][-6:-3] += [0.3, 0.3, -0.2]
    env.set_state(state)
    results = [env.step(np.zeros(24)) for _ in range(50)]
    assert [r[3] for r in results] == [False] * 49 + [True]
    assert not any(r[2] or r[4]["success"] for r in results)


def test_noise_of_the_noisy_expert_is_adroits_own():
    noisy = Behaviour("noisy", "adroit-door", 28, np.random.default_rng(0))
    env = adroit("adroit-door")
    env.reset_state(0)
    clean = ScriptedExpert("adroit-door").act(env.state)
    middle = np.abs(clean) < 0.3  # away from the clipping
    actions = np.array([noisy.act(env.state) for _ in range(500)])
    assert middle.sum() > 5
    np.testing.assert_allclose(actions[:, middle].std(0), NOISE_STDDEV["adroit"], rtol=0.2)


@pytest.mark.parametrize("task", TASKS)
def test_the_experts_of_the_package_solve_their_tasks(task):
    path = EXPERT_POLICIES / f"{task}.npz"
    assert path.stat().st_size < 200_000
    env = adroit(task, episode_steps=50 if task == "adroit-pen" else 100)
    ends = []
    for seed in range(4):
        expert = ScriptedExpert(task)
        env.reset_state(seed)
        truncated = False
        while not truncated:
            _, truncated, info = env.advance(expert.act(env.state))
        ends.append(info["success"])
    assert ends == [True] * 4


def test_importing_says_nothing():
    code = "from actors.envs.registry import *; from models.videos import *; "
    code += "make_env(EnvConfig('adroit-pen', render=RenderSettings(camera='paper')))"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert child.stdout + child.stderr == ""
