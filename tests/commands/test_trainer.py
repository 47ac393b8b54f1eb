"""The devices that a training asks for."""

import pytest
from omegaconf import OmegaConf

from rsd.commands.trainer import require_devices
from rsd.errors import SettingError


@pytest.mark.parametrize(
    ("devices", "strategy", "told"),
    [
        (1024, "ddp", r"trainer\.devices is 1024, but this machine has 2 cores"),
        (2, "auto", r"trainer\.devices is 2 with trainer\.strategy auto, .*; trainer=ddp"),
        ([0, 1], "auto", r"trainer\.devices is \[0, 1\] with trainer\.strategy auto"),
    ],
)
def test_several_devices_are_what_the_machine_has_and_the_strategy_takes(monkeypatch, devices, strategy, told):
    """Before any process is started; Lightning would start 1024 of them."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    trainer = {"accelerator": "cpu", "devices": devices, "strategy": strategy}
    with pytest.raises(SettingError, match=f"^{told}"):
        require_devices(OmegaConf.create({"device": "cpu", "trainer": trainer}))
    require_devices(OmegaConf.create({"device": "cpu", "trainer": trainer | {"devices": 1}}))
