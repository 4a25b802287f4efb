"""The environment contract, for every task of the paper and of its generalisation test."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from actors.envs.metaworld import CAMERAS, MetaWorldEnv
from actors.envs.registry import (
    METAWORLD_PAPER_TASKS,
    METAWORLD_UNSEEN_TASKS,
    EnvConfig,
    domain_of,
    make_env,
    task_names,
)
from actors.experts import ScriptedExpert
from models.videos import RenderSettings

TASKS = METAWORLD_PAPER_TASKS + METAWORLD_UNSEEN_TASKS
ADROIT = tuple(domain_of("adroit-door").tasks)
SMALL = RenderSettings(height_px=32, width_px=32)


def config_of(task, **changes):
    """The domain's camera and action repeat, small frames."""
    adroit = {"action_repeat": 2, "render": RenderSettings(camera="paper", height_px=32, width_px=32)}
    return EnvConfig(task, **({"render": SMALL} | (adroit if task in ADROIT else {}) | changes))


@pytest.fixture(scope="module")
def door():
    env = make_env(EnvConfig("door-close", episode_steps=3))
    yield env
    env.close()


def test_all_fifteen_tasks_of_the_paper_are_there():
    assert len(TASKS) == 15
    assert set(TASKS) <= set(task_names())


@pytest.mark.parametrize("task", TASKS + ADROIT)
def test_contract_of_every_task(task):
    config = config_of(task, episode_steps=2)
    env = make_env(config)
    frame, info = env.reset(seed=5)
    assert env.observation_space.shape == (32, 32, 3) and env.observation_space.dtype == np.uint8
    assert env.action_space.shape == (config.action_dim,) and env.action_space.dtype == np.float32
    assert env.observation_space.contains(frame) and info == {"seed": 5}
    action = np.resize(np.array([0.6, -0.4, 0.3, 1.0], np.float32), config.action_dim)
    steps = [env.step(action), env.step(action)]
    assert [s[3] for s in steps] == [False, True]  # truncated at the limit
    for frame, reward, terminated, _, info in steps:
        assert env.observation_space.contains(frame)
        assert reward in range(config.action_repeat + 1) and not terminated
        assert info["discount"] == 1.0 and isinstance(info["success"], bool)
        assert isinstance(info["dense_reward"], float) and isinstance(info["success_count"], int)

    # The same seed gives the same pictures, whatever came before; another seed another scene.
    again = [env.reset(seed=5)[0], env.step(action)[0], env.step(action)[0]]
    fresh = make_env(config)
    expected = [fresh.reset(seed=5)[0], fresh.step(action)[0], fresh.step(action)[0]]
    np.testing.assert_array_equal(again, expected)
    np.testing.assert_array_equal(again[1:], [s[0] for s in steps])
    same_state = env.state
    env.reset_state(seed=6)
    other_state = env.state
    fresh.reset_state(seed=6)
    np.testing.assert_array_equal(other_state, fresh.state)
    assert not np.array_equal(other_state[4:], same_state[4:])


@pytest.mark.parametrize("task", TASKS)
def test_a_scene_is_bit_for_bit_the_one_that_metaworlds_own_reset_makes(task):
    ours, library = make_env(config_of(task)), make_env(config_of(task))._sim
    ours.reset_state(seed=8)
    ours.advance(np.ones(4))
    for seed in (3, 4):
        ours.reset_state(seed)
        library._last_rand_vec = ours._sim._last_rand_vec
        library.reset()
        state, _ = library.reset()
        np.testing.assert_array_equal(ours.state, state)
        for _ in range(2):
            ours.advance(np.ones(4))
            states = [library.step(np.ones(4, np.float32))[0] for _ in range(3)]
            np.testing.assert_array_equal(ours.state, states[-1])
            np.testing.assert_array_equal(ours._sim.data.qvel, library.data.qvel)


@pytest.mark.parametrize("task", TASKS + ADROIT)
def test_expert_succeeds_within_the_time_limit_and_reward_counts_successes(task):
    env = make_env(config_of(task))
    expert = ScriptedExpert(task)
    # Some scenes defeat the scripted expert of peg-unplug-side; this one does not.
    env.reset_state(seed=1)
    rewards, successes = [], []
    truncated = False
    while not truncated:
        reward, truncated, info = env.advance(expert.act(env.state))
        rewards.append(reward)
        successes.append(info["success"])
        assert reward == info["success_count"]
        assert info["success"] == (reward > 0)
    assert len(rewards) == 100
    assert any(successes)


def test_reward_is_the_number_of_repeats_that_succeed():
    coarse = make_env(EnvConfig("reach", action_repeat=3))
    fine = make_env(EnvConfig("reach", action_repeat=1, episode_steps=300))
    expert = ScriptedExpert("reach")
    coarse.reset_state(seed=2)
    fine.reset_state(seed=2)
    counts = set()
    for _ in range(40):
        action = expert.act(coarse.state)
        reward, _, info = coarse.advance(action)
        single = [fine.advance(action) for _ in range(3)]
        assert reward == sum(r for r, _, _ in single)
        assert info["dense_reward"] == pytest.approx(sum(i["dense_reward"] for _, _, i in single))
        counts.add(reward)
    assert counts >= {0.0, 3.0}


