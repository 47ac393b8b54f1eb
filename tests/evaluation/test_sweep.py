"""The table over a multirun's folders."""

import json

from rich.console import Console

from rsd.evaluation.sweep import read_sweep, sweep_columns, write_sweep


def make_job(sweep_dir, number, overrides, *, metrics=None, status=None, error=None):
    folder = sweep_dir / str(number)
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {override}\n" for override in overrides))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    if status is not None:
        (folder / "job.json").write_text(json.dumps({"status": status, "error": error}))


def make_sweep(tmp_path):
    make_job(tmp_path, 0, ["phase=rfsq", "quantizer=d2", "chunk='8'"], metrics={"mse": 0.25, "bits": 10}, status="done")
    make_job(tmp_path, 1, ["phase=rfsq", "quantizer=d4", "chunk=8"], status="failed", error="OSError: <disk> full")
    make_job(tmp_path, 2, ["phase=rfsq", "quantizer=d4", "+seed=1"], metrics={"mse": 0.125, "gap": 1e-7}, status="done")
    make_job(tmp_path, 10, ["phase=rfsq", "quantizer=d8", "chunk=8"])


def test_rows_and_columns(tmp_path):
    make_sweep(tmp_path)
    runs = read_sweep(tmp_path)
    assert [(run.name, run.status) for run in runs] == [
        ("0", "done"), ("1", "failed"), ("2", "done"), ("10", "not finished")
    ]  # fmt: skip
    assert sweep_columns(runs) == (["quantizer", "chunk", "seed"], ["mse", "bits", "gap"])


def test_files(tmp_path):
    make_sweep(tmp_path)
    write_sweep(tmp_path)
    assert (tmp_path / "sweep.csv").read_text().splitlines() == [
        "run,quantizer,chunk,seed,status,mse,bits,gap",
        "0,d2,8,,done,0.25,10,",
        "1,d4,8,,failed,,,",
        "2,d4,,1,done,0.125,,1e-07",
        "10,d8,8,,not finished,,,",
    ]
    page = (tmp_path / "sweep.html").read_text()
    assert "OSError: &lt;disk&gt; full" in page and "http" not in page and "<b>phase</b> rfsq" in page


def test_terminal_table_shows_what_fits(tmp_path, monkeypatch):
    make_job(tmp_path, 0, ["a=1"], metrics={f"a_long_metric_name_{index}": 0.5 for index in range(20)}, status="done")
    monkeypatch.setenv("COLUMNS", "80")
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    console.print(write_sweep(tmp_path))
    text = console.export_text()
    assert "a_long_metric_name_0" in text and "17 more columns in sweep.csv" in text and "…" not in text
