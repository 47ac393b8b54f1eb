"""trackio: a local dashboard over one SQLite file for all runs, without account or network.

What surprises first: its figures lie in one folder for all runs of a checkout, not in the run folder; `trackio show`
reads them there.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from rsd.settings import Text, checked
from rsd.training.lineage import digests_of, group_of
from rsd.training.loggers import LoggerError, shown_as, table_text


class TrackioLogger(Logger):
    """A trackio run; tables become text, and plots, videos and pages are shown.

    Args:
        run_dir: The run folder; its name is the run's name.
        project: The project's name.
        folder: Where trackio keeps all runs; TRACKIO_DIR, where it is set, is another one.
        group: Runs that belong together; None is the sweep's folder name, for a job of a sweep.

    Raises:
        LoggerError: trackio is not installed.
    """

    @checked
    def __init__(self, *, run_dir: Path, project: Text, folder: Text, group: Text | None = None) -> None:
        super().__init__()
        os.environ.setdefault("TRACKIO_DIR", str(Path(folder).resolve()))  # read when it is imported
        try:
            import trackio
        except ImportError as error:
            raise LoggerError(
                f"logger=trackio needs trackio ({error}); pip install 'rsd[trackio]', or set logger=csv"
            ) from error
        self._trackio, self._run_dir, self._project = trackio, Path(run_dir), project
        self._group = group or group_of(self._run_dir)
        self._run: Any = None

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self._run_dir.name

    @property
    def experiment(self) -> Any:
        """trackio's run, begun by the first call."""
        if self._run is None:
            self._run = self._trackio.init(
                project=self._project,
                name=self._run_dir.name,
                group=self._group,
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | argparse.Namespace, *_: Any, **__: Any) -> None:
        """Keep the resolved config, and the digests of what the run reads, as `inputs`."""
        given = vars(params) if isinstance(params, argparse.Namespace) else params
        self.experiment.config.update({**given, "inputs": digests_of(self._run_dir)})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table as text; None becomes an empty cell.

        Raises:
            ValueError: a row has another number of cells than there are columns.
        """
        self.experiment.log({f"tables/{name}": self._trackio.Markdown(table_text(name, columns, rows))})

    def log_files(self, files: Sequence[Path]) -> None:
        """Show plots (png), videos (mp4) and reports (html).

        Raises:
            ValueError: a file of another kind.
        """
        shown = {".png": self._trackio.Image, ".mp4": self._trackio.Video, ".html": self._trackio.Html}
        media = {shown_as(file): shown[file.suffix](str(file)) for file in files}
        if media:
            self.experiment.log(media)

    def log_read(self, content: Mapping[str, Any]) -> None:
        """What the run reads; inputs.json says it."""

    def log_made(self, content: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """A checkpoint or results; they are files already."""

    @rank_zero_only
    def close(self) -> None:
        """Write what is left; nothing more will come."""
        if self._run is not None:
            self._run.finish()
