"""scripts/hub.py against a hub on this machine; nothing leaves it, and nothing is sent."""

import hashlib
import importlib
import shutil
import socket
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest

import rsd
from rsd.data.datasets import Demonstrations
from rsd.data.rlds import RLDSDataset
from rsd.models.openvla import load_base, save_base
from rsd.models.openvla.loading import own_inputs
from rsd.policy import write_folder
from rsd.space import Space
from tests.data.demonstrations import write_dataset
from tests.hub_server import hub_of
from tests.models.openvla_tiny import build_base, observation
from tests.policy.policies import save_parts
from tests.policy.test_folder import DECODINGS, PARTS


def run(monkeypatch, capsys, *arguments) -> tuple[int | str, list[str]]:
    """Exit code (or what is said with it), and lines."""
    monkeypatch.setattr(sys, "argv", ["hub.py", *map(str, arguments)])
    try:
        importlib.import_module("scripts.hub").main()
    except SystemExit as stop:
        return stop.code, capsys.readouterr().err.splitlines()
    return 0, capsys.readouterr().out.splitlines()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policies") / "tiny"
    save_base(folder / "base", build_base(), {"steps": 0})
    base = load_base(checkpoint=folder / "base", **own_inputs(folder / "base"))
    save_parts(folder, base)
    options = {"num_open_loop_steps": 5, "decoding": "l1", "decodings": DECODINGS}
    parts = {name: folder / name for name in PARTS}
    write_folder(folder, parts=parts, base=own_inputs(folder / "base"), space=base.space.digest, **options)
    return folder


@pytest.fixture
def policy(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "tiny"))


@pytest.fixture
def data(tmp_path) -> Path:
    return write_dataset(tmp_path / "data", [12, 15])


@pytest.fixture
def offline(monkeypatch):
    """No request at all, not even to this machine."""

    def refuse(*_, **__):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", refuse)


def endpoint(monkeypatch, address: str) -> None:
    monkeypatch.setattr("rsd.hub._endpoint", lambda _: address)  # the library reads HF_ENDPOINT when it is imported
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_a_dry_run_says_each_file_and_makes_no_connection(policy, monkeypatch, capsys, offline):
    (policy / ".git").mkdir()
    (policy / ".git" / "config").write_text("secret")
    code, lines = run(monkeypatch, capsys, "push", policy, "me/tiny", "--dry-run")
    files = {path.relative_to(policy).as_posix(): path for path in policy.rglob("*") if path.is_file()}
    del files[".git/config"]
    said = {line.split()[2]: line.split()[:2] for line in lines[:-2]}
    assert code == 0 and said.keys() == {*files, "README.md"}
    for name, path in files.items():
        size, sha256 = said[name]
        assert int(size.replace(",", "")) == path.stat().st_size
        assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert lines[-1].startswith("dry run: would be sent to model me/tiny (private") and "digest" in lines[-2]
    assert not (policy / "README.md").exists()


def test_what_is_sent_is_what_the_dry_run_said(policy, monkeypatch, capsys):
    """With the library's two calls replaced: nothing is sent here."""
    _, dry = run(monkeypatch, capsys, "push", policy, "me/tiny", "--dry-run")
    made, sent = [], {}

    def create_commit(_, repo_id, operations, **__):
        for one in operations:
            with one.as_file() as file:
                sent[one.path_in_repo] = hashlib.sha256(file.read()).hexdigest()
        return type("Made", (), {"commit_url": f"https://hub/{repo_id}"})

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda _, repo, **options: made.append((repo, options)))
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    monkeypatch.setattr("rsd.hub._probe", lambda *_, **__: None)
    code, lines = run(monkeypatch, capsys, "push", policy, "me/tiny")
    assert code == 0 and lines[-1] == "sent to model me/tiny: https://hub/me/tiny" and lines[:-1] == dry[:-1]
    assert {line.split()[2]: line.split()[1] for line in dry[:-2]} == {name: one[:12] for name, one in sent.items()}
    assert made == [("me/tiny", {"repo_type": "model", "private": True, "exist_ok": True})]


