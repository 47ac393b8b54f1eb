"""Which picture tokens reach the language model: as many as were asked for, in their old places, of every head."""

import json
from functools import partial

import pytest
import torch

from rsd.checkpoint import CheckpointError
from rsd.errors import SettingError
from rsd.models.openvla import load_base, save_base, segments
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.conv import ConvShape
from rsd.models.openvla.execution import Graphs
from rsd.models.openvla.loading import own_inputs
from rsd.models.openvla.model import Architecture, OpenVLAOFT
from rsd.models.openvla.patches import PatchShape
from rsd.models.openvla.processor import HALF, PrismaticImageProcessor
from rsd.models.openvla.random_weights import openvla_architecture, write_random_checkpoint
from rsd.models.openvla.visual_tokens import (
    Grid,
    Learned,
    PictureTokens,
    Random,
    Scorer,
    all_tokens,
    check_all,
    evenly,
    from_json,
    highest,
    save_scorer,
)
from tests.models.contract import BaseModelContract
from tests.models.openvla_tiny import LONG, SHORT, build_base, observation
from tests.models.test_execution import rerun
from tests.records import edit

PATCHES = 4  # of build_base's 28 pixels, a view
HEADS = ("l1", "discrete", "diffusion", "autoregressive")
POINTS = ("layer.1", "layer.2", "layer.3", "head")


def pictures(num_patches=256, num_views=2, has_grid=True):
    return PictureTokens(
        num_views=num_views, num_patches=num_patches, has_grid=has_grid, width=8, fingerprint=lambda: {"sha": "a"}
    )


def chosen(selection, tokens):
    """Of one picture, as a list a view."""
    indices = selection.choose(tokens, torch.zeros(1, tokens.num_views * tokens.num_patches, 8), lambda: None)
    assert indices.shape == (1, tokens.num_views * selection.num_tokens) and indices.dtype == torch.int64
    rows = indices.view(tokens.num_views, -1)
    return [(row - view * tokens.num_patches).tolist() for view, row in enumerate(rows)]


def test_a_grid_is_rows_and_columns_of_a_square_and_steps_along_a_list():
    first, second = chosen(Grid(num_tokens=4), pictures(16))
    assert first == second == [5, 7, 13, 15]  # rows 1 and 3, columns 1 and 3
    assert chosen(Grid(num_tokens=2), pictures(8, has_grid=False))[0] == [2, 6]
    assert evenly(5, 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_patches", [1, 4, 36, 256])
@pytest.mark.parametrize("has_grid", [True, False])
def test_a_selection_keeps_its_number_of_different_tokens_in_their_order(num_patches, has_grid):
    tokens = pictures(num_patches, has_grid=has_grid)
    for count in range(1, num_patches + 1):
        for selection in (Grid(num_tokens=count), Random(num_tokens=count, seed=3)):
            selection.fit(tokens)
            for row in chosen(selection, tokens):
                assert row == sorted(set(row)) and len(row) == count and 0 <= row[0] and row[-1] < num_patches
        if count == num_patches:
            assert row == list(range(num_patches))


def test_a_random_selection_is_its_seeds_and_differs_between_views():
    first, second = chosen(Random(num_tokens=64, seed=1), pictures())
    assert [first, second] == chosen(Random(num_tokens=64, seed=1), pictures()) and first != second
    assert first != chosen(Random(num_tokens=64, seed=2), pictures())[0]


def test_the_highest_scores_of_each_view_stay():
    scores = torch.tensor([[[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 0.0, 9.0]]])
    assert highest(scores, 2).tolist() == [[1, 3, 4, 7]]


def test_more_tokens_than_the_model_has_are_refused():
    message = r"visual_tokens\.num_tokens is 5, and the model has 4 tokens a view; set 1\.\.4, or visual_tok"
    with pytest.raises(SettingError, match=message):
        build_base(visual_tokens=Grid(num_tokens=5))


@pytest.mark.parametrize("count", [0, -1, 2.0, True, None, "2"])
def test_what_is_no_number_of_tokens_is_refused(count):
    with pytest.raises(SettingError, match=r"num_tokens is \S+, expected a whole number of at least 1"):
        Grid(num_tokens=count)


def test_other_settings_that_cannot_be_are_refused():
    with pytest.raises(SettingError, match=r"seed is 'x', expected a whole number from 0 to"):
        Random(num_tokens=2, seed="x")
    assert all_tokens(num_tokens=None) is None and check_all(phase="oft", selection="all") is None
    with pytest.raises(SettingError, match=r"num_tokens is 8, and visual_tokens=all keeps every one"):
        all_tokens(num_tokens=8)
    with pytest.raises(SettingError, match=r"phase=oft trains a base model with all of its picture tokens; leave out"):
        check_all(phase="oft", selection="grid")
    with pytest.raises(SettingError, match=r"hidden width 9000 has .* parameters, expected at most 1,000,000"):
        Scorer(width=8, num_views=1, num_patches=4, hidden=9000)


class TestGridContract(BaseModelContract):
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls):
        return build_base(visual_tokens=Grid(num_tokens=3))


