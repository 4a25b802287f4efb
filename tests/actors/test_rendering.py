"""What frames look like, and what is said when they cannot be drawn."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from actors.envs import gl
from actors.envs.gl import GLInfo, GLUnavailableError, check_gl, gl_backend, select_egl_device
from actors.envs.meshes import _distinct_faces, with_coarse_meshes
from actors.envs.registry import EnvConfig, make_env
from models.videos import RenderSettings


def first_frame(**render):
    return make_env(EnvConfig("door-close", render=RenderSettings(**render))).reset(seed=0)[0]


def test_fast_and_full_differ_but_show_the_same_scene():
    fast, full = first_frame(quality="fast"), first_frame(quality="full")
    assert fast.shape == full.shape == (64, 64, 3)
    difference = np.abs(fast.astype(int) - full.astype(int)).mean()
    assert 1 < difference < 25


def test_frames_are_upright_with_robot_left_and_door_right():
    frame = first_frame().astype(int)
    red = (frame[..., 0] > 90) & (frame[..., 1] < 60)
    green = (frame[..., 1] > 150) & (frame[..., 0] < 80)
    rows, columns = np.nonzero(red)
    assert red.sum() > 100 and columns.mean() < 20  # the arm comes in from the left
    goal_rows, goal_columns = np.nonzero(green)
    assert green.sum() >= 1 and goal_columns.mean() > 35
    assert rows.min() < goal_rows.mean()  # the top of the arm is above the goal on the table
    assert frame[:8, 40:].mean() == pytest.approx(128, abs=15)  # floor far away above, table below
    assert frame[-8:, 20:40, 0].mean() > frame[-8:, 20:40, 2].mean() + 10


def test_frame_size_follows_the_settings():
    assert first_frame(height_px=32, width_px=48).shape == (32, 48, 3)


def test_renderers_of_two_sizes_take_turns():
    small = make_env(EnvConfig("reach", render=RenderSettings(height_px=32, width_px=32)))
    large = make_env(EnvConfig("reach"))
    expected_small, expected_large = small.reset(seed=1)[0], large.reset(seed=1)[0]
    for _ in range(2):
        np.testing.assert_array_equal(small.render(), expected_small)
        np.testing.assert_array_equal(large.render(), expected_large)


def test_a_returned_frame_is_not_overwritten_by_the_next():
    env = make_env(EnvConfig("door-close"))
    frame = env.reset(seed=0)[0]
    kept = frame.copy()
    env.reset(seed=1)
    np.testing.assert_array_equal(frame, kept)


def test_coarse_meshes_have_fewer_faces_and_leave_the_simulated_model_alone():
    model = make_env(EnvConfig("door-close"))._sim.model
    faces, vertices = model.mesh_facenum.copy(), model.mesh_vert.copy()
    coarse = with_coarse_meshes(model, cell_m=0.006)
    assert 0 < coarse.mesh_facenum.sum() < 0.5 * faces.sum()
    np.testing.assert_array_equal(model.mesh_facenum, faces)
    np.testing.assert_array_equal(model.mesh_vert, vertices)
    assert np.abs(coarse.mesh_vert - vertices).max() < 0.006 * np.sqrt(3)


def test_distinct_faces_drops_collapsed_and_repeated_but_keeps_both_sides():
    faces = np.array([[0, 1, 2], [1, 1, 2], [2, 0, 1], [0, 2, 1], [3, 2, 1]])
    kept, left = _distinct_faces(faces)
    assert kept.tolist() == [0, 3, 4]
    assert left.tolist() == [[0, 1, 2], [0, 2, 1], [3, 2, 1]]


def test_check_gl_finds_the_renderer():
    info = check_gl()
    assert info.renderer and info.backend in gl.BACKENDS
    assert info.renderer in str(info)


def test_no_gl_names_the_packages_to_install(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    with pytest.raises(GLUnavailableError, match=r"libegl1 libgl1-mesa-dri.*libosmesa6"):
        check_gl()


@pytest.mark.parametrize("value", ["off", "vulkan"])
def test_unknown_backend_is_refused(monkeypatch, value):
    monkeypatch.setenv("MUJOCO_GL", value)
    with pytest.raises(GLUnavailableError, match=f"{value}.*egl"):
        gl_backend()


def test_backend_defaults_to_egl_without_a_display(monkeypatch):
    monkeypatch.setattr(gl.sys, "platform", "linux")
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY", "LP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    gl.configure_gl()
    assert gl.os.environ["MUJOCO_GL"] == "egl" and gl.os.environ["LP_NUM_THREADS"] == "0"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("LP_NUM_THREADS", "2")
    gl.configure_gl()
    assert gl.os.environ["MUJOCO_GL"] == "osmesa" and gl.os.environ["LP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    ("is_software", "has_gpu", "warns"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_gpu_machine_that_draws_in_software_is_warned(caplog, is_software, has_gpu, warns):
    info = GLInfo("egl", "llvmpipe" if is_software else "NVIDIA H100", "4.5", is_software, has_gpu)
    assert (info.warning is not None) == warns
    gl.log_gl(info)
    assert ("has an NVIDIA GPU" in caplog.text) == warns


def test_selecting_a_gpu(monkeypatch):
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "")
    monkeypatch.setitem(gl.sys.modules, "mujoco.egl", None)
    select_egl_device(1)
    assert gl.os.environ["MUJOCO_EGL_DEVICE_ID"] == "1"
    with pytest.raises(ValueError, match="-1"):
        select_egl_device(-1)


def test_selecting_a_gpu_after_the_first_frame_is_refused(monkeypatch):
    class RunningEGL:
        EGL_DISPLAY = object()

    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")
    monkeypatch.setitem(gl.sys.modules, "mujoco.egl", RunningEGL)
    select_egl_device(0)
    with pytest.raises(RuntimeError, match="before the first environment"):
        select_egl_device(1)


def test_a_process_that_drew_frames_ends_quietly():
    code = (
        "from actors.envs.registry import EnvConfig, make_env;"
        "envs = [make_env(EnvConfig(task)) for task in ('reach', 'door-close')];"
        "[env.reset(seed=0) for env in envs]"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stderr == ""
