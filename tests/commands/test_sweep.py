"""The table over a multirun's folders."""

import json
import subprocess
import sys

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf
from rich.console import Console

from rsd.commands.error_reports import JobError
from rsd.commands.publishing import Offer, write_offer
from rsd.commands.sweep import (
    SweepTable,
    describe_waiting,
    main,
    publish_job,
    publish_unshared,
    read_sweep,
    sweep_columns,
    write_sweep,
)
from rsd.errors import SettingError


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
    write_sweep(tmp_path, tmp_path)
    assert (tmp_path / "sweep.csv").read_text().splitlines() == [
        "run,quantizer,chunk,seed,status,mse,bits,gap",
        "0,d2,8,,done,0.25,10,",
        "1,d4,8,,failed,,,",
        "2,d4,,1,done,0.125,,1e-07",
        "10,d8,8,,not finished,,,",
    ]
    page = (tmp_path / "sweep.html").read_text()
    assert "OSError: &lt;disk&gt; full" in page and "http" not in page and "<b>phase</b> rfsq" in page


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("1/job.json", "[" * 5000, "job.json is not valid JSON"),
        ("1/metrics.json", '{"mse": "low"}', "entry 'mse' is 'low', expected a finite number"),
        ("1/overrides.yaml", "{" * 5000, "overrides.yaml is nested more than 100 deep"),
        ("1/offer.json", '{"checkpoint": "../2", "name": "x"}', "lies outside of the run's folder"),
        (None, "", "holds no job"),
    ],
)
def test_a_damaged_job_is_one_line_of_the_command(tmp_path, monkeypatch, file, content, problem):
    if file is not None:
        make_sweep(tmp_path)
        (tmp_path / file).write_text(content)
    monkeypatch.setattr(sys, "argv", ["sweep", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"error: .*{problem}"):
        main()
    assert not (tmp_path / "sweep.csv").exists()


def test_terminal_table_shows_what_fits(tmp_path, monkeypatch):
    make_job(tmp_path, 0, ["a=1"], metrics={f"a_long_metric_name_{index}": 0.5 for index in range(20)}, status="done")
    monkeypatch.setenv("COLUMNS", "80")
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    console.print(write_sweep(tmp_path, tmp_path))
    text = console.export_text()
    assert "a_long_metric_name_0" in text and "17 more columns in sweep.csv" in text and "…" not in text


def test_terminal_table_shows_what_main_returned_however_narrow_it_is(tmp_path, monkeypatch):
    """The second job has another number of stages."""
    for number, values in enumerate([[0.5, 0.25], [0.5, 0.25, 0.125]]):
        metrics = {"size": 3} | {f"mse/{stage}": value for stage, value in enumerate(values, start=1)}
        make_job(tmp_path, number, [f"name={'long' * 20}{number}"], metrics=metrics)
        job = {"status": "done", "error": None, "result": values[-1]}
        (tmp_path / str(number) / "job.json").write_text(json.dumps(job))
    monkeypatch.setenv("COLUMNS", "60")
    console = Console(width=60, record=True, file=open("/dev/null", "w"))
    console.print(write_sweep(tmp_path, tmp_path))
    text = console.export_text()
    assert "  mse" in text and "mse/" not in text and "0.25" in text and "0.125" in text
    assert "4 more columns in sweep.csv" in text
    assert (tmp_path / "sweep.csv").read_text().startswith("run,name,status,size,mse/1,mse/2,mse/3\n")


@pytest.fixture
def offering(tmp_path):
    """Jobs 0 and 2 made checkpoints for one name, job 1 for another, job 3 none."""
    sweep_dir, names = tmp_path / "sweep", tmp_path / "names"
    for number, name in enumerate(["same", "own", "same", None]):
        make_job(sweep_dir, number, [f"seed={number}"], metrics={"mse": 0.5}, status="done" if name else "failed")
        if name:
            (sweep_dir / str(number) / "checkpoint").mkdir()
            write_offer(sweep_dir / str(number), Offer(sweep_dir / str(number) / "checkpoint", names / name))
    return sweep_dir, names


def published(sweep_dir):
    write_sweep(sweep_dir, sweep_dir.parent / "names")
    header, *rows = (sweep_dir / "sweep.csv").read_text().splitlines()
    assert header == "run,seed,status,published,mse"
    return [row.split(",")[3] for row in rows]


def test_what_one_job_offers_alone_is_published_and_the_rest_waits(offering):
    sweep_dir, names = offering
    assert published(sweep_dir) == ["no", "no", "no", ""]
    publish_unshared(sweep_dir, names)
    assert published(sweep_dir) == ["no", str(names / "own"), "no", ""] and not (names / "same").exists()
    (line,) = describe_waiting(sweep_dir, read_sweep(sweep_dir), names)
    command = f"python -m rsd.commands.sweep {sweep_dir} --publish 0 --checkpoints {names}"
    assert line == f"not published: {names / 'same'}, made by jobs 0, 2; publish one with: {command}"
    page = (sweep_dir / "sweep.html").read_text()
    assert command in page and '<td class="good">done</td>' in page and '<td class="n">0.5</td>' in page


def test_a_chosen_job_is_published_and_another_can_follow(offering):
    sweep_dir, names = offering
    for job in ("0", "2"):
        publish_job(sweep_dir, job, names)
        assert published(sweep_dir)[int(job)] == str(names / "same") and published(sweep_dir).count("no") == 2
    with pytest.raises(
        SettingError, match=r"job '3' of .* has no checkpoint to publish; those with one: \['0', '1', '2'\]"
    ):
        publish_job(sweep_dir, "3", names)


def test_a_name_that_is_a_folder_does_not_keep_the_others_from_it(offering, capsys):
    sweep_dir, names = offering
    (names / "same").mkdir(parents=True)
    write_offer(sweep_dir / "0", Offer(sweep_dir / "0" / "checkpoint", names / "third"))
    publish_unshared(sweep_dir, names)
    assert published(sweep_dir) == [str(names / "third"), str(names / "own"), "no", ""]
    assert "same is a folder of its own" in capsys.readouterr().err


def test_the_label_of_a_job_is_that_of_the_run_in_its_folder_and_not_of_the_last_start(tmp_path):
    make_job(tmp_path, 0, ["seed=8", "resume=sweep/0"], metrics={"mse": 0.5}, status="done")
    (tmp_path / "0" / "overrides.yaml").write_text("- seed=7\n")
    (run,) = read_sweep(tmp_path)
    assert run.overrides == {"seed": "7"}


def fail_resumed(folder, message):
    """As Hydra tells of a `resume=` that failed before it went on with the run."""
    tell(folder, JobStatus.FAILED, JobError(message))


def tell(folder, status, returned, config=None, overrides=(), mode=RunMode.RUN):
    """Tell the callback, as Hydra does, that the job in this folder has ended."""
    hydra = {"runtime": {"output_dir": str(folder)}, "mode": mode, "overrides": {"task": list(overrides)}}
    job = JobReturn(status=status, hydra_cfg=OmegaConf.create({"hydra": hydra}))
    job.return_value = returned
    SweepTable().on_job_end(OmegaConf.create(config or {}), job)


@pytest.mark.parametrize("status, told", [("failed", "the latest"), ("done", None)])
def test_a_job_that_was_resumed_and_failed_again_shows_the_latest_error(tmp_path, status, told):
    make_job(tmp_path, 0, ["seed=1"], status=status, error="the first" if status == "failed" else None)
    (tmp_path / "multirun.yaml").touch()
    (tmp_path / "0" / "config.yaml").write_text("seed: 1\n")
    fail_resumed(tmp_path / "0", "the latest")
    (run,) = read_sweep(tmp_path)
    assert (run.status, run.error) == (status, told)


def test_a_resume_beside_another_process_tells_nothing_of_its_job(tmp_path):
    make_job(tmp_path, 0, ["seed=1"], status="failed", error="the first")
    (tmp_path / "multirun.yaml").touch()
    (tmp_path / "0" / "config.yaml").write_text("seed: 1\n")
    hold = "import sys; from pathlib import Path; from rsd.locks import hold; hold(Path(sys.argv[1])); print(); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "0")], **pipes) as other:
        other.stdout.readline()
        fail_resumed(tmp_path / "0", "is being written by another process")
        assert read_sweep(tmp_path)[0].error == "the first"
        other.kill()


@pytest.mark.parametrize("publish", [[], ["--publish", "0"]])
def test_a_folder_without_jobs_gets_no_table(tmp_path, monkeypatch, publish):
    (tmp_path / "notes.txt").touch()
    monkeypatch.setattr(sys, "argv", ["sweep", str(tmp_path), *publish])
    with pytest.raises(SystemExit, match=f"error: {tmp_path} holds no job; give the folder that a multirun has named"):
        main()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_offer_makes_no_link_outside_of_the_folder_that_the_user_names(offering, tmp_path, monkeypatch, capsys):
    """A stranger's sweep names a folder of the user's home, or leaves paths.checkpoints by dots or by a link."""
    sweep_dir, names = offering
    names.mkdir()
    (names / "out").symlink_to(tmp_path)
    for job, name in zip("012", (tmp_path / "home" / "a", names / ".." / "b", names / "out" / "c"), strict=True):
        write_offer(sweep_dir / job, Offer(sweep_dir / job / "checkpoint", name))
    publish_unshared(sweep_dir, names)
    assert capsys.readouterr().err.count(f"which lies outside of {names}, where checkpoints are published") == 3
    lines = describe_waiting(sweep_dir, read_sweep(sweep_dir), names)
    assert f"outside of {names}, made by job 0" in lines[0]
    for options in ([], ["--checkpoints", str(names)]):
        monkeypatch.setattr(sys, "argv", ["sweep", str(sweep_dir), "--publish", "0", *options])
        with pytest.raises(SystemExit, match=r"offer.json: entry 'name' is .*, which lies outside of .*--checkpoints"):
            main()
    assert not any((tmp_path / name).exists() for name in ("home", "b", "c"))
    monkeypatch.setattr(sys, "argv", ["sweep", str(sweep_dir), "--publish", "0", "--checkpoints", f"{tmp_path}/home"])
    main()
    assert (tmp_path / "home" / "a").resolve() == (sweep_dir / "0" / "checkpoint").resolve()


@pytest.mark.parametrize("is_typed", [False, True])
def test_paths_that_only_a_stored_job_names_are_not_where_its_neighbours_are_published(offering, is_typed):
    sweep_dir, names = offering
    (sweep_dir / "3" / "job.json").write_text('{"status": "done", "error": null}')
    (sweep_dir / "multirun.yaml").touch()
    stored = f"paths.checkpoints={names}"
    (sweep_dir / "2" / "overrides.yaml").write_text(f"- {stored}\n")
    (sweep_dir / "0" / "offer.json").unlink()
    overrides = [stored, *([stored] if is_typed else []), f"resume={sweep_dir / '2'}"]
    tell(sweep_dir / "2", JobStatus.COMPLETED, 0.5, {"paths": {"checkpoints": str(names)}}, overrides)
    assert names.exists() == is_typed


@pytest.mark.parametrize("mode", [RunMode.RUN, RunMode.MULTIRUN])
def test_a_neighbour_that_cannot_be_read_costs_a_job_nothing_and_is_said(offering, capsys, mode):
    """Hydra takes what a callback raises for a warning, and the command would end with 0."""
    sweep_dir, _ = offering
    (sweep_dir / "multirun.yaml").touch()
    (sweep_dir / "0" / "job.json").write_text("{")
    if mode == RunMode.RUN:
        with pytest.raises(SystemExit) as exited:
            tell(sweep_dir / "3", JobStatus.COMPLETED, 0.5)
        told = exited.value.code
    else:
        tell(sweep_dir / "3", JobStatus.COMPLETED, 0.5, mode=mode)
        told = capsys.readouterr().err
    assert "error: " in told and "0/job.json is not valid JSON" in told and "nothing was published" in told
    assert json.loads((sweep_dir / "3" / "job.json").read_text())["status"] == "done"
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep_dir)}}})
    with pytest.raises(SystemExit, match=r"0/job.json is not valid JSON"):
        SweepTable().on_multirun_end(config)
