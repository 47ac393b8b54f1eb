"""Is everything there that an environment needs? A second or two, nothing is simulated.

`check_environment` is what evaluation and collection ask before they start; scripts/doctor.py asks for more.
"""

from __future__ import annotations

import csv
import importlib.metadata
from pathlib import Path

from packaging.requirements import Requirement

from rsd.envs.gl import REINSTALL_COMMAND, SimulatorError, check_simulator
from rsd.envs.suites import check_suite
from rsd.settings import Count, checked

LIBERO_MODULE = "libero"  # as one imports it; distributions of several names provide it


@checked
def check_environment(
    *,
    suite: str,
    variant: str | None,
    num_tasks: Count,
    num_init_states: Count,
    allow_mujoco_version: str | None = None,
) -> dict[str, str]:
    """Check simulator and suite, and choose the GL backend.

    Args:
        suite, variant, num_tasks, num_init_states: See `check_suite`.
        allow_mujoco_version: See `check_simulator`.

    Returns:
        What `check_simulator` found, to be stamped into results.

    Raises:
        SimulatorError: something is missing; the message ends in the command that repairs it.
        ValueError: the suite is not what the configuration says.
    """
    versions = check_simulator(allow_mujoco_version)
    check_suite(suite, variant, num_tasks=num_tasks, num_init_states=num_init_states)
    return versions


def check_installed_files() -> dict[str, int]:
    """Hold the files of LIBERO's distributions (code, scene descriptions, init states, meshes) to their sizes.

    The sizes are those that the installer noted. An upstream checkout on the path has noted none and is not checked.

    Returns:
        Distribution name to the number of files that were looked at.

    Raises:
        SimulatorError: a distribution or a file is missing, or a file is of another size.
    """
    counts, wrong = {}, []
    for name in libero_distributions():
        try:
            expected = recorded_sizes(importlib.metadata.distribution(name))
        except importlib.metadata.PackageNotFoundError:
            raise SimulatorError(f"LIBERO requires {name}, which is not installed; {REINSTALL_COMMAND}") from None
        counts[name] = len(expected)
        for path, size in expected.items():
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                wrong.append(f"{path} ({'missing' if found is None else f'{found} bytes'}, expected {size} bytes)")
    if wrong:
        raise SimulatorError(
            f"{len(wrong)} of LIBERO's files are damaged or missing, first {wrong[0]}; {REINSTALL_COMMAND}"
        )
    return counts


def recorded_sizes(distribution: importlib.metadata.Distribution) -> dict[Path, int]:
    """Path to bytes of all files of the packages whose sizes the installer noted.

    Commands (../../../bin) are left out: they name their interpreter, which is another one in a moved environment.
    Read from the record itself: from Python 3.12 on, `Distribution.files` leaves out those that are missing.
    """
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())  # path, hash, size
    return {
        Path(str(distribution.locate_file(path))): int(size)
        for path, _, size in rows
        if size and not path.startswith("..")
    }


def libero_distributions() -> list[str]:
    """The installed distribution that provides LIBERO, and those it requires for its meshes."""
    found = []
    for provider in importlib.metadata.packages_distributions().get(LIBERO_MODULE, []):
        required = [Requirement(line) for line in importlib.metadata.requires(provider) or []]
        needed = [one.name for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
        found += [provider, *(name for name in needed if name.startswith(LIBERO_MODULE))]
    return list(dict.fromkeys(found))
