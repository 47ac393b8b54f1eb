"""Every combination of what stands between commas: Hydra's basic sweeper, for sweeps that are broken off.

What surprises first: the same command goes on; see rsd/commands/jobs.py. conf/hydra/sweeper/grid.yaml chooses it.
"""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from rsd.commands.entry_point import JobError
from rsd.commands.jobs import checked_jobs, failed_line, finish_sweep, launch_missing, open_sweep


class Grid(BasicSweeper):
    """Runs all jobs, whatever happens to one of them, and then tells of those that failed."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        loader = self.hydra_context.config_loader
        typed = [f"{key}={value}" for key, value in (self.params or {}).items()] + arguments
        batches = self.split_arguments(OverridesParser.create(loader).parse_overrides(typed), self.max_batch_size)
        folder = open_sweep(self.config, arguments)
        jobs = checked_jobs(loader, self.config, [one for batch in batches for one in batch], 0, folder)
        failed, start = [], 0
        for batch in batches:
            failed += launch_missing(self.launcher, jobs[start : start + len(batch)])
            start += len(batch)
        if failed:
            raise JobError(failed_line(failed, len(jobs)))
        finish_sweep(folder)
        return [job.ended() for job in jobs]
