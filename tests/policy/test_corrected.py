"""async=corrected: what a correction changes, what it costs, and what it was not trained for."""

import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rsd.checkpoint import CheckpointError, file_sha256, save_checkpoint
from rsd.clock import Clock, Corrected, Naive
from rsd.commands import entry_point
from rsd.commands.configured import check_clock, check_tasks, configured_policy, policy_fields
from rsd.decoding import L1
from rsd.errors import SettingError
from rsd.models.openvla.loading import load_own, save_base
from rsd.models.openvla.text import WordText
from rsd.policy import CorrectedPolicy, PolicyError, load_corrected, load_folder, write_folder
from rsd.policy.contract import Contracted
from rsd.queue import Queue
from rsd.space import Space
from rsd.stages.correction import CorrectionHead, is_left, moved_on, save_correction
from rsd.stages.files import EYES
from rsd.types import InstructionError, Memory, Request
from scripts.restamp import restamp
from tests.evaluation.policies import SeeingPolicy
from tests.models.openvla_tiny import LONG, SHORT, UNNORM_KEY, build_base, observation, statistics
from tests.policy.policies import make_policy, save_parts
from tests.test_configs import composed

ROOT = Path(__file__).parents[2]
DELAY = 3
DELAYS = (1, 4)


def save(folder, base, *, added=0.0, space=None, **said):
    """A correction of `base` that adds the same to every action that is left, whatever it sees."""
    eyes = build_base(seed=5)
    eyes.space = space or eyes.space
    save_base(folder.with_name("eyes"), eyes, {"unnorm_key": UNNORM_KEY})
    with torch.random.fork_rng():
        torch.manual_seed(9)
        head = CorrectionHead(chunk_length=8, action_dim=7, hidden_dim=32, width=16)
    torch.nn.init.constant_(head.out.bias, added)
    provenance = {
        "base": dict(base.spec.fingerprint),
        "unnorm_key": UNNORM_KEY,
        "space": eyes.space.digest,
        EYES: file_sha256(folder.with_name("eyes") / "checkpoint.json"),
    }
    save_correction(head, folder, delays=DELAYS, provenance=provenance | said)
    folder.with_name("eyes").rename(folder / EYES)
    return folder


@pytest.fixture(scope="module")
def base():
    return build_base()


@pytest.fixture(scope="module")
def policy(base, tmp_path_factory):
    return make_policy(base, save_parts(tmp_path_factory.mktemp("parts"), base), L1())


@pytest.fixture(scope="module")
def zero(policy, base, tmp_path_factory):
    return save(tmp_path_factory.mktemp("zero") / "correction", base)


def run(policy, clock, count=20):
    """Executed actions and the steps at which something was looked at."""
    queue, looked, actions = policy.queue(seed=3, clock=clock), [], []
    for step in range(count):
        seen = queue.needs_observation
        looked += [step] * seen
        actions.append(queue.next(observation(step) if seen else None))
    return np.stack(actions), looked, queue


def test_what_is_left_of_a_chunk_is_moved_to_its_front():
    chunks = torch.arange(4.0).view(1, 4, 1).expand(3, 4, 2) + 1
    delay = torch.tensor([0, 1, 3])
    assert moved_on(chunks, delay)[..., 0].tolist() == [[1, 2, 3, 4], [2, 3, 4, 0], [4, 0, 0, 0]]
    assert is_left(delay, 4).sum(dim=1).tolist() == [4, 3, 1]


def test_a_correction_that_has_learned_nothing_is_naive_bit_for_bit(policy, zero):
    corrected = load_corrected(policy, zero, delay=DELAY)
    actions, looked, queue = run(corrected, Corrected(delay=DELAY))
    expected, asked, _ = run(policy, Naive(delay=DELAY))
    assert actions.tobytes() == expected.tobytes()
    assert asked == [0, 8, 13, 18] and looked == [0, 8, 11, 13, 16, 18]
    assert queue.work["corrections"] == 2 and queue.work["num_chunks"] == 4
    assert run(corrected, Naive(delay=DELAY))[0].tobytes() == expected.tobytes()


