"""All loggers take the same calls and figures; the csv one overwrites nothing; the offline wandb one writes a run."""

import csv
import hashlib
import json

import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from rsd.errors import SettingError
from rsd.evaluation.report import log_results, report_tables, write_report
from rsd.inputs import keep_inputs
from rsd.record import sealed
from rsd.training.lineage import group_of, inputs_of
from rsd.training.loggers import CsvLogger, LoggerError, TensorBoardLogger
from rsd.training.trackio_logger import TrackioLogger
from rsd.training.wandb_logger import WandbLogger
from tests.evaluation.folders import make_run
from tests.evaluation.policies import RaisingPolicy
from tests.training.wandb_files import artifacts, figures


def log_everything(logger, run_dir):
    checkpoint = run_dir / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "checkpoint.json").write_text("{}")
    Image.new("RGB", (8, 8)).save(run_dir / "plot.png")
    (run_dir / "report.html").write_text("<p>report</p>")
    (run_dir / "video.mp4").write_bytes(b"not really a video, but nobody looks inside")
    logger.log_hyperparams({"seed": 1, "model": {"name": "tiny"}})
    logger.log_metrics({"success_rate": 0.5}, step=3)
    logger.log_table("episodes", ["task_id", "success", "error"], [[0, True, None], [1, False, "E: x, y"]])
    logger.log_table("accept_counts", ["accepted", "proposals"], [[0, 3], [1, 5]])
    logger.log_files([run_dir / "plot.png", run_dir / "report.html", run_dir / "video.mp4"])
    logger.log_made({"kind": "tokenizer", "folder": str(checkpoint), "digest": "34cd" * 16}, [run_dir / "plot.png"])
    logger.close()


def test_csv_keeps_the_metrics_of_every_start(tmp_path):
    log_everything(CsvLogger(run_dir=tmp_path), tmp_path)
    log_everything(CsvLogger(run_dir=tmp_path), tmp_path)
    for start in (0, 1):
        with open(tmp_path / "csv" / f"version_{start}" / "metrics.csv") as file:
            assert list(csv.DictReader(file)) == [{"step": "3", "success_rate": "0.5"}]
        table = (tmp_path / "csv" / f"version_{start}" / "episodes.csv").read_text()
        assert table == 'task_id,success,error\n0,True,\n1,False,"E: x, y"\n'


@pytest.mark.slow
def test_wandb_offline_writes_a_run_without_an_account(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / "inputs.json").write_text(json.dumps(sealed({"data": {"path": "d", "digest": "12abdigest"}})))
    logger = WandbLogger(
        run_dir=tmp_path, project="rsd", mode="offline", group="night", job_type="rfsq", tags=["first"]
    )
    log_everything(logger, tmp_path)
    about = (logger.experiment.group, logger.experiment.job_type, logger.experiment.tags)
    assert about == ("night", "rfsq", ("first",))
    second = WandbLogger(run_dir=tmp_path / "second", project="rsd", mode="offline")
    assert second.experiment.id != logger.experiment.id  # jobs of a multirun do not share a run
    wandb.finish()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (record,) = run.glob("run-*.wandb")
    content = record.read_bytes()
    for name in (b"success_rate", b"tiny", b"tokenizer-", b"12abdigest", b"night"):
        assert name in content
    media = run / "files" / "media"
    assert {path.suffix for path in media.rglob("*.*")} == {".png", ".html", ".mp4", ".json"}
    assert {path.parent.name for path in media.rglob("*.*")} == {"plots", "reports", "videos", "tables"}
    (table,) = media.rglob("episodes_*.table.json")
    assert json.loads(table.read_text())["data"] == [[0, True, None], [1, False, "E: x, y"]]
    assert content.count(b"wandb/bar/v0") == 1  # of accept_counts only


def test_all_tables_of_an_evaluation_go_to_both_loggers(tmp_path, monkeypatch):
    """Its cells are of mixed types: None beside numbers, texts and truth values."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    make_run(tmp_path, RaisingPolicy())
    tables = list(report_tables(write_report(tmp_path)))
    for logger in (CsvLogger(run_dir=tmp_path), WandbLogger(run_dir=tmp_path, project="rsd", mode="offline")):
        for name, columns, rows in tables:
            logger.log_table(name, columns, rows)
        log_results(logger, tmp_path)
    given = artifacts(tmp_path / "wandb")  # and a table's, by wandb itself
    name = f"evaluation-{hashlib.sha256((tmp_path / 'results.jsonl').read_bytes()).hexdigest()[:12]}"
    assert given[name] == [("evaluation", False)] and given[f"{name}-files"] == [("evaluation-files", False)]
    names = {name for name, _, _ in tables}
    assert names >= {"tasks", "episodes", "latency_ms", "accept_counts", "time_s"}
    assert {path.stem for path in (tmp_path / "csv" / "version_0").glob("*.csv")} == names
    shown = tmp_path.glob("wandb/offline-run-*/files/media/table/tables/*.table.json")
    shown = {path.name.rsplit("_", 2)[0]: json.loads(path.read_text())["columns"] for path in shown}
    assert shown == {name: columns for name, columns, _ in tables}


def test_a_file_that_cannot_be_shown(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(ValueError, match=r"cannot be shown; expected \.png, \.mp4 or \.html"):
        WandbLogger(run_dir=tmp_path, project="rsd", mode="offline").log_files([tmp_path / "weights.bin"])
    wandb.finish()


def test_a_row_of_another_length(tmp_path):
    with pytest.raises(ValueError, match=r"table 'tasks', row 1 has 1 cells, expected 2: task_id, success_rate"):
        CsvLogger(run_dir=tmp_path).log_table("tasks", ["task_id", "success_rate"], [[0, 1.0], [1]])


def test_online_without_a_key_is_one_line_at_once(tmp_path, monkeypatch):
    """Before the first figure, and so before anything is trained."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key would be kept
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(LoggerError, match=r"with mode online cannot begin: No API key .*; log in with `wandb login`, "):
        WandbLogger(run_dir=tmp_path / "run", project="rsd", mode="online")


