"""Recorded episodes of a Minari dataset made here, without a network, replayed and drawn."""

from __future__ import annotations

import numpy as np
import pytest

from actors.envs.registry import EnvConfig, make_env
from launch.cli import UsageError, compose
from launch.import_minari import import_minari
from models.videos import RenderSettings, read_videos

minari = pytest.importorskip("minari", reason="Minari is not installed: pip install -e '.[minari]'")
pytest.importorskip("h5py", reason="Minari needs h5py: pip install -e '.[minari]'")

# Advice to authors of published datasets.
pytestmark = pytest.mark.filterwarnings("ignore:`[a-z_]+` is set to None:UserWarning")
TASK = "adroit-door"
STEPS = 120
SMALL = ["env.render.height_px=32", "env.render.width_px=32"]


def record(behaviour: str, seed: int) -> dict:
    """One episode as a recorder would see it: a simulator step for each action."""
    from actors.envs.adroit import expert_policy

    config = EnvConfig(TASK, 1, STEPS, RenderSettings(camera="paper"))
    env = make_env(config)
    env.reset_state(seed)
    expert, rng = expert_policy(TASK), np.random.default_rng(seed)
    states, observations, actions, successes = [env.get_state()], [env.state], [], []
    for _ in range(STEPS):
        action = expert(env.state) if behaviour == "expert" else rng.uniform(-1, 1, 28).astype(np.float32)
        _, _, info = env.advance(action)
        actions.append(action)
        states.append(env.get_state())
        observations.append(env.state)
        successes.append(info["success"])
    env.close()
    return {
        "seed": seed,
        "states": {key: np.stack([state[key] for state in states]) for key in states[0]},
        "observations": np.stack(observations),
        "actions": np.stack(actions),
        "successes": np.array(successes),
    }


def write(name: str, episodes: list[dict], begin: str, env_id: str = "AdroitHandDoor-v1") -> None:
    """Writes a local dataset whose episodes say how they began by `begin`: state, options, seed or nothing."""
    import gymnasium
    import gymnasium_robotics
    from minari.data_collector import EpisodeBuffer

    gymnasium.register_envs(gymnasium_robotics)
    buffers = []
    for number, episode in enumerate(episodes):
        infos = {"success": np.concatenate([[False], episode["successes"]])}
        if begin == "state":
            infos["state"] = episode["states"]
        first = {key: value[0] for key, value in episode["states"].items()}
        buffers.append(
            EpisodeBuffer(
                id=number,
                seed=episode["seed"] if begin == "seed" else None,
                options={"initial_state_dict": first} if begin == "options" else None,
                observations=episode["observations"],
                actions=episode["actions"],
                rewards=[0.0] * STEPS,
                terminations=[False] * STEPS,
                truncations=[False] * (STEPS - 1) + [True],
                infos=infos,
            )
        )
    minari.create_dataset_from_buffers(
        name,
        buffers,
        env=gymnasium.spec(env_id),
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (39,), np.float64),
        action_space=gymnasium.spaces.Box(-1, 1, (28,), np.float32),
    )


@pytest.fixture(scope="module")
def episodes() -> list[dict]:
    made = [record("expert", 3), record("random", 4), record("expert", 5)]
    assert [episode["successes"][-1] for episode in made] == [True, False, True]
    return made


@pytest.fixture(autouse=True)
def local_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "minari").mkdir()


def collect(out, name: str, *overrides: str) -> int:
    config = compose("collect", [f"task={TASK}", f"source=minari:{name}", *SMALL, *overrides])
    return import_minari(config, out)


@pytest.mark.parametrize(
    ("begin", "how"), [("state", "state"), ("state", "actions"), ("options", "actions"), ("seed", "actions")]
)
def test_successes_are_replayed_and_drawn_once_per_agent_step(tmp_path, episodes, begin, how):
    write("test/door-v0", episodes, begin)
    out = tmp_path / "videos"
    assert collect(out, "test/door-v0", f"minari_replay={how}", "validation_every=2") == 0
    videos = read_videos(out)
    assert (videos.task, videos.domain, videos.mode, videos.action_repeat) == (TASK, "adroit", "expert", 2)
    assert [record["split"] for record in videos.records] == ["train", "validation"]
    for video, recorded in zip(videos.episodes, (episodes[0], episodes[2])):
        assert len(video) == STEPS // 2 and video.frames.shape == (STEPS // 2 + 1, 32, 32, 3)
        expected = recorded["successes"].reshape(-1, 2)
        # Contacts are not exactly those of the recording: the moment of success may shift by a step.
        assert abs(int(video.successes.argmax()) - int(expected.any(axis=1).argmax())) <= 2
        assert video.successes[-1] and video.env_rewards[-1] == 2.0
        np.testing.assert_allclose(video.actions[0], recorded["actions"][:2].mean(axis=0), atol=1e-6)


