"""Files of LIBERO's distributions against what the installer noted. Nothing here loads the simulator."""

import importlib.metadata
import shutil

import pytest

from rsd.envs import checks
from rsd.envs.gl import SimulatorError


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder with two installed distributions: libero-fork, and libero-fork-meshes that it requires."""

    def install(name: str, files: dict[str, str], requires: str = "") -> None:
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}")
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        record = "".join(f"{path},sha256=0,{len(text)}\n" for path, text in files.items())
        (info / "RECORD").write_text(f"{record}{info.name}/RECORD,,\n")

    requires = (
        "Requires-Dist: numpy<3\nRequires-Dist: libero-fork-meshes==1.0\nRequires-Dist: libero-x==1; extra == 'x'\n"
    )
    install("libero-fork", {"libero/__init__.py": "", "libero/task.bddl": "(define)"}, requires)
    install("libero-fork-meshes", {"meshes/bowl.obj": "v 0 0 0"})
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"libero": ["libero-fork"]})
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_whole_distributions_pass_with_those_that_hold_the_meshes(site):
    assert checks.check_installed_files() == {"libero-fork": 2, "libero-fork-meshes": 1}


def test_a_missing_mesh_is_named(site):
    (site / "meshes" / "bowl.obj").unlink()
    message = r"1 of LIBERO's files are damaged or missing, first .*bowl\.obj \(missing, expected 7 bytes\); pip"
    with pytest.raises(SimulatorError, match=message):
        checks.check_installed_files()


def test_a_truncated_file_is_named(site):
    (site / "libero" / "task.bddl").write_text("(def")
    with pytest.raises(SimulatorError, match=r"task\.bddl \(4 bytes, expected 8 bytes\)"):
        checks.check_installed_files()


def test_a_checkout_that_no_installer_put_there_is_not_checked(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict)
    assert checks.check_installed_files() == {}


def test_the_commands_of_a_moved_environment_name_another_interpreter(site):
    with (site / "libero_fork-1.0.dist-info" / "RECORD").open("a") as record:
        record.write("../../../bin/libero,sha256=0,234\n")
    assert checks.check_installed_files() == {"libero-fork": 2, "libero-fork-meshes": 1}


def test_meshes_that_were_never_installed_are_named(site):
    shutil.rmtree(site / "libero_fork_meshes-1.0.dist-info")
    with pytest.raises(SimulatorError, match=r"LIBERO requires libero-fork-meshes, which is not installed; pip"):
        checks.check_installed_files()
