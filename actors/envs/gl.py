"""Which OpenGL draws the frames: selection, checks and description.

MuJoCo reads `MUJOCO_GL` when it is imported, and Mesa reads `LP_NUM_THREADS` when its driver is loaded, so
`configure_gl` runs when this module is imported, before `mujoco` is.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

BACKENDS = ("egl", "osmesa", "glfw")
SOFTWARE_RENDERERS = ("llvmpipe", "softpipe", "swrast", "software rasterizer", "lavapipe")
INSTALL_HINT = (
    "Install a GL library: on Debian or Ubuntu `apt-get install libegl1 libgl1-mesa-dri` (MUJOCO_GL=egl, works "
    "without a GPU), or `apt-get install libosmesa6` and set MUJOCO_GL=osmesa"
)
_REPORT = "GL_REPORT "
_REPOSITORY = Path(__file__).resolve().parents[2]


class GLUnavailableError(RuntimeError):
    """No OpenGL context can be made on this machine with the chosen backend."""


@dataclass(frozen=True)
class GLInfo:
    """What draws the frames of this process.

    Attributes:
        backend: "egl", "osmesa" or "glfw".
        renderer: GL_RENDERER, for example "llvmpipe (LLVM 15.0.6, 256 bits)" or "NVIDIA H100/PCIe/SSE2".
        version: GL_VERSION.
        is_software: Whether the renderer is a CPU rasteriser.
        has_nvidia_gpu: Whether the machine has an NVIDIA GPU, used or not.
    """

    backend: str
    renderer: str
    version: str
    is_software: bool
    has_nvidia_gpu: bool

    def __str__(self) -> str:
        """For example "llvmpipe (LLVM 15.0.6, 256 bits) [egl, on the CPU]"."""
        return f"{self.renderer} [{self.backend}{', on the CPU' if self.is_software else ''}]"

    @property
    def warning(self) -> str | None:
        """Advice when a GPU is there but frames are drawn on the CPU, else None."""
        if not (self.is_software and self.has_nvidia_gpu):
            return None
        return (
            f"this machine has an NVIDIA GPU, but frames are drawn on the CPU by {self.renderer!r} (over 10x slower). "
            "Install the driver's GL libraries (Debian: libnvidia-gl-<driver version>; in a container run with "
            "NVIDIA_DRIVER_CAPABILITIES=all), and set MUJOCO_GL=egl"
        )


def configure_gl() -> None:
    """Chooses EGL on Linux without a display, and one thread per process for Mesa's software renderer.

    Both are defaults: `MUJOCO_GL` and `LP_NUM_THREADS` that are set already are kept. At 64x64 pixels Mesa's
    worker threads make frames slower, and several rollout processes would fight for the cores.
    """
    has_display = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if sys.platform.startswith("linux") and not has_display:
        os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "0")


configure_gl()


def gl_backend() -> str:
    """The backend that contexts are made with: "egl", "osmesa" or "glfw".

    Raises:
        GLUnavailableError: if MUJOCO_GL names no known backend, or switches rendering off.
    """
    name = os.environ.get("MUJOCO_GL", "").lower().strip()
    if name in BACKENDS:
        return name
    if name in ("", "on", "true", "1", "enable", "enabled", "glx", "cgl", "wgl"):
        return "glfw"
    raise GLUnavailableError(f"MUJOCO_GL is {name!r}, expected one of {BACKENDS}. {INSTALL_HINT}")


def import_mujoco() -> ModuleType:
    """Imports mujoco, which loads the GL library that MUJOCO_GL names.

    Raises:
        GLUnavailableError: naming the packages to install, if that library is missing.
    """
    backend = gl_backend()
    try:
        import mujoco
    # PyOpenGL reports a missing library as AttributeError on a null function, as well as ImportError.
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        raise GLUnavailableError(
            f"the GL library of backend {backend!r} cannot be loaded: {type(error).__name__}: {error}. {INSTALL_HINT}"
        ) from error
    return mujoco


def make_gl_context(width_px: int, height_px: int) -> Any:
    """Makes an offscreen GL context and makes it current in this thread.

    The class is chosen here rather than by `mujoco.GLContext`, which is fixed by whoever imported mujoco first.

    Raises:
        GLUnavailableError: naming the packages to install, if the backend does not work here.
    """
    backend = gl_backend()
    try:
        if backend == "egl":
            from mujoco.egl import GLContext
        elif backend == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco.glfw import GLContext
        context = GLContext(width_px, height_px)
        if backend == "glfw" and not context._context:
            raise OSError("no window system answers; set MUJOCO_GL=egl to draw without a display")
        context.make_current()
    # PyOpenGL reports a missing library as AttributeError or TypeError on a null function, EGL as its own error.
    except Exception as error:
        raise GLUnavailableError(
            f"no OpenGL context with backend {backend!r}: {type(error).__name__}: {error}. {INSTALL_HINT}"
        ) from error
    return context


def describe_gl() -> GLInfo:
    """Describes the GL of this process, making a small context if none is current.

    Raises:
        GLUnavailableError: if no context can be made.
    """
    context = None if _read_string("GL_RENDERER") else make_gl_context(8, 8)
    try:
        renderer, version = _read_string("GL_RENDERER"), _read_string("GL_VERSION")
    finally:
        if context is not None:
            context.free()
    if not renderer:
        raise GLUnavailableError(
            f"the GL context of backend {gl_backend()!r} names no renderer. {INSTALL_HINT}"
        )
    return GLInfo(
        backend=gl_backend(),
        renderer=renderer,
        version=version,
        is_software=any(name in renderer.lower() for name in SOFTWARE_RENDERERS),
        has_nvidia_gpu=has_nvidia_gpu(),
    )


def check_gl(timeout_s: float = 30.0) -> GLInfo:
    """Makes sure, in a process of its own, that frames can be drawn here; logs what draws them.

    A broken driver can hang or crash its process: a child takes the blow, and the caller gets an error in seconds.

    Args:
        timeout_s: Seconds until a hanging driver counts as broken.

    Returns:
        What the child found.

    Raises:
        GLUnavailableError: naming the packages to install.
    """
    path = os.pathsep.join(filter(None, [str(_REPOSITORY), os.environ.get("PYTHONPATH")]))
    try:
        child = subprocess.run(
            [sys.executable, "-c", "from actors.envs.gl import _report_to_parent; _report_to_parent()"],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise GLUnavailableError(
            f"the GL driver did not answer within {timeout_s} s. {INSTALL_HINT}"
        ) from error
    reports = [line for line in child.stdout.splitlines() if line.startswith(_REPORT)]
    if not reports:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise GLUnavailableError(
            f"the GL driver ended its process (status {child.returncode}: {last}). {INSTALL_HINT}"
        )
    report = json.loads(reports[-1].removeprefix(_REPORT))
    if isinstance(report, str):
        raise GLUnavailableError(report)
    info = GLInfo(**report)
    log_gl(info)
    return info


def _report_to_parent() -> None:
    """Prints what `describe_gl` finds, or its error, as one line of JSON (the child of `check_gl`)."""
    try:
        report: Any = asdict(describe_gl())
    except GLUnavailableError as error:
        report = str(error)
    print(_REPORT + json.dumps(report), flush=True)


def log_gl(info: GLInfo) -> None:
    """Logs the renderer in use, and a warning when a GPU is idle."""
    logger.info("frames are drawn by %s", info)
    if info.warning:
        logger.warning(info.warning)


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver or tool is present on this machine."""
    return Path("/proc/driver/nvidia/gpus").is_dir() or shutil.which("nvidia-smi") is not None


def select_egl_device(index: int) -> None:
    """Draws the frames of this process on one of several GPUs; call it before the first frame.

    Args:
        index: EGL device number, 0 or more.

    Raises:
        ValueError: if the index is negative.
        RuntimeError: if a renderer already lives on another device of this process.
    """
    if index < 0:
        raise ValueError(f"EGL device index must be 0 or more, got {index}")
    egl = sys.modules.get("mujoco.egl")
    if (
        egl is not None
        and egl.EGL_DISPLAY is not None
        and os.environ.get("MUJOCO_EGL_DEVICE_ID") != str(index)
    ):
        raise RuntimeError(
            f"EGL is already running in this process; select device {index} before the first environment is made"
        )
    os.environ["MUJOCO_EGL_DEVICE_ID"] = str(index)


def _read_string(name: str) -> str:
    """A GL string of the current context, or "" when no context is current."""
    if gl_backend() == "egl" and "mujoco.egl" not in sys.modules:
        return ""
    if gl_backend() == "osmesa" and "mujoco.osmesa" not in sys.modules:
        return ""
    from OpenGL import GL, error

    try:
        value = GL.glGetString(getattr(GL, name))
    except (error.GLError, error.Error):
        return ""
    return value.decode() if value else ""