class TestRandomContractOfOneView(BaseModelContract):
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls):
        return build_base(
            views=("image",), use_proprio=False, image_size=42, visual_tokens=Random(num_tokens=7, seed=5)
        )


class TestLearnedContract(BaseModelContract):
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls, tmp_path_factory):
        return build_base(visual_tokens=scorer_for(build_base(), tmp_path_factory.mktemp("scorer"), 2))


def scorer_for(base, directory, num_tokens):
    """An untrained scorer of a base model."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        scorer = Scorer(width=32, num_views=len(base.views), num_patches=PATCHES, hidden=8)
    save_scorer(scorer, directory, num_tokens=num_tokens, provenance={"base": dict(base.spec.fingerprint)})
    return Learned(num_tokens=num_tokens, checkpoint=directory)


class TestPatchTowersContract(BaseModelContract):
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls):
        return patch_base()


class TestPatchTowersContractOfSomeTokens(BaseModelContract):
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls):
        return patch_base(visual_tokens=Grid(num_tokens=2))


def conv_base(visual_tokens=None):
    """The released policy's kind: a tower a camera, and keypoints for patches."""
    shape = ConvShape(image_size=32, num_views=2, width=8, num_keypoints=5, feature_dim=12)
    return camera_base(visual_tokens, conv=shape)


def patch_base(visual_tokens=None):
    """oft_base's kind: a tower a camera, and four patches."""
    shape = PatchShape(image_size=32, num_views=2, width=4, feature_dim=12)
    return camera_base(visual_tokens, patches=shape)