def test_it_moves_what_is_left_of_a_late_chunk_and_nothing_else(policy, base, tmp_path):
    corrected = load_corrected(policy, save(tmp_path / "correction", base, added=0.02), delay=DELAY)
    moved = run(corrected, Corrected(delay=DELAY))[0] - run(policy, Naive(delay=DELAY))[0]
    late = np.arange(20) >= 11  # three steps of waiting, and the first chunk, which nobody corrects
    np.testing.assert_allclose(moved[late][:, :6], 0.02 / 2, atol=1e-6)  # of half the bounds, -0.5..0.5
    assert not moved[~late].any()


def test_its_cost_is_counted_and_not_the_base_models(policy, base, zero):
    corrected = load_corrected(policy, zero, delay=DELAY)
    looks = []
    corrected.head.register_forward_hook(lambda *_: looks.append("head"))
    corrected.eyes.model.language_model.model.layers[0].register_forward_hook(lambda *_: looks.append("eyes"))
    _, _, queue = run(corrected, Corrected(delay=DELAY))
    assert looks.count("head") == looks.count("eyes") == queue.work["corrections"] == 2
    assert queue.work["base_layers"] == 3 * queue.num_chunks == 12 and len(queue.latency_ms["correction"]) == 2
    looks.clear()
    run(corrected, Naive(delay=DELAY))
    run(corrected, Clock(delay=DELAY))
    assert not looks  # what nobody asks for is not run


def test_it_sees_the_newest_picture_and_proprio(policy, zero):
    corrected = load_corrected(policy, zero, delay=DELAY)
    torch.nn.init.normal_(corrected.head.out.weight)
    (chunk,) = corrected.predict([Request(observation(0), 0)])
    memory = replace(chunk.memory, num_executed=2)
    seen = observation(1)
    others = [replace(seen, images=observation(2).images), replace(seen, proprio=observation(2).proprio)]
    asked = [Request(one, 0, memory, corrects=True) for one in (seen, *others)]
    first, *moved = corrected.predict(asked)
    assert first.actions.shape == (6, 7) and all((one.actions != first.actions).any() for one in moved)
    mixed = corrected.predict([asked[0], Request(seen, 1), asked[1]])
    assert [len(one.actions) for one in mixed] == [6, 8, 6]
    np.testing.assert_allclose(mixed[0].actions, first.actions, atol=1e-6)


def test_it_is_served_and_asked_as_the_policy_is_and_reads_what_both_understand(policy, zero):
    corrected = load_corrected(policy, zero, delay=DELAY)
    assert isinstance(corrected, Contracted) and corrected.contract == policy.contract
    check_tasks(corrected, [])
    corrected.check_instructions([SHORT, LONG])
    corrected.eyes.text = WordText.from_instructions([SHORT])
    policy.check_instructions([LONG])
    with pytest.raises(InstructionError, match="the correction was trained on data without these tasks; train it on"):
        corrected.check_instructions([LONG])
    with pytest.raises(InstructionError, match=r"has words .*'fry'") as raised:
        corrected.check_instructions(["fry an egg"])
    assert "correction" not in str(raised.value)


@pytest.mark.parametrize("delay", [5, 7])
def test_another_delay_than_it_was_trained_for_is_refused(policy, zero, delay):
    with pytest.raises(CheckpointError, match=rf"trained for delays of 1 to 4 control steps, and delay={delay} is ask"):
        load_corrected(policy, zero, delay=delay)
    corrected = load_corrected(policy, zero, delay=DELAY)
    for refused in (corrected.queue, lambda clock: check_clock(corrected, clock)):
        with pytest.raises(PolicyError, match="was loaded for delay=3, and the clock has delay=2"):
            refused(clock=Corrected(delay=2))
    check_clock(corrected, Corrected(delay=DELAY))


