"""phase=draft draft=numbers: distillation from the base model's chunk, at one point or several, law 10, the export."""

import pytest
import torch
from safetensors.torch import load_file

from rsd.errors import SettingError
from rsd.stages.files import load_numbers
from rsd.training.drafts import DraftsModule, NumbersModule
from tests.training.test_stage_head_training import OppositeBase, ToyStates, TwoPoints, toy_spec
from tests.training.test_tokenizer_training import StopAfter, trainer


def made(**changes) -> NumbersModule:
    torch.manual_seed(0)
    arguments = {
        "layer": 3,
        "chunk_length": 8,
        "width": 32,
        "num_layers": 1,
        "num_heads": 2,
        "labels": "base",
        "learning_rate": 3e-3,
    }
    return NumbersModule(**{**arguments, **changes})


@pytest.mark.parametrize("labels", ["base", "data"])
def test_it_comes_closer_to_whom_it_was_trained_on_and_is_exported(tmp_path, labels):
    """The base model moves the other way, so that nobody can be close to both."""
    module, datamodule = made(labels=labels, learning_rate=1e-2), OppositeBase()
    run = trainer(tmp_path / "resume", 40)
    run.fit(module, datamodule)
    run.validate(module, datamodule, verbose=False)
    near, far = ("said_to_base_l1", "said_l1") if labels == "base" else ("said_l1", "said_to_base_l1")
    assert module.report[near] < 0.5 * module.report[far]
    report = module.export(tmp_path / "checkpoint", {"command": "test"})
    assert report["num_chunks"] == 32
    head, point = load_numbers(tmp_path / "checkpoint", base=toy_spec())
    states = datamodule.batch(range(4))["hidden"]["layer.3"]
    with torch.inference_mode():
        assert point == "layer.3" and torch.equal(head(states), module.head.eval()(states))


def test_the_loss_is_of_what_is_said_and_the_metrics_are_of_what_is_executed(tmp_path):
    module, datamodule = made(), ToyStates()
    trainer(tmp_path, 1).fit(module, datamodule)
    module.log = lambda *_, **__: None
    batch = datamodule.batch(range(4))
    base = torch.full((4, 8, 7), 0.5)
    base[2:], base[..., -1] = 3.0, 0.9  # beyond what is executed; the gripper's is executed as 1
    batch |= {"base_actions": base, "actions": torch.full((4, 8, 7), 0.25)}
    module.head.forward = lambda states: base + 0.2
    assert float(module.training_step(batch, 0)) == pytest.approx(0.2)
    module.validation_step(batch, 0)
    module.on_validation_epoch_end()
    expected = {
        "said_to_base_l1": (2 * 6 * 0.2 + 2 * 6 * 0.0) / 28,  # per step, of 4 rows of 7
        "said_l1": (2 * 6 * 0.45 + 2 * 6 * 0.75 + 4 * 0.75) / 28,
        "base_l1": (2 * 6 * 0.25 + 2 * 6 * 0.75 + 4 * 0.75) / 28,
        "gripper_of_base": 1.0,
        "num_chunks": 4,
        "num_parameters": sum(parameter.numel() for parameter in module.head.parameters()),
    }
    assert module.report == pytest.approx(expected)


def test_drafts_that_are_trained_together_are_what_each_would_be_alone(tmp_path):
    reports = {}
    for layer in (2, 3, [3, 2, "layer.3"]):
        module, folder = made(layer=layer), tmp_path / str(layer)
        run = trainer(folder, 3, gradient_clip_val=0.5)
        run.fit(module, TwoPoints())
        run.validate(module, TwoPoints(), verbose=False)
        reports[str(layer)] = module.export(folder / "checkpoint", {})
    assert isinstance(module, DraftsModule) and module.points == ["layer.3", "layer.2"]
    assert reports[str(layer)] == {"layer.3": reports["3"], "layer.2": reports["2"]} and reports["2"] != reports["3"]
    for point in (2, 3):
        alone, together = tmp_path / str(point), tmp_path / str(layer) / f"layer.{point}"
        for name, value in load_file(alone / "checkpoint" / "weights.safetensors").items():
            assert torch.equal(value, load_file(together / "checkpoint" / "weights.safetensors")[name]), name
        assert load_numbers(together / "checkpoint", base=toy_spec_of(f"layer.{point}"))[1] == f"layer.{point}"


def toy_spec_of(point):
    spec = toy_spec()
    spec.points[point] = (56, 12)
    return spec


def test_two_steps_a_stop_and_two_more_are_four_steps(tmp_path):
    module = made()
    trainer(tmp_path / "whole", 4).fit(module, ToyStates())
    whole = {name: value.clone() for name, value in module.state_dict().items()}
    module = made()
    trainer(tmp_path / "halves", 4, callbacks=[StopAfter(2)]).fit(module, ToyStates())
    assert any(not torch.equal(whole[name], value) for name, value in module.state_dict().items())
    module = made()
    trainer(tmp_path / "halves", 4).fit(module, ToyStates(), ckpt_path=tmp_path / "halves" / "last.ckpt")
    for name, value in module.state_dict().items():
        assert torch.equal(whole[name], value), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": "expert"}, r"phase.module.labels is 'expert', expected one of \['data', 'base'\]"),
        ({"num_heads": 3}, "num_heads is 3, expected a divisor of the width 32"),
        ({"layer": []}, "layer is .*expected"),
        ({"layer": 2.5}, "layer is .*expected"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(SettingError, match=message):
        made(**changes)
