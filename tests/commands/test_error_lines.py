"""The command that a message names."""

import pytest

from rsd.commands.error_lines import with_typed


@pytest.mark.parametrize(
    ("hint", "typed", "expected"),
    [
        ("phase=rfsq", "decoding=speculative quantizer=dct_d3 chunk=4", "phase=rfsq quantizer=dct_d3 chunk=4"),
        ("phase=oft model=oft_tiny", "model=oft_small", "phase=oft model=oft_small"),
        ("phase=oft model=oft_tiny", "chunk=4", "phase=oft model=oft_tiny chunk=4"),
        ("phase=head", "env=libero_10", "phase=head data=libero_10"),
        ("phase=head", "env=libero_10 data=libero_goal", "phase=head data=libero_goal"),
        (
            "phase=draft",
            "visual_tokens=grid visual_tokens.num_tokens=8",
            "phase=draft visual_tokens=grid visual_tokens.num_tokens=8",
        ),
        ("phase=rfsq", "paths.root=here policy_threads=2", "phase=rfsq paths.root=here"),
    ],
)
def test_the_command_in_a_hint_repeats_what_was_typed(hint, typed, expected):
    message = "no checkpoint; make it with: python train.py {}; or not"
    assert with_typed(message.format(hint), typed.split()) == message.format(expected)
