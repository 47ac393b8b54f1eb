"""A command that is swept: (x − 1)² and a cost, with a run folder as every command has. And what its sweeps leave."""

import csv
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rsd.commands.error_reports import report_errors
from rsd.commands.requeued import note_job
from rsd.errors import SettingError
from rsd.record import write
from rsd.runs import METRICS_FILE, open_run

CONFIG = Path(__file__).parent / "conf" / "parabola.yaml"


@hydra.main(version_base="1.3", config_path=str(CONFIG.parent), config_name="parabola")
@report_errors
def main(cfg: DictConfig) -> float:
    """Returns y."""
    run_dir = open_run(cfg, HydraConfig.get())
    note_job(run_dir)
    if cfg.x == 2 and cfg.fails is not None and Path(cfg.fails).exists():
        raise SettingError("x is 2")
    y = float((cfg.x - 1) ** 2)
    write(run_dir / METRICS_FILE, {"y/1": 100.0, "y/2": y, "cost": float(cfg.x)})
    return y


def sweeps(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("*/sweep.json"))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))
