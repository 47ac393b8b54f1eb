"""Law 4: speculative decoding returns what the target alone returns, with at most Q passes, for any draft."""

import pytest
import torch

from rsd.decoding import depth_ar, parallel, speculative
from rsd.decoding.sampling import Noise, draw, verify

T, D, Q, L = 2, 3, 4, 5
LEVELS = torch.full((T, D, Q), L)


class TableModel:
    """A stage-causal model: logits of stage q are a fixed pseudo-random function of the stages before q."""

    def __init__(self, seed: int, agree_with: "TableModel | None" = None, rate: float = 0.0, flat: float = 1.0):
        self.seed, self.agree_with, self.rate, self.flat = seed, agree_with, rate, flat
        self.calls = 0

    def _stage(self, prefix: torch.Tensor, stage: int) -> torch.Tensor:
        rows = []
        for sample in prefix:
            key = hash((self.seed, stage, tuple(sample.flatten().tolist()))) % (2**31)
            own = torch.randn(T, D, L, generator=torch.Generator().manual_seed(key)) / self.flat
            if self.agree_with is not None:
                other = self.agree_with._stage(sample[None], stage)[0]
                same = torch.rand(T, D, 1, generator=torch.Generator().manual_seed(key + 1)) < self.rate
                own = torch.where(same, other, own)
            rows.append(own)
        return torch.stack(rows)  # [B, T, D, L]

    def __call__(self, known: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        self.calls += 1
        return torch.stack([self._stage(known[..., : min(q, known.shape[-1])], q) for q in range(start, stop)], dim=-2)


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("num_draft_stages", [1, 2, 3, 4])
def test_greedy_speculative_equals_depth_ar_index_for_index(rate, num_draft_stages):
    target = TableModel(seed=1)
    draft = TableModel(seed=2, agree_with=target, rate=rate)
    # one sample's logits depend on its own prefix only, so a batch of identical samples would be useless: vary seeds
    for seed in range(5):
        target.seed = seed
        reference = depth_ar(target, levels=LEVELS, batch_size=3)
        result = speculative(target, draft, levels=LEVELS, batch_size=3, num_draft_stages=num_draft_stages)
        assert torch.equal(result.indices, reference.indices)
        assert (result.target_passes <= Q).all() and (result.target_passes >= 1).all()
        assert (result.accepted_stages <= result.proposed_stages).all()
        assert result.accept_counts.sum() == 3


def test_perfect_draft_needs_one_pass_and_adversarial_draft_at_most_q():
    target = TableModel(seed=3)
    for num_draft_stages in (Q - 1, Q):
        result = speculative(target, TableModel(seed=3), levels=LEVELS, batch_size=2, num_draft_stages=num_draft_stages)
        assert result.target_passes.tolist() == [1, 1]
        assert result.accept_counts[:, num_draft_stages].tolist() == [1, 1]

    def adversary(known, start, stop):
        return -target(known, start, stop)  # proposes the target's least likely level

    result = speculative(target, adversary, levels=LEVELS, batch_size=2, num_draft_stages=Q)
    assert torch.equal(result.indices, depth_ar(target, levels=LEVELS, batch_size=2).indices)
    assert result.target_passes.tolist() == [Q, Q]
    assert result.accepted_stages.tolist() == [0, 0]
    assert result.accept_counts.tolist() == [[1, 0, 0, 0, 0]] * 2


def test_hand_computed_account():
    """Target always says 1; the draft is right on stages 0 and 1, has one wrong token at stage 2, is right after."""

    def target(known, start, stop):
        logits = torch.zeros(known.shape[0], T, D, stop - start, L)
        logits[..., 1] = 1
        return logits

    def draft(known, start, stop):
        logits = target(known, start, stop)
        if start <= 2 < stop and known.shape[-1] == 2:
            logits[:, 0, 0, 2 - start, 3] = 2
        return logits

    result = speculative(target, draft, levels=LEVELS, batch_size=1, num_draft_stages=4)
    assert (result.indices == 1).all()
    assert result.target_passes.tolist() == [2]  # first pass fixes 0, 1 and corrects 2; second accepts 3
    assert result.draft_passes.tolist() == [4 + 1]
    assert result.proposed_stages.tolist() == [4 + 1]
    assert result.accepted_stages.tolist() == [2 + 1]
    assert result.accept_counts.tolist() == [[0, 0, 1, 0, 0]]
    kept, checked = result.accepted_tokens
    assert kept.tolist() == [[6, 6, 5, 6]] and checked.tolist() == [[6, 6, 6, 6]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batch_members_do_not_disturb_each_other(temperature):
    """Samples at different depths share passes; each result equals that of the sample alone, sampled ones too."""
    target = TableModel(seed=11)

    class PerSample:
        """Draft that is perfect for sample 0, adversarial for sample 1, half right for sample 2."""

        def __init__(self, rows):
            self.rows = rows

        def __call__(self, known, start, stop):
            logits = target(known, start, stop)
            half = TableModel(5, agree_with=target, rate=0.9)(known, start, stop)
            choices = [logits, -logits, half]
            return torch.stack([choices[row][i] for i, row in enumerate(self.rows)])

    def options(rows):
        return {"temperature": temperature, "noise": Noise([100 + row for row in rows])}

    every = options([0, 1, 2])
    together = speculative(target, PerSample([0, 1, 2]), levels=LEVELS, batch_size=3, num_draft_stages=3, **every)
    for row in range(3):
        alone = speculative(target, PerSample([row]), levels=LEVELS, batch_size=1, num_draft_stages=3, **options([row]))
        assert torch.equal(together.indices[row], alone.indices[0])
        for name in ("target_passes", "draft_passes", "proposed_stages", "accepted_stages"):
            assert getattr(together, name)[row] == getattr(alone, name)[0], name


@pytest.mark.parametrize("flat", [0.5, 3.0])
def test_sampled_speculative_has_the_targets_distribution(flat):
    """Chi-square of the joint code against its exact distribution, on a code small enough to enumerate."""
    levels = torch.full((1, 1, 2), 3)
    table = {(): torch.tensor([0.6, 0.3, 0.1])} | {
        (i,): torch.softmax(torch.tensor([i - 1.0, 0.5 * i, 1.0 - i]), 0) for i in range(3)
    }
    wrong = {(): torch.tensor([0.1, 0.3, 0.6])} | {(i,): torch.softmax(flat * torch.randn(3), 0) for i in range(3)}

    def model(rows):
        def logits(known, start, stop):
            out = []
            for q in range(start, stop):
                keys = [tuple(sample.flatten()[:q].tolist()) for sample in known]
                out.append(torch.stack([rows[key].log() for key in keys])[:, None, None, :])
            return torch.stack(out, dim=-2)

        return logits

    n = 6000
    options = {"levels": levels, "batch_size": n, "temperature": 1.0, "noise": Noise(range(n))}
    result = speculative(model(table), model(wrong), num_draft_stages=2, **options)
    flat_codes = result.indices[:, 0, 0]  # [n, 2]
    observed = torch.bincount(flat_codes[:, 0] * 3 + flat_codes[:, 1], minlength=9).double()
    expected = torch.stack([table[()][i] * table[(i,)] for i in range(3)]).flatten().double() * n
    chi_square = ((observed - expected) ** 2 / expected).sum().item()
    assert chi_square < 26.1  # 99.9 % quantile of chi-square with 8 degrees of freedom; the seed is fixed
    wrong_joint = torch.stack([wrong[()][i] * wrong[(i,)] for i in range(3)]).flatten().double() * n
    assert ((observed - wrong_joint) ** 2 / wrong_joint).sum().item() > 100  # it is not the draft's


def test_parallel_is_one_pass_and_never_reads_a_stage():
    target = TableModel(seed=4)
    result = parallel(target, levels=LEVELS, batch_size=2)
    assert target.calls == 1 and result.target_passes.tolist() == [1, 1]
    empty = torch.zeros(2, T, D, 0, dtype=torch.long)
    assert torch.equal(result.indices, TableModel(seed=4)(empty, 0, Q).argmax(-1))


def test_entries_without_a_token_are_not_counted():
    levels = LEVELS.clone()
    levels[0, :, 0] = 1

    def target(known, start, stop):
        logits = torch.zeros(known.shape[0], T, D, stop - start, L)
        logits[..., 1:] = torch.where(levels[..., start:stop, None] == 1, -torch.inf, 0.5)
        return logits

    result = speculative(target, target, levels=levels, batch_size=1, num_draft_stages=1)
    kept, checked = result.accepted_tokens
    assert kept.tolist() == checked.tolist() == [[D, 0, 0, 0]]
    assert (result.indices[0, 0, :, 0] == 0).all()


def test_equal_distributions_up_to_rounding_are_always_kept():
    target = torch.tensor([[0.5, 0.5]])
    draft = torch.tensor([[0.5 + 6e-8, 0.5]])  # nothing is left over where the target is below the draft by rounding
    for chance in torch.linspace(0, 1 - 1e-12, 200, dtype=torch.float64):
        tokens, kept = verify(torch.tensor([0]), draft, target, (chance[None], chance[None]))
        assert kept.all() and tokens.tolist() == [0]


def test_num_draft_stages_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"num_draft_stages 5, expected 1\.\.4"):
        speculative(TableModel(1), TableModel(1), levels=LEVELS, batch_size=1, num_draft_stages=5)


def test_sampling_without_noise_is_refused():
    with pytest.raises(ValueError, match=r"temperature 0\.7 samples, and needs noise"):
        depth_ar(TableModel(1), levels=LEVELS, batch_size=1, temperature=0.7)


def test_noise_depends_on_seed_and_place_alone_and_is_uniform():
    noise = Noise([3, 4, 3])
    first = noise.uniform((50, 40), 1, 2, 0)
    assert first.shape == (3, 50, 40) and torch.equal(first[0], first[2])
    assert torch.equal(first[1], Noise([4]).uniform((50, 40), 1, 2, 0)[0])
    others = [noise.uniform((50, 40), *place) for place in ((1, 2, 1), (2, 1, 0), (1, 2), (0, 2, 0))]
    assert all(not torch.equal(first, other) for other in others)
    numbers = torch.stack([first[:2], *(other[:2] for other in others)]).flatten()  # 20,000 numbers
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers.float(), bins=20, min=0, max=1)
    expected = len(numbers) / 20
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 43.8  # 99.9 % quantile with 19 degrees of freedom
    pairs = torch.stack([first[0].flatten(), first[1].flatten()])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.07  # three standard errors of 2000 pairs


def test_a_seed_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"seeds \[-1\] of the sampling, expected integers in 0"):
        Noise([5, -1])


def test_draw_follows_the_cumulated_probabilities_and_never_takes_an_impossible_level():
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    numbers = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1 - 2.0**-53], dtype=torch.float64)
    assert draw(probabilities.expand(5, -1), numbers).tolist() == [1, 1, 3, 3, 3]
    assert draw(probabilities).tolist() == 3
