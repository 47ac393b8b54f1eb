"""Whatever is missing gives one message with the command that repairs it. Nothing here loads the simulator."""

import importlib.metadata
import importlib.util
import subprocess
import sys
import types

import pytest

from rsd.envs import gl


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No GL variables, no GPU, and robosuite not imported, whatever the machine."""
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", gl.PROBED_VARIABLE, "MUJOCO_EGL_DEVICE_ID"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(gl, "has_gpu", lambda: False)
    monkeypatch.delitem(sys.modules, "robosuite", raising=False)
    return monkeypatch


@pytest.fixture
def broken(monkeypatch):
    """Backends in this dict fail with the given reason; the fixture records which were probed."""
    reasons, probed = {}, []
    monkeypatch.setattr(gl, "probe", lambda backend: probed.append(backend) or reasons.get(backend))
    reasons["probed"] = probed
    return reasons


def test_osmesa_is_chosen_without_a_gpu_and_egl_with_one(broken, monkeypatch):
    assert gl.choose_backend() == "osmesa"
    assert (gl.os.environ["MUJOCO_GL"], gl.os.environ["PYOPENGL_PLATFORM"]) == ("osmesa", "osmesa")
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(gl, "has_gpu", lambda: True)
    assert gl.choose_backend() == "egl"


def test_the_other_backend_serves_when_the_first_does_not_render(broken):
    broken["osmesa"] = "no libOSMesa"
    assert gl.choose_backend() == "egl"
    assert broken["probed"] == ["osmesa", "egl"]


def test_an_explicit_backend_is_respected_and_probed(broken, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "EGL")
    assert gl.choose_backend() == "egl"
    assert broken["probed"] == ["egl"]


def test_an_explicit_backend_that_does_not_render_is_not_replaced(broken, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    broken["egl"] = "no display"
    with pytest.raises(gl.SimulatorError, match=r"egl: no display.*apt-get install -y libegl1"):
        gl.choose_backend()


def test_a_backend_that_needs_a_screen_is_refused(broken, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(gl.SimulatorError, match=r"'glfw'.*expected one of \['osmesa', 'egl'\]; unset MUJOCO_GL"):
        gl.choose_backend()


def test_a_process_without_cuda_devices_still_has_a_device_to_render_on(broken, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gl.choose_backend()
    assert gl.os.environ["MUJOCO_EGL_DEVICE_ID"] == "0"


def test_a_backend_is_probed_once(broken):
    gl.choose_backend()
    gl.choose_backend()
    assert broken["probed"] == ["osmesa"]


def test_no_gl_library_names_both_reasons_and_the_command(broken):
    broken |= {"osmesa": "no libOSMesa", "egl": "no libEGL"}
    message = r"osmesa: no libOSMesa; egl: no libEGL\); sudo apt-get install -y libosmesa6"
    with pytest.raises(gl.MissingLibraryError, match=message):
        gl.choose_backend()
    assert "MUJOCO_GL" not in gl.os.environ


def test_the_probe_reports_the_childs_last_line(monkeypatch):
    monkeypatch.setattr(gl, "PROBE", "raise ImportError('libOSMesa.so.8: cannot open shared object file')")
    assert gl.probe("osmesa") == "ImportError: libOSMesa.so.8: cannot open shared object file"


def test_the_probe_survives_a_child_that_crashes(monkeypatch):
    monkeypatch.setattr(gl, "PROBE", "import os; os.abort()")
    assert "exit code -6" in gl.probe("egl")


def test_the_probe_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(gl, "PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(gl, "PROBE_TIMEOUT_S", 0.2)
    assert gl.probe("egl") == "no picture after 0.2 s"


def test_another_backend_after_robosuite_was_imported_is_an_error(broken, monkeypatch):
    monkeypatch.setitem(sys.modules, "robosuite", types.ModuleType("robosuite"))
    with pytest.raises(gl.SimulatorError, match="too early"):
        gl.choose_backend()


@pytest.fixture
def installed(monkeypatch):
    """All packages are there; MuJoCo's version is versions["mujoco"]."""
    versions = {"mujoco": gl.MUJOCO_VERSION}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: types.SimpleNamespace(name=name))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions[name])
    return versions


