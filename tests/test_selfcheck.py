"""python -m rsd.selfcheck passes here, and fails where something is wrong."""

from rsd import selfcheck
from rsd.decoding import Levels, Speculative
from rsd.tokenizer.transform import TransformTokenizer


def test_all_is_well_here(capsys):
    assert selfcheck.main() == 0
    out = capsys.readouterr().out
    assert out.count("\nok ") == 4 and "FAILED" not in out and "extras: " in out


def test_a_decoder_that_forgets_a_stage_and_a_speculation_that_takes_neighbours_are_seen(capsys, monkeypatch):
    decode = TransformTokenizer.decode
    monkeypatch.setattr(TransformTokenizer, "decode", lambda self, indices: decode(self, indices[..., :1]))
    monkeypatch.setattr(
        selfcheck, "Speculative", lambda num_draft_stages: Speculative(num_draft_stages=1, accept=Levels(r=8))
    )
    assert selfcheck.main() == 1
    out = capsys.readouterr().out
    assert "FAILED  tokenizer" in out and "speculation changes it" in out and out.count("\nok ") == 2
