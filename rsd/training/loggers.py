"""Where figures go: files by default, TensorBoard on request; wandb_logger.py and trackio_logger.py are beside it.

All take the same figures under the same names, and tables, plots and videos too; what one cannot show stays in the run
folder. Whoever uses one calls `close` once nothing more will come: Lightning's `finalize` comes after every fit.

Configs give these classes as partials; an entry point completes them with the run folder:
`logger = instantiate(cfg.logger)(run_dir=run_dir)`. They are Lightning loggers, so a Trainer takes them as they are.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning.loggers

from rsd.errors import RSDError

SECTIONS = {".png": "plots", ".mp4": "videos", ".html": "reports"}  # under which loggers show a file


class LoggerError(RSDError, RuntimeError):
    """Figures cannot go where they were meant to."""


class CsvLogger(pytorch_lightning.loggers.CSVLogger):
    """run_dir/csv/version_N/metrics.csv and tables beside it, one N a start, so that a resume overwrites nothing.

    Files and artifacts stay where they are in the run folder.
    """

    def __init__(self, *, run_dir: Path) -> None:
        super().__init__(save_dir=str(run_dir), name="csv")

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write name.csv; None becomes an empty cell.

        Raises:
            ValueError: a row has another number of cells than there are columns.
        """
        check_table(name, columns, rows)
        folder = Path(self.experiment.log_dir)  # made by the first call
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])

    def log_files(self, files: Sequence[Path]) -> None:
        """Plots, videos and reports; nothing to do, they are files already."""

    def log_read(self, content: Mapping[str, Any]) -> None:
        """What the run reads; inputs.json says it."""

    def log_made(self, content: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """A checkpoint or results; they are files already."""

    def close(self) -> None:
        """Write what is left; nothing more will come."""
        self.finalize("success")


class TensorBoardLogger(pytorch_lightning.loggers.TensorBoardLogger):
    """run_dir/tensorboard/version_N, one N a start. Tables become text; videos and pages stay files in the run folder.

    Raises:
        LoggerError: TensorBoard is not installed.
    """

    def __init__(self, *, run_dir: Path) -> None:
        try:
            super().__init__(save_dir=str(run_dir), name="tensorboard", default_hp_metric=False)
        except ImportError as error:
            raise LoggerError(
                "logger=tensorboard needs tensorboard; pip install 'rsd[tensorboard]', or set logger=csv"
            ) from error

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table as text; None becomes an empty cell.

        Raises:
            ValueError: a row has another number of cells than there are columns.
        """
        self.experiment.add_text(f"tables/{name}", table_text(name, columns, rows))

    def log_files(self, files: Sequence[Path]) -> None:
        """Show plots (png)."""
        import numpy as np
        from PIL import Image

        for file in files:
            if file.suffix == ".png":
                with Image.open(file) as image:
                    pixels = np.asarray(image.convert("RGB"))  # [height, width, 3]
                self.experiment.add_image(shown_as(file), pixels, dataformats="HWC")

    def log_read(self, content: Mapping[str, Any]) -> None:
        """What the run reads; inputs.json says it."""

    def log_made(self, content: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """A checkpoint or results; they are files already."""

    def close(self) -> None:
        """Write what is left; nothing more will come."""
        self.finalize("success")


def shown_as(file: Path) -> str:
    """Under which name a plot, video or page is shown: the same one in every run.

    Raises:
        ValueError: it is a file of another kind.
    """
    if file.suffix not in SECTIONS:
        raise ValueError(f"{file} cannot be shown; expected .png, .mp4 or .html")
    return f"{SECTIONS[file.suffix]}/{file.stem}"


def table_text(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown.

    Raises:
        ValueError: see `check_table`.
    """
    check_table(name, columns, rows)
    lines = [columns, ["---"] * len(columns), *(["" if cell is None else cell for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def check_table(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Hold a table to one cell a column.

    Raises:
        ValueError: a row has another number of cells.
    """
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(
                f"table {name!r}, row {number} has {len(row)} cells, expected {len(columns)}: {', '.join(columns)}"
            )
