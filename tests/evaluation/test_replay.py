"""Open-loop replay: on the same frames the inference path gives what training measured, or it is said that not."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rsd.data.recorded import Recorded, recorded_frames
from rsd.decoding import L1
from rsd.errors import SettingError
from rsd.evaluation.page import render_page
from rsd.evaluation.replay import (
    Closing,
    Gripper,
    Replay,
    Replayed,
    Yardstick,
    ask,
    check_every,
    chosen_episodes,
    closings,
    measured,
    read_replayed,
    replay,
    resume_replayed,
)
from rsd.evaluation.replay_report import (
    Training,
    bootstrap,
    build_report,
    dim_names,
    flat_metrics,
    notes,
    plots,
    pooled,
    summarize,
    verdict,
    write_replay_report,
)
from rsd.evaluation.results import ResultsError, append_result
from rsd.images import center_crop
from rsd.models.openvla import load_base
from rsd.policy import Checkpoints, VLAPolicy, assemble
from rsd.space import EXTREMES, Space
from rsd.training.oft import FrameCollate
from rsd.types import Chunk, Memory
from tests.data.demonstrations import write_dataset
from tests.data.tiny_base import save_tiny_base

VIEWS = ("image", "wrist_image")
PLAN = {"data": "abc", "every": 1, "units": [], "rate": None, "policy": {"decoding": "l1"}}
LENGTHS = [9, 8, 10]
SPACE = Space.from_statistics(
    "toy", {"action": {"q01": [-0.5, 0], "q99": [0.5, 1], "min": [-1, 0], "max": [1, 1], "mask": [True, False]}}
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> tuple[Path, VLAPolicy]:
    """A data set, and a policy of random weights that knows it."""
    root = tmp_path_factory.mktemp("replay")
    data = write_dataset(root, LENGTHS)
    save_tiny_base(root / "base", data)
    base = load_base(
        checkpoint=str(root / "base"), unnorm_key=None, views=list(VIEWS), use_proprio=True, chunk_length=8,
        device="cpu", dtype="float32", execution="eager", pictures="cpu",
    )  # fmt: skip
    policy = assemble(base=base, decoding=L1(), checkpoints=Checkpoints(), num_open_loop_steps=8, device="cpu")
    return data, policy


def read(data: Path, **changes) -> Recorded:
    return recorded_frames(dataset_dir=str(data), chunk_length=8, views=list(VIEWS), **changes)


def yardstick(recorded: Recorded) -> Yardstick:
    return Yardstick(recorded.space, recorded.space, (-1.0, 1.0), True, recorded.median, 8)


def training_l1(policy: VLAPolicy, recorded: Recorded, split: str) -> float:
    """val/l1 as OFTModule computes it: FrameCollate, centre crop, the model's own forward."""
    frames, base = recorded.frames[split], policy.base
    batch = FrameCollate(image_size=84, views=list(VIEWS))([frames[row] for row in range(len(frames))])
    inputs = {
        "pixel_values": base.pixel_values(center_crop(batch["pictures"].flatten(0, 1))),
        **base.prompts(batch["instructions"]),
        "proprio": base.normalized_proprio([*batch["proprio"].numpy()]),
    }
    with torch.inference_mode():
        predicted = base.model(**inputs, chunk_length=8, layers=[])[1]
    return float((predicted - recorded.space.to_model(batch["actions"])).abs().mean())


def replayed(policy: VLAPolicy, recorded: Recorded, run_dir: Path, **changes) -> list[Replayed]:
    planned = changes.pop("planned", {"val": [2], "train": [0, 1]})
    options = {"asked": Replay(num_plots=1), "yardstick": yardstick(recorded), "file_paths": recorded.file_paths}
    options |= {"seed": 7, "max_batch": 3, "run_dir": run_dir, "done": []} | changes
    return list(replay(policy, recorded.frames, planned, options.pop("done"), **options))