def test_the_pinned_mujoco_passes(installed):
    assert gl.check_packages() == "3.2.3"


def test_another_mujoco_is_refused_because_scores_change(installed):
    installed["mujoco"] = "3.4.0"
    message = r"MuJoCo is 3\.4\.0; expected 3\.2\.3: .* mujoco==3\.2\.3, or .*env\.allow_mujoco_version=3\.4\.0"
    with pytest.raises(gl.SimulatorError, match=message):
        gl.check_packages()
    with pytest.raises(gl.SimulatorError):
        gl.check_packages(allow_mujoco_version="3.3.0")


def test_another_mujoco_can_be_accepted(installed):
    installed["mujoco"] = "3.4.0"
    assert gl.check_packages(allow_mujoco_version="3.4.0") == "3.4.0"


@pytest.mark.parametrize("package", ["libero", "robosuite", "mujoco"])
def test_a_missing_package_names_the_extra(installed, monkeypatch, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(gl.SimulatorError, match=rf"'{package}' is not installed; pip install -e '\.\[libero\]'"):
        gl.check_packages()


@pytest.fixture
def fake_libero(tmp_path, monkeypatch):
    """A package `libero` on disk whose folders are empty; its get_libero_path answers with them."""
    root = tmp_path / "libero" / "libero"
    root.mkdir(parents=True)
    source = f"from pathlib import Path\ndef get_libero_path(name):\n    return str(Path({str(root)!r}) / name)\n"
    (tmp_path / "libero" / "__init__.py").touch()
    (root / "__init__.py").write_text(source)
    for name in [name for name in sys.modules if name.split(".")[0] == "libero"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path / "config"))
    yield root
    for name in [name for name in sys.modules if name.split(".")[0] == "libero"]:
        del sys.modules[name]


def test_missing_assets_are_named(fake_libero):
    for name in ("bddl_files", "init_states"):
        (fake_libero / name).mkdir()
        (fake_libero / name / "something").touch()
    with pytest.raises(gl.SimulatorError, match=r"LIBERO's assets are missing: .*assets does not exist.*pip install"):
        gl.check_assets()
    (fake_libero / "assets").mkdir()
    with pytest.raises(gl.SimulatorError, match="does not exist or is empty"):
        gl.check_assets()
    (fake_libero / "assets" / "something").touch()
    gl.check_assets()


def test_the_config_file_is_written_only_where_libero_would_ask(fake_libero, tmp_path):
    config = tmp_path / "config" / "config.yaml"
    gl.prepare_libero()
    assert not config.exists()
    (fake_libero / "__init__.py").write_text("answer = input('where?')")
    gl.prepare_libero()
    assert f"bddl_files: {fake_libero / 'bddl_files'}\n" in config.read_text()
    config.write_text("mine: 1\n")
    gl.prepare_libero()
    assert config.read_text() == "mine: 1\n"


def test_the_command_prints_packages_or_the_remedy(broken, installed, monkeypatch, capsys):
    broken |= {"osmesa": "no libOSMesa", "egl": "no libEGL"}
    monkeypatch.setattr(sys, "argv", ["gl"])
    assert gl.main() == 1
    assert "sudo apt-get install -y libosmesa6" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["gl", "--packages"])
    assert gl.main() == 0
    assert capsys.readouterr().out.split()[0] == "libosmesa6"


def test_importing_the_room_loads_no_simulator():
    modules = ("mujoco", "robosuite", "OpenGL")
    code = f"import sys, rsd.envs.libero, rsd.envs.gl; print([name for name in {modules} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_an_accepted_mujoco_is_stamped_beside_the_expected_one(broken, installed, monkeypatch):
    installed |= {"mujoco": "3.4.0", "robosuite": "1.4.0"}
    monkeypatch.setattr(gl, "check_assets", lambda: None)
    found = gl.check_simulator(allow_mujoco_version="3.4.0")
    assert found == {"mujoco": "3.4.0", "robosuite": "1.4.0", "gl_backend": "osmesa", "mujoco_expected": "3.2.3"}
    installed["mujoco"] = "3.2.3"
    assert "mujoco_expected" not in gl.check_simulator()
