"""scripts/serve_policy.py as a user runs it, with a small policy."""

import inspect
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "scripts/serve_policy.py", "-cp", str(ROOT / "tests" / "serving" / "conf"), "-cn", "telling"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("data", sorted(path.stem for path in (ROOT / "conf" / "data").glob("[!_]*.yaml")))
@pytest.mark.parametrize("decoding", ["l1", "speculative"])
def test_the_config_is_complete(data, decoding):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        named = ["data.name=mine"] if data == "rlds" else []
        cfg = compose("serve", [f"data={data}", f"decoding={decoding}", *named])
    OmegaConf.resolve(cfg)
    assert not OmegaConf.missing_keys(cfg)
    composed = set(cfg.composed) - {"_target_", "_partial_"}
    assert set(inspect.signature(get_object(cfg.composed._target_)).parameters) >= composed
    reader = instantiate(cfg.reader)(views=cfg.offers.views)
    assert (reader.image_size, reader.proprio_dim) == (256, 8)


@pytest.mark.slow
def test_serves_until_ctrl_c_even_while_a_client_is_connected(tmp_path):
    msgpack = pytest.importorskip("msgpack", reason="needs pip install -e '.[harness]'")
    client = pytest.importorskip("websockets.sync.client", reason="needs pip install -e '.[harness]'")
    command = [*COMMAND, f"hydra.run.dir={tmp_path}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **pipes) as process:
        line = next(line for line in process.stdout if "ready: " in line)
        address = re.search(r"ws://127.0.0.1:\d+", line)[0]
        with client.connect(address) as connection:
            hello = {"type": "hello", "payload": {"protocol_version": 1}, "seq": 1, "timestamp": 0.0}
            connection.send(msgpack.packb(hello))
            about = msgpack.unpackb(connection.recv(timeout=60))["payload"]
            taken = subprocess.run(
                [*COMMAND, f"hydra.run.dir={tmp_path}/second", f"port={address.rpartition(':')[2]}"],
                cwd=ROOT,
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
            )
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in stderr and "Traceback" not in stderr
    assert about["policy"]["decoding"] == "Telling" and about["policy"]["num_open_loop_steps"] == 3
    assert about["provenance"]["packages"]["torch"] and about["choices"] == {}
    assert "ready" in (tmp_path / "serve_policy.log").read_text()
    assert taken.returncode == 1 and "address already in use" in taken.stderr and "Traceback" not in taken.stderr