def test_a_final_success_stays_what_it_was():
    """lever-pull's expert goes on after its success and loses it; a task that is final stands still there."""
    expert = ScriptedExpert("lever-pull")
    fleeting, final = (
        make_env(config_of("lever-pull", success_is_final=is_final)) for is_final in (False, True)
    )

    def run(env, seed):
        env.reset_state(seed=seed)
        steps = [(*env.advance(expert.act(env.state)), env.state) for _ in range(100)]
        return [list(column) for column in zip(*steps)]

    for seed in (0, 1):  # a second episode starts anew
        lost = run(fleeting, seed)[0]
        kept, truncated, infos, states = run(final, seed)
        first = int(np.flatnonzero(lost)[0])
        assert lost[-1] == 0.0 and lost[:first] == kept[:first] and kept[first] >= lost[first]
        assert kept[first + 1 :] == [3.0] * (99 - first) and all(i["success"] for i in infos[first:])
        assert truncated == [False] * 99 + [True]
        np.testing.assert_array_equal(states[first], states[-1])


def test_a_final_success_ends_its_episode_when_it_was_held():
    expert = ScriptedExpert("lever-pull")
    env = make_env(config_of("lever-pull", success_is_final=True, success_hold_steps=2))
    for seed in (0, 1):
        env.reset(seed=seed)
        steps = [env.step(expert.act(env.state))]
        while not (steps[-1][2] or steps[-1][3]):
            steps.append(env.step(expert.act(env.state)))
        _, rewards, terminated, truncated, infos = zip(*steps)
        first = int(np.flatnonzero(rewards)[0])
        assert len(steps) == first + 3 < 100 and rewards[first + 1 :] == (3.0, 3.0)
        assert terminated == (False,) * (first + 2) + (True,) and not any(truncated)
        assert [info["discount"] for info in infos] == [1.0] * (first + 2) + [0.0]
        with pytest.raises(RuntimeError, match="call reset"):
            env.step(np.zeros(4))
    env.reset(seed=0)
    ends = [env.step(np.zeros(4))[2:4] for _ in range(100)]
    assert ends == [(False, False)] * 99 + [(False, True)]  # unsolved: the time limit
    env.close()


def test_a_finished_episode_refuses_another_step(door):
    door.reset(seed=0)
    for _ in range(3):
        door.step(np.zeros(4))
    with pytest.raises(RuntimeError, match="call reset"):
        door.step(np.zeros(4))


def test_actions_that_are_no_numbers_are_refused(door):
    """MuJoCo resets itself on them, which door-close takes for a closed door."""
    door.reset(seed=0)
    with pytest.raises(ValueError, match="expected finite numbers: the policy has diverged"):
        door.step(np.full(4, np.nan))


def test_actions_are_clipped(door):
    first = _frame_after(door, np.full(4, 19.0))
    np.testing.assert_array_equal(first, _frame_after(door, np.ones(4)))


def _frame_after(env, action):
    env.reset(seed=0)
    return env.step(action)[0]


def test_resets_without_a_seed_differ_and_follow_the_seed_of_construction():
    def seeds(seed):
        env = make_env(EnvConfig("door-close"), seed=seed)
        found = []
        for _ in range(3):
            env.reset_state()
            found.append(env.episode_seed)
        return found

    assert seeds(1) == seeds(1) != seeds(2)
    assert len(set(seeds(1))) == 3


def test_several_environments_in_one_process_do_not_disturb_each_other():
    first, second = (make_env(EnvConfig("reach", render=SMALL)) for _ in range(2))
    alone = first.reset(seed=0)[0]
    second.reset(seed=1)
    np.testing.assert_array_equal(first.render(), alone)
    assert first._renderer is second._renderer


@pytest.mark.parametrize(
    ("name", "expected"),
    [("door-clos", "door-close"), ("dial-turn-v3", "dial-turn"), ("presshandle", "handle-press")],
)
def test_unknown_task_names_the_nearest_and_all(name, expected):
    with pytest.raises(ValueError, match="did you mean") as error:
        EnvConfig(name)
    suggestion, everything = str(error.value).split("Known tasks:")
    assert expected in suggestion
    assert all(task in everything for task in TASKS)


@pytest.mark.parametrize("change", [{"action_repeat": 0}, {"episode_steps": -1}, {"action_repeat": 1.5}])
def test_bad_config_names_the_key(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        EnvConfig("reach", **change)


def test_the_close_camera_draws_what_is_handled_larger():
    """door-close's goal is the only green thing: four times as many pixels at twice the size, and well inside."""

    def green(camera: str) -> np.ndarray:
        with closing(MetaWorldEnv(EnvConfig("door-close", render=RenderSettings(camera=camera)))) as env:
            frame = env.reset(seed=3)[0].astype(int)
        return np.argwhere(frame[..., 1] > 80 + np.maximum(frame[..., 0], frame[..., 2]))

    far, close = green("corner2"), green("close")
    assert len(far) > 0 and 2.5 < len(close) / len(far) < 6
    assert close.min() > 4 and close.max() < 59


def test_unknown_camera_lists_the_cameras():
    with pytest.raises(ValueError, match="corner2"):
        MetaWorldEnv(EnvConfig("reach", render=RenderSettings(camera="corner9")))
    assert "corner2" in CAMERAS