def test_a_mode_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(SettingError, match=r"logger\.mode is 'onlin', expected one of \['offline', 'online'"):
        WandbLogger(run_dir=tmp_path, project="rsd", mode="onlin")


def test_missing_wandb_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(LoggerError, match=r"logger=wandb needs wandb .* set logger=csv"):
        WandbLogger(run_dir=tmp_path, project="rsd", mode="offline")


class _Trained(LightningModule):
    """Two steps, with figures of training and of validation."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, _):
        self.log("train/mse", self.weight.square().sum(), prog_bar=True)
        return (self.weight - batch).square().mean()

    def validation_step(self, batch, _):
        self.log("val/mse/1", 0.5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_all_loggers_get_the_same_figures_under_the_same_names(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    loggers = [CsvLogger(run_dir=tmp_path), WandbLogger(run_dir=tmp_path, project="rsd", mode="offline")]
    try:
        loggers.append(TensorBoardLogger(run_dir=tmp_path))
    except LoggerError:  # not installed
        pass
    rows = DataLoader(torch.ones(4, 1), batch_size=2)
    trainer = Trainer(
        accelerator="cpu", max_steps=2, logger=loggers, log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(_Trained(), rows, rows)
    for logger in loggers:
        logger.log_hyperparams({"seed": 1})
        logger.log_metrics({"success_rate": 0.5})
        logger.close()
    names = {"epoch", "train/mse", "val/mse/1", "success_rate"}
    with open(tmp_path / "csv" / "version_0" / "metrics.csv") as file:
        assert set(next(csv.reader(file))) == names | {"step"}
    own = {"trainer/global_step", "_step", "_runtime", "_timestamp"}
    assert figures(tmp_path / "wandb") == names | own
    if len(loggers) == 3:
        assert set(_events(tmp_path).Tags()["scalars"]) == names


def _events(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard" / "version_0"))
    events.Reload()
    return events


def test_tensorboard_shows_figures_tables_and_plots(tmp_path):
    pytest.importorskip("tensorboard")
    log_everything(TensorBoardLogger(run_dir=tmp_path), tmp_path)
    events = _events(tmp_path)
    tags = events.Tags()
    assert [event.value for event in events.Scalars("success_rate")] == [0.5]
    assert set(tags["tensors"]) >= {"tables/episodes/text_summary", "tables/accept_counts/text_summary"}
    assert tags["images"] == ["plots/plot"]


def test_missing_tensorboard_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("pytorch_lightning.loggers.TensorBoardLogger.__init__", _not_installed)
    with pytest.raises(LoggerError, match=r"logger=tensorboard needs tensorboard; pip install .* set logger=csv"):
        TensorBoardLogger(run_dir=tmp_path)


def test_trackio_keeps_all_runs_in_one_file(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # else the logger would set it for all tests
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    log_everything(TrackioLogger(run_dir=tmp_path / "run", project="rsd", folder=str(tmp_path)), tmp_path)
    assert SQLiteStorage.get_runs("rsd") == ["run"]
    (figure,) = [row["success_rate"] for row in SQLiteStorage.get_logs("rsd", "run") if "success_rate" in row]
    assert figure == 0.5
    assert SQLiteStorage.get_run_config("rsd", "run")["seed"] == 1


def test_missing_trackio_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trackio", None)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    with pytest.raises(
        LoggerError, match=r"logger=trackio needs trackio .*pip install 'rsd\[trackio\]', or set logger"
    ):
        TrackioLogger(run_dir=tmp_path, project="rsd", folder=str(tmp_path))


def _not_installed(*_, **__):
    raise ModuleNotFoundError("No module named 'tensorboard'")


def test_a_job_of_a_sweep_is_grouped_by_its_folder(tmp_path):
    assert group_of(tmp_path / "night" / "0") is None
    (tmp_path / "night" / "0").mkdir(parents=True)
    (tmp_path / "night" / "multirun.yaml").write_text("")
    assert group_of(tmp_path / "night" / "0") == "night"


def test_what_a_run_reads_is_told_by_digest(tmp_path):
    assert inputs_of(tmp_path) == {}
    keep_inputs(tmp_path, {"data": {"path": "d", "digest": "12ab"}}, resumed=False)
    assert inputs_of(tmp_path) == {"data": {"kind": "data", "path": "d", "digest": "12ab"}}
