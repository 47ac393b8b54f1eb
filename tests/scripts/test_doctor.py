"""scripts/doctor.py as a user runs it, without simulating: machine, data set, and a random checkpoint's contracts."""

import importlib.util
import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rsd.checkpoint import file_sha256
from rsd.data.made_up import write_dataset as write
from rsd.data.tfrecord import frame, scan
from rsd.envs import checks, gl, scene_trials
from rsd.models.openvla.random_weights import openvla_architecture, write_random_checkpoint
from rsd.record import sealed
from tests.data.demonstrations import NAME, demonstration, write_dataset
from tests.data.tiny_base import save_tiny_base

SCRIPT = Path(__file__).parents[2] / "scripts" / "doctor.py"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "checkpoint"
    write_random_checkpoint(folder, architecture=openvla_architecture(size="tiny"))
    return folder


@pytest.fixture
def checkpoint(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "checkpoint"))


@pytest.fixture
def doctor(checkpoint, tmp_path, monkeypatch, capsys):
    """Runs the script in this process; returns (exit code, stdout, stderr)."""

    def doctor(*overrides, model=True):
        fixed = ["env=libero_object", "simulator=false", f"paths.root={tmp_path}"]
        fixed += ["model=oft_object", f"model.backbone.checkpoint={checkpoint}"] if model else []
        quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *fixed, *quiet, *overrides])
        monkeypatch.setenv("COLUMNS", "1000")
        code = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return doctor


def row(out: str, name: str) -> tuple[str, str]:
    """(status, what was found) of the row with that name."""
    (line,) = [line for line in out.splitlines() if line.split("  ")[1:] and f" {name}  " in line]
    status, _, rest = line.partition(" ")
    return status, rest.strip().removeprefix(name).strip()


def test_a_sound_checkpoint(doctor):
    code, out, _ = doctor()
    assert code == 0 and "FAILED" not in out
    assert row(out, "pictures") == ("ok", "2: image, wrist_image, 56 px to the model")
    assert row(out, "chunk") == ("ok", "8 steps of 7 dims, by l1")
    status, found = row(out, "statistics")
    assert status == "ok" and found.startswith("libero_object_no_noops, q01 to q99, space ")
    assert row(out, "checkpoints") == ("ok", "base model and libero_object fit together")
    assert row(out, "memory")[0] == "ok"
    assert "a black and a white picture give different answers" in out and "states move by" in out


def test_quick_looks_at_the_files_alone(doctor):
    code, out, _ = doctor("quick=true")
    assert code == 0 and row(out, "checkpoints")[0] == "ok" and "black and a white" not in out


def test_a_blind_checkpoint_fails(doctor, checkpoint):
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    weights["projector.fc3.weight"] = torch.zeros_like(weights["projector.fc3.weight"])
    save_file(weights, path)
    code, out, _ = doctor()
    assert code == 1
    status, found = row(out, "a black and a white picture give different answers")
    assert status == "FAILED" and found.endswith("fetch the checkpoint again")


def test_a_contradiction_is_a_row(doctor):
    code, out, _ = doctor("chunk=16")
    assert code == 1 and row(out, "base model")[0] == "FAILED" and "chunk_length is 8, asked for 16" in out
    code, out, _ = doctor("model.backbone.views=[image]")
    assert code == 1 and "num_images is 2, asked for 1" in out


def test_a_missing_head_and_another_robot_are_rows(doctor, monkeypatch):
    code, out, _ = doctor("decoding=parallel", "quick=true")
    assert code == 1
    status, found = row(out, "checkpoints")
    assert status == "FAILED" and "no tokenizer checkpoint" in found and "python train.py phase=rfsq" in found
    other = "proprio of 8 dims is needed, offered are 14"
    code, out, _ = doctor("env.offers.proprio_dim=14", "quick=true")
    assert code == 0 and row(out, "checkpoints")[0] == "warning" and other in row(out, "checkpoints")[1]
    versions = {"mujoco": "3.2.3", "robosuite": "1.4.0", "gl_backend": "osmesa"}
    monkeypatch.setattr(gl, "check_simulator", lambda accepted: versions)
    code, out, _ = doctor("env.offers.proprio_dim=14", "quick=true", "simulator=true")
    assert code == 1 and row(out, "checkpoints")[0] == "FAILED" and other in row(out, "checkpoints")[1]