def test_a_policy_comes_back_whole_and_acts_the_same(policy, tmp_path, monkeypatch, capsys):
    (policy / "README.md").write_text("mine")
    (policy / "code.py").write_text("raise SystemExit")
    before = rsd.load(policy).queue(seed=0).next(observation())
    with hub_of({"models/me/tiny": policy}) as (address, asked):
        endpoint(monkeypatch, address)
        code, lines = run(monkeypatch, capsys, "pull", "me/tiny", tmp_path / "out")
        assert code == 0 and lines[-1].endswith("whole, from model me/tiny") and asked[0] == "GET /api/models/me/tiny"
        assert not (tmp_path / "out" / "code.py").exists() and not (tmp_path / "out" / ".cache").exists()
        assert (rsd.load(tmp_path / "out").queue(seed=0).next(observation()) == before).all()
        (policy / "code.py").unlink()
        _, dry = run(monkeypatch, capsys, "push", policy, "me/tiny", "--dry-run")
        assert dry[:-1] == lines[:-1]  # digest and all
        code, _ = run(monkeypatch, capsys, "pull", "me/tiny", tmp_path / "out")
        assert code.startswith("error: ") and "exists already and is not empty" in code
        code, _ = run(monkeypatch, capsys, "pull", "me/other", tmp_path / "other")
        assert code.startswith("error: me/other was not fetched: ") and "answers 404" in code and "\n" not in code
    assert not (tmp_path / "other").exists()


def test_a_pull_takes_nothing_over_from_another(policy, tmp_path, monkeypatch, capsys):
    """Files that an interrupted pull of another repository, or somebody, has left in OUT.part."""
    left = tmp_path / "out.part" / "base" / "mine.txt"
    left.parent.mkdir(parents=True)
    left.touch()
    with hub_of({"models/me/tiny": policy}) as (address, _):
        endpoint(monkeypatch, address)
        code, _ = run(monkeypatch, capsys, "pull", "me/tiny", tmp_path / "out")
        assert "out.part holds base/mine.txt, which me/tiny does not have; move" in code and "\n" not in code
        left.unlink()
        assert run(monkeypatch, capsys, "pull", "me/tiny", tmp_path / "out")[0] == 0


def test_code_is_not_sent(policy, monkeypatch, capsys):
    (policy / "base" / "modeling.py").touch()
    code, _ = run(monkeypatch, capsys, "push", policy, "me/tiny", "--dry-run")
    assert code.startswith("error: ") and "modeling.py is code" in code and "\n" not in code


@pytest.mark.parametrize("out", [".", ".."])
def test_a_folder_without_a_name_is_refused(tmp_path, monkeypatch, capsys, offline, out):
    monkeypatch.chdir(tmp_path)
    code, _ = run(monkeypatch, capsys, "pull", "me/tiny", out)
    assert code.startswith(f"error: {out!r} is no name for a folder")


def test_a_damaged_policy_is_neither_sent_nor_taken(policy, tmp_path, monkeypatch, capsys):
    path = policy / "head" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    code, _ = run(monkeypatch, capsys, "push", policy, "me/tiny", "--dry-run")
    assert code.startswith("error: weights of the head: ") and "is damaged" in code and "\n" not in code
    with hub_of({"models/me/tiny": policy}) as (address, _):
        endpoint(monkeypatch, address)
        code, _ = run(monkeypatch, capsys, "pull", "me/tiny", tmp_path / "out")
    assert code.startswith("error: weights of the head: ") and not (tmp_path / "out").exists()


def test_data_come_back_as_a_root_that_training_takes(data, tmp_path, monkeypatch, capsys):
    name = RLDSDataset(data).name
    _, dry = run(monkeypatch, capsys, "push", data, "me/set", "--dry-run")
    assert "to dataset me/set" in dry[-1] and f"{name}/{data.name}/dataset_info.json" in "\n".join(dry)
    root = data.parent.parent
    with hub_of({"datasets/me/set": root}) as (address, _):
        endpoint(monkeypatch, address)
        code, lines = run(monkeypatch, capsys, "pull", "me/set", tmp_path / "root", "--type", "dataset")
    assert code == 0 and lines[-1].endswith("whole, from dataset me/set")
    again = Demonstrations(tmp_path / "root" / data.relative_to(root))
    assert again.norm_stats == Demonstrations(data).norm_stats


