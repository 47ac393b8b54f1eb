"""The small networks around OpenVLA-OFT's language model: projectors into it, action heads (SPEC §2, §3, §8, §10)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FUSED_HIDDEN_FACTOR = 4  # the projector's first layer is four times as wide as the vision features
NUM_RESIDUAL_BLOCKS = 2  # of the L1 head
LOG_PERIOD = math.log(10000)  # of the slowest component of the time embedding


class PrismaticProjector(nn.Module):
    """Fused patch features → the language model's width: three layers, exact GELU."""

    def __init__(self, vision_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, FUSED_HIDDEN_FACTOR * vision_dim)
        self.fc2 = nn.Linear(FUSED_HIDDEN_FACTOR * vision_dim, hidden_dim)
        self.fc3 = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))


class SingleProjector(nn.Module):
    """Patch features of a single vision tower → the language model's width: two layers (OpenVLA v0.1)."""

    def __init__(self, vision_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(features)))


class ProprioProjector(nn.Module):
    """Normalised proprio [B, P] → one token [B, 1, H]."""

    def __init__(self, proprio_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, proprio: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(proprio)))[:, None]


class SentenceProjector(nn.Module):
    """A sentence's vector of length 1, [B, E] → the tokens that stand for it, [B, n, H]."""

    def __init__(self, sentence_dim: int, num_tokens: int, hidden_dim: int) -> None:
        super().__init__()
        self.num_tokens, self.scale = num_tokens, sentence_dim**0.5  # to numbers of about 1
        self.fc1 = nn.Linear(sentence_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, num_tokens * hidden_dim)

    def features(self, sentence: Tensor) -> Tensor:
        """What the last layer reads, [B, H]."""
        return F.gelu(self.fc1(self.scale * sentence))

    def forward(self, sentence: Tensor) -> Tensor:
        return self.fc2(self.features(sentence)).unflatten(-1, (self.num_tokens, -1))


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


class ResidualMLP(nn.Module):
    """The MLP inside the action head."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(input_dim)
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(hidden_dim) for _ in range(NUM_RESIDUAL_BLOCKS))
        self.layer_norm2 = nn.LayerNorm(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """What the last linear layer reads, [..., hidden_dim]."""
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.layer_norm2(x)


class L1ActionHead(nn.Module):
    """States at the K action positions [B, K, H] → normalised chunk [B, T, A], not clipped.

    The A states of one time step are concatenated; every step goes through the same MLP.
    """

    def __init__(self, hidden_dim: int, action_dim: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.model = ResidualMLP(action_dim * hidden_dim, hidden_dim, action_dim)

    def forward(self, states: Tensor) -> Tensor:
        return self.chunk(self.features(states))

    def features(self, states: Tensor) -> Tensor:
        """What the chunk is read from by a linear layer, one vector a time step, [B, T, H]."""
        batch, tokens, width = states.shape
        return self.model.features(states.reshape(batch, tokens // self.action_dim, self.action_dim * width))

    def chunk(self, features: Tensor) -> Tensor:
        """The linear layer: [B, T, H] → [B, T, A]."""
        return self.model.fc2(features)


class NoisePredictor(nn.Module):
    """The diffusion head's MLP, under the name that its checkpoints give it."""

    def __init__(self, hidden_dim: int, action_dim: int) -> None:
        super().__init__()
        self.mlp_resnet = ResidualMLP(action_dim * hidden_dim, hidden_dim, action_dim)


class DiffusionActionHead(nn.Module):
    """As L1ActionHead, but the output is the noise in the noisy chunk that the language model was shown."""

    def __init__(self, hidden_dim: int, action_dim: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.noise_predictor = NoisePredictor(hidden_dim, action_dim)

    def forward(self, states: Tensor) -> Tensor:
        batch, tokens, width = states.shape
        steps = states.reshape(batch, tokens // self.action_dim, self.action_dim * width)
        return self.noise_predictor.mlp_resnet(steps)


class NoisyActionProjector(nn.Module):
    """A noisy chunk [B, T, A] → one embedding for each of its numbers, [B, K, H]."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(1, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, actions: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(actions.reshape(len(actions), -1, 1))))


def time_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Diffusion time steps [B] → sines and cosines, [B, width], float32; has no parameters."""
    half = width // 2
    exponent = torch.arange(half, device=timesteps.device) * -LOG_PERIOD / (half - 1)  # in the reference's order
    angles = timesteps[:, None].float() * torch.exp(exponent)  # [B, width / 2]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
