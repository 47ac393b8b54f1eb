"""Where figures go: files by default, TensorBoard or Weights & Biases on request.

All take tables, plots, videos and checkpoints too; what one cannot show stays in the run folder.

Configs give these classes as partials; an entry point completes them with the run folder:
`logger = instantiate(cfg.logger)(run_dir=run_dir)`. They are Lightning loggers, so a Trainer takes them as they are.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning.loggers

from rsd.errors import RSDError, SettingError
from rsd.record import unsealed
from rsd.runs import is_job_of_sweep
from rsd.settings import Text, checked

MODES = ("offline", "online", "disabled")


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

    def log_artifact(self, path: Path, *, kind: str) -> None:
        """A checkpoint or a folder of results; nothing to do."""


class TensorBoardLogger(pytorch_lightning.loggers.TensorBoardLogger):
    """run_dir/tensorboard/version_N, one N a start. Tables become text; videos and pages stay files in the run folder.

    Raises:
        LoggerError: TensorBoard is not installed.
    """

    def __init__(self, *, run_dir: Path) -> None:
        try:
            super().__init__(save_dir=str(run_dir), name="tensorboard")
        except ImportError as error:
            raise LoggerError(
                "logger=tensorboard needs tensorboard; pip install 'rsd[tensorboard]', or set logger=csv"
            ) from error

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table as text; None becomes an empty cell.

        Raises:
            ValueError: a row has another number of cells than there are columns.
        """
        check_table(name, columns, rows)
        lines = [columns, ["---"] * len(columns), *(["" if cell is None else cell for cell in row] for row in rows)]
        text = "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
        self.experiment.add_text(f"tables/{name}", text)

    def log_files(self, files: Sequence[Path]) -> None:
        """Show plots (png)."""
        import numpy as np
        from PIL import Image

        for file in files:
            if file.suffix == ".png":
                with Image.open(file) as image:
                    pixels = np.asarray(image.convert("RGB"))  # [height, width, 3]
                self.experiment.add_image(f"{file.parent.name}/{file.stem}", pixels, dataformats="HWC")

    def log_artifact(self, path: Path, *, kind: str) -> None:
        """A checkpoint or a folder of results; nothing to do."""


class WandbLogger(pytorch_lightning.loggers.WandbLogger):
    """A Weights & Biases run; offline ones are written to run_dir/wandb and need neither account nor network.

    Args:
        run_dir: The run folder; its name is the run's name.
        project: The project's name at Weights & Biases.
        mode: "offline", "online" or "disabled"; an offline run is sent later with `wandb sync`.
        group: Runs that belong together; None is the sweep's folder name, for a job of a sweep.
        job_type: What the run does: the phase's name, or "eval".
        tags: Labels to filter by.

    Raises:
        SettingError: no such mode.
        LoggerError: Weights & Biases is not installed; or an online run has no account or no network, which is seen
            here and not at the first figure.
    """

    @checked
    def __init__(
        self,
        *,
        run_dir: Path,
        project: Text,
        mode: str,
        group: Text | None = None,
        job_type: Text | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        if mode not in MODES:
            raise SettingError(f"logger.mode is {mode!r}, expected one of {list(MODES)}; it is WANDB_MODE's, where set")
        try:
            import wandb
        except ImportError as error:
            raise LoggerError(f"logger=wandb needs wandb ({error}); install it, or set logger=csv") from error

        wandb.finish()  # a multirun's last job: Lightning would go on writing into its run
        self._run_dir = Path(run_dir)
        super().__init__(
            save_dir=str(run_dir),
            name=self._run_dir.name,
            project=project,
            mode=mode,
            group=group or group_of(self._run_dir),
            job_type=job_type,
            tags=list(tags),
        )
        if mode != "online":
            return
        try:
            if not wandb.login(prompt=False):  # on a terminal, the run itself would ask for a key
                raise wandb.errors.UsageError("No API key found")
            _ = self.experiment
        except wandb.errors.Error as error:
            raise LoggerError(
                f"logger=wandb with mode online cannot begin: {' '.join(str(error).split())}; log in with `wandb "
                "login`, set WANDB_API_KEY, or leave it offline (WANDB_MODE=offline), to be sent later"
            ) from error

    def log_hyperparams(self, params: Any) -> None:
        """Keep the resolved config, and what the run reads with its digests, as `inputs`."""
        super().log_hyperparams({**params, "inputs": inputs_of(self._run_dir)})

    def log_table(  # type: ignore[override]  # ours, the same for all loggers; Lightning never calls its own
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Show a table; one of two columns, a label and a number, as bars too.

        Raises:
            ValueError: a row has another number of cells than there are columns.
        """
        import wandb

        check_table(name, columns, rows)
        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
        self.experiment.log({f"tables/{name}": table})
        if len(columns) == 2:
            bars = wandb.plot.bar(table, columns[0], columns[1], title=name.replace("_", " "))
            self.experiment.log({f"bars/{name}": bars})

    def log_files(self, files: Sequence[Path]) -> None:
        """Show plots (png), videos (mp4) and reports (html) in the run, each under its folder and stem.

        Raises:
            ValueError: a file of another kind.
        """
        import wandb

        media: dict[str, Any] = {}
        for file in files:
            name = f"{file.parent.name}/{file.stem}"
            if file.suffix == ".png":
                media[name] = wandb.Image(str(file))
            elif file.suffix == ".mp4":
                media[name] = wandb.Video(str(file), format="mp4")
            elif file.suffix == ".html":
                media[name] = wandb.Html(str(file), inject=False)
            else:
                raise ValueError(f"{file} cannot be shown; expected .png, .mp4 or .html")
        if media:
            self.experiment.log(media)

    def log_artifact(self, path: Path, *, kind: str) -> None:
        """Store a file or folder as an artifact, for example a checkpoint of kind "tokenizer"."""
        import wandb

        made_of = inputs_of(self._run_dir)
        artifact = wandb.Artifact(name=f"{kind}-{self.experiment.id}", type=kind, metadata={"inputs": made_of})
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        self.experiment.log_artifact(artifact)


def group_of(run_dir: Path) -> str | None:
    """Name of the sweep's folder, for a job of a sweep."""
    return run_dir.resolve().parent.name if is_job_of_sweep(run_dir) else None


def inputs_of(run_dir: Path) -> dict[str, str | None]:
    """Digest of each part that a run reads; nothing for a run without inputs.json."""
    path = run_dir / "inputs.json"
    parts = unsealed(json.loads(path.read_text())) if path.is_file() else {}
    return {part: content["digest"] for part, content in parts.items()}


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
