"""Signals as Ctrl-C that is told apart, and a training that ends at a step."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rsd import requeue
from tests.data.demonstrations import NAME, write_dataset

ROOT = Path(__file__).parents[1]
EVALUATION = ["-cp", str(ROOT / "tests" / "evaluation" / "conf"), "-cn", "point_mass"]
LIMIT_S = 1200


@pytest.mark.parametrize("number", requeue.SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_a_ctrl_c_that_says_which(number):
    before = signal.getsignal(number)
    with requeue.heeding():
        assert requeue.asked() is None
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert requeue.asked() == number
        signal.raise_signal(signal.SIGTERM)  # the state is being written
        assert requeue.asked() == number
    assert signal.getsignal(number) is before


def test_a_signal_waits_where_it_is_looked_for():
    with requeue.heeding():
        requeue.wait(True)
        signal.raise_signal(signal.SIGUSR1)
        assert requeue.asked() == signal.SIGUSR1
    with requeue.heeding():
        assert requeue.asked() is None  # of another run
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGUSR1)


def test_a_forked_worker_leaves_signals_to_its_process():
    with requeue.heeding():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGUSR1)
            os._exit(3 if requeue.asked() is None else 4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def start(*command: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, **pipes)


def wait_for(process: subprocess.Popen, happened) -> None:
    end = time.monotonic() + LIMIT_S
    while not happened():
        assert process.poll() is None and time.monotonic() < end, "it never came so far"
        time.sleep(0.02)


@pytest.mark.slow
def test_an_evaluation_that_is_told_to_end_goes_on_where_it_was(tmp_path):
    run_dir = tmp_path / "run"
    results = run_dir / "results.jsonl"
    process = start("eval.py", *EVALUATION, f"hydra.run.dir={run_dir}", "policy.delay_s=0.1")
    wait_for(process, lambda: results.exists() and results.read_bytes().count(b"\n") > 1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 75, output
    kept = results.read_bytes()
    assert 2 <= kept.count(b"\n") < 12
    assert re.search(rf"SIGTERM: stopped, {len(kept.splitlines())} episodes done .* resume={run_dir}", output)
    again = start("eval.py", *EVALUATION, f"resume={run_dir}")
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert results.read_bytes().startswith(kept) and "success 12/12" in output


@pytest.mark.slow
def test_a_training_writes_its_state_at_the_step_and_goes_on_to_the_same_weights(tmp_path):
    write_dataset(tmp_path / "data", [13, 12, 14, 11])
    options = [f"paths.root={tmp_path}", f"data.name={NAME}", f"data.unnorm_key={NAME}"]
    options += ["phase=rfsq", "quantizer=rfsq_d2", "quantizer.max_steps=600", "save_every=20", "val_every=100000"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    state = broken / "resume" / "last.ckpt"
    process = start("train.py", *options, f"hydra.run.dir={broken}")
    wait_for(process, state.is_file)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate()
    assert process.returncode == 75, output
    steps = int(re.search(r"SIGUSR1: stopped, (\d+) steps done in this start", output)[1])
    assert torch.load(state, weights_only=True)["global_step"] == steps >= 20
    for command in ([f"resume={broken}"], [*options, f"hydra.run.dir={whole}"]):
        process = start("train.py", *command)
        output, _ = process.communicate()
        assert process.returncode == 0, output
    weights = [(folder / "checkpoint" / "weights.safetensors").read_bytes() for folder in (whole, broken)]
    assert weights[0] == weights[1]
