"""The run folder that is typed."""

from pathlib import Path

import pytest

from rsd.commands.run_folder import typed_folder
from rsd.errors import SettingError


@pytest.mark.parametrize("typed", ["hydra.run.dir=", "hydra.run.dir=''", "+hydra.run.dir=null"])
def test_an_empty_run_folder_is_not_the_present_one(typed):
    with pytest.raises(SettingError, match=r"hydra\.run\.dir is empty; name the run folder"):
        typed_folder(["phase=rfsq", typed])
    assert typed_folder(["hydra.run.dir=a", "phase=rfsq"]) == [Path("a")]
