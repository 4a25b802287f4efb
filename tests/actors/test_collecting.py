"""Expert and other videos: trimming, retries, seeds."""

from __future__ import annotations

import numpy as np
import pytest

from actors import collecting
from actors.collecting import TooFewSuccessesError, collect_episodes, trimmed_length
from actors.envs.registry import EnvConfig, make_env
from actors.experts import Behaviour, ScriptedExpert
from actors.seeding import block_generator, indexed_seed, training_seed
from models.videos import RenderSettings

SMALL = RenderSettings(height_px=16, width_px=16)


@pytest.mark.parametrize(
    ("successes", "length"),
    [
        ([0, 0, 1, 1], 4),  # lasts to the end: kept whole
        ([0, 1, 1, 0], 2),  # lost again: cut just after the first success
        ([0, 0, 0, 1], 4),  # first success in the last step
        ([1, 0, 0, 0], 1),
        ([0, 0, 0, 0], 4),  # none: nothing to cut at
    ],
)
def test_trimmed_length(successes, length):
    assert trimmed_length(np.array(successes, bool)) == length


def test_expert_videos_end_with_a_success():
    for task in ("handle-press", "reach"):
        (episode, seed), (second, second_seed) = collect_episodes(
            EnvConfig(task, render=SMALL), "expert", 2, seed=3
        )
        assert episode.is_success and episode.successes[-1]
        assert len(episode.frames) == len(episode) + 1
        assert seed != second_seed and seed == indexed_seed("video", 3, 0)
        assert episode.episode_id != second.episode_id and str(seed) in episode.episode_id
        if task == "handle-press":
            assert episode.successes.sum() == 1 and len(episode) < 50
        else:
            assert len(episode) == 100


def test_collecting_again_gives_the_same_videos():
    config = EnvConfig("reach", episode_steps=15, render=SMALL)
    for behaviour in ("random", "noisy", "half", "wander", "linger"):
        first, second = (next(collect_episodes(config, behaviour, 1, seed=0))[0] for _ in range(2))
        np.testing.assert_array_equal(first.frames, second.frames)
        np.testing.assert_array_equal(first.actions, second.actions)
        assert len(first) == 15


def test_behaviours_share_scenes_and_streams_do_not():
    config = EnvConfig("reach", episode_steps=1, render=SMALL)
    first = {b: next(collect_episodes(config, b, 1, seed=0)) for b in ("random", "noisy", "half")}
    assert len({seed for _, seed in first.values()}) == 1
    frames = [episode.frames[0] for episode, _ in first.values()]
    np.testing.assert_array_equal(frames[0], frames[1])
    other = next(collect_episodes(config, "random", 1, seed=0, stream=1))
    assert other[1] != first["random"][1]


def test_half_is_the_expert_for_twelve_steps_and_then_random():
    expert = ScriptedExpert("reach")
    half = Behaviour("half", "reach", 4, np.random.default_rng(0))
    state = np.zeros(39)
    state[-3:] = 0.5
    same = [np.array_equal(half.act(state), expert.act(state)) for _ in range(20)]
    assert same == [True] * 12 + [False] * 8


def test_noisy_is_the_expert_plus_noise_clipped_and_experts_leave_the_state_alone():
    noisy = Behaviour("noisy", "door-close", 4, np.random.default_rng(0))
    state = np.linspace(0, 1, 39)
    before = state.copy()
    actions = np.array([noisy.act(state) for _ in range(200)])
    np.testing.assert_array_equal(state, before)
    assert actions.dtype == np.float32 and np.abs(actions).max() == 1.0
    assert actions.std(axis=0).min() > 0.2


def test_a_wanderers_actions_are_correlated_and_end_with_its_episode():
    wander = Behaviour("wander", "door-close", 4, np.random.default_rng(0))
    state = np.zeros(39)
    actions = np.array([wander.act(state) for _ in range(20_000)])
    assert actions.dtype == np.float32 and np.abs(actions).max() == 1.0
    assert np.corrcoef(actions[1:].ravel(), actions[:-1].ravel())[0, 1] == pytest.approx(0.94, abs=0.02)
    # A standard normal is beyond 1 in 31.7 % of the steps.
    assert abs((np.abs(actions) == 1.0).mean() - 0.317) < 0.03
    again = Behaviour("wander", "door-close", 4, np.random.default_rng(1))
    assert not np.array_equal(again.act(state), actions[0])


