"""The diffusion head against recorded arrays.

What surprises first: with random weights the reverse diffusion is chaotic. Moving the starting noise by 1e-7 moves the
final states by 0.1 and more, so two correct float32 programs end far apart. What is compared tightly is the last step:
its noisy chunk follows from the recorded actions and states by arithmetic, except where the sampler clipped; those few
numbers are solved for, with hundreds of equations for each. The way there is held to the sampler's own spread.
"""

import numpy as np
import pytest
import torch

from rsd.models.openvla import action_heads, ddim, published
from rsd.models.openvla.heads import time_embedding
from rsd.models.openvla.model import select
from rsd.space import EXTREMES, QUANTILES, Range
from tests.golden_files import GOLDEN, compose_checkpoint, golden_tests, load

ATOL = 5e-5
STEP = 1e-5  # of the numerical derivative, in float64


class Recorded:
    """One array with its model, in float64, and the inputs of the language model."""

    def __init__(self, directory, name):
        aloha = "aloha" in name
        self.heads, diffusion = ("aloha_heads", "diffusion_aloha") if aloha else ("ckpt_tiny", "diffusion")
        sources = {"action_head": diffusion, "noisy_action_projector": diffusion, "proprio_projector": self.heads}
        folder = compose_checkpoint(directory / "checkpoint", sources)
        arguments = {"device": "cpu", "dtype": torch.float64}
        self.model = published.build_model(folder, use_proprio=True, action_head="diffusion", **arguments)
        self.arrays = load(name)
        self.model.num_diffusion_steps = len(self.arrays["timesteps"])
        self.shape = self.arrays["actions"].shape
        ids = torch.from_numpy(self.arrays["input_ids"])
        count = self.shape[0] * self.shape[1]
        self.ids, self.start = torch.cat([ids, torch.tensor([[1] * count + [2]])], dim=1), torch.tensor([ids.shape[1]])
        self.pixels = torch.from_numpy(self.arrays["pixel_values"]).double()
        self.proprio = torch.from_numpy(self.arrays["proprio_normalized"]).double().reshape(1, -1)
        statistics = published.read_json(GOLDEN / self.heads, "dataset_statistics.json")
        bounds = {"bounds": EXTREMES if aloha else QUANTILES}
        self.range = Range.from_entry(statistics[str(self.arrays["unnorm_key"])]["action"] | bounds)
        self.patches = self.model.projector(self.model.vision_backbone(self.pixels))

    def states(self, noisy):
        """States at the slots for a noisy chunk [K] at time step 0."""
        model = self.model
        time = time_embedding(torch.tensor([0]), model.llm_config.hidden_size)[:, None].double()
        slots = model.noisy_action_projector(noisy.view(1, *self.shape))
        arguments = (self.patches, self.ids, None, self.start, self.shape[0], self.proprio)
        sequence = model.assemble(*arguments, noisy=slots, time=time)
        last = model.llm_config.num_hidden_layers
        return select(model.layer_states(sequence.embeds, None, {last})[last], sequence.slots)

    def run(self, dtype, shift=0.0):
        """The whole sampler in `dtype`, its starting noise moved by `shift`: (last states, raw actions)."""
        model = self.model.to(dtype)
        noise = torch.from_numpy(self.arrays["noise"]).to(dtype)
        noise = noise + shift * torch.randn(noise.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        prompt = action_heads.Prompt(self.ids, None, self.start, self.shape[0], self.proprio.to(dtype), noise)
        patches = model.projector(model.vision_backbone(self.pixels.to(dtype)))
        last = model.llm_config.num_hidden_layers
        states, actions = action_heads.diffusion(model, patches, prompt, [last])
        raw = self.range.unnormalize(actions[0].numpy())
        model.double()
        return states[last].numpy(), raw


@torch.no_grad()
def check_last_step(recorded):
    arrays, num_steps = recorded.arrays, recorded.model.num_diffusion_steps
    np.testing.assert_array_equal(ddim.timesteps(num_steps), arrays["timesteps"])
    np.testing.assert_allclose(ddim.alphas_cumprod(), arrays["alphas_cumprod"], rtol=0, atol=1e-7)
    expected = torch.from_numpy(arrays["final_action_hidden_states"]).double()
    low, high = np.asarray(recorded.range.low), np.asarray(recorded.range.high)
    raw = arrays["actions"]
    data = np.where(recorded.range.mask, 2 * (raw - low) / (high - low + 1e-8) - 1, raw)
    alpha, noise = ddim.alphas_cumprod()[0].double(), recorded.model.action_head(expected)[0]
    noisy = (alpha.sqrt() * torch.from_numpy(data) + (1 - alpha).sqrt() * noise).flatten()  # [K]
    clipped = torch.from_numpy(np.abs(data) > 1 - 1e-6).flatten().nonzero()[:, 0].tolist()
    assert len(clipped) < len(noisy) // 4
    for _ in range(12 if clipped else 0):
        noisy = solve_step(recorded, noisy, clipped, expected)
    np.testing.assert_allclose(recorded.states(noisy), expected, rtol=0, atol=ATOL)
    for index in clipped:  # and what was solved for is indeed beyond the clip
        value = (noisy[index] - (1 - alpha).sqrt() * noise.flatten()[index]) / alpha.sqrt()
        assert abs(value) >= 1 - 1e-4 and value * data.flat[index] > 0


def solve_step(recorded, noisy, unknown, expected):
    """One damped Gauss-Newton step in the unknown entries of the noisy chunk."""

    def residual(candidate):
        return (recorded.states(candidate) - expected).flatten()

    columns = []
    for index in unknown:
        shift = torch.zeros_like(noisy)
        shift[index] = STEP
        columns.append((residual(noisy + shift) - residual(noisy - shift)) / (2 * STEP))
    step = torch.linalg.lstsq(torch.stack(columns, dim=1), -residual(noisy)[:, None]).solution[:, 0]
    candidates = []
    for scale in (1.0, 0.5, 0.25, 0.1, 0.03):
        candidate = noisy.clone()
        candidate[unknown] += scale * step
        candidates.append(candidate)
    return min(candidates, key=lambda candidate: float(residual(candidate).square().sum()))


@torch.no_grad()
def check_whole_sampler(recorded):
    """As close to the record as two runs whose starting noise differs by float32's rounding are to each other."""
    states, actions = recorded.run(torch.float32)
    runs = [recorded.run(torch.float32, shift) for shift in (1e-7, -1e-7, 3e-7)]
    for got, expected, index in (
        (states, recorded.arrays["final_action_hidden_states"], 0),
        (actions, recorded.arrays["actions"], 1),
    ):
        spread = max(np.abs(run[index] - got).max() for run in runs)
        assert np.abs(got - expected).max() <= 4 * spread + ATOL


def test_one_step_by_hand():
    """alpha 0.25 → 0.64: data (0.6 - sqrt(0.75) * 0.4) / 0.5, then 0.8 * data + 0.6 * 0.4; and the clip."""
    alphas = torch.tensor([0.64, 0.25] + [0.1] * 48)
    data = (0.6 - 0.75**0.5 * 0.4) / 0.5
    got = ddim.step(torch.tensor([0.6]), torch.tensor([0.4]), 1, 50, alphas)
    assert got.item() == pytest.approx(0.8 * data + 0.6 * 0.4, abs=1e-6)
    assert ddim.step(torch.tensor([3.0]), torch.tensor([0.4]), 1, 50, alphas).item() == pytest.approx(0.8 + 0.24)
    last = ddim.step(torch.tensor([0.4]), torch.tensor([0.5]), 0, 50, alphas)  # all the way to the data
    assert last.item() == pytest.approx((0.4 - 0.6 * 0.5) / 0.8, abs=1e-6)
    assert ddim.timesteps(10) == [45, 40, 35, 30, 25, 20, 15, 10, 5, 0]
    with pytest.raises(ValueError, match=r"num_steps 51 of the sampler, expected 1\.\.50"):
        ddim.timesteps(51)


@torch.no_grad()
def check_diffusion(tmp_path, name):
    recorded = Recorded(tmp_path, name)
    check_last_step(recorded)
    check_whole_sampler(recorded)


globals().update(golden_tests("tmp_path", "oft_*diffusion_*steps", check_diffusion))
