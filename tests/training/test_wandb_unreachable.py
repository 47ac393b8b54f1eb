"""wandb cannot be reached, goes away, or its process is killed: the run goes on, and says what was not sent."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rsd.training.loggers import LoggerError
from rsd.training.wandb_logger import WandbLogger, forget, why_unreachable
from tests.data.demonstrations import NAME, write_dataset
from tests.training.wandb_files import artifacts, figures

REPOSITORY = Path(__file__).parents[2]
DIED = "note: wandb has stopped ("


@pytest.fixture(autouse=True)
def account(tmp_path, monkeypatch):
    """A key that no server has looked at, and a home without any."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    forget()  # wandb keeps what it has read of the environment
    yield
    forget()


@pytest.fixture
def closed_port(monkeypatch):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        yield url


@pytest.fixture
def server(tmp_path, monkeypatch):
    port = tmp_path / "port"
    command = [sys.executable, "-m", "tests.training.wandb_server", str(port)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        while not (port.is_file() and port.read_text()):
            time.sleep(0.02)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port.read_text()}")
        yield process
        process.kill()


def core_of(pid: int) -> list[int]:
    """wandb's processes below one."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "wandb-core"], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def test_a_closed_port_makes_the_run_an_offline_one(tmp_path, closed_port, capsys):
    logger = WandbLogger(run_dir=tmp_path / "run", project="rsd", mode="online", timeout_s=5)
    said = capsys.readouterr().out
    assert said.startswith(f"note: wandb: {closed_port} cannot be reached (")
    assert said.endswith(
        f"; the run is written offline. Send it later: wandb sync {tmp_path}/run/wandb/offline-run-*\n"
    )
    logger.log_metrics({"mse": 0.5}, step=1)
    logger.close()
    assert "mse" in figures(tmp_path / "run" / "wandb")
    assert capsys.readouterr().out == ""


def test_a_server_that_accepts_and_says_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("rsd.training.wandb_logger.REACH_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert why_unreachable(url) == f"{url} cannot be reached (timed out)"


def test_when_its_process_is_killed_figures_go_on_as_csv_and_the_next_run_has_another(tmp_path, capsys):
    logger = WandbLogger(run_dir=tmp_path / "one", project="rsd", mode="offline")
    logger.log_metrics({"mse": 0.5}, step=1)
    (core,) = core_of(os.getpid())
    os.kill(core, signal.SIGKILL)
    while core_of(os.getpid()) and Path(f"/proc/{core}/stat").read_text().split()[2] != "Z":
        time.sleep(0.02)
    step = 2
    while logger.instead is None and step < 3000:  # what is logged before the broken connection is read is lost
        logger.log_metrics({"mse": 0.25}, step=step)
        step += 1
        time.sleep(0.01)
    logger.log_metrics({"mse": 0.25}, step=step)
    logger.log_table("tasks", ["task_id", "success_rate"], [[0, 1.0]])
    logger.log_made({"kind": "head", "digest": "12ab34cd56ef", "folder": str(tmp_path)})
    logger.close()
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith(DIED)
    assert f"figures from here on are in {tmp_path}/one/csv. What came before is kept; send it: wandb sync " in said
    assert Path(said.rsplit("wandb sync ", 1)[1].strip()).is_dir()
    with open(tmp_path / "one" / "csv" / "version_0" / "metrics.csv") as file:
        last = list(csv.DictReader(file))[-1]
    assert last == {"step": str(step), "mse": "0.25"}
    assert (tmp_path / "one" / "csv" / "version_0" / "tasks.csv").is_file()

    following = WandbLogger(run_dir=tmp_path / "two", project="rsd", mode="offline")
    following.log_metrics({"mse": 0.125}, step=1)
    following.close()
    assert "mse" in figures(tmp_path / "two" / "wandb")


def test_what_cannot_be_logged_is_still_the_callers_error(tmp_path):
    logger = WandbLogger(run_dir=tmp_path, project="rsd", mode="offline")
    with pytest.raises(ValueError, match="row 0 has 1 cells, expected 2"):
        logger.log_table("tasks", ["task_id", "success_rate"], [[0]])
    assert logger.instead is None
    logger.close()


@pytest.mark.slow
def test_a_server_that_goes_away_is_waited_for_no_longer_than_said(tmp_path, server, capsys):
    logger = WandbLogger(run_dir=tmp_path / "run", project="rsd", mode="online", timeout_s=3)
    assert capsys.readouterr().out == ""
    logger.log_read({"kind": "cache", "digest": "12ab34cd56ef", "folder": "c"})
    logger.log_made({"kind": "head", "digest": "34cd34cd56ef", "folder": "h"})
    arrived = {server.stdout.readline().strip() for _ in range(3)}
    assert arrived == {"made cache-12ab34cd56ef", "read cache-12ab34cd56ef", "made head-34cd34cd56ef"}
    server.kill()
    server.wait()
    logger.log_metrics({"mse": 0.5}, step=1)
    logger.log_made({"kind": "draft", "digest": "56ef34cd56ef", "folder": "d"})
    logger.close()
    said = capsys.readouterr().out
    assert said.startswith("note: wandb could not send everything within logger.timeout_s=3 (TimeoutError: Timed out")
    folder = Path(said.strip().rsplit("; it is kept. Send it: wandb sync ", 1)[1])
    assert "mse" in figures(folder) and "draft-56ef34cd56ef" in artifacts(folder)


def train(tmp_path, *more):
    """train.py, as a process of its own, with wandb's messages."""
    command = [
        sys.executable, str(REPOSITORY / "train.py"), "phase=rfsq", "quantizer=rfsq_d2", f"data.name={NAME}",
        f"data.unnorm_key={NAME}", f"paths.root={tmp_path}", f"hydra.run.dir={tmp_path}/run", "logger=wandb",
        "trainer.log_every_n_steps=1", "val_every=1000000", "save_every=1000000", "hydra/job_logging=none",
        "hydra/hydra_logging=none", *more,
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_a_training_goes_on_when_wandb_is_killed_in_the_middle(tmp_path):
    write_dataset(tmp_path / "data", [20, 18])
    process = train(tmp_path, "phase.max_steps=400", "logger.mode=offline")
    kept = tmp_path / "run" / "wandb"
    while not (
        process.poll() is not None or (list(kept.rglob("run-*.wandb")) and "train/mse" in figures(kept, wait_s=0))
    ):
        time.sleep(0.3)
    for core in core_of(process.pid):
        os.kill(core, signal.SIGKILL)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert said.count(DIED) == 1 and "Traceback" not in errors
    with open(tmp_path / "run" / "csv" / "version_0" / "metrics.csv") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/mse"]]
    assert steps[-1] == 399 and steps == list(range(steps[0], 400))
    assert (tmp_path / "run" / "checkpoint" / "weights.safetensors").is_file()


@pytest.mark.slow
def test_a_training_without_a_server_ends_well_and_holds_its_lineage(tmp_path, closed_port):
    write_dataset(tmp_path / "data", [20, 18])
    process = train(tmp_path, "phase.max_steps=2", "logger.mode=online", "logger.timeout_s=5")
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f"note: wandb: {closed_port} cannot be reached (" in said and "Traceback" not in errors
    found = artifacts(tmp_path / "run")
    assert sorted((name.partition("-")[0], uses) for name, uses in found.items()) == [
        ("data", [("data", True)]),
        ("tokenizer", [("tokenizer", False)]),
    ]


def test_no_account_ends_at_once(tmp_path, monkeypatch, closed_port):
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(LoggerError, match="No API key found; log in with `wandb login`"):
        WandbLogger(run_dir=tmp_path / "run", project="rsd", mode="online")