def test_a_data_card_says_what_the_numbers_mean(data, monkeypatch, capsys):
    code, lines = run(monkeypatch, capsys, "card", data, "--license", "mit")
    read = Demonstrations(data)
    text = "\n".join(lines)
    assert code == 0 and lines[:2] == ["---", "license: mit"]
    digest = Space.from_statistics(read.name, read.norm_stats).digest
    assert f"| Space digest | `{digest}` |" in text and f"| unnorm_key | `{read.name}` |" in text
    assert "| episodes | 2 |" in text and "| steps | 27 |" in text
    row = next(line for line in lines if line.startswith("| 0 |"))
    assert f"{read.norm_stats['action']['q99'][0]:.4g}" in row


def test_a_policy_card_says_what_goes_in_and_comes_out(policy, monkeypatch, capsys):
    code, lines = run(monkeypatch, capsys, "card", policy)
    text = "\n".join(lines)
    assert code == 0 and rsd.load(policy).base.space.digest in text
    assert "| executed steps | 5 of 8 |" in text and "`speculative`" in text and "image, wrist_image" in text


def test_a_hub_that_is_not_there_is_told_at_once(tmp_path, monkeypatch, capsys, policy):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    endpoint(monkeypatch, address)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    for arguments in (["pull", "me/tiny", tmp_path / "out"], ["push", policy, "me/tiny"]):
        started = time.monotonic()
        code, _ = run(monkeypatch, capsys, *arguments)
        assert code.startswith("error: me/tiny was not ") and f"{address} cannot be reached (" in code
        assert "HF_ENDPOINT" in code and "\n" not in code
        assert time.monotonic() - started < 30  # the library alone takes 40 s and more
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    code, _ = run(monkeypatch, capsys, "push", policy, "me/tiny")
    assert "sending needs a token" in code and "hf auth login" in code
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    code, _ = run(monkeypatch, capsys, "pull", "me/tiny", tmp_path / "out")
    assert "HF_HUB_OFFLINE is set" in code
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["push", ".", "nobody"], "error: OWNER/NAME is 'nobody', expected OWNER/NAME"),
        (["push", "gone", "a/b"], "error: FOLDER is 'gone', where there is no folder"),
        (["push", ".", "a/.."], "error: OWNER/NAME is 'a/..', expected OWNER/NAME"),
        (["push", ".", "a/b--c"], "error: OWNER/NAME is 'a/b--c', expected OWNER/NAME"),
        (["push", ".", "é/b"], "error: OWNER/NAME is 'é/b', expected OWNER/NAME"),
        (["pull", "a/b/c", "out"], "error: OWNER/NAME is 'a/b/c', expected OWNER/NAME"),
        (["pull", "a/b", "out", "--type", "space"], "error: --type: invalid choice: 'space'"),
        (["card", ".", "--license", "My Own"], "error: --license is 'My Own', expected a license"),
    ],
)
def test_wrong_options_are_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    code, lines = run(monkeypatch, capsys, *arguments)
    assert code == 2 and len(lines) == 1 and lines[0].startswith(told)


def test_what_is_no_policy_and_no_data_is_not_sent(tmp_path, monkeypatch, capsys, policy):
    (tmp_path / "empty").mkdir()
    code, _ = run(monkeypatch, capsys, "push", tmp_path / "empty", "me/x", "--dry-run")
    assert "holds neither policy.json (a policy) nor dataset_info.json" in code
    plain = tmp_path / "openvla 7b"
    plain.mkdir()
    (plain / "config.json").write_text("{}")
    for action in (["push", plain, "me/x"], ["card", plain]):
        code, _ = run(monkeypatch, capsys, *action)
        assert "holds no policy.json and looks like a published checkpoint" in code
        assert code.endswith(f"make a policy folder of it: python scripts/convert.py policy '{plain}' OUT")
    with hub_of({"models/me/plain": plain}) as (address, asked):
        endpoint(monkeypatch, address)
        code, _ = run(monkeypatch, capsys, "pull", "me/plain", tmp_path / "out")
    assert "hf download me/plain --local-dir DIR, python scripts/convert.py policy DIR OUT" in code
    assert not any("resolve" in one for one in asked) and not (tmp_path / "out.part").exists()
    (policy / "key").symlink_to("/etc/hostname")
    code, _ = run(monkeypatch, capsys, "push", policy, "me/x", "--dry-run")
    assert "is a link that leads out of" in code