def test_the_released_policy_fits_together_and_not_with_another_tokenizer(doctor):
    released = ["experiment=released", "env=libero_goal", "decoding=speculative"]
    code, out, _ = doctor(*released, "quick=true", model=False)
    assert code == 0 and "libero_goal fit together" in row(out, "checkpoints")[1]
    code, out, _ = doctor(*released, "quantizer.num_stages=2", "quick=true", model=False)
    assert code == 1 and "num_stages is 3 in the checkpoint but 2 in the configuration" in row(out, "checkpoints")[1]


def test_a_model_that_does_not_fit_into_memory_is_not_loaded(doctor, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 1000 if name == "SC_AVPHYS_PAGES" else 1)
    code, out, _ = doctor()
    assert code == 1 and "black and a white" not in out
    status, found = row(out, "memory")
    assert status == "FAILED" and "GB needed, 0.0 GB free on cpu; end other processes" in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_a_row_and_the_model_is_left_alone(doctor):
    code, out, _ = doctor("device=cuda")
    assert code == 1 and "sees no GPU" in row(out, "torch")[1] and "checkpoints" not in out


def test_no_data_set_is_a_warning_only(doctor):
    code, out, _ = doctor(model=False)
    status, found = row(out, "data set")
    assert code == 0 and status == "warning" and "collect demonstrations with scripts/collect_demos.py" in found


def test_a_whole_data_set_is_read_and_a_truncated_one_fails(doctor, tmp_path):
    directory = write_dataset(tmp_path / "data", [9, 8])
    place = [f"data.{key}={value}" for key, value in zip(("name", "version"), directory.parts[-2:], strict=True)]
    code, out, _ = doctor(*place, model=False)
    status, found = row(out, "data set, phase=rfsq")
    assert (code, status) == (0, "ok") and "not looked at" in row(out, "pictures")[1]
    assert found.startswith(
        f"{directory}: 2 episodes, 2 instructions; 2 in train, one of them actions [8, 7] -1..1; 1 in "
    )
    code, out, _ = doctor(*place, "env.offers.proprio_dim=14", model=False)
    assert code == 1 and "lacks ['observation/state of 14 dims']" in row(out, "data set, phase=rfsq")[1]
    (shard,) = directory.glob("*.tfrecord*")
    shard.write_bytes(shard.read_bytes()[:-100])
    code, out, _ = doctor(*place, model=False)
    assert code == 1 and "truncated" in row(out, "data set, phase=rfsq")[1]


@pytest.mark.parametrize(("free", "status", "code"), [(5e8, "FAILED", 1), (5e9, "warning", 0), (5e10, "ok", 0)])
def test_free_disk(doctor, monkeypatch, free, status, code):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    found = doctor(model=False)
    assert found[0] == code and row(found[1], "disk")[0] == status
    assert ("make room" in row(found[1], "disk")[1]) == (status != "ok")


def test_a_folder_of_somebody_else_fails(doctor, monkeypatch):
    monkeypatch.setattr("os.access", lambda folder, mode: False)
    code, out, _ = doctor(model=False)
    assert code == 1 and "cannot be written to; set paths.root" in row(out, "disk")[1]