def test_frames_of_replayed_states_are_those_of_the_recorded_states(tmp_path, episodes):
    write("test/door-v0", episodes[:1], "state")
    collect(
        tmp_path / "videos",
        "test/door-v0",
        "minari_replay=state",
        "validation_every=0",
        "env.action_repeat=3",
    )
    (video,) = read_videos(tmp_path / "videos").episodes
    assert len(video) == STEPS // 3
    env = make_env(EnvConfig(TASK, render=RenderSettings("fast", "paper", 32, 32)))
    env.reset_state(0)
    for frame in (0, 7, STEPS // 3):
        env.set_state({key: value[3 * frame] for key, value in episodes[0]["states"].items()})
        np.testing.assert_array_equal(video.frames[frame], env.render())
    env.close()


def test_failures_are_kept_on_demand_and_episodes_is_the_most(tmp_path, episodes):
    write("test/door-v0", episodes, "options")
    collect(
        tmp_path / "two",
        "test/door-v0",
        "keep_failures=true",
        "episodes=2",
        "behaviour=random",
        "validation_every=0",
    )
    videos = read_videos(tmp_path / "two")
    assert [record["success"] for record in videos.records] == [True, False] and videos.mode == "random"


def test_a_dataset_without_a_success_leaves_nothing(tmp_path, episodes):
    write("test/door-v0", episodes[1:2], "options")
    with pytest.raises(UsageError, match="none of the 1 replayed episodes"):
        collect(tmp_path / "videos", "test/door-v0")
    assert not list(tmp_path.glob("*videos*"))


@pytest.mark.parametrize(
    ("begin", "overrides", "message"),
    [
        ("nothing", [], "does not say how it began"),
        ("options", ["minari_replay=state"], "has no state .*qpos.* for each step"),
        (
            "options",
            ["task=adroit-pen"],
            "recorded in AdroitHandDoor-v1, task 'adroit-pen'.*give task=adroit-door",
        ),
        ("options", ["task=reach"], "recordings of task 'reach' cannot be replayed"),
        ("options", ["minari_replay=both"], "'both'; use one of actions, state"),
    ],
)
def test_what_cannot_be_replayed_is_said(tmp_path, episodes, begin, overrides, message):
    write("test/door-v0", episodes[:1], begin)
    with pytest.raises(UsageError, match=message):
        collect(tmp_path / "videos", "test/door-v0", *overrides)
    assert not list(tmp_path.glob("*videos*"))


def test_a_wrong_beginning_is_found_by_its_observation(tmp_path, episodes):
    moved = {**episodes[0], "states": {**episodes[0]["states"]}}
    moved["states"]["door_body_pos"] = moved["states"]["door_body_pos"] + 0.05
    write("test/door-v0", [moved], "options")
    with pytest.raises(UsageError, match="first state differs from the recorded one by"):
        collect(tmp_path / "videos", "test/door-v0")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            ConnectionError("no route"),
            "server cannot be reached .*ConnectionError: no route.*MINARI_DATASETS_PATH",
        ),
        (ValueError("Couldn't find any version"), "cannot be downloaded: Couldn't find any version"),
        (
            ImportError("huggingface_hub is not installed"),
            r"needs more of Minari.*pip install -e '\.\[minari\]' -c constraints\.txt",
        ),
    ],
)
def test_a_dataset_that_is_not_here_is_asked_for(tmp_path, monkeypatch, failure, message):
    from minari.storage import hosting

    def download(dataset_id):
        assert dataset_id == "test/absent-v0"
        raise failure

    monkeypatch.setattr(hosting, "download_dataset", download)
    with pytest.raises(UsageError, match=message):
        collect(tmp_path / "videos", "test/absent-v0")


def test_an_id_without_a_version(tmp_path):
    with pytest.raises(UsageError, match="names no dataset with its version"):
        collect(tmp_path / "videos", "door-expert")
