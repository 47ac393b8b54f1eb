"""Training on several data sets: each sample normalised by its own statistics, all of them published."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from rsd.data import DataError, made_up
from rsd.data.datamodules import ChunkDataModule, FrameDataModule, RLDSDataModule
from rsd.data.distilled_frames import DistilledFrameDataModule
from rsd.data.layout import Layout
from rsd.data.mixture_module import MixtureDataModule
from rsd.data.streaming import Stream
from rsd.errors import SettingError
from rsd.models.openvla import load_base
from rsd.space import UnknownKeyError
from rsd.tokenizer import load_tokenizer
from rsd.tokenizer.rfsq import RFSQTokenizer
from rsd.training.oft import FrameCollate, OFTModule
from rsd.training.tokenizer import TokenizerModule
from tests.data.demonstrations import demonstration

SIZE, VIEWS, T = 32, ("image",), 8
ARCHITECTURE = {
    "conv": {"width": 8, "num_keypoints": 6, "feature_dim": 16},
    "llm": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
    "learned_slots": True,
}


def smaller(number: int, num_steps: int) -> dict:
    """Another robot: a tenth of the motions, and another task."""
    episode = demonstration(number + 100, num_steps)
    episode["steps"]["action"][:, :6] *= 0.1
    return episode


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    made_up.write_dataset(directory / "large" / "1.0.0", [13, 11, 12], demonstration)
    made_up.write_dataset(directory / "small" / "1.0.0", [20, 10], smaller)
    return directory


def frames(root: Path, name: str, **changes) -> FrameDataModule:
    arguments = {
        "root": str(root),
        "name": name,
        "version": "1.0.0",
        "chunk_length": T,
        "views": VIEWS,
        "batch_size": 6,
        "num_workers": 0,
        "seed": 0,
        "collate": FrameCollate(image_size=SIZE, views=VIEWS),
    }
    return FrameDataModule(**{**arguments, **changes})


def chunks(root: Path, name: str, **changes) -> ChunkDataModule:
    arguments = {"root": str(root), "name": name, "version": "1.0.0", "chunk_length": T, "batch_size": 6, "seed": 0}
    return ChunkDataModule(**{**arguments, **changes})


def mixture(make, root: Path, weights=None, **changes) -> MixtureDataModule:
    weights = weights or {"large": 1.0, "small": 0.5}
    return MixtureDataModule(members={name: make(root, name, **changes) for name in weights}, weights=weights)


def oft(use_proprio: bool = True) -> OFTModule:
    return OFTModule(
        architecture=ARCHITECTURE,
        image_size=SIZE,
        views=VIEWS,
        use_proprio=use_proprio,
        chunk_length=T,
        learning_rate=1e-3,
        warmup_steps=2,
        weight_decay=0.01,
        image_augmentation=True,
        seed=0,
    )


class StopAfter(Callback):
    """Ends a training that would go on, and with it the schedule of a longer one."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, *_) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def trainer(directory: Path, steps: int, **options) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(options),
        default_root_dir=directory,
        num_sanity_val_steps=0,
        **options,
    )


