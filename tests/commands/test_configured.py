"""What may be typed beside policy=FOLDER: what the folder does not decide on."""

import pytest

from rsd.commands.configured import folder_options
from rsd.errors import SettingError
from tests.test_configs import composed


@pytest.mark.parametrize(
    "typed", ["model=oft_small", "quantizer=rfsq_d4", "draft.layer=2", "draft.num_stages=1", "chunk=4", "+experiment=x"]
)
def test_parts_beside_a_folder_are_refused(typed):
    cfg = composed("eval", ["policy=released"])
    with pytest.raises(SettingError, match=rf"policy=released brings its own parts: leave out .*{typed[1:]}"):
        folder_options(cfg, ["policy=released", typed])


def test_what_is_the_users_own_goes_to_the_folder():
    overrides = ["policy=released", "decoding=exit", "draft.num_stages=1", "model.backbone.execution=captured"]
    options = folder_options(composed("eval", overrides), overrides)
    assert options["decoding"].num_draft_stages == 1 and options["execution"] == "captured"
    assert options["num_open_loop_steps"] is None
    plain = folder_options(composed("eval", overrides[:1]), overrides[:1])
    assert plain["decoding"] is None and "execution" not in plain
