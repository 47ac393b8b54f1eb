"""Every combination of what stands between commas: Hydra's basic sweeper, for sweeps that go on.

What surprises first: the same command goes on, and a job that fails holds up no other; see rsd/commands/jobs.py.
"""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from rsd.commands.jobs import check_folders, check_jobs, end_dry_run, launch_missing, open_sweep
from rsd.commands.sweep import end_sweep


class Grid(BasicSweeper):
    """All jobs, whatever happens to one of them; then it tells of those that failed."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(loader).parse_overrides([*self._parse_config(), *arguments])
        batches = self.split_arguments(overrides, self.max_batch_size)
        jobs = check_jobs(loader, self.config, [one for batch in batches for one in batch], first=0)
        end_dry_run(self.launcher, jobs, len(jobs), self.config)
        folder = open_sweep(self.config, arguments, lambda there: check_folders(jobs, there))
        start = 0
        for batch in batches:
            launch_missing(self.launcher, jobs[start : start + len(batch)], folder)
            start += len(batch)
        end_sweep(self.config, jobs)
