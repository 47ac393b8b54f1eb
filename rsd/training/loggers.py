"""Where figures go: files by default, Weights & Biases on request. Both take plots, videos and checkpoints too.

Configs give these classes as partials; an entry point completes them with the run folder:
`logger = instantiate(cfg.logger)(run_dir=run_dir)`. They are Lightning loggers, so a Trainer takes them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning.loggers


class CsvLogger(pytorch_lightning.loggers.CSVLogger):
    """run_dir/csv/version_N/metrics.csv, one N a start, so that a resume overwrites nothing.

    Files and artifacts stay where they are in the run folder.
    """

    def __init__(self, *, run_dir: Path) -> None:
        super().__init__(save_dir=str(run_dir), name="csv")

    def log_files(self, files: Sequence[Path]) -> None:
        """Plots, videos and reports; nothing to do, they are files already."""

    def log_artifact(self, path: Path, *, kind: str) -> None:
        """A checkpoint or a folder of results; nothing to do."""


class WandbLogger(pytorch_lightning.loggers.WandbLogger):
    """A Weights & Biases run; offline ones are written to run_dir/wandb and need neither account nor network.

    Args:
        run_dir: The run folder; its name is the run's name.
        project: The project's name at Weights & Biases.
        mode: "offline" or "online"; an offline run is sent later with `wandb sync`.
    """

    def __init__(self, *, run_dir: Path, project: str, mode: str) -> None:
        import wandb

        wandb.finish()  # a multirun's last job: Lightning would go on writing into its run
        super().__init__(save_dir=str(run_dir), name=Path(run_dir).name, project=project, mode=mode)

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

        artifact = wandb.Artifact(name=f"{kind}-{self.experiment.id}", type=kind)
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        self.experiment.log_artifact(artifact)
