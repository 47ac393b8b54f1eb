"""A data set that is looked into: shown as far as it can be read, with everything that a training would refuse."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rsd.data.gripper import GripperRule
from rsd.data.layout import Layout
from rsd.data.survey import Content, look_into, pictures_of, spread
from rsd.data.survey_figures import figures
from rsd.data.survey_findings import Said, refusals, trainings_say, warnings
from rsd.data.survey_page import FOLDER, TEMPLATE, closed_spans, number, page_values, size
from rsd.evaluation.page import render_page
from rsd.finding import FAILED, WARNING, Finding
from tests.data.test_foreign_sets import NAME, encoded, structure, write

F = tfds.features
STEPS, SIDE = 12, 40
PICTURE = F.Image(shape=(None, None, 3), dtype=np.uint8)
OWN = {"observation": {"image": PICTURE, "wrist_image": PICTURE}}


def picture(seed: int) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def episode(number: int, steps: int = STEPS, **others: Any) -> dict[str, Any]:
    """A walk of the state that the actions make, with other pictures in every step and view."""
    random = np.random.default_rng(number)
    action = random.normal(size=(steps, 7)).astype(np.float32)
    action[:, -1] = np.where(np.arange(steps) < steps // 2, -1, 1)
    walk = np.concatenate([np.zeros((1, 7)), np.cumsum(0.05 * action, axis=0)])[:steps]
    state = np.concatenate([walk[:, :6], walk[:, 6:], -walk[:, 6:]], axis=1).astype(np.float32)
    features = {
        "steps/action": action,
        "steps/language_instruction": [f"take {number % 2}".encode()] * steps,
        "steps/observation/image": [picture(1000 * number + step) for step in range(steps)],
        "steps/observation/wrist_image": [picture(1000 * number + 500 + step) for step in range(steps)],
        "steps/observation/state": state,
    } | others
    return {name: values for name, values in features.items() if values is not None}


def written(root: Path, episodes: list[dict[str, Any]], features: Any = None, **more: Any) -> Path:
    return write(root, episodes, structure(**OWN) if features is None else features, **more)


def looked(directory: Path, layout: Layout | None = None, **more: Any) -> tuple[Content, dict[str, Any], list[Finding]]:
    """Content, figures and findings, as the script makes them."""
    layout = layout or Layout()
    content = look_into(directory, layout, **more)
    shown = figures(content, layout, bounds="quantiles", chunk_length=8)
    said = None if content.is_sample else trainings_say(directory, layout, content.asked, 8)
    return content, shown, [*refusals(content, layout, 8, said), *warnings(content, shown)]


def told(found: list[Finding], status: str) -> list[str]:
    return [one.text for one in found if one.status == status]


def rendered(content: Content, shown: dict[str, Any], found: list[Finding]) -> str:
    json.dumps(shown, allow_nan=False)
    return render_page(TEMPLATE, folder=FOLDER, **page_values(content, shown, found))


@pytest.fixture
def ten(tmp_path):
    return written(tmp_path, [episode(number) for number in range(10)])


def test_a_sound_set_is_shown_and_nothing_is_refused(ten):
    content, shown, found = looked(ten)
    assert found == []
    assert shown["num_read"] == shown["num_episodes"] == 10 and shown["lengths"]["chunks"] == 50
    used = {one["name"]: one["used_as"] for one in shown["features"]}
    assert used["action"] == "action" and used["observation/state"] == "proprio"
    assert used["observation/image"] == "view image" and used["language_instruction"] == "instruction"
    assert len(shown["action"]["dims"]) == 7 and len(shown["proprio"]["dims"]) == 8
    assert shown["action"]["dims"][6]["is_gripper"] and shown["action"]["dims"][2]["from"] == "action[2]"
    assert [one["kind"] for one in shown["responses"]][:6] == ["step"] * 6
    assert shown["responses"][3]["state_dim"] == 3 and shown["responses"][3]["slope"] == pytest.approx(0.05, abs=1e-3)
    (gripper,) = shown["gripper"]
    assert gripper["by_rule"] and [row["closings"] for row in gripper["episodes"]] == [[6]] * 10
    assert shown["languages"]["instructions"][0] == {"text": "take 0", "episodes": 5, "steps": 60, "ascii": True}
    assert shown["duplicates"]["episodes"] == [] and shown["same_views"] == []
    assert shown["pictures"]["image"]["sizes"] == {"40×40": 10}
    page = rendered(content, shown, found)
    assert "Nothing is refused" in page and page.count("data:image/jpeg;base64,") == 2 * 6 * 5
    assert "<script" not in page and "http" not in page.replace("http-equiv", "") and 'src="/' not in page


def test_every_fault_is_named_and_the_rest_is_shown(tmp_path):
    episodes = [episode(number) for number in range(10)]
    episodes[3]["steps/action"][4, 2] = np.nan
    episodes[5]["steps/action"][4, 2] = np.nan
    episodes[4]["steps/observation/image"][2] = b"GIF89a no picture"
    episodes[6]["steps/observation/state"][1, 0] = np.inf
    for one in episodes:
        one["steps/action"][:, -1] = np.where(one["steps/action"][:, -1] > 0, 1, 0)
        del one["steps/language_instruction"]
    directory = written(tmp_path, episodes, structure({"language_instruction": None}, **OWN))
    content, shown, found = looked(directory)
    refused = told(found, FAILED)
    expected = (
        "feature language_instruction: expected text, there is none of this name",
        "action is nan at step 4, dim 2",
        "observation/state is inf at step 1, dim 0",
        "feature observation/image: expected a JPEG or PNG picture, got GIF",
        "set data.gripper.open=1 data.gripper.closed=0",
    )
    for words in expected:
        assert sum(words in line for line in refused) == 1, (words, refused)
    assert len(refused) == len(expected)
    assert "(the same in 1 further episodes: 5)" in next(line for line in refused if "is nan" in line)
    assert shown["action"]["dims"][2]["num_bad"] == 2 and not shown["gripper"][0]["by_rule"]
    assert len(content.episodes[4].pictures) == 2  # beside the one that is none
    page = rendered(content, shown, found)
    assert "2 NaN or infinite" in page and "which the values do not fit" in page


def test_files_that_cannot_be_opened_leave_the_features(tmp_path):
    content, shown, found = looked(written(tmp_path, [episode(0)], pack=gzip.compress))
    (line,) = told(found, FAILED)
    assert "gunzip" in line
    assert shown["num_read"] == 0 and {"action", "observation/image"} <= {one["name"] for one in shown["features"]}
    assert "gunzip" in rendered(content, shown, found)
    (ten := tmp_path / NAME / "1.0.0" / "features.json").write_text("{")
    content, shown, found = looked(ten.parent)
    assert shown["features"] == [] and "is not JSON" in told(found, FAILED)[0]
    assert "features.json cannot be read" in rendered(content, shown, found)
    _, shown, found = looked(tmp_path / "nothing" / "1.0.0")
    assert shown["files"] == {} and len(told(found, FAILED)) == 1


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"action": None}, "there is none of this name"),
        (
            {"action": None, "action_left": F.Tensor(shape=(7,), dtype=np.float32)}
            | {"action_right": F.Tensor(shape=(7,), dtype=np.float32)},
            "2 could be it: action_left, action_right",
        ),
    ],
)
def test_without_one_action_the_pictures_and_states_are_shown(tmp_path, step, words):
    def own(number: int) -> dict[str, Any]:
        one = episode(number)
        action = one.pop("steps/action")
        return one | {f"steps/{name}": action for name, spec in step.items() if spec is not None}

    content, shown, found = looked(written(tmp_path, [own(k) for k in range(2)], structure(step, **OWN)))
    (line,) = told(found, FAILED)
    assert words in line and "data.action" in line
    assert len(shown["proprio"]["dims"]) == 8 and set(shown["pictures"]) == {"image", "wrist_image"}
    assert shown["idle"] is None and shown["clipped"] is None
    rendered(content, shown, found)


def test_two_arms_whose_grippers_nobody_declared_are_shown(tmp_path):
    def own(number: int) -> dict[str, Any]:
        one = episode(number)
        return one | {"steps/action": np.concatenate([one["steps/action"]] * 2, axis=1)}

    step = {"action": F.Tensor(shape=(14,), dtype=np.float32)}
    content, shown, found = looked(written(tmp_path, [own(k) for k in range(2)], structure(step, **OWN)))
    (line,) = told(found, FAILED)
    assert "data.gripper.dims=[6,13]" in line
    assert len(shown["action"]["dims"]) == 14 and shown["gripper"] == [] and len(shown["responses"]) == 14
    rendered(content, shown, found)
    layout = Layout(gripper=GripperRule(dims=[6, 13]), units=["m"] * 3)
    _, shown, found = looked(content.directory, layout)
    assert "data.units has 3 entries, the actions have 14 dims" in told(found, FAILED)[0]
    assert len(shown["action"]["dims"]) == 14
    layout = Layout(gripper=GripperRule(dims=[6, 13]), units=["rad"] * 14, rate=20)
    content, shown, found = looked(content.directory, layout)
    assert told(found, FAILED) == [] and [one["dim"] for one in shown["gripper"]] == [6, 13]
    assert shown["action"]["dims"][0]["unit"] == "rad" and shown["lengths"]["median_s"] == STEPS / 20
    assert "0.6 s at 20 Hz" in rendered(content, shown, found)


def test_what_is_left_out_and_what_is_declared_are_held_to_the_data(tmp_path):
    episodes = [episode(k) for k in range(10)]
    episodes[5]["steps/action"][:4, :6] = 0
    layout = Layout(rate=10, every=2, relative=True, idle=1e-4)
    _, shown, found = looked(written(tmp_path, episodes), layout)
    assert any("trainings keep 58 of 120 steps" in line for line in told(found, WARNING))
    assert shown["relative"] == [True] * 6 + [False] and shown["idle"]["goal_dims"] == []
    _, shown, found = looked(tmp_path / NAME / "1.0.0", Layout(relative=False))
    words = "data.relative declares action dims 0, 1, 2, 3, 4, 5 absolute, and they look like steps"
    assert any(words in line for line in told(found, WARNING))
    assert shown["idle"]["goal_dims"] == [0, 1, 2, 3, 4, 5]


def test_a_set_of_one_episode_and_one_of_short_ones(tmp_path):
    _, _, found = looked(written(tmp_path / "one", [episode(0)]))
    assert any("has 1 episode, which cannot be split into train and val" in line for line in told(found, FAILED))
    _, shown, found = looked(written(tmp_path / "short", [episode(k, 5) for k in range(3)]))
    assert any("are shorter than the chunk of 8 steps" in line and "chunk=" in line for line in told(found, FAILED))
    assert shown["lengths"]["short"] == [0, 1, 2] and shown["lengths"]["chunks"] == 0


def test_a_picture_key_that_is_no_image(tmp_path):
    vector = F.Tensor(shape=(3,), dtype=np.float32)
    seen = {"image": PICTURE, "wrist_image": vector}
    other = np.zeros((STEPS, 3), np.float32)
    episodes = [episode(k, **{"steps/observation/wrist_image": other}) for k in range(2)]
    directory = written(tmp_path, episodes, structure(observation=seen))
    content, shown, found = looked(directory, views=["image", "wrist_image"])
    (line,) = told(found, FAILED)
    assert "feature observation/wrist_image: expected image" in line and "it is tensor [3]" in line
    assert list(shown["pictures"]) == ["image"] and shown["others"][0]["name"] == "observation/wrist_image"
    assert any("phase=rfsq takes the data set" in one for one in told(found, WARNING))
    rendered(content, shown, found)


def test_what_a_training_alone_says_is_kept_once(ten):
    content, layout = look_into(ten, Layout()), Layout()
    own = refusals(content, layout, 8, Said("no such thing; set data.x", "no such thing; set data.x"))
    assert told(own, FAILED) == ["no such thing; set data.x"]
    assert refusals(content, layout, 8, Said(None, None)) == []


def test_a_sample_is_said_to_be_one(ten):
    content, shown, found = looked(ten, max_episodes=3)
    assert shown["read"] == [0, 4, 9] and content.is_sample
    assert any("3 of 10 episodes were read" in line for line in told(found, WARNING))
    assert "A sample: 3 of 10 episodes" in rendered(content, shown, found)
    assert spread(5, None) == [0, 1, 2, 3, 4] and spread(5, 9) == [0, 1, 2, 3, 4] and spread(100, 2) == [0, 99]


def test_progress_counts_what_is_read(ten):
    counted: list[int] = []
    look_into(ten, Layout(), max_episodes=4, progress=lambda total: counted.append(-total) or counted.append)
    assert counted == [-4, 1, 1, 1, 1]


def test_pictures_that_teach_nothing(tmp_path):
    black = encoded(np.zeros((SIDE, SIDE, 3), np.uint8))
    own = {"steps/observation/image": [black] * STEPS, "steps/observation/wrist_image": [black] * STEPS}
    _, shown, found = looked(written(tmp_path, [episode(k, **own) for k in range(10)]))
    lines = told(found, WARNING)
    for words in (
        "image: 100 % of the pictures are the last step's",
        "image: 100 % of those looked at are of one colour (mean 0)",
        "views image and wrist_image show the same",
        "image: in 1 groups of episodes the middle picture is nearly the same, the instruction another",
    ):
        assert any(words in line for line in lines), (words, lines)
    assert shown["pictures"]["image"]["frozen"] == list(range(10))


def test_doubles_rest_and_a_hand_that_never_closes(tmp_path):
    episodes = [episode(k) for k in range(10)]
    for name in ("steps/action", "steps/observation/state"):
        episodes[7][name] = episodes[2][name]
    episodes[4]["steps/action"][:, -1] = -1
    episodes[5]["steps/action"][:5, :6] = 0
    episodes[5]["steps/action"][7:, :6] = 0
    episodes[6]["steps/action"][:, -1] = np.tile([-1, 1], STEPS // 2)
    _, shown, found = looked(written(tmp_path, episodes))
    assert shown["duplicates"]["episodes"] == [[2, 7]]
    assert shown["idle"]["at_start"][5] == 5 and shown["idle"]["at_end"][5] == 5
    lines = told(found, WARNING)
    for words in (
        "2 episodes have the same numbers as another: 2, 7",
        "never closes in 1 of 10 episodes: 4",
        "turns twice within three steps in 1 episodes: 6",
        "1 episodes rest for 5 steps or more before the first movement: 5",
        "1 episodes rest for 5 steps or more after the last one: 5",
    ):
        assert any(words in line for line in lines), (words, lines)


def test_words_that_are_odd(tmp_path):
    said = [["Take it."] * STEPS, ["take it"] * STEPS, [""] * STEPS, ["reach"] * 6 + ["抓"] * 6]
    own = [{"steps/language_instruction": [one.encode() for one in words]} for words in said]
    _, shown, found = looked(written(tmp_path, [episode(k, **one) for k, one in enumerate(own)]))
    words = shown["languages"]
    assert words["empty_steps"] == STEPS and words["changing"] == [3] and words["alike"] == [["Take it.", "take it"]]
    lines = told(found, WARNING)
    for text in ("12 steps have an empty instruction", "changes within 1 episodes: 3", "not in ASCII: '抓'", "case or"):
        assert any(text in line for line in lines), (text, lines)


def test_dims_that_hardly_move_and_states_that_jump(tmp_path):
    episodes = [episode(k, 40) for k in range(10)]
    for one in episodes:
        one["steps/action"][:, 2:5] = 0
        one["steps/observation/state"][:, 1] = 0.5
    episodes[0]["steps/action"][20, 3] = 0.3
    episodes[8]["steps/observation/state"][30:, 4] += 50
    _, shown, found = looked(written(tmp_path, episodes))
    lines = told(found, WARNING)
    for words in (
        "action dims 2, 4 never change",
        "proprio dims 1 never change",
        "action dims 3 change in fewer than 1 % of the steps",
        "cuts off movement in action dims 3 (100 %)",
        "proprio jumps at 1 places in 1 episodes, most in episode 8, step 30, dim 4",
    ):
        assert any(words in line for line in lines), (words, lines)
    assert shown["clipped"]["action"][3] == 1


def test_other_views_are_said_with_the_key_that_asks_for_them(tmp_path):
    seen = {"image": None, "front": PICTURE, "wrist_cam": PICTURE, "depth": F.Image(shape=(8, 8, 1), dtype=np.uint16)}
    depth = encoded(np.zeros((8, 8), np.uint16), "PNG")

    def own(number: int) -> dict[str, Any]:
        one = episode(number)
        front, wrist = one.pop("steps/observation/image"), one.pop("steps/observation/wrist_image")
        named = {"front": front, "wrist_cam": wrist, "depth": [depth] * STEPS}
        return one | {f"steps/observation/{name}": values for name, values in named.items()}

    directory = written(tmp_path, [own(k) for k in range(10)], structure(observation=seen))
    content, shown, found = looked(directory)
    assert content.asked == ["front", "wrist_cam"] == pictures_of(content.features)
    assert told(found, FAILED) == []
    (line,) = told(found, WARNING)
    assert "train with model.backbone.views=[front,wrist_cam]" in line
    assert warnings(content, shown, has_model=True) == []


def test_numbers_for_people():
    assert [number(x) for x in (None, -0.123456, 5, 123456.0)] == ["–", "−0.123", "5", "123456"]
    assert [size(x) for x in (0, 999, 1500, 2_000_000_000)] == ["0 B", "999 B", "1.5 kB", "2 GB"]
    row = {"starts_closed": True, "closings": [6], "openings": [3], "num_steps": 9}
    assert closed_spans(row) == [(0, 3), (6, 9)]
