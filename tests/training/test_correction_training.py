"""phase=correction: which chunks belong together, learning, law 10, and the export."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningDataModule

from rsd.data.late_frames import LateFrameDataModule, with_old_chunks
from rsd.data.shuffle import ShuffledLoader, batch_loader
from rsd.errors import SettingError
from rsd.models.openvla.loading import load_own
from rsd.space import Space
from rsd.stages.correction import load_correction, moved_on
from rsd.stages.files import EYES
from rsd.training.correction import CorrectionModule
from rsd.types import BaseSpec
from tests.models.openvla_tiny import statistics
from tests.training.test_tokenizer_training import StopAfter, trainer

SPACE = Space.from_statistics("toy", statistics())
FINGERPRINT = {"weights_sha256": "a base model"}
T, MAX_DELAY, VIEWS = 8, 3, ("image",)
ARCHITECTURE = {
    "learned_slots": True,
    "conv": {"width": 2, "num_keypoints": 4, "feature_dim": 8},
    "llm": {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "initializer_range": 0.1,
    },
}  # fmt: skip


class Drifting(LightningDataModule):
    """What is left of an old chunk is wrong by half of the first number of proprio, in all dims."""

    space, fingerprint, max_delay = SPACE, FINGERPRINT, MAX_DELAY
    train = SimpleNamespace(instructions=lambda: {"reach": "everywhere"})

    def content_id(self):
        return "made up"

    def rows(self, rows):
        frames = [self._frame(row) for row in rows]
        batch = {name: torch.stack([one[name] for one in frames]) for name in frames[0]}
        return batch | {"instructions": ["reach"] * len(rows)}

    def _frame(self, row):
        draw = torch.Generator().manual_seed(row)
        now, proprio = (torch.rand(shape, generator=draw) - 0.5 for shape in ((T, 7), (8,)))
        old = torch.rand(MAX_DELAY, T, 7, generator=draw)
        for steps in range(1, MAX_DELAY + 1):  # chunks of one motion
            old[steps - 1, steps:] = now[: T - steps]
        return {
            "pictures": torch.zeros(1, 16, 16, 3, dtype=torch.uint8),
            "proprio": proprio,
            "base_actions": now + proprio[0],
            "old_actions": old,
            "num_old": torch.tensor(row % (MAX_DELAY + 1)),
        }

    def train_dataloader(self):
        return ShuffledLoader(320, self.rows, batch_size=16, seed=0, num_workers=0, rank=0, num_ranks=1)

    def val_dataloader(self):
        return batch_loader(list(range(1000, 1032)), self.rows, 16, 0)


def build(**changes):
    options = {
        "architecture": ARCHITECTURE, "image_size": 16, "views": list(VIEWS), "use_proprio": True, "chunk_length": T,
        "width": 16, "image_augmentation": False, "proprio_dropout": 0.0, "number_weight": 0.1,
        "learning_rate": 1e-2, "weight_decay": 0.0, "seed": 0,
    }  # fmt: skip
    return CorrectionModule(**(options | changes)), Drifting()


def test_the_chunks_of_the_steps_before_come_with_a_frame():
    """Two episodes of 4 and 2 frames; the first frame stands for those before it."""
    chunks = torch.arange(6.0).view(6, 1, 1)
    step = torch.tensor([0, 1, 2, 3, 0, 1])
    got = with_old_chunks([3, 5, 4, 1], lambda rows: {"rows": rows}, chunks, step, max_delay=2)
    assert got["rows"] == [3, 5, 4, 1]
    assert got["num_old"].tolist() == [2, 1, 0, 1]
    assert got["old_actions"][..., 0, 0].tolist() == [[2, 1], [4, 4], [4, 4], [0, 0]]


@pytest.mark.parametrize("max_delay", [8, 9])
def test_a_delay_after_which_nothing_is_left_is_not_trained_for(max_delay):
    with pytest.raises(SettingError, match=rf"max_delay is {max_delay}, and a chunk has 8 actions; set 1\.\.7"):
        LateFrameDataModule(
            max_delay=max_delay, cache=dict, root="x", name="x", version="1", chunk_length=8, views=VIEWS, batch_size=1,
            num_workers=0, seed=0, collate=list,
        )  # fmt: skip


def test_a_correction_that_would_cost_too_much_is_refused(tmp_path):
    module, datamodule = build(width=2000)
    with pytest.raises(SettingError, match=r"correction [\d,]+ parameters, expected at most 1,500,000"):
        trainer(tmp_path, 1).fit(module, datamodule)


@pytest.mark.long
def test_it_learns_what_drifts(tmp_path):
    module, datamodule = build(learning_rate=5e-3, number_weight=0.0)
    run = trainer(tmp_path, 240)
    run.fit(module, datamodule)
    run.validate(module, datamodule, verbose=False)
    report = module.report
    assert all(now < was / 2 for now, was in zip(report["corrected_l1"], report["naive_l1"], strict=True))


def test_it_begins_as_naive_and_is_exported_as_it_was_trained(tmp_path):
    module, datamodule = build()
    run = trainer(tmp_path / "resume", 2)
    run.validate(module, datamodule, verbose=False)
    before = module.report
    assert before["naive_l1"] == before["corrected_l1"] and len(before["naive_l1"]) == MAX_DELAY
    run.fit(module, datamodule)
    run.validate(module, datamodule, verbose=False)
    report = module.export(tmp_path / "correction", {"command": "test"})
    assert report["naive_l1"] == pytest.approx(before["naive_l1"])
    assert report["corrected_l1"] != pytest.approx(report["naive_l1"])

    eyes = load_own(tmp_path / "correction" / EYES)
    spec = BaseSpec(VIEWS, 8, T, 7, SPACE, {}, "l1", True, identify=lambda: FINGERPRINT)
    head = load_correction(tmp_path / "correction", base=spec, eyes=eyes.spec, delay=MAX_DELAY)
    batch = datamodule.rows(range(16))
    delay = torch.full((16,), 2)
    left = moved_on(batch["old_actions"][:, 1], delay)
    module.eval()
    with torch.no_grad():
        expected = module.head(module.look_at(batch)[0], left, delay)
        inputs = {"pixel_values": eyes.pixel_values(batch["pictures"].flatten(0, 1)), **eyes.prompts(["reach"] * 16)}
        inputs["proprio"] = eyes.normalized_proprio([*batch["proprio"].numpy()])
        got = head(eyes.look(inputs).at("head"), left, delay)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert not got[:, -2:].any()  # where nothing is left


def test_two_steps_a_stop_and_two_more_are_four_steps(tmp_path):
    module, datamodule = build(image_augmentation=True, proprio_dropout=0.2)
    trainer(tmp_path / "whole", 4).fit(module, datamodule)
    whole = {name: value.clone() for name, value in module.state_dict().items()}

    module, datamodule = build(image_augmentation=True, proprio_dropout=0.2)
    trainer(tmp_path / "halves", 4, callbacks=[StopAfter(2)]).fit(module, datamodule)
    torch.rand(7)  # the global random state must not matter
    module, datamodule = build(image_augmentation=True, proprio_dropout=0.2)
    trainer(tmp_path / "halves", 4).fit(module, datamodule, ckpt_path=tmp_path / "halves" / "last.ckpt")
    for name, value in module.state_dict().items():
        assert torch.equal(whole[name], value), name