def camera_base(visual_tokens, **towers):
    plain = build_base()
    llm = {**plain.model.architecture.llm, "initializer_range": 0.1}  # of untrained weights that let a picture through
    architecture = Architecture(llm=llm, action_dim=7, proprio_dim=8, num_slots=56, **towers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OpenVLAOFT(architecture).eval()
    return OpenVLABase(
        model=model,
        processor=PrismaticImageProcessor(sizes=[32], means=[HALF], stds=[HALF]),
        text=plain.text,
        space=plain.space,
        views=plain.views,
        chunk_length=8,
        center_crop=True,
        weights_sha256=lambda: "conv",
        visual_tokens=visual_tokens,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """By action head: a function of a selection that loads a published checkpoint with random weights."""
    root = tmp_path_factory.mktemp("heads")

    def load(action_head, visual_tokens=None):
        alone = action_head == "autoregressive"
        if not (root / action_head).exists():
            architecture = openvla_architecture(action_head=action_head, proprio_dim=None if alone else 8, size="tiny")
            write_random_checkpoint(root / action_head, architecture=architecture)
        base = load_base(
            checkpoint=root / action_head, unnorm_key="libero_goal", views=["image"], use_proprio=not alone,
            chunk_length=1 if alone else 8, action_head=action_head, canaries=False, visual_tokens=visual_tokens,
        )  # fmt: skip
        base.model.num_diffusion_steps = 3
        return base

    return load


def answers(base, observations):
    looked = base.look(observations)
    return {point: looked.at(point) for point in base.spec.points} | {"chunk": looked.chunk()}, looked.work


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.mark.parametrize("texts", [[SHORT], [SHORT, LONG]])
def test_keeping_every_token_is_the_model_to_the_bit(texts, checkpoint):
    seen = [observation(seed, text) for seed, text in enumerate(texts)]
    assert_equal(answers(build_base(), seen)[0], answers(build_base(visual_tokens=Grid(num_tokens=4)), seen)[0])
    assert_equal(answers(conv_base(), seen)[0], answers(conv_base(Random(num_tokens=5)), seen)[0])
    assert_equal(answers(patch_base(), seen)[0], answers(patch_base(Random(num_tokens=4)), seen)[0])
    for head in HEADS:
        whole, kept = checkpoint(head), checkpoint(head, Grid(num_tokens=16))
        assert_equal(answers(whole, seen)[0], answers(kept, seen)[0])


def masked(base, indices):
    """Let nobody look at the picture tokens that are not kept: leaves every position as it is, and drops nothing."""
    run_layers = base.model.run_layers
    dropped = torch.ones(base.num_pictures, dtype=torch.bool)
    dropped[indices] = False

    def blind(x, mask, start, stop, **options):
        if x.shape[1] > 1:  # not a generated token, whose mask is the cache's
            mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.clone()
        mask = mask.clone()
        mask[:, 1 : 1 + base.num_pictures][:, dropped] = False
        return run_layers(x, mask, start, stop, **options)

    base.model.run_layers = blind
    return base


@pytest.mark.parametrize("head", ["tiny", "conv", "patches", *HEADS])
def test_what_is_kept_is_seen_where_it_was_and_the_rest_is_not_seen(head, checkpoint):
    """Held to the whole sequence with a mask: same positions, same states, another way to leave a token out."""
    selection = Random(num_tokens=3, seed=2)
    own = {"tiny": lambda s=None: build_base(visual_tokens=s), "conv": conv_base, "patches": patch_base}
    make = own.get(head, partial(checkpoint, head))
    whole, kept = make(), make(selection)
    seen = [observation(0, SHORT), observation(1, LONG)]
    indices = kept.choose(torch.zeros(1, kept.num_pictures, 8), lambda: None)[0]
    expected, _ = answers(masked(whole, indices), seen)
    got, work = answers(kept, seen)
    assert work.visual_tokens.tolist() == [3 * len(kept.views)] * 2
    for name, value in expected.items():
        if name == "chunk" and not kept.spec.continuous:
            continue  # equally probable tokens
        torch.testing.assert_close(
            got[name], value, atol=2e-4, rtol=2e-3, msg=lambda said, name=name: f"{name}: {said}"
        )


@pytest.mark.parametrize("selection", [None, Grid(num_tokens=3), Random(num_tokens=1)], ids=["all", "grid", "random"])
@pytest.mark.parametrize("make", [build_base, conv_base, patch_base])
def test_the_account_is_what_reaches_the_first_layer(make, selection):
    """Everything else in the sequence: BOS and the rest of the prompt, proprio, 56 slots, stop."""
    base = make(visual_tokens=selection)
    lengths = []
    base.model.language_model.model.layers[0].register_forward_hook(
        lambda _, inputs, __: lengths.append(inputs[0].shape[1])
    )
    looked = base.look([observation(0, SHORT)])
    looked.at("layer.2")
    others = len(base.text.encode(SHORT)) + 1 + 56 + 1
    assert looked.work.visual_tokens.tolist() == [lengths[0] - others] == [base.num_visual_tokens]
    per_view = base.model.architecture.num_patches if selection is None else selection.num_tokens
    assert base.num_visual_tokens == 2 * per_view
    looked.chunk()
    assert len(set(lengths)) == 1 and looked.work.visual_tokens.tolist() == [base.num_visual_tokens]


@pytest.mark.parametrize("head", ["discrete", "diffusion", "autoregressive"])
def test_the_account_of_other_heads(head, checkpoint):
    base, lengths = checkpoint(head, Grid(num_tokens=5)), []
    base.model.language_model.model.layers[0].register_forward_hook(
        lambda _, inputs, __: lengths.append(inputs[0].shape[1])
    )
    looked = base.look([observation(0, SHORT)])
    looked.chunk()
    others = base.prompts([SHORT])["input_ids"].shape[1] + base.use_proprio + (head == "diffusion")
    assert looked.work.visual_tokens.tolist() == [lengths[0] - others] == [5]


def test_one_graph_serves_all_pictures_and_no_choice_adds_none(tmp_path):
    """Shapes stay as they are from picture to picture, also where a scorer chooses."""
    for selection in (Grid(num_tokens=3), scorer_for(build_base(), tmp_path, 3), None):
        eager, base = build_base(visual_tokens=selection), build_base(visual_tokens=selection)
        base.run = Graphs(base.model, capture=rerun, limit=0.01)
        for seed in range(3):
            assert_equal(answers(base, [observation(seed)])[0], answers(eager, [observation(seed)])[0])
        cuts = ["embed", *(["keep"] if selection else []), "0..1", "1..2", "2..3", "head", "chunk"]
        assert base.run.num_captured == len(cuts)


def test_rows_that_go_on_take_their_positions_along(tmp_path):
    base = build_base(visual_tokens=scorer_for(build_base(), tmp_path, 2))
    seen = [observation(seed, text) for seed, text in enumerate([SHORT, LONG, SHORT])]
    looked = base.look(seen)
    looked.at("layer.1")
    some = looked.of(torch.tensor([2, 0])).chunk()
    torch.testing.assert_close(some, base.look(seen).chunk()[[2, 0]], atol=1e-5, rtol=0)
    whole = segments.embed(base.model, base.on_device(base.prepare(seen)), chunk_length=8)
    rows = base.choose(whole["x"][:, 1:9], lambda: torch.zeros(3, 32))
    assert len({tuple(row) for row in rows.tolist()}) > 1  # other pictures, other tokens


def test_the_fingerprint_and_the_spec_carry_the_selection(tmp_path):
    plain = build_base()
    assert plain.spec.visual_tokens == "all" and "visual_tokens" not in plain.spec.fingerprint
    learned = scorer_for(plain, tmp_path, 2)
    prints = {}
    for selection in (
        Grid(num_tokens=2),
        Grid(num_tokens=3),
        Random(num_tokens=2),
        Random(num_tokens=2, seed=1),
        learned,
    ):
        spec = build_base(visual_tokens=selection).spec
        record = dict(spec.fingerprint)
        assert record.pop("visual_tokens") == selection.to_json() and record == plain.spec.fingerprint
        prints[json.dumps(selection.to_json())] = spec.visual_tokens
    assert len(prints) == 5 and next(iter(prints.values())) == "grid, 2 of 4 a view"
    assert prints[json.dumps(learned.to_json())] == "learned, 2 of 4 a view"


def test_a_scorer_is_held_to_its_base_model_and_to_its_number(tmp_path):
    scorer_for(build_base(), tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"trained for another base model: weights_sha256 differ; train it for"):
        build_base(seed=1, visual_tokens=Learned(num_tokens=2, checkpoint=tmp_path))
    with pytest.raises(CheckpointError, match=r"was trained to keep 2 tokens a view, asked for 3; set visual_tokens\."):
        Learned(num_tokens=3, checkpoint=tmp_path)
    with pytest.raises(
        CheckpointError, match=r"no visual_tokens checkpoint: .* make it with: python train\.py phase=t"
    ):
        Learned(num_tokens=3, checkpoint=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [("num_tokens", None, "None, expected a whole number"), ("hidden", -1, "-1, expected"), ("kind", 1, "unknown")],
)
def test_a_scorer_whose_record_is_damaged_is_refused(tmp_path, entry, value, message):
    scorer_for(build_base(), tmp_path / "scorer", 2)
    edit(tmp_path / "scorer" / "checkpoint.json", lambda record: record["config"].update({entry: value}))
    with pytest.raises(CheckpointError, match=rf"checkpoint.json: entry 'config.{entry}' (is )?{message}.*; copy it"):
        Learned(num_tokens=2, checkpoint=tmp_path / "scorer")


def test_scores_of_no_numbers_choose_nothing(tmp_path):
    selection = scorer_for(build_base(), tmp_path / "scorer", 2)
    with torch.no_grad():
        selection.scorer.score.bias.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="scorer says NaN or infinity of the pictures"):
        selection.choose(pictures(PATCHES), torch.zeros(1, 2 * PATCHES, 32), lambda: torch.zeros(1, 32))


def test_a_scorer_goes_through_loading(tmp_path):
    save_base(tmp_path / "base", build_base(), {})
    inputs = own_inputs(tmp_path / "base")
    base = load_base(checkpoint=tmp_path / "base", **inputs)
    selection = scorer_for(base, tmp_path / "scorer", 2)
    for device in ("cpu", "meta"):
        again = load_base(checkpoint=tmp_path / "base", **inputs, visual_tokens=selection, device=device)
        assert again.spec.visual_tokens == "learned, 2 of 4 a view"


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"kind": "all"},
        {"kind": "grid"},
        {"kind": "grid", "num_tokens": 2, "seed": 0},
        {"num_tokens": 2},
        {"kind": []},
    ],
)
def test_a_record_that_names_no_selection_is_refused(record):
    with pytest.raises(CheckpointError, match=r"visual_tokens of policy\.json is .*, expected a kind with"):
        from_json(record, None)


def test_records_become_the_selections_that_wrote_them(tmp_path):
    for selection in (Grid(num_tokens=2), Random(num_tokens=3, seed=4)):
        assert from_json(selection.to_json(), None).to_json() == selection.to_json()
    learned = scorer_for(build_base(), tmp_path, 2)
    assert from_json({"kind": "learned", "num_tokens": 2}, tmp_path).to_json() == learned.to_json()
    with pytest.raises(CheckpointError, match="asks for learned visual_tokens, and names no part 'visual_tokens'"):
        from_json({"kind": "learned", "num_tokens": 2}, None)
