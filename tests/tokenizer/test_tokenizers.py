"""The tokenizers under their contract, and what each promises beyond it."""

import math

import pytest
import torch

from rsd.tokenizer import BinTokenizer, RFSQTokenizer, TransformTokenizer
from rsd.tokenizer.report import codec_report
from rsd.tokenizer.transform import dct_matrix
from tests.tokenizer.contract import TokenizerContract, random_chunks


def rfsq(num_stages: int = 4, chunk_length: int = 8, scale: str = "nested") -> RFSQTokenizer:
    torch.manual_seed(0)
    return RFSQTokenizer(
        chunk_length=chunk_length, action_dim=7, latent_dim=16, hidden_dim=64, num_stages=num_stages, num_levels=7,
        scale=scale,
    )  # fmt: skip


def transform(num_stages: int = 4, chunk_length: int = 8, ratio: float = 7.0) -> TransformTokenizer:
    tokenizer = TransformTokenizer(
        chunk_length=chunk_length, action_dim=7, num_stages=num_stages, num_levels=7, ratio=ratio, margin=1.05
    )
    tokenizer.fit(random_chunks(512, chunk_length))
    return tokenizer


class TestLearned(TokenizerContract):
    @pytest.fixture(params=["learned", "nested"])
    def tokenizer(self, request):
        return rfsq(scale=request.param)

    def test_later_stages_of_a_wide_latent_carry_information(self):
        tokenizer = rfsq(num_stages=4)
        report = codec_report(tokenizer, random_chunks(256, 8))
        assert report["residual_std"] == sorted(report["residual_std"], reverse=True)

    def test_nested_stages_leave_at_most_half_the_last_step(self):
        tokenizer, chunks = rfsq(num_stages=3, scale="nested"), 30 * random_chunks(64, 8)  # far into tanh's saturation
        error = (tokenizer.quantizer.decode(tokenizer.encode(chunks)) - tokenizer.to_latents(chunks)).abs().max()
        assert error <= 1.0001 * (2 / 7**3) / 2

    def test_gradient_reaches_encoder_decoder_and_steps(self):
        tokenizer = rfsq(scale="learned")
        tokenizer(random_chunks(8, 8)).square().mean().backward()
        for name, parameter in tokenizer.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


class TestLearnedLongChunk(TokenizerContract):
    @pytest.fixture
    def tokenizer(self):
        return rfsq(num_stages=2, chunk_length=16)


class TestTransform(TokenizerContract):
    @pytest.fixture(params=[7.0, 7 / 3])
    def tokenizer(self, request):
        return transform(ratio=request.param)

    def test_dct_is_orthonormal(self):
        basis = dct_matrix(8)
        assert torch.allclose(basis @ basis.T, torch.eye(8, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(basis[0], torch.full((8,), 1 / math.sqrt(8), dtype=torch.float64))

    def test_gripper_is_exact_from_the_first_stage(self):
        tokenizer, chunks = transform(), random_chunks(256, 8, seed=5)
        decoded = tokenizer.decode(tokenizer.encode(chunks)[..., :1])
        assert torch.equal(decoded[..., 6], chunks[..., 6])

    def test_error_within_the_fitted_range_is_at_most_half_a_step(self):
        tokenizer, chunks = transform(), random_chunks(512, 8)
        latents = tokenizer.to_latents(chunks)
        for depth in range(1, 5):
            error = (tokenizer.quantizer.decode(tokenizer.encode(chunks)[..., :depth]) - latents)[..., :6].abs()
            half_step = tokenizer.quantizer.steps()[0, 0, depth - 1] / 2
            assert error.max() <= half_step * 1.0001

    def test_coarse_stages_are_short_and_none_is_empty(self):
        tokens = transform().code_shape.tokens_per_stage
        assert 0 < tokens[0] <= tokens[1] <= tokens[-1] == 48

    def test_ratio_above_the_levels_is_refused(self):
        with pytest.raises(ValueError, match="stage ratio 8"):
            TransformTokenizer(chunk_length=8, action_dim=7, num_stages=2, num_levels=7, ratio=8.0, margin=1.0)


class TestBins(TokenizerContract):
    @pytest.fixture
    def tokenizer(self):
        return BinTokenizer(chunk_length=8, action_dim=7, num_bins=256)

    def test_values_are_the_centres_of_the_bins(self, tokenizer):
        edges = torch.linspace(-1, 1, 256, dtype=torch.float64)
        centres = (edges[1:] + edges[:-1]) / 2
        indices = torch.zeros(255, 8, 7, 1, dtype=torch.long)
        indices[:, 0, 0, 0] = torch.arange(255)
        assert torch.allclose(tokenizer.decode(indices)[:, 0, 0].double(), centres, atol=1e-6)


def test_report_of_hand_made_chunks():
    tokenizer = BinTokenizer(chunk_length=2, action_dim=2, num_bins=4)  # levels -2/3, 0, 2/3
    chunks = torch.tensor([[[0.0, 0.0], [2 / 3, 0.0]], [[0.0, 0.0], [-2 / 3, 1.0]]])
    report = codec_report(tokenizer, chunks)
    assert report["tokens"] == [4] and report["bits"] == [pytest.approx(4 * math.log2(3))]
    assert report["mse"] == [pytest.approx((1 / 3) ** 2 / 8)]  # only the gripper of 1 is off, by 1/3
    assert report["max_error"] == [pytest.approx(1 / 3)]
    assert report["gripper_errors"] == [0.0]
    assert report["gripper_majority_errors"] == 0.25  # one of four steps is open
    assert report["perplexity"] == [pytest.approx((1 + 1 + 2 + 2) / 4)]
    assert report["useful_stages"] == 1
