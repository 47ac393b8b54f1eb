"""data=mixture: what its members are, from the command line to the datamodule of each."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from rsd.commands.mixtures import make_datamodule, members_alone, reads_of, require_one, weights_of
from rsd.data import DataError, made_up
from rsd.data.mixture_module import MixtureDataModule
from rsd.errors import SettingError
from tests.data.demonstrations import demonstration

CONF = str(Path(__file__).parents[2] / "conf")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    for name in ("a", "b", "libero_spatial_no_noops", "bridge_orig"):
        made_up.write_dataset(directory / name / "1.0.0", [9, 9], demonstration)
    return directory


@pytest.fixture(autouse=True)
def conf():
    with initialize_config_dir(CONF, version_base="1.3"):
        yield


def composed(root, *typed, phase="rfsq"):
    overrides = [f"phase={phase}", "data=mixture", f"data.root={root}", *typed]
    return compose("train", overrides), overrides


def alone(root, *typed, **options):
    cfg, overrides = composed(root, *typed, **options)
    return members_alone(cfg, overrides)


def test_each_member_is_what_it_would_be_alone(root):
    members = alone(root, "data.members={a: 1.0, libero_spatial: {weight: 0.5, gripper: {between: true}}}")
    assert list(members) == ["a", "libero_spatial"]
    assert members["a"].data.name == "a" and members["libero_spatial"].data.name == "libero_spatial_no_noops"
    first, second = (one.phase.datamodule for one in members.values())
    assert Path(instantiate(first).dataset_dir) == root / "a" / "1.0.0"
    assert not first.layout.gripper.between and second.layout.gripper.between


def test_what_is_typed_for_all_holds_for_all_and_for_one_holds_for_one(root):
    members = alone(root, "data.bounds=extremes", "data.members={a: 1.0, b: {weight: 1.0, bounds: quantiles}}")
    assert [one.data.bounds for one in members.values()] == ["extremes", "quantiles"]


def test_the_datamodule_of_all(root):
    cfg, overrides = composed(root, "data.members={a: 1.0, b: 0.5}", "data.balance_weights=false")
    members = members_alone(cfg, overrides)
    data = make_datamodule(cfg, members)
    assert isinstance(data, MixtureDataModule) and data.weights == {"a": 1.0, "b": 0.5} and not data.balance_weights
    reads = reads_of(cfg, members)
    assert reads["data a"] == str(root / "a" / "1.0.0") and "data" not in reads


def test_one_data_set_is_no_mixture(root):
    cfg = compose("train", ["phase=rfsq", "data=rlds", "data.name=a", f"data.root={root}"])
    assert members_alone(cfg, []) == {}
    assert reads_of(cfg, {})["data"] == str(root / "a" / "1.0.0")
    assert not isinstance(make_datamodule(cfg, {}), MixtureDataModule)


def test_a_command_that_reads_one_data_set_takes_no_mixture(root):
    require_one(compose("inspect", ["data=rlds", "data.name=a", f"data.root={root}"]))
    for command, typed in (("inspect", ()), ("eval", ("env=replay",)), ("diagnose", ())):
        cfg = compose(command, ["data=mixture", "data.members={a: 1.0, b: 0.5}", *typed])
        with pytest.raises(SettingError, match=r"several data sets \(a, b\), and this command reads one: data=NAME"):
            require_one(cfg)


def test_a_set_of_open_x_has_its_transform(root):
    members = alone(root, "data.members={bridge_orig: 1.0, libero_spatial_no_noops: 1.0}", phase="oft")
    bridge, libero = members.values()
    assert bridge.data.transform == "bridge_orig" and bridge.data.views.image == "observation/image_0"
    assert (bridge.data.gripper.open, bridge.data.gripper.closed) == (1, 0)
    assert libero.data.transform is None  # its layout says it all, and the robot's own gripper


def test_a_published_mixture(root):
    cfg, _ = composed(root, "data.mixture=bridge_rt_1")
    assert weights_of(cfg) == {"bridge_orig": 1.0, "fractal20220817_data": 1.0}
    with pytest.raises(DataError, match=r"1 of the mixture's 2 members .*fractal20220817_data/1.0.0 does not exist"):
        alone(root, "data.mixture=bridge_rt_1")


def test_all_that_is_missing_is_named_at_once(root):
    with pytest.raises(
        DataError, match=r"2 of the mixture's 3 .*kuka: no standardisation transform: its states.*droid: no"
    ):
        alone(root, "data.members={a: 1.0, kuka: 0.8, droid: 0.06}")


def test_a_set_without_a_transform_may_be_described(root):
    (root / "kuka").symlink_to(root / "a")
    members = alone(root, "data.members={kuka: {weight: 1.0, action: action}}")
    assert members["kuka"].data.transform is None


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "data.mixture and data.members are both null; set one"),
        (["data.mixture=bridge", "data.members={a: 1.0}"], "data.mixture and data.members are both given"),
        (["data.members={a: 0, b: 0}"], "data.members (a, b) sum to zero"),
        (["data.members={a: -1}"], "data.members.a is -1, expected a weight"),
        (["data.members={a: {bounds: extremes}}"], "data.members.a has no weight"),
        (["data.members={a: {weight: 1, colour: red}}"], "data.members.a does not fit: Key 'colour'"),
        (["data.members={a: {weight: 1, name: null}}"], "data.members.a.name is null"),
    ],
)
def test_members_that_cannot_be_mixed(root, typed, message):
    with pytest.raises(SettingError, match=re.escape(message)):
        alone(root, *typed)


def test_an_unknown_member(root):
    with pytest.raises(
        DataError, match=r"1 of the mixture's 2 members cannot be had: nope: .*nope/1.0.0 does not exist"
    ):
        alone(root, "data.members={a: 1.0, nope: 1.0}")
