"""What every decoding must do; a test class inherits this and provides `decoding`.

What a code holds, that nobody is asked who is not needed, that rows do not know of each other, and JSON.

class TestMyDecoding(DecodingContract):
    @pytest.fixture
    def decoding(self): ...
"""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch

from rsd.decoding import DRAFT, TARGET, Decoding, from_json, to_json
from rsd.decoding.past import Past
from rsd.stages import Absent
from rsd.types import Memory
from tests.decoding.tables import LEVELS, D, Function, L, PerRow, Q, T, four_models
from tests.decoding.tables import run as run_at_the_beginning


def run(decoding, target, draft, seeds, levels=LEVELS):
    """In the middle of an episode, where a decoding may do what it does."""
    return run_at_the_beginning(decoding, target, draft, seeds, levels, Past.remembered([Memory(None)] * len(seeds)))


class DecodingContract:
    """Over a target and a draft of four different rows."""

    @pytest.fixture
    def decoding(self) -> Decoding:
        raise NotImplementedError

    @pytest.fixture
    def models(self):
        return four_models()

    def test_a_code_is_within_its_levels_and_says_how_deep_it_is(self, decoding, models):
        levels = LEVELS.clone()
        levels[1, :, 2:] = 1
        missing = torch.arange(L) >= levels[..., None]

        def only_levels(model):
            def logits(known, start, stop):
                return model(known, start, stop).masked_fill(missing[..., start:stop, :], -torch.inf)

            return Function(logits)

        target, draft = (only_levels(PerRow([model.models[0]])) for model in models)
        code = run(decoding, target, draft, [3], levels)
        assert code.indices.shape == (1, T, D, Q) and code.indices.dtype == torch.int64
        assert ((code.indices >= 0) & (code.indices < levels)).all()
        assert code.depth.shape == (1,) and code.depth.dtype == torch.int64 and 0 <= int(code.depth) <= Q
        assert (code.indices[..., int(code.depth) :] == 0).all() and len(code.work) == 1
        assert code.bound is None  # the policy's to fill in
        if code.proposal is not None:
            assert code.proposal.shape == (1, T, D, decoding.num_draft_stages)

    def test_only_who_is_needed_is_asked(self, decoding, models):
        by_role = dict(zip((TARGET, DRAFT), models, strict=True))
        needed = {role: model if role in decoding.needs else Absent(role) for role, model in by_role.items()}
        run(decoding, *needed.values(), range(4))
        assert (decoding.num_draft_stages > 0) == (DRAFT in decoding.needs)
        for role in decoding.needs:
            with pytest.raises(LookupError, match=f"the decoding asks for a {role}, and the policy has none"):
                run(decoding, *(by_role | {role: Absent(role)}).values(), range(4))

    def test_batch_members_do_not_disturb_each_other(self, decoding, models):
        """Samples at different depths share passes; each result equals that of the sample alone, sampled ones too."""
        target, draft = models
        together = run(decoding, target, draft, [100, 101, 102, 103])
        for row in range(4):
            keep = torch.tensor([row])
            alone = run(decoding, target.of(keep), draft.of(keep), [100 + row])
            assert torch.equal(together.indices[row], alone.indices[0]) and together.depth[row] == alone.depth[0]
            assert together.work.row(row) == alone.work.row(0)
            if alone.proposal is not None:
                assert torch.equal(together.proposal[row], alone.proposal[0])

    def test_a_decoding_is_json(self, decoding):
        record = to_json(decoding)
        if not type(decoding).__module__.startswith("rsd."):
            pytest.skip("a policy's folder names what rsd.decoding exports, and nothing else")
        assert from_json(json.loads(json.dumps(record))) == decoding
        assert record["kind"] == type(decoding).__name__
        assert record.keys() - {"kind"} == {one.name for one in fields(decoding)} - {"accept"}
