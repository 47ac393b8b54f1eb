"""--dry-run of a multirun that is sent to a scheduler: Hydra knows nothing of it, so it is taken out and noted here."""

from __future__ import annotations

from collections.abc import Sequence

from rsd.errors import SettingError

DRY_RUN = "--dry-run"
SAME_NAME = r"\s*'hydra/launcher/submitit_"  # Hydra's warning: conf/ has launchers of the packaged ones' names
_TYPED: set[str] = set()


def is_dry_run() -> bool:
    """Whether the command was typed with --dry-run."""
    return DRY_RUN in _TYPED


def without_dry_run(arguments: Sequence[str]) -> list[str]:
    """The command line without --dry-run, which is noted.

    Raises:
        SettingError: nothing would be sent elsewhere.
    """
    _TYPED.difference_update([DRY_RUN])
    if DRY_RUN not in arguments:
        return list(arguments)
    others = [one for one in arguments if one != DRY_RUN]
    is_sent = any(one.startswith("hydra/launcher=submitit_") for one in others)
    if not is_sent or not {"-m", "--multirun"} & set(others):
        raise SettingError(
            f"{DRY_RUN} shows what a multirun would send to a scheduler; it goes with -m and "
            "hydra/launcher=submitit_slurm (docs/slurm.md)"
        )
    _TYPED.add(DRY_RUN)
    return others
