"""scripts/serve_policy.py as a user runs it, with a small policy."""

import inspect
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from rsd.commands.identity import policy_hash
from rsd.errors import SettingError
from rsd.serving.access import Access
from rsd.serving.client import Client, asked_hash
from rsd.serving.limits import Limits
from rsd.serving.server import ServingError
from rsd.types import Observation
from scripts.serve_policy import check_host, imported_rest
from tests.serving.policies import SIZE

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
    assert instantiate(cfg.limits) == Limits()


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.168.1.5", "robot.local"])
def test_other_machines_get_in_with_a_token_alone(host):
    check_host(host, Access(token="secret"))
    with pytest.raises(SettingError, match="lets other machines connect, and they would need no token; set RSD_TOKEN"):
        check_host(host, Access())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_this_machine_needs_none(host):
    check_host(host, Access())


def test_a_folder_is_known_by_its_record_and_a_policy_of_your_own_by_its_settings():
    folder = OmegaConf.create({"policy": str(ROOT / "released")})
    assert policy_hash(folder, []) == asked_hash(ROOT / "released")
    one, other = (policy_hash(OmegaConf.create({"policy": {"_target_": "x", "n": n}}), []) for n in (1, 2))
    assert len(one) == 64 and one != other


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


@pytest.mark.slow
def test_rest_answers_what_it_has_begun_on_sigterm_and_ends(tmp_path):
    pytest.importorskip("fastapi", reason="needs pip install -e '.[serve]'")
    command = [*COMMAND, "protocol=rest", f"hydra.run.dir={tmp_path}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        line = next(line for line in process.stdout if "ready: " in line)
        with Client(re.search(r"http://127.0.0.1:\d+", line)[0], timeout_s=60.0, decoding="Telling") as robot:
            images = dict.fromkeys(robot.info["policy"]["views"], np.full((SIZE, SIZE, 3), 10, np.uint8))
            action = robot.act(Observation(images=images, proprio=np.zeros(8), instruction="reach"))
            process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in stderr
    assert action.shape == (7,) and "ended" in (tmp_path / "serve_policy.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("protocol=grpc", "protocol is 'grpc', expected websocket or rest"),
        ("host=0.0.0.0", "host='0.0.0.0' lets other machines connect"),
    ],
)
def test_slips_are_a_line(tmp_path, setting, said):
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "RSD_TOKEN"}
    command = [*COMMAND, setting, f"hydra.run.dir={tmp_path}"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and f"error: {said}" in result.stderr and "Traceback" not in result.stderr


def test_rest_without_its_packages_says_how_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "rsd.serving.rest", raising=False)
    monkeypatch.delattr("rsd.serving.rest", raising=False)  # where another test has imported it
    with pytest.raises(ServingError, match=r"protocol=rest needs \w+; install it with: pip install -e '\.\[serve\]'"):
        imported_rest()