def test_the_inference_path_gives_what_training_measures(toy, tmp_path):
    data, policy = toy
    recorded = read(data)
    results = replayed(policy, recorded, tmp_path)
    places = [(one.split, one.episode, one.num_chunks) for one in results]
    assert places == [("val", 2, 3), ("train", 0, 2), ("train", 1, 1)]
    for split in ("val", "train"):
        own = [one for one in results if one.split == split]
        assert summarize(own)["l1"]["mean"] == pytest.approx(training_l1(policy, recorded, split), rel=1e-4)
    assert max(results[0].commands_off) < 1e-5
    assert results[0].file_path == "toy/demo_2" and results[0].instruction == "put toy 2 away"
    assert results[0].stats["num_chunks"] == 3 and results[0].stats["base_layers"] == 3 * 4
    assert read_replayed(tmp_path / "results.jsonl") == results

    plan = PLAN | {"episodes": {"val": [2], "train": [0, 1]}, "units": []}
    said = Training(training_l1(policy, recorded, "val"), None, "checkpoint.json", "abc")
    report = build_report(results, plan=plan, training=said, config=None, provenance=None)
    assert report["complete"] and report["verdict"]["equal"] is True
    assert report["verdict"]["text"].endswith("on the same held-out episodes: equal")
    write_replay_report(tmp_path, report)
    page = (tmp_path / "report.html").read_text()
    assert "Equal." in page and page.count('class="plot"') == 2 * 7 and "put toy 2 away" in page
    assert json.loads((tmp_path / "metrics.json").read_text())["l1"] == report["splits"]["val"]["l1"]["mean"]


@pytest.mark.parametrize("fault", ["colours", "rotation"])
def test_a_fault_in_the_inference_path_is_found(toy, fault, tmp_path, monkeypatch):
    data, policy = toy
    recorded = read(data)
    said = Training(training_l1(policy, recorded, "val"), None, "checkpoint.json", "abc")
    look = policy.base.look

    def wrong(observations):
        changed = {
            "colours": lambda one: {"images": {view: p[..., ::-1].copy() for view, p in one.images.items()}},
            "rotation": lambda one: {"images": {view: p[::-1, ::-1].copy() for view, p in one.images.items()}},
        }[fault]
        return look([dataclasses.replace(one, **changed(one)) for one in observations])

    with monkeypatch.context() as patch:
        patch.setattr(policy.base, "look", wrong)
        here = summarize(replayed(policy, recorded, tmp_path, planned={"val": [2]}))
    assert abs(here["l1"]["mean"] - said.l1) > 1e-4  # of random weights little, and more than the path itself makes


def test_other_statistics_are_found(toy, tmp_path):
    """The policy un-normalises with q01..q99, the data set is declared to be normalised with min..max."""
    data, policy = toy
    recorded = read(data, bounds=EXTREMES)
    splits = {"val": summarize(replayed(policy, recorded, tmp_path, planned={"val": [2]}))}
    (found,) = [note for note in notes(splits, dim_names(7, [6])) if "un-normalises" in note]
    assert found.startswith("Commands of dims 0, 1, 2, 3, 4, 5 (val) are not the model's chunk")


def test_what_is_done_is_not_asked_again_and_a_torn_line_is(toy, tmp_path):
    data, policy = toy
    recorded = read(data)
    whole = replayed(policy, recorded, tmp_path)
    path, planned = tmp_path / "results.jsonl", {"val": [2], "train": [0, 1]}
    path.write_bytes(path.read_bytes()[:-20])
    done = resume_replayed(path, planned)
    assert done == whole[:2]
    rest = replayed(policy, recorded, tmp_path, done=done)
    assert [(one.split, one.episode) for one in rest] == [("train", 1)] and rest[0].l1 == whole[2].l1
    assert len(read_replayed(path)) == 3

    with pytest.raises(ResultsError, match=r"holds \('train', 1\), an episode that was not planned"):
        resume_replayed(path, {"val": [2], "train": [0]})
    path.write_text(path.read_text().replace('"val"', '"all"', 1))
    with pytest.raises(ResultsError, match="line 1 is damaged"):
        read_replayed(path)


class Echo:
    """Answers with a constant, and remembers what it was told."""

    num_open_loop_steps = 4

    def __init__(self) -> None:
        self.told: list[tuple[int, float | None, int | None]] = []

    def predict(self, requests):
        chunks = []
        for request in requests:
            step, memory = int(request.observation), request.memory
            self.told.append(
                (step, None if memory is None else float(memory.chunk[0, 0]), memory and memory.num_executed)
            )
            chunks.append(Chunk(np.zeros((8, 2)), 4, memory=Memory(np.full((8, 2), step, dtype=np.float32))))
        return chunks