def test_a_backend_that_needs_a_screen_is_a_row(doctor, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    code, out, _ = doctor("simulator=true", model=False)
    assert code == 1 and row(out, "simulator")[0] == "FAILED" and "unset MUJOCO_GL" in out and "scene" not in out


@pytest.mark.parametrize(("mujoco", "status"), [("3.2.3", "ok"), ("3.4.0", "warning")])
def test_the_simulators_packages(doctor, monkeypatch, mujoco, status):
    versions = {"mujoco": mujoco, "robosuite": "1.4.0", "gl_backend": "osmesa"}
    monkeypatch.setattr(gl, "check_simulator", lambda accepted: versions)
    code, out, _ = doctor("simulator=true", "quick=true", model=False)
    assert code == 0 and row(out, "MuJoCo")[0] == status and row(out, "GL backend") == ("ok", "osmesa renders")
    assert row(out, "suite") == ("ok", "libero_object: 10 tasks with 50 init states or more")
    assert ("pip install mujoco==3.2.3" in row(out, "MuJoCo")[1]) == (status == "warning")


def test_an_incomplete_suite_and_a_missing_record_of_files(doctor, monkeypatch):
    versions = {"mujoco": "3.2.3", "robosuite": "1.4.0", "gl_backend": "osmesa"}
    monkeypatch.setattr(gl, "check_simulator", lambda accepted: versions)
    monkeypatch.setattr(checks, "check_installed_files", dict)
    code, out, _ = doctor("simulator=true", "quick=true", "env.variant=env", model=False)
    assert code == 1 and "choose another variant of libero_object: ['lan'" in row(out, "suite")[1]
    assert row(out, "LIBERO's files")[0] == "warning"


def test_a_simulator_that_breaks_is_a_row(doctor, monkeypatch):
    def break_down(accepted):
        raise TypeError("mj_fullM(): incompatible arguments\nmore lines")

    versions = {"mujoco": "3.4.0", "robosuite": "1.4.0", "gl_backend": "osmesa"}
    monkeypatch.setattr(gl, "check_simulator", lambda accepted: versions)
    monkeypatch.setattr(scene_trials, "run_scene_trials", break_down)
    code, out, _ = doctor("simulator=true", model=False)
    status, found = row(out, "scene")
    assert code == 1 and status == "FAILED" and "more lines" not in out
    assert found.startswith("TypeError: mj_fullM(): incompatible arguments; pip ") and "'.[libero]'" in found
    _, out, _ = doctor("simulator=true", "env.allow_mujoco_version=3.4.0", model=False)
    assert row(out, "scene")[1].endswith("pip install mujoco==3.2.3")


TWELVE = [10] * 12  # steps of each episode; every one is a task of its own, and the tenth is held out


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A data set, and an untrained base model with its words and statistics."""
    root = tmp_path_factory.mktemp("toys")
    directory = write_dataset(root / "data", TWELVE)
    save_tiny_base(root / "base", directory)
    return root


def toy(root: Path, *, data: Path | None = None) -> list[str]:
    """Overrides that choose them."""
    data = data or root / "data"
    return [
        f"data.root={data}", f"data.name={NAME}", f"data.unnorm_key={NAME}", "model=oft_tiny",
        f"model.backbone.checkpoint={root / 'base'}",
    ]  # fmt: skip


def with_other_views(source: Path, root: Path, views: list[str]) -> Path:
    """A copy whose wrist camera is called image_wrist, and that declares these pictures alone; returns its root."""
    directory = root / NAME / "1.0.0"
    shutil.copytree(source / NAME / "1.0.0", directory)
    text = (directory / "features.json").read_text().replace('"wrist_image"', '"image_wrist"')
    features = json.loads(text)
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    pictures = steps["observation"]["featuresDict"]["features"]
    for view in {"image", "image_wrist"} - set(views):
        del pictures[view]
    (directory / "features.json").write_text(json.dumps(features))
    for shard in directory.glob("*.tfrecord*"):
        records = [record.replace(b"observation/wrist_image", b"observation/image_wrist") for record in payloads(shard)]
        shard.write_bytes(b"".join(frame(record) for record in records))
    return root


def payloads(shard: Path) -> list[bytes]:
    content = shard.read_bytes()
    return [content[span.offset :][: span.length] for span in scan(shard)[0]]


@pytest.mark.parametrize(
    ("phase", "views"), [("oft", ["image"]), ("oft_gpu", ["image_wrist", "image"]), ("tokens", ["image_wrist"])]
)
def test_the_data_set_is_read_with_the_models_own_views(doctor, toys, tmp_path, phase, views):
    data = with_other_views(toys / "data", tmp_path / "others", views)
    chosen = [f"phase={phase}", *toy(toys, data=data)]
    code, out, _ = doctor(*chosen, f"model.backbone.views=[{','.join(views)}]", "quick=true", model=False)
    phase = {"oft_gpu": "oft"}.get(phase, phase)
    status, found = row(out, f"data set, phase={phase}")
    assert status == "ok" and f"pictures [{len(views)}, 84, 84, 3]" in found and "proprio [8]" in found
    assert code == (phase == "tokens")  # which needs the base model, and that has other views
    code, out, _ = doctor(*chosen, "model.backbone.views=[image,third_eye]", "quick=true", model=False)
    status, found = row(out, f"data set, phase={phase}")
    assert code == 1 and status == "FAILED" and "observation/" in found and "set model.backbone.views" in found


def test_a_training_that_needs_a_model_and_one_that_needs_none(doctor, toys):
    chosen = toy(toys)[:3]
    code, _, err = doctor("phase=oft", *chosen, model=False)
    assert code != 0 and "phase=oft was given without a model; say whose it is: model=oft_tiny" in err
    code, out, _ = doctor("phase=rfsq", "quantizer=dct_d3", *chosen, model=False)
    assert code == 0 and "phase=oft" not in out
    code, out, _ = doctor("phase=rfsq", model=False)
    assert code == 1 and row(out, "data set")[0] == "FAILED" and "does not exist" in row(out, "data set")[1]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """An original OpenVLA, without head and proprio, that knows none of the data sets' statistics."""
    folder = tmp_path_factory.mktemp("published") / "openvla-7b"
    architecture = openvla_architecture(action_head="autoregressive", proprio_dim=None, size="tiny")
    write_random_checkpoint(folder, architecture=architecture)
    return folder


@pytest.mark.parametrize(("phase", "head"), [("oft_lora", "l1"), ("openvla_lora", "autoregressive")])
def test_a_fine_tuning_is_asked_what_it_needs(doctor, toys, published, phase, head):
    """The published model as the training loads it: it is to get a head, proprio and other statistics."""
    chosen = [f"phase={phase}", *toy(toys)[:3], "model=openvla_7b", f"model.backbone.checkpoint={published}"]
    chosen += ["chunk=1"] if phase == "openvla_lora" else []
    code, out, _ = doctor(*chosen, model=False)
    has_peft = importlib.util.find_spec("peft") is not None
    assert code == (not has_peft) and row(out, "fine-tuning")[0] == ("ok" if has_peft else "FAILED")
    assert has_peft or "pip install -e '.[peft]'" in row(out, "fine-tuning")[1]
    status, found = row(out, "base model")
    assert status == "ok" and found.startswith(f"{published}: ") and found.endswith(f"to be trained as {head}")
    assert row(out, "instructions") == ("ok", "the model's tokenizer tells the 12 of the data set apart")
    assert row(out, "memory")[0] == "ok" and row(out, "loading")[0] == "ok"
    _, out, _ = doctor(*chosen, "quick=true", model=False)
    assert "loading" not in out and row(out, "base model")[0] == "ok"


def test_a_fine_tuning_that_cannot_begin(doctor, toys, published, tmp_path):
    chosen = ["phase=oft_lora", "model=openvla_7b", *toy(toys)[:3], "quick=true"]
    _, out, _ = doctor(*chosen, f"model.backbone.checkpoint={published}", "model.backbone.views=[eye]", model=False)
    assert row(out, "data set, phase=oft_lora")[0] == "FAILED" and "base model" not in out
    torn = shutil.copytree(published, tmp_path / "torn")
    (torn / "tokenizer.json").write_bytes(b"")
    code, out, _ = doctor(*chosen, f"model.backbone.checkpoint={torn}", model=False)
    for name in ("fine-tuning", "base model"):
        status, found = row(out, name)
        assert code == 1 and status == "FAILED" and "tokenizer.json is damaged (it is empty, 0 bytes)" in found

    def saying_nothing(number, num_steps):
        episode = demonstration(number, num_steps)
        episode["steps"]["language_instruction"] = " " if number == 1 else "put it away"
        return episode

    write(tmp_path / "dumb" / NAME / "1.0.0", [10, 11, 12], saying_nothing)
    told = [f"data.root={tmp_path / 'dumb'}", f"model.backbone.checkpoint={published}"]
    code, out, _ = doctor(*chosen, *told, model=False)
    status, found = row(out, "instructions")
    assert code == 1 and status == "FAILED" and "instruction ' ' is empty" in found and "(1 of 3 episodes: 1)" in found


def test_the_notes_of_the_training_are_rows(doctor, tmp_path):
    write_dataset(tmp_path / "data", [12, 3, 9])
    code, out, _ = doctor(f"data.name={NAME}", model=False)
    assert code == 0 and "1 of 3 episodes are shorter than the chunk of 8 steps" in out.replace("\n", " ")


def test_an_untrained_policy_ignores_its_pictures(doctor, toys):
    code, out, _ = doctor(*toy(toys), model=False)
    assert code == 1
    assert "pixel_values [12, 84, 84]" in row(out, "hidden states")[1] and "proprio [8]" in row(out, "hidden states")[1]
    assert row(out, "held-out error")[1].endswith("on 8 held-out frames of 1 task")
    status, found = row(out, "another task's pictures")
    assert status == "FAILED" and ": the policy ignores its pictures; train it for longer" in found
    for name in ("another task's instruction", "another task's proprio", "proprio of zeros"):
        assert row(out, name)[0] == "ok"


def test_why_no_real_frames_were_shown(doctor, toys, tmp_path):
    code, out, _ = doctor(*toy(toys, data=tmp_path / "none"), model=False)
    status, found = row(out, "canaries")
    assert code == 0 and status == "warning" and "were not run: no data set" in found and "paths.data" in found
    code, out, _ = doctor(*toy(toys), "quick=true", model=False)
    assert code == 0 and "quick=true" in row(out, "canaries")[1]

    def one_task(number, num_steps):
        episode = demonstration(number, num_steps)
        episode["steps"]["language_instruction"] = "put toy 0 away"
        return episode

    write(tmp_path / "one" / NAME / "1.0.0", TWELVE, one_task)
    code, out, _ = doctor(*toy(toys, data=tmp_path / "one"), model=False)
    status, found = row(out, "canaries")
    assert code == 0 and status == "warning" and "the data set has one task" in found


@pytest.mark.parametrize("part", ["base", "tokenizer", "head", "draft"])
def test_a_part_that_is_not_finite_is_named_whatever_decoding_uses_it(doctor, tmp_path, part):
    folder = tmp_path / "policy"
    shutil.copytree("released", folder, ignore=shutil.ignore_patterns("words"))  # which is a policy of its own
    (own,) = (folder / part).iterdir()
    weights = load_file(own / "weights.safetensors")
    next(tensor for tensor in weights.values() if tensor.is_floating_point()).view(-1)[0] = float("nan")
    save_file(weights, own / "weights.safetensors")
    record = json.loads((own / "checkpoint.json").read_text())
    record["sha256"] = file_sha256(own / "weights.safetensors")
    (own / "checkpoint.json").write_text(json.dumps(sealed(record)))
    policy = json.loads((folder / "policy.json").read_text())
    policy["parts"][part]["sha256"] = file_sha256(own / "checkpoint.json")
    (folder / "policy.json").write_text(json.dumps(sealed(policy)))
    code, out, _ = doctor(f"policy={folder}", "quick=true", "decoding=l1", model=False)
    status, found = row(out, f"weights of the {part}")
    assert code == 1 and status == "FAILED" and "weights that are NaN or infinite" in found
    composed = ["experiment=released", f"paths.checkpoints={folder}", "quick=true", "decoding=l1"]
    code, out, _ = doctor(*composed, model=False)
    status, found = row(out, "base model" if part == "base" else f"weights of the {part}")
    assert code == 1 and status == "FAILED" and "weights that are NaN or infinite" in found


def test_published_weights_that_are_not_finite_are_named(doctor, checkpoint):
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    weights["projector.fc3.weight"][0, 0] = float("nan")
    save_file(weights, path)
    code, out, _ = doctor()
    status, found = row(out, "loading")
    assert code == 1 and status == "FAILED" and "NaN or infinite" in found and "projector.fc3.weight" in found