def test_another_space_base_model_or_kind_is_refused(policy, base, tmp_path):
    moved = statistics()
    moved["action"]["q99"] = [0.7] * 7
    other = Space.from_statistics("other", moved)
    folder = save(tmp_path / "space", base, space=other)
    with pytest.raises(CheckpointError, match=rf"was trained in the space {other.digest}, the base model acts in"):
        load_corrected(policy, folder, delay=DELAY)
    folder = save(tmp_path / "seen", base, space=other)
    record = json.loads((folder / "checkpoint.json").read_text())
    del record["checksum"]
    record["provenance"]["space"] = base.space.digest
    (folder / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=rf"sees in the space {other.digest}, the base model acts in"):
        load_corrected(policy, folder, delay=DELAY)
    with pytest.raises(CheckpointError, match=r"correction .* was made for another base: .*'seed 1'.* 'seed 0'"):
        load_corrected(policy, save(tmp_path / "base", build_base(seed=1)), delay=DELAY)
    folder = save(tmp_path / "kind", base)
    save_checkpoint(tmp_path / "head", kind="head", config={}, weights={}, provenance={})
    (folder / EYES).rename(tmp_path / "head" / EYES)
    with pytest.raises(CheckpointError, match="holds a checkpoint of kind 'head', expected 'correction'"):
        load_corrected(policy, tmp_path / "head", delay=DELAY)
    with pytest.raises(
        CheckpointError, match=r"no correction: .*eyes does not exist; make it with: python train.py ph"
    ):
        load_corrected(policy, folder, delay=DELAY)
    with pytest.raises(CheckpointError, match=r"no correction: .*nowhere does not exist"):
        load_corrected(policy, tmp_path / "nowhere", delay=DELAY)


def test_a_policy_without_a_correction_says_so(policy):
    with pytest.raises(PolicyError, match="async=corrected needs the policy's correction"):
        policy.queue(clock=Corrected(delay=2))
    memory = Memory(np.zeros((8, 7), dtype=np.float32), num_executed=2)
    with pytest.raises(PolicyError, match="came to a policy without a correction"):
        policy.predict([Request(observation(0), 0, memory, corrects=True)])
    for one in (policy, SeeingPolicy()):
        with pytest.raises(SettingError, match=r"async=corrected needs a policy with a correction, and a \w+Policy"):
            check_clock(one, Corrected(delay=2))
        check_clock(one, Corrected(delay=0))
    with pytest.raises(ValueError, match="needs a policy that remembers its last chunk"):
        queue = Queue(SeeingPolicy(), seed=0, clock=Corrected(delay=2))
        for _ in range(20):
            queue.next(observation(0))


@pytest.mark.parametrize("num_executed", [0, 8])
def test_a_request_that_corrects_brings_what_is_to_be_corrected(policy, zero, num_executed):
    corrected = load_corrected(policy, zero, delay=DELAY)
    memory = Memory(np.zeros((8, 7), dtype=np.float32), num_executed=num_executed)
    for one in (None, memory):
        with pytest.raises(PolicyError, match="needs the memory of a chunk of which something is over and left"):
            corrected.predict([Request(observation(0), 0, one, corrects=True)])


def test_a_correction_that_is_no_number_is_named(policy, zero):
    corrected = load_corrected(policy, zero, delay=DELAY)
    with torch.no_grad():
        corrected.head.out.bias[0] = float("nan")
    with pytest.raises(PolicyError, match="the correction produced NaN or infinite actions"):
        run(corrected, Corrected(delay=DELAY))


# --- in a policy's folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base):
    """A policy's folder with a base model and a correction that restamp.py has taken up."""
    folder = tmp_path_factory.mktemp("policy")
    save_base(folder / "base" / "tiny", base, {})
    inputs = {"views": ["image", "wrist_image"], "use_proprio": True, "chunk_length": 8, "unnorm_key": UNNORM_KEY}
    write_folder(
        folder, parts={"base": folder / "base" / "tiny"}, base=inputs, space=base.space.digest, num_open_loop_steps=8,
        decoding="l1", decodings={"l1": (L1(), None)},
    )  # fmt: skip
    (folder / "correction").mkdir()
    return folder


def options(folder, *more):
    overrides = [f"policy={folder}", "delay=2", "async=corrected", *more]
    return composed("eval", overrides), overrides