class ToyFrames:
    """One episode of twelve steps, whose observation is the step."""

    episode, step = np.full(5, 3), np.arange(5)

    def __getitem__(self, row):
        return {"observation": row, "actions": None, "episode": 3, "step": row}


def test_a_frame_remembers_the_one_that_a_queue_would_have_asked_before():
    frames = ToyFrames()
    frames.episode, frames.step = np.full(10, 3), np.arange(10)
    policy = Echo()
    chunks = ask(policy, frames, 3, every=1, seed=7, max_batch=3)
    assert list(chunks) == list(range(10))
    assert policy.told == [(step, None if step < 4 else step - 4, None if step < 4 else 4) for step in range(10)]
    assert list(ask(Echo(), frames, 3, every=2, seed=7, max_batch=3)) == [0, 2, 4, 6, 8]
    with pytest.raises(SettingError, match="every is 3, expected a divisor of the 8 steps"):
        check_every(3, 8)


def test_errors_by_hand():
    """One chunk of two steps; q01..q99 is -0.5..0.5, so that model units are twice robot units."""
    recorded = type("Episode", (), {})()
    recorded.actions = np.array([[0.1, 1.0], [0.2, 0.0]], dtype=np.float32)
    recorded.instructions = ("go", "go")
    commands = np.array([[0.3, -1.0], [1.4, -1.0]])  # open, open; the second beyond the limits
    memory = Memory(np.array([[0.6, 0.9], [2.8, 0.6]], dtype=np.float32))
    rule = Yardstick(SPACE, SPACE, (-1.0, 1.0), True, np.array([0.2, 1.0]), 2)
    result = measured({0: Chunk(commands, 2, memory=memory, model_ms=3.0)}, recorded, rule, 2)
    np.testing.assert_allclose(result.l1, [[0.4, 0.1], [2.4, 0.6]], atol=1e-6)
    np.testing.assert_allclose(result.commands_off, [0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(result.l1_robot, [[0.2, 0.0], [0.8, 2.0]], atol=1e-6)
    np.testing.assert_allclose(result.l1_median, [0.1, 0.5], atol=1e-6)
    assert result.grippers == [Gripper(1, agreement=0.5, open_share=0.5, closings=[Closing(1, None)])]

    silent = measured({0: Chunk(commands, 2)}, recorded, rule, 2)  # of the gripper the sign alone
    assert silent.commands_off is None and silent.l1[1] == pytest.approx([2.4, 1.0])


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("111000111000", [Closing(3, 0), Closing(9, 0)]),
        ("110000111000", [Closing(3, -1), Closing(9, 0)]),
        ("111110111111", [Closing(3, 2), Closing(9, None)]),
        ("111111000000", [Closing(3, None), Closing(9, -3)]),  # not before the recording has opened
        ("1110001", [Closing(3, 0)]),  # what is not covered counts for nothing
    ],
)
def test_closings_are_on_time_early_late_or_missed(said, found):
    is_open = np.array([sign == "1" for sign in "111000111000"])
    assert closings(np.array([sign == "1" for sign in said]), is_open) == found


def line(split: str, episode: int, l1: float, num_chunks: int = 10, **changes) -> Replayed:
    gripper = Gripper(1, agreement=0.9, open_share=0.6, closings=[Closing(4, 1)])
    values = {"l1_robot": [[l1 / 2] * 2], "commands_off": [0.0] * 2, "l1_median": [0.5, 0.5], "grippers": [gripper]}
    return Replayed(split, episode, f"a/task_0{episode % 2}/x", "go", num_chunks, [[l1] * 2], **(values | changes))


