"""A draft with eyes of its own: what it decides costs the base model nothing; what it was not made for is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rsd.checkpoint import CheckpointError, file_sha256
from rsd.decoding import L1, DepthAR, EarlyExit, Exit, FixedHorizon, Hold, MeanLogProb, Speculative, Temporal
from rsd.errors import RSDError, SettingError
from rsd.models.openvla import ExecutionError
from rsd.models.openvla.loading import load_own, save_base
from rsd.policy import Checkpoints, load_folder, write_folder
from rsd.space import Space
from rsd.stages import HeadAt, StageHead, controls
from rsd.stages.base_chunk import executed
from rsd.stages.files import EYES, save_stage_head
from rsd.stages.own_look import OwnLook
from rsd.tokenizer import load_tokenizer
from rsd.types import Request
from tests.models.openvla_tiny import LONG, UNNORM_KEY, build_base, observation, statistics
from tests.policy.policies import NUM_STAGES, make_policy, save_parts
from tests.policy.test_lazy import Counted

ALWAYS, NEVER = MeanLogProb(threshold=float("-inf")), MeanLogProb(threshold=float("inf"))
STATES_PER_STEP = 1  # of the point "head"


def temporal(gate, max_unverified, full=None):
    return Temporal(gate=gate, full=full or L1(), num_draft_stages=None, max_unverified=max_unverified)


def save_micro(root, base, folder="micro", *, space=None, **eyes_options):
    """A micro draft for the parts in `root`: eyes of another seed, and a head that reads them."""
    eyes = build_base(seed=5, **eyes_options)
    eyes.space = space or eyes.space
    save_base(root / "eyes", eyes, {"unnorm_key": UNNORM_KEY})
    loaded = load_tokenizer(root / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(9)
        head = StageHead(
            code_shape=loaded.tokenizer.code_shape,
            hidden_dim=32,
            states_per_step=STATES_PER_STEP,
            num_stages=NUM_STAGES,
            width=16,
            num_layers=1,
            num_heads=2,
        )
    provenance = {
        "tokenizer": loaded.sha256,
        "base": dict(base.spec.fingerprint),
        "unnorm_key": UNNORM_KEY,
        EYES: file_sha256(root / "eyes" / "checkpoint.json"),
    }
    save_stage_head(head, root / folder, kind="draft", point="head", provenance=provenance)
    (root / "eyes").rename(root / folder / EYES)
    return root / folder


@pytest.fixture(scope="module")
def counted():
    return Counted()


@pytest.fixture(scope="module")
def root(tmp_path_factory, counted):
    root = save_parts(tmp_path_factory.mktemp("parts"), counted.base)
    save_micro(root, counted.base)
    return root


def make(counted, root, decoding, draft="micro"):
    policy = make_policy(counted.base, root, decoding, checkpoints=checkpoints(root, draft))
    counted.forget()
    return policy


def checkpoints(root, draft):
    return Checkpoints(tokenizer=root / "tokenizer", draft=root / draft)


def run_episode(policy, num_chunks, num_executed=0):
    """Chunks of one episode, each asked for with the memory of the one before, of which so much is over."""
    chunks, memory = [], None
    for number in range(num_chunks):
        (chunk,) = policy.predict([Request(observation(number), number, memory)])
        chunks.append(chunk)
        memory = replace(chunk.memory, num_executed=num_executed)
    return chunks


def test_chunks_that_the_draft_decides_cost_the_base_model_nothing(counted, root):
    chunks = run_episode(make(counted, root, temporal(ALWAYS, 3)), 7)
    assert [chunk.work["early_exits"] for chunk in chunks] == [0, 1, 1, 0, 1, 1, 0]
    counted.check(chunks)
    for chunk in chunks:
        skipped = chunk.work["early_exits"] == 1
        for name in ("pictures_prepared", "vision_calls", "visual_tokens", "base_layers"):
            assert (chunk.work[name] == 0) == skipped, name
        assert ("base_model" in chunk.latency_ms) != skipped
        assert sum(value for part, value in chunk.latency_ms.items() if part != "total") <= chunk.latency_ms["total"]
    assert chunks[1].latency_ms["draft"] > 0.5 * chunks[1].latency_ms["total"]  # the time of its eyes is its own


def test_eyes_are_run_as_the_base_model_is(root, tmp_path):
    """On one machine: pictures where the model is, and no graphs that the machine has not."""
    base = build_base(pictures="device")
    save_parts(tmp_path, base)
    save_micro(tmp_path, base)
    policy = make_policy(base, tmp_path, temporal(ALWAYS, 3), checkpoints=checkpoints(tmp_path, "micro"))
    eyes = policy.tokens.draft.eyes
    assert (eyes.execution, eyes.pictures_on) == ("eager", "device")
    base.execution = "captured"
    with pytest.raises(ExecutionError, match="'captured' needs a CUDA device, got 'cpu'"):
        make_policy(base, tmp_path, temporal(ALWAYS, 3), checkpoints=checkpoints(tmp_path, "micro"))


@pytest.mark.parametrize("decoding", [temporal(ALWAYS, 1), temporal(NEVER, 3)])
def test_with_one_chunk_at_most_or_the_gate_shut_it_is_the_baseline_to_the_bit(counted, root, decoding):
    chunks = run_episode(make(counted, root, decoding), 3)
    expected = run_episode(make_policy(counted.base, root, L1()), 3)
    for chunk, other in zip(chunks, expected, strict=True):
        assert (chunk.actions == other.actions).all() and chunk.memory.num_unverified == 0


def test_in_a_batch_each_episode_has_its_own_turn(counted, root):
    policy = make(counted, root, temporal(ALWAYS, 2))
    first = policy.predict([Request(observation(0), 0), Request(observation(1), 1)])
    counted.forget()
    seen = [Request(observation(2), 2, first[0].memory), Request(observation(3), 3), Request(observation(4), 4)]
    together = policy.predict(seen)
    assert [chunk.work["early_exits"] for chunk in together] == [1, 0, 0]
    counted.check(together)
    for request, chunk in zip(seen, together, strict=True):
        (alone,) = policy.predict([request])
        assert abs(chunk.actions - alone.actions).max() < 1e-5 and chunk.work == alone.work


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_eyes_that_see_no_number_are_named_and_no_gate_hides_them(counted, root, value):
    """One row asks the draft, the other one the base model, whose part is in order."""
    policy = make(counted, root, temporal(MeanLogProb(threshold=-1.9), 3))
    memory = policy.predict([Request(observation(0), 0)])[0].memory
    with torch.no_grad():
        policy.tokens.draft.eyes.model.projector.fc3.bias[0] = value
    with pytest.raises(RSDError, match="the draft's own base model's state 'head' is NaN or infinite"):
        policy.predict([Request(observation(1), 1, memory), Request(observation(2), 2)])


def test_the_draft_alone_needs_no_base_model(counted, root):
    chunks = run_episode(make(counted, root, Exit(num_draft_stages=None)), 2)
    assert all(chunk.work["base_layers"] == chunk.work["pictures_prepared"] == 0 for chunk in chunks)
    assert all(chunk.depth == NUM_STAGES for chunk in chunks)
    assert (chunks[0].actions != chunks[1].actions).any()  # it sees


def test_the_draft_sees_what_the_robot_sees(counted, root):
    """Another picture, another proprio or other words change what it says; JPEG does not pass its eyes."""
    policy = make(counted, root, Exit(num_draft_stages=None))
    assert isinstance(policy.tokens.draft, OwnLook)
    seen = observation(0)
    others = [
        replace(seen, images=observation(1).images),
        replace(seen, proprio=observation(1).proprio),
        replace(seen, instruction=LONG),
    ]

    def says(one):
        (request,) = [Request(one, 0)]
        bound = policy.tokens.draft.bind(policy.base.look([one]), [request])
        levels = torch.tensor(policy.tokens.tokenizer.code_shape.levels)
        with torch.inference_mode():
            return bound(torch.zeros(1, *levels.shape[:2], 0, dtype=torch.long), 0, 1)

    assert all(not torch.equal(says(seen), says(other)) for other in others)
    assert torch.equal(says(seen), says(replace(seen, stored=True)))


def test_a_micro_draft_of_another_space_is_refused(counted, root, tmp_path):
    moved = statistics()
    moved["action"]["q99"] = [0.7] * 7
    folder = save_micro(save_parts(tmp_path, counted.base), counted.base, space=Space.from_statistics("other", moved))
    with pytest.raises(CheckpointError, match=r"sees in the space 'other', .*, the base model acts in 'libero_toy"):
        make(counted, tmp_path, Exit(num_draft_stages=None), folder.name)


def test_a_micro_draft_that_sees_more_than_the_base_model_is_refused(tmp_path):
    base = build_base(views=("image",))
    save_parts(tmp_path, base)
    save_micro(tmp_path, base)
    with pytest.raises(CheckpointError, match=r"sees \['image', 'wrist_image'\] .* the base model \['image'\]"):
        make_policy(base, tmp_path, Exit(num_draft_stages=None), checkpoints=checkpoints(tmp_path, "micro"))


def test_eyes_that_were_exchanged_are_refused(counted, tmp_path):
    folder = save_micro(save_parts(tmp_path, counted.base), counted.base)
    record = json.loads((folder / EYES / "checkpoint.json").read_text())
    (folder / EYES / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"eyes is not what draft .* was trained with"):
        make(counted, tmp_path, Exit(num_draft_stages=None), folder.name)


# --- in a policy's folder


@pytest.fixture
def folder(tmp_path, counted):
    save_base(tmp_path / "base", counted.base, {})
    base = load_own(tmp_path / "base")  # as its file describes it
    save_parts(tmp_path, base)
    save_micro(tmp_path, base)
    return tmp_path


def written(folder, decodings, drafts):
    parts = {name: folder / name for name in ("base", "tokenizer", "head", "draft", "micro")}
    inputs = {"views": ["image", "wrist_image"], "use_proprio": True, "chunk_length": 8, "unnorm_key": UNNORM_KEY}
    space = build_base().space.digest
    write_folder(
        folder, parts=parts, base=inputs, space=space, num_open_loop_steps=8, decoding="l1", decodings=decodings,
        drafts=drafts,
    )  # fmt: skip
    return json.loads((folder / "policy.json").read_text())


def test_a_folder_says_who_drafts(folder):
    early = EarlyExit(gate=ALWAYS, full=L1(), num_draft_stages=1)
    record = written(folder, {"l1": (L1(), None), "temporal": (temporal(ALWAYS, 2), None), "early_exit": (early, None)},
                     {"temporal": "micro"})  # fmt: skip
    assert set(record["parts"]) >= {"draft", "micro"}
    assert record["decodings"]["temporal"]["draft"] == "micro" and "draft" not in record["decodings"]["early_exit"]
    for name, draft, kind in (
        ("temporal", None, OwnLook),
        ("early_exit", None, HeadAt),
        ("early_exit", "micro", OwnLook),
    ):
        policy = load_folder(folder, decoding=name, draft=draft, canaries=False)
        assert isinstance(policy.tokens.draft, kind), (name, draft)


# --- controls


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_a_random_draft_depends_on_the_seed_alone(root, seed):
    tokenizer = load_tokenizer(root / "tokenizer").tokenizer
    bound = controls.random(tokenizer).bind(None, [Request(observation(0), seed), Request(observation(1), 7)])
    levels = torch.tensor(tokenizer.code_shape.levels)
    known = torch.zeros(2, *levels.shape[:2], 0, dtype=torch.long)
    logits = bound(known, 0, NUM_STAGES)
    assert logits.shape[:4] == (2, *levels.shape) and not torch.equal(logits[0], logits[1])
    assert torch.equal(bound.of(torch.tensor([1]))(known[:1], 1, 2), logits[1:, :, :, 1:2])
    assert not torch.equal(logits[..., 0, :], logits[..., 1, :])


def test_the_oracle_says_what_the_base_model_does_and_costs_it(counted, root):
    parts = Checkpoints(tokenizer=root / "tokenizer", control=controls.oracle)
    policy = make_policy(counted.base, root, temporal(ALWAYS, 2), checkpoints=parts)
    counted.forget()
    chunks = run_episode(policy, 2)
    assert [chunk.work["early_exits"] for chunk in chunks] == [0, 1] and chunks[1].work["base_layers"] > 0
    base_code = make_policy(counted.base, root, DepthAR(), target="base")  # what it does, in tokens
    assert (chunks[1].actions == run_episode(base_code, 2)[1].actions).all()


def test_the_last_chunk_moved_on_is_what_was_left_of_it_and_never_more(counted, root):
    parts = Checkpoints(tokenizer=root / "tokenizer", control=controls.moved_on)
    policy = make_policy(counted.base, root, temporal(ALWAYS, 2), checkpoints=parts, num_open_loop_steps=4)
    counted.forget()
    first, second = run_episode(policy, 2, num_executed=4)
    assert [chunk.work["early_exits"] for chunk in (first, second)] == [0, 1] and second.work["base_layers"] == 0
    left = torch.from_numpy(first.memory.chunk[4:])
    wanted = torch.cat([left, left[-1:].expand(4, -1)])[None]
    tokenizer = policy.tokens.tokenizer
    (expected,) = policy.to_robot(tokenizer.decode(tokenizer.encode(executed(wanted))))
    assert np.allclose(second.actions, expected, atol=1e-6)
    for policy, match in (
        (make_policy(counted.base, root, temporal(ALWAYS, 3), checkpoints=parts, num_open_loop_steps=8), "0 are left"),
        (make_policy(counted.base, root, Exit(num_draft_stages=None), checkpoints=parts), "there is none yet"),
    ):
        with pytest.raises(SettingError, match=match):
            run_episode(policy, 2, num_executed=8)


def test_a_chunk_that_is_held_repeats_its_last_action_and_a_shorter_horizon_executes_less(counted, root):
    expected = run_episode(make_policy(counted.base, root, L1()), 1)[0]
    (held,) = run_episode(make(counted, root, Hold(full=L1(), num_repeats=2)), 1)
    assert held.num_steps == 10 and (held.actions[:8] == expected.actions).all()
    assert (held.actions[8:] == expected.actions[-1]).all()
    queue = make(counted, root, Hold(full=L1(), num_repeats=2)).queue(seed=0)
    actions = [queue.next(observation(0) if queue.needs_observation else None) for _ in range(11)]
    assert queue.num_chunks == 2 and (actions[9] == actions[7]).all()
    (short,) = run_episode(make(counted, root, FixedHorizon(full=L1(), num_steps=3)), 1)
    assert short.num_steps == 3 and (short.actions == expected.actions).all()


def test_a_draft_with_eyes_can_be_verified_as_any_other(counted, root):
    parts = Checkpoints(tokenizer=root / "tokenizer", head=root / "head", draft=root / "micro")
    decoding = Speculative(num_draft_stages=None)
    (chunk,) = run_episode(make_policy(counted.base, root, decoding, checkpoints=parts), 1)
    assert chunk.work["proposed_stages"] >= NUM_STAGES and chunk.depth == NUM_STAGES


def test_a_folder_without_the_part_names_it(folder):
    written(folder, {"l1": (L1(), None), "temporal": (temporal(ALWAYS, 2), None)}, {"temporal": "micro"})
    record = json.loads((folder / "policy.json").read_text())
    del record["parts"]["micro"], record["checksum"]
    (folder / "policy.json").write_text(json.dumps(record))
    with pytest.raises(RuntimeError, match=r"decoding Temporal needs a draft, the part 'micro', and .* has"):
        load_folder(folder, decoding="temporal", canaries=False)