def test_a_folder_without_the_part_names_it_and_with_it_is_corrected(folder):
    with pytest.raises(CheckpointError, match=r"async=corrected needs the part 'correction', and .* has none; make it"):
        configured_policy(*options(folder))
    save(folder / "correction" / "tiny", load_own(folder / "base" / "tiny"))
    restamp(folder)
    record = json.loads((folder / "policy.json").read_text())
    assert record["parts"]["correction"]["path"] == "correction/tiny"
    assert policy_fields(*options(folder))["checkpoints"]["correction"] == folder / "correction" / "tiny"
    assert isinstance(configured_policy(*options(folder)), CorrectedPolicy)
    for more in (["delay=0"], ["async=naive"]):
        plain = options(folder, *more)
        assert policy_fields(*plain)["checkpoints"]["correction"] is None
        assert not isinstance(configured_policy(*plain), CorrectedPolicy)
    assert load_folder(folder, canaries=False).decoding == L1()


def test_another_correction_than_the_folders_is_refused(folder, tmp_path):
    other = tmp_path / "policy"
    shutil.copytree(folder, other)
    shutil.rmtree(other / "correction")
    save(other / "correction" / "tiny", load_own(folder / "base" / "tiny"), added=0.5)
    restamp(other)
    part = other / "correction" / "tiny" / "checkpoint.json"
    part.write_text(part.read_text().replace("  ", " "))
    with pytest.raises(CheckpointError, match=r"correction of .* is not the one that policy\.json names"):
        configured_policy(*options(other))


def test_a_correction_of_another_base_model_is_not_taken_up(folder, tmp_path):
    other = tmp_path / "policy"
    save_base(other / "base" / "tiny", build_base(), {})
    (other / "correction").mkdir()
    save(other / "correction" / "tiny", build_base(seed=1))
    with pytest.raises(CheckpointError, match=r"correction.tiny was made for something else: base\."):
        restamp(other)


def test_eval_runs_it_from_its_folder_and_the_report_tells(folder, tmp_path, monkeypatch, capfd):
    """eval.py with its own configuration, in another environment than LIBERO's: one episode of 60 steps each."""
    if not (folder / "correction" / "tiny").exists():
        save(folder / "correction" / "tiny", load_own(folder / "base" / "tiny"), added=0.02)
    restamp(folder)
    monkeypatch.syspath_prepend(ROOT)
    evaluation = importlib.import_module("eval")

    def run_eval(name: str, *more: str):
        run_dir = tmp_path / name
        given = ["-cp", str(ROOT / "conf"), f"hydra.searchpath=[file://{ROOT}/tests/evaluation/conf]"]
        given += ["env=point_mass", f"env.instruction='{SHORT}'", "env.num_tasks=1", "data=libero_spatial"]
        given += ["num_trials=1", "save_videos=0", f"policy={folder}", f"hydra.run.dir={run_dir}", *more]
        monkeypatch.setattr(sys, "argv", ["eval.py", *given])
        try:
            entry_point.run(evaluation.main, evaluation.CONFIG)
        except SystemExit as stop:
            assert not stop.code, f"{stop.code} {capfd.readouterr().err}"
        return json.loads((run_dir / "report.json").read_text()), run_dir

    report, run_dir = run_eval("corrected", "delay=3", "async=corrected")
    policy = report["plan"]["policy"]
    assert policy["clock"] == {"delay": 3, "async": "corrected"} and policy["decoding"] == "l1"
    weights = json.loads((folder / "correction/tiny/checkpoint.json").read_text())["sha256"]
    assert policy["checkpoints"]["correction"] == {"name": "tiny", "sha256": weights}
    # chunks are asked for at 0, 8, 13, 18 … 58; the first is waited for, and the last has not come
    assert report["delay"]["num_still"] == 3 and report["delay"]["age_max"] == 10
    counted = {one["counter"]: one["total"] for one in report["work"]["counters"]}
    assert report["work"]["num_chunks"] == 12 and counted["corrections"] == 10
    assert "correction" in {one["part"] for one in report["latency"]["parts"]}
    page = (run_dir / "report.html").read_text()
    assert "Corrections of late chunks" in page and "Delay: 3 control steps, async=corrected." in page
