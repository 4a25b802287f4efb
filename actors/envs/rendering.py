"""A thin renderer on MuJoCo's scene and GL context, with the two qualities of `RenderSettings`."""

from __future__ import annotations

import atexit
import copy
import threading
from typing import Any

import numpy as np

from actors.envs.gl import check_gl, describe_gl, import_mujoco, log_gl, make_gl_context
from actors.envs.meshes import with_coarse_meshes
from models.videos import RenderSettings

mujoco = import_mujoco()

__all__ = ["SceneRenderer", "check_gl", "describe_gl", "shared_renderer"]

MAX_GEOMS = 1000
# Merged vertices lie within a third of a pixel of each other, for a camera with 60 degrees at one metre.
COARSE_CELL_M_TIMES_PX = 0.4


class _ThreadRenderers(threading.local):
    """Renderers of one thread (a GL context belongs to a thread), and the one whose context is current."""

    def __init__(self) -> None:
        self.shared: dict[tuple[Any, ...], SceneRenderer] = {}
        self.current: SceneRenderer | None = None


_THREAD = _ThreadRenderers()


class SceneRenderer:
    """Draws the state of a simulation, from one camera, into a numpy array.

    `fast` is made for software GL at small sizes: no shadows, no multisampling, no reflections, coarser visual meshes
    and primitives. `full` is what the simulator draws by default. Physics never changes.
    Use it in the thread that made it: a GL context belongs to one thread.
    """

    def __init__(self, model: Any, settings: RenderSettings) -> None:
        """Uploads the meshes and textures of a model.

        Args:
            model: mujoco.MjModel, the scene to draw; it is not modified.
            settings: Quality and size; the camera is given with each frame.

        Raises:
            GLUnavailableError: if no GL context can be made.
        """
        self.settings = settings
        upload = self._prepare(model)
        self._context = make_gl_context(settings.width_px, settings.height_px)
        _THREAD.current = self
        self._mjr = mujoco.MjrContext(upload, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._mjr)
        self._scene = mujoco.MjvScene(upload, maxgeom=MAX_GEOMS)
        if settings.quality == "fast":
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._scene.flags[flag] = False
        self._options = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._rect = mujoco.MjrRect(0, 0, settings.width_px, settings.height_px)
        self._pixels = np.empty((settings.height_px, settings.width_px, 3), dtype=np.uint8)

    def _prepare(self, model: Any) -> Any:
        """A copy of the model as it is uploaded: buffer size, samples, shadow map and mesh detail."""
        settings = self.settings
        if settings.quality == "fast":
            model = with_coarse_meshes(model, COARSE_CELL_M_TIMES_PX / settings.height_px)
            quality = model.vis.quality
            quality.offsamples, quality.shadowsize = 0, 0
            quality.numslices, quality.numstacks, quality.numquads = 12, 8, 1
        else:
            model = copy.copy(model)
        # The offscreen buffer needs no more than the picture: 480x480 by default costs memory, and time per frame.
        model.vis.global_.offwidth, model.vis.global_.offheight = settings.width_px, settings.height_px
        return model

    def render(self, model: Any, data: Any, camera_id: int) -> np.ndarray:
        """Draws one frame.

        Args:
            model: The simulated mujoco.MjModel (the same scene that was uploaded; positions may differ).
            data: Its state, mujoco.MjData; positions must be up to date.
            camera_id: Fixed camera of the model.

        Returns:
            A new (H, W, 3) uint8 array, upright.
        """
        self._make_current()
        self._camera.fixedcamid = camera_id
        mujoco.mjv_updateScene(
            model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        mujoco.mjr_render(self._rect, self._scene, self._mjr)
        mujoco.mjr_readPixels(self._pixels, None, self._rect, self._mjr)
        return self._pixels[::-1].copy()

    def _make_current(self) -> None:
        if _THREAD.current is not self:
            self._context.make_current()
            _THREAD.current = self

    def close(self) -> None:
        """Frees the GL objects. Drawing afterwards is an error."""
        self._make_current()
        self._mjr.free()
        self._context.free()
        _THREAD.current = None


def shared_renderer(scene: str, model: Any, settings: RenderSettings) -> SceneRenderer:
    """The renderer of this thread for one scene file and setting; environments of one task share it.

    Args:
        scene: What makes the uploaded meshes and textures equal, for example the path of the XML file.
        model: Used when the renderer is made for the first time.
        settings: Quality and size.
    """
    shared = _THREAD.shared
    key = (scene, settings.quality, settings.height_px, settings.width_px)
    if key not in shared:
        shared[key] = SceneRenderer(model, settings)
        if len(shared) == 1:
            log_gl(describe_gl())
            # Registered after EGL's own exit handler, so that it runs before EGL is shut down.
            atexit.register(_close_shared, threading.get_ident())
    return shared[key]


def _close_shared(thread: int) -> None:
    """Frees the renderers at exit; those of another thread went with their thread."""
    if thread == threading.get_ident():
        for renderer in _THREAD.shared.values():
            renderer.close()
        _THREAD.shared.clear()
