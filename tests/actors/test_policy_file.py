"""Policy files: the arithmetic, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from actors.policy_file import KEYS, FilePolicy, load_policy_file, save_policy_file


def tiny():
    """One number per layer."""
    one = {key: np.array([[value]], np.float32) for key, value in [("w0", 2), ("w1", -1), ("w2", 3)]}
    flat = {"b0": 0.5, "b1": 0.25, "b2": -0.1, "in_shift": 1, "in_scale": 2, "out_shift": 0.2}
    flat |= {"out_scale": 0.5, "log_std": -1}
    vectors = {key: np.array([value], np.float32) for key, value in flat.items()}
    return {
        **one,
        **vectors,
        "nonlinearity": np.array("tanh"),
        "layer_sizes": np.array([1, 1, 1, 1], np.int32),
    }


def random_policy(seed=0, sizes=(5, 4, 3, 2)):
    rng = np.random.default_rng(seed)
    s, h, k, a = sizes
    shapes = {"w0": (h, s), "b0": (h,), "w1": (k, h), "b1": (k,), "w2": (a, k), "b2": (a,)}
    shapes |= {"in_shift": (s,), "in_scale": (s,), "out_shift": (a,), "out_scale": (a,), "log_std": (a,)}
    arrays = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    return {**arrays, "nonlinearity": np.array("tanh"), "layer_sizes": np.array(sizes, np.int32)}


def test_the_mean_action_by_hand():
    policy = FilePolicy(tiny())
    # x = (3 - 1) / 2 = 1; tanh(2.5) = 0.98661; tanh(0.25 - 0.98661) = -0.62710; 3 * -0.62710 - 0.1 = -1.98129
    np.testing.assert_allclose(policy(np.array([3.0])), [0.2 + 0.5 * -1.98129], atol=1e-5)


def test_relu_and_a_squashed_output_by_hand(tmp_path):
    arrays = {**tiny(), "nonlinearity": np.array("relu"), "output": np.array("tanh")}
    # x = 1; relu(2.5) = 2.5; relu(0.25 - 2.5) = 0; tanh(0.2 + 0.5 * -0.1)
    np.testing.assert_allclose(FilePolicy(arrays)(np.array([3.0])), [np.tanh(0.15)], atol=1e-6)
    save_policy_file(tmp_path / "squashed.npz", FilePolicy(arrays).to_arrays())
    again = load_policy_file(tmp_path / "squashed.npz")
    assert (again.nonlinearity, again.output) == ("relu", "tanh")
    np.testing.assert_allclose(again(np.array([3.0])), [np.tanh(0.15)], atol=1e-6)


def test_actions_are_clipped_float32_and_batches_agree_with_single_states():
    arrays = random_policy()
    arrays["out_scale"] *= 5
    policy = FilePolicy(arrays)
    states = np.random.default_rng(1).normal(size=(6, 5))
    actions = policy(states)
    assert actions.dtype == np.float32 and actions.shape == (6, 2)
    assert np.abs(actions).max() == 1.0
    np.testing.assert_allclose(actions, [policy(state) for state in states], atol=1e-6)


def test_written_and_read_again(tmp_path):
    arrays = random_policy()
    path = tmp_path / "policy.npz"
    save_policy_file(path, arrays)
    policy = load_policy_file(path)
    assert (policy.state_size, policy.action_size) == (5, 2)
    state = np.arange(5.0)
    np.testing.assert_array_equal(policy(state), FilePolicy(arrays)(state))
    assert set(policy.to_arrays()) == set(KEYS)
    with np.load(path, allow_pickle=False) as file:
        assert file["w0"].dtype == np.float32 and file["layer_sizes"].tolist() == [5, 4, 3, 2]
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        save_policy_file(path, arrays)


def test_a_state_of_another_task_is_refused():
    with pytest.raises(ValueError, match=r"takes states of 5 numbers, got shape \(39,\)"):
        FilePolicy(random_policy())(np.zeros(39))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("w1", None, "w1 missing"),
        ("w0", np.zeros((4, 6), np.float32), r"w0 has shape \(4, 6\), expected \(4, 5\)"),
        ("b2", np.zeros((2, 1), np.float32), r"b2 has shape \(2, 1\), expected \(2,\)"),
        ("log_std", np.array([0.0, np.nan]), "log_std .* finite"),
        ("in_scale", np.ones(5, np.int64), "in_scale .*int64"),
        ("nonlinearity", np.array("sine"), "nonlinearity is 'sine'; supported are tanh, relu"),
        ("output", np.array("soft"), "output is 'soft'; supported are clip, tanh"),
        ("layer_sizes", np.array([5, 4, 2]), "layer_sizes"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, key, value, message):
    arrays = random_policy()
    arrays[key] = value
    if value is None:
        del arrays[key]
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        load_policy_file(path)
    assert "bad.npz" in str(error.value)


def test_pickles_text_and_damaged_files_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", **{**random_policy(), "w0": np.array([{}], dtype=object)})
    (tmp_path / "text.npz").write_text("not an archive")
    np.save(tmp_path / "lone.npy", np.zeros(3))
    save_policy_file(tmp_path / "whole.npz", random_policy())
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:900])
    np.savez_compressed(tmp_path / "compressed.npz", **random_policy())
    damaged = bytearray((tmp_path / "compressed.npz").read_bytes())
    start = damaged.index(b"w0.npy") + len("w0.npy")
    damaged[start : start + 200] = b"\xff" * 200
    (tmp_path / "compressed.npz").write_bytes(damaged)
    for name in ("objects.npz", "text.npz", "lone.npy", "half.npz", "compressed.npz"):
        with pytest.raises(ValueError, match=f"{name} is no npz file of plain arrays"):
            load_policy_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        load_policy_file(tmp_path / "nowhere.npz")