def test_figures_are_of_chunks_and_intervals_of_episodes():
    results = [line("val", 0, 0.1, 30), line("val", 1, 0.3, 10)]
    assert pooled(results, lambda one: np.mean(one.l1)) == pytest.approx(0.15)
    low, high = bootstrap(results, lambda one: np.mean(one.l1))
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.3))
    assert bootstrap(results[:1], lambda one: np.mean(one.l1)) is None
    one = summarize(results)
    assert one["grippers"][0] | {"agreement": None} == {
        "dim": 1, "agreement": None, "majority": pytest.approx(0.6), "num_closings": 2, "num_missed": 0, "num_late": 2,
        "num_early": 0, "mean_delay": 1.0,
    }  # fmt: skip


def test_verdicts():
    here = summarize([line("val", 0, 0.2)])
    judge = {"data": "abc", "decoding": "l1", "every": 1}

    def text(training, **changes):
        found = verdict(here, training, **(judge | changes))
        return found["equal"], found["text"]

    said = Training(0.2, None, "checkpoint.json", "abc")
    assert text(said) == (
        True,
        "training said l1 = 0.2000 (checkpoint.json), the inference path gives 0.2000 on the same held-out episodes: "
        "equal",
    )
    equal, words = text(dataclasses.replace(said, l1=0.1))
    assert equal is False and "differs by +0.1000 (+100 %); what stands between" in words
    equal, words = text(dataclasses.replace(said, l1=0.1), every=4)
    assert equal is None and "every 4th frame" in words and "env.replay.every=1" in words
    assert text(None)[0] is None and "training's own l1 is not known" in text(None)[1]
    assert "its number is of other data" in text(dataclasses.replace(said, data="xyz"))[1]
    assert "of nobody knows which data" in text(dataclasses.replace(said, data=None))[1]
    assert "decoding=l1 makes this check" in text(said, decoding="exit")[1]


def test_notes():
    splits = {"val": summarize([line("val", 0, 0.6)]), "train": summarize([line("train", 1, 0.1)])}
    found = " ".join(notes(splits, dim_names(2, [1])))
    assert "One held-out episode" in found and "makes nothing" in found and "learned these episodes by heart" in found
    blind = Gripper(1, agreement=0.5, open_share=0.3, closings=[Closing(4, None)])
    found = notes(
        {"val": summarize([line("val", 0, 0.1, grippers=[blind]), line("val", 1, 0.1, grippers=[blind])])}, ["0", "1"]
    )
    assert found == [
        "The gripper, dim 1, is on the recorded side in 50.0 % of the steps (val); always saying the commoner state "
        "gives 70.0 %.",
        "2 of 2 closings of dim 1 are missed (val).",
    ]


def test_a_report_of_what_there_is():
    plan = PLAN | {"episodes": {"val": [0, 1], "train": []}, "units": ["m", ""]}
    report = build_report([line("val", 0, 0.2)], plan=plan, training=None, config=None, provenance=None)
    assert not report["complete"] and report["dims"] == ["0 (m)", "1 (gripper)"]
    assert [(one["suite"], one["instruction"], one["num_episodes"]) for one in report["tasks"]] == [("a", "go", 1)]
    assert flat_metrics(report)["closings_late"] == 1 and "train_l1" not in flat_metrics(report)
    empty = build_report([], plan=plan, training=None, config=None, provenance=None)
    page = render_page("replay.html", report=empty, drawn=[], width=1, height=1)
    assert flat_metrics(empty) == {} and "no held-out episode was replayed" in page


def test_a_plot_has_both_lines():
    trace = {"recorded": [[0.0], [1.0], [0.0]], "commanded": [[0.5], [0.5]]}
    (plot,) = plots(trace, ["0"])
    assert plot["recorded"] == "0.0,92.0 320.0,4.0 640.0,92.0" and plot["commanded"] == "0.0,48.0 320.0,48.0"


def test_episodes_are_evenly_spread():
    frames = ToyFrames()
    frames.episode = np.array([0, 0, 1, 2, 3, 4, 7])
    assert chosen_episodes(frames, 3) == [0, 2, 7] and chosen_episodes(frames, None) == [0, 1, 2, 3, 4, 7]


def test_a_full_line_is_read_as_it_was_written(tmp_path):
    append_result(tmp_path / "results.jsonl", line("val", 0, 0.2, trace="../x.json"))
    with pytest.raises(ResultsError, match="expected a path inside of the run's folder"):
        read_replayed(tmp_path / "results.jsonl")