@pytest.mark.parametrize(
    "task, action, still, trembles",
    [
        (
            "door-close",
            [0.5, -0.5, 0.2, 0.4],
            [0.0, 0.0, 0.0, 0.4],
            0.3,
        ),  # moves by displacements, the gripper by force
        ("adroit-door", [0.5, -0.5, 0.2, 0.4], [0.5, -0.5, 0.2, 0.4], 0.06),  # joint angles
    ],
)
def test_a_lingering_arm_stays_where_the_expert_brought_it(task, action, still, trembles):
    expert = np.array(action, np.float32)
    stops = set()
    for seed in range(30):
        linger = Behaviour("linger", task, 4, np.random.default_rng(seed), expert=lambda state: expert)
        actions = np.array([linger.act(np.zeros(39)) for _ in range(600)])
        stop = int(np.argmax(np.any(actions != expert, axis=1)))
        stops.add(stop)
        rest = actions[stop:]
        np.testing.assert_allclose(rest.mean(axis=0), still, atol=5 * trembles / np.sqrt(len(rest)))
        assert rest[:, :3].std(axis=0).mean() == pytest.approx(trembles, rel=0.3)
    assert min(stops) >= 2 and max(stops) <= 40 and len(stops) > 10


def test_misdirected_is_what_the_expert_did_in_the_next_scene():
    config = EnvConfig("reach", episode_steps=12, render=SMALL)
    misdirected, seed = next(collect_episodes(config, "misdirected", 1, seed=0))
    assert seed == indexed_seed("video", 0, 0)
    env = make_env(config)
    here, there = ScriptedExpert("reach"), ScriptedExpert("reach")
    env.reset(seed=indexed_seed("video", 0, 1))
    actions = []
    for _ in range(12):
        actions.append(there.act(env.state))
        env.step(actions[-1])
    np.testing.assert_array_equal(misdirected.actions, actions)
    first_frame, _ = env.reset(seed=seed)
    np.testing.assert_array_equal(misdirected.frames[0], first_frame)
    assert not np.allclose(here.act(env.state), actions[0])
    with pytest.raises(ValueError, match="'misdirected' replays an expert's actions"):
        Behaviour("misdirected", "reach", 4, np.random.default_rng(0))


def test_an_expert_that_fails_too_often_is_reported(monkeypatch):
    attempts = []
    config = EnvConfig("reach", episode_steps=2, render=SMALL)  # too short to succeed
    with pytest.raises(TooFewSuccessesError, match=r"0 of 4 attempts.*episode_steps=2"):
        list(
            collect_episodes(
                config, "expert", 1, 0, on_progress=lambda *p: attempts.append(p), max_failures=3
            )
        )
    assert attempts == [(0, 1, 1), (0, 1, 2), (0, 1, 3), (0, 1, 4)]


def test_failed_attempts_are_made_again_with_the_next_seed(monkeypatch):
    seen = []
    original = collecting._run_episode

    def fail_first(env, config, behaviour, seed, expert, replayed):
        seen.append(seed)
        episode = original(env, config, "random" if len(seen) == 1 else behaviour, seed, expert, replayed)
        return episode

    monkeypatch.setattr(collecting, "_run_episode", fail_first)
    config = EnvConfig("reach", episode_steps=40, render=SMALL)
    kept = [seed for _, seed in collect_episodes(config, "expert", 1, 0)]
    assert seen == [indexed_seed("video", 0, 0), indexed_seed("video", 0, 1)] and kept == seen[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"behaviour": "clever"}, "expert, random, half, noisy, wander, misdirected, linger"),
        ({"episodes": 0}, "episodes"),
        ({"stream": 256}, "stream"),
        ({"seed": 2**24}, "seed is 16777216"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, message):
    call = {"config": EnvConfig("reach"), "behaviour": "expert", "episodes": 1, "seed": 0} | arguments
    with pytest.raises(ValueError, match=message):
        collect_episodes(**call)


def test_seeds_of_different_purposes_never_meet():
    video = {indexed_seed("video", base, i) for base in range(3) for i in range(50)}
    evaluation = {indexed_seed("evaluation", base, i) for base in range(3) for i in range(50)}
    training = {training_seed(0, f"b{k}", i) for k in range(50) for i in range(3)}
    assert len(video) == len(evaluation) == len(training) == 150
    assert not video & evaluation and not video & training and not evaluation & training
    assert max(video | evaluation | training) < 2**53  # exact in JSON
    with pytest.raises(ValueError, match="seed is -1"):
        indexed_seed("video", -1, 0)


def test_a_block_has_its_own_random_numbers():
    draws = [
        block_generator(seed, block).random() for seed, block in [(0, "b1"), (0, "b1"), (0, "b2"), (1, "b1")]
    ]
    assert draws[0] == draws[1] and len(set(draws)) == 3
