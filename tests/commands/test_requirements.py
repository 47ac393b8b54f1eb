"""What a phase has to have."""

import pytest
from omegaconf import OmegaConf

from rsd.commands.requirements import require_parts
from rsd.errors import SettingError

PHASE = {"module": {"_target_": "rsd.A"}, "datamodule": {"_target_": "rsd.B"}, "reads": {"data": "a", "base": None}}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"module": None}, "phase.module is null, expected keys with a _target_"),
        ({"datamodule": None}, "phase.datamodule is null, expected keys with a _target_"),
        ({"reads": None}, "phase.reads is null, expected keys with values"),
        ({"reads": {"data": "a", "more": 5}}, "phase.reads.more is 5, expected text that is not empty or null"),
    ],
)
def test_a_phase_without_a_part_is_refused_with_its_key(changed, said):
    require_parts(OmegaConf.create(PHASE))
    with pytest.raises(SettingError) as refused:
        require_parts(OmegaConf.create(PHASE | changed))
    assert str(refused.value) == said