def test_a_batch_says_whose_each_sample_is(root):
    data = mixture(frames, root)
    data.setup()
    assert [space.name for space in data.spaces] == ["large", "small"]
    assert data.order.shares.tolist() == pytest.approx([4 + 5, 0.5 * 13] / np.array(15.5), abs=0.2)
    seen = set()
    for batch in data.train_dataloader():
        assert batch["pictures"].shape[1:] == (1, SIZE, SIZE, 3) and batch["actions"].shape[1:] == (T, 7)
        for index, said, actions in zip(batch["space"].tolist(), batch["instructions"], batch["actions"], strict=True):
            assert (index == 1) == (int(said.split()[2]) >= 100)
            assert (actions[:, :6].abs().max() <= 0.1) == (index == 1)
            seen.add(index)
    assert seen == {0, 1}
    assert len(data.val) == sum(len(member.val) for member in data.members.values())
    assert len(list(data.val_dataloader())) == -(-len(data.val) // 6)
    assert any(text.endswith("toy 100 away") for text in data.train.instructions())


def test_each_sample_is_normalised_by_its_own_statistics(root, tmp_path):
    data, module = mixture(frames, root), oft()
    trainer(tmp_path, 1).fit(module, data)
    batch = next(iter(data.train_dataloader()))
    got = module._normalized(batch["actions"], batch["space"])
    for row, index in enumerate(batch["space"].tolist()):
        assert torch.equal(got[row], data.spaces[index].to_model(batch["actions"][row]))
    assert set(batch["space"].tolist()) == {0, 1}
    assert got[batch["space"] == 1][..., :6].abs().max() > 0.5  # of a tenth of the motions
    assert module.median_actions.shape == (2, 7)


def test_all_statistics_are_published_and_one_is_chosen(root, tmp_path):
    data, module = mixture(frames, root), oft()
    run = trainer(tmp_path, 1)
    run.fit(module, data)
    run.validate(module, data, verbose=False)
    module.export(tmp_path / "base", {"command": ["python", "train.py"]})
    asked = {"checkpoint": tmp_path / "base", "views": VIEWS, "use_proprio": True, "chunk_length": T}
    for space in data.spaces:
        assert load_base(**asked, unnorm_key=space.name, canaries=False).space == space
    with pytest.raises(UnknownKeyError, match=r"available: \['large', 'small'\]; set data.unnorm_key"):
        load_base(**asked, unnorm_key=None, canaries=False)


def test_a_stopped_training_goes_on_bit_for_bit(root, tmp_path):
    whole, stopped, resumed = oft(), oft(), oft()
    trainer(tmp_path, 5).fit(whole, mixture(frames, root))
    checkpoint = ModelCheckpoint(tmp_path / "resume", save_last=True, save_top_k=0, every_n_train_steps=1)
    trainer(tmp_path, 5, callbacks=[StopAfter(3), checkpoint]).fit(stopped, mixture(frames, root))
    trainer(tmp_path, 5).fit(resumed, mixture(frames, root), ckpt_path=tmp_path / "resume" / "last.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_tokenizer_is_fitted_to_all_and_belongs_to_each(root, tmp_path):
    data = mixture(chunks, root)
    tokenizer = RFSQTokenizer
    module = TokenizerModule(
        tokenizer=lambda **dims: tokenizer(
            chunk_length=T, latent_dim=4, num_levels=7, num_stages=2, hidden_dim=8, **dims
        ),
        learning_rate=1e-3,
        prefix_weight=0.0,
        seed=0,
    )
    run = trainer(tmp_path, 2)
    run.fit(module, data)
    run.validate(module, data, verbose=False)
    assert len(data.train.actions) == data.order.length == len(data.train.space)
    module.export(tmp_path / "run" / "tokenizer", {"command": ["python", "train.py"]})
    for space in data.spaces:
        load_tokenizer(tmp_path / "run" / "tokenizer", space=space)


def test_members_are_streamed(root, tmp_path):
    whole = mixture(frames, root)
    streamed = mixture(frames, root, stream=Stream(index_dir=str(tmp_path), buffer_mb=1))
    for data in (whole, streamed):
        data.setup()
    assert streamed.spaces == whole.spaces and streamed.content_id() == whole.content_id()
    first, again = (next(iter(streamed.train_dataloader())) for _ in range(2))
    assert torch.equal(first["actions"], again["actions"]) and first["instructions"] == again["instructions"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"action": ["action[0:3]", "action[-1]"]}, "action dims: large has 7, small has 4; mix"),
        (
            {"proprio": "observation/state[0:6]"},
            "proprio dims: large has 8, small has 6; set model.backbone.use_proprio",
        ),
    ],
)
def test_members_that_do_not_go_together(root, changes, what):
    members = {"large": frames(root, "large"), "small": frames(root, "small", layout=Layout(**changes))}
    data = MixtureDataModule(members=members, weights={"large": 1.0, "small": 1.0})
    with pytest.raises(DataError, match=f"members of the mixture have different {what}"):
        data.setup()


def test_other_proprio_is_no_matter_to_a_model_without(root, tmp_path):
    layout = Layout(proprio="observation/state[0:6]")
    members = {
        "large": frames(root, "large", proprio=False),
        "small": frames(root, "small", proprio=False, layout=layout),
    }
    data = MixtureDataModule(members=members, weights={"large": 1.0, "small": 1.0})
    trainer(tmp_path, 1).fit(oft(use_proprio=False), data)
    assert "proprio" not in next(iter(data.train_dataloader()))


def test_the_same_set_twice_is_refused(root):
    data = MixtureDataModule(
        members={"a": frames(root, "large"), "b": frames(root, "large")}, weights={"a": 1.0, "b": 1.0}
    )
    with pytest.raises(DataError, match=r"data.members a and b are the same data set, 'large'"):
        data.setup()


def test_what_is_wrong_with_a_member_is_said_with_its_name(root):
    data = mixture(frames, root, views=("top",))
    with pytest.raises(DataError, match=r"member 'large' of the mixture: .*observation/top.*data.members.large.KEY"):
        data.setup()


def test_a_member_of_weight_0_is_not_read(root, capsys):
    data = MixtureDataModule(
        members={"large": frames(root, "large"), "gone": frames(root, "gone")}, weights={"large": 1.0, "gone": 0}
    )
    data.setup()
    assert len(data.spaces) == 1
    assert "data.members gone have weight 0 and are not read" in capsys.readouterr().out


def test_phases_that_read_other_data_are_refused(root):
    class Other(RLDSDataModule):
        pass

    other = Other(root=str(root), name="large", version="1.0.0", batch_size=1, num_workers=0, seed=0)
    with pytest.raises(SettingError, match="data=mixture does not go with this phase, whose data come from Other"):
        MixtureDataModule(members={"large": other}, weights={"large": 1.0})
    assert issubclass(DistilledFrameDataModule, FrameDataModule)  # its cache is of one data set: by type, not by kind
