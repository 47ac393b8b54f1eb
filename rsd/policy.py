"""The policy: raw observations in, action chunks in robot units out. The only place where all parts meet.

    camera pictures → JPEG round trip → base model → hidden states → decoding → tokenizer.decode → robot units

It owns the normaliser and the image path, so that whoever drives it (an evaluation loop, a robot) needs neither.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsd.decoding import StageLogits
from rsd.decoding.sampling import Noise
from rsd.jpeg import jpeg_round_trip
from rsd.models.base_target import BaseTarget
from rsd.models.loading import load_stage_head
from rsd.models.stage_head import StageHead
from rsd.normalization import bounds_of, robot_actions, unnormalize
from rsd.points import HEAD, LAYER
from rsd.tokenizer import ActionTokenizer, load_tokenizer
from rsd.types import Backbone, BackboneOutput, ChunkPrediction, DecodingResult, Observation

Decode = Callable[..., DecodingResult]
CONTINUOUS_DECODERS = ("l1", "diffusion")


class PolicyError(RuntimeError):
    """The parts of a policy do not fit together, or the model produced something that is not an action."""


class Stopwatch:
    """Milliseconds per named part; a part measured several times adds up. Waits for the device around each part."""

    def __init__(self, device: torch.device):
        self.device = device
        self.elapsed_ms: dict[str, float] = {}

    @contextmanager
    def part(self, name: str):
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.elapsed_ms[name] = self.elapsed_ms.get(name, 0.0) + 1000 * (time.perf_counter() - start)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclasses.dataclass(frozen=True)
class IOContract:
    """What goes into a policy and what comes out: environments and data sets have to fit it.

    Attributes:
        views: Names of the pictures that it needs, in the model's order.
        proprio_dim: P that it needs; None for a policy that is not told the proprio.
        action_dim, chunk_length: A and T of its chunks.
        center_crop: Whether the evaluation's crop is applied.
        decoder: How chunks are made: the base model's own way, or the decoding over residual tokens.
        unnorm_key: Statistics that its actions are un-normalised with.
    """

    views: tuple[str, ...]
    proprio_dim: int | None
    action_dim: int
    chunk_length: int
    center_crop: bool
    decoder: str
    unnorm_key: str

    @property
    def num_images(self) -> int:
        return len(self.views)

    def check(self, *, views: Sequence[str], proprio_dim: int, action_dim: int) -> None:
        """Hold the contract against what an environment or a data set offers.

        Raises:
            PolicyError: they do not fit; the message names every difference.
        """
        wrong = [f"view {view!r} is needed, offered are {sorted(views)}" for view in self.views if view not in views]
        if self.proprio_dim not in (None, proprio_dim):
            wrong.append(f"proprio of {self.proprio_dim} dims is needed, offered are {proprio_dim}")
        if self.action_dim != action_dim:
            wrong.append(f"actions have {self.action_dim} dims, executed are {action_dim}")
        if wrong:
            raise PolicyError(
                f"policy and environment do not fit: {'; '.join(wrong)}; choose another model or another env"
            )


@dataclasses.dataclass
class TokenParts:
    """What a decoding over tokens needs beside the base model. Without a head, the base model's chunk is the target."""

    tokenizer: ActionTokenizer
    head: StageHead | None
    head_layer: int | None
    draft: StageHead | None
    draft_layer: int | None
    decode: Decode


class VLAPolicy:
    """A base model and a way of decoding its hidden states.

    Args:
        backbone: The base model.
        tokens: Tokenizer, head, draft and decoding; None for the base model's continuous (L1) head.
        num_open_loop_steps: Actions of a chunk that the driver is meant to execute, 1..T.
        jpeg: Put pictures through the JPEG round trip of the training data first; False for pictures that come from a
            data set and have been through it.
        device: Where the models are.

    Raises:
        PolicyError: the tokenizer's chunk is not the base model's, or num_open_loop_steps is out of range.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        tokens: TokenParts | None,
        num_open_loop_steps: int,
        jpeg: bool,
        device: torch.device,
    ):
        if not 1 <= num_open_loop_steps <= backbone.chunk_length:
            raise PolicyError(f"num_open_loop_steps {num_open_loop_steps}, expected 1..{backbone.chunk_length}")
        self.backbone = backbone
        self.tokens = tokens
        self.num_open_loop_steps = num_open_loop_steps
        self.jpeg = jpeg
        self.device = device
        if tokens is not None:
            self.levels = torch.tensor(tokens.tokenizer.code_shape.levels, device=device)
            shape = (tokens.tokenizer.code_shape.chunk_length, tokens.tokenizer.code_shape.action_dim)
            if shape != (backbone.chunk_length, backbone.action_dim):
                raise PolicyError(
                    f"the tokenizer's chunk is {shape}, the base model's ({backbone.chunk_length}, "
                    f"{backbone.action_dim}); set chunk to the length that both were trained with"
                )

    @property
    def contract(self) -> IOContract:
        """What this policy needs and gives."""
        base, decode = self.backbone, None if self.tokens is None else self.tokens.decode
        return IOContract(
            views=tuple(base.views),
            proprio_dim=base.proprio_dim,
            action_dim=base.action_dim,
            chunk_length=base.chunk_length,
            center_crop=base.center_crop,
            decoder=base.decoder if decode is None else getattr(decode, "func", decode).__name__,
            unnorm_key=base.unnorm_key,
        )

    @torch.inference_mode()
    def predict(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ChunkPrediction]:
        """One chunk per observation, all from one batched forward pass.

        Args:
            observations: From cameras, or from a data set with jpeg=False.
            seeds: What sampling depends on, one for each observation; greedy decodings do not use it.

        Raises:
            PolicyError: the models produced a value that is not finite.
            ValueError: another number of seeds than of observations.
        """
        if len(seeds) != len(observations):
            raise ValueError(f"{len(seeds)} seeds for {len(observations)} observations; expected one each")
        watch = Stopwatch(self.device)
        proposal = None
        with watch.part("total"):
            with watch.part("preprocess"):
                inputs = self.backbone.prepare([self._stored(observation) for observation in observations])
            with watch.part("backbone"):
                output = self.backbone.forward(inputs, self._layers())
            if self.tokens is None:
                normalized, stats = output.actions, [{} for _ in observations]
            else:
                result = self._decode(output, seeds, watch)
                proposal = result.proposal
                with watch.part("tokenizer"):
                    normalized = self.tokens.tokenizer.decode(result.indices)  # [B, T, A]
                stats = [decoding_stats(result, row) for row in range(len(observations))]
            with watch.part("unnormalize"):
                actions = self._in_robot_units(normalized)  # [B, T, A]
        drafts = [None] * len(actions)
        if proposal is not None:  # for people who look at it later; not part of the time
            drafts = self._in_robot_units(self.tokens.tokenizer.decode(proposal))
        return [
            ChunkPrediction(actions=chunk, stats=row, latency_ms=dict(watch.elapsed_ms), draft_actions=draft)
            for chunk, row, draft in zip(actions, stats, drafts, strict=True)
        ]

    def _in_robot_units(self, normalized: Tensor) -> np.ndarray:
        values = normalized.float().cpu().numpy()
        if not np.isfinite(values).all():
            raise PolicyError("the model produced NaN or infinite actions; check its weights and dtype")
        raw = unnormalize(values, self.backbone.norm_stats["action"])
        return robot_actions(raw, self.backbone.gripper)

    def _stored(self, observation: Observation) -> Observation:
        """The observation as a data set would hold it."""
        if not self.jpeg:
            return observation
        images = {view: jpeg_round_trip(observation.images[view]) for view in self.backbone.views}
        return dataclasses.replace(observation, images=images)

    def _layers(self) -> list[int]:
        if self.tokens is None:
            return []
        return sorted({self.tokens.head_layer, self.tokens.draft_layer} - {None})

    def _target(self, output: BackboneOutput) -> StageLogits:
        """The target for these observations: the trained head on their states, or the base model's chunk."""
        parts = self.tokens
        if parts.head is None:
            return BaseTarget(parts.tokenizer, output.actions)
        return partial(parts.head, parts.head.features(output.hidden_states[parts.head_layer]))

    def _decode(self, output: BackboneOutput, seeds: Sequence[int], watch: Stopwatch) -> DecodingResult:
        """Bind target and draft to these observations and run the decoding; time both separately."""
        parts, hidden = self.tokens, output.hidden_states
        with watch.part("target"):
            stage_logits = self._target(output)
        draft_features = None
        if parts.draft is not None:
            with watch.part("draft"):
                draft_features = parts.draft.features(hidden[parts.draft_layer])

        def target(known: Tensor, start: int, stop: int) -> Tensor:
            with watch.part("target"):
                return stage_logits(known, start, stop)

        def draft(known: Tensor, start: int, stop: int) -> Tensor:
            with watch.part("draft"):
                return parts.draft(draft_features, known, start, stop)

        model_ms = {name: watch.elapsed_ms.get(name, 0.0) for name in ("target", "draft")}
        with watch.part("acceptance"):
            result = parts.decode(
                target,
                draft if parts.draft is not None else None,
                levels=self.levels,
                batch_size=len(output.actions),
                noise=Noise(seeds, self.device),
            )
        for name, before in model_ms.items():  # "acceptance" is what the decoding takes beside its model calls
            watch.elapsed_ms["acceptance"] -= watch.elapsed_ms.get(name, 0.0) - before
        return result


def decoding_stats(result: DecodingResult, row: int) -> dict[str, Any]:
    """One sample's counters in JSON types; see DecodingResult."""
    kept, checked = result.accepted_tokens
    return {
        "target_passes": int(result.target_passes[row]),
        "draft_passes": int(result.draft_passes[row]),
        "proposed_stages": int(result.proposed_stages[row]),
        "accepted_stages": int(result.accepted_stages[row]),
        "accepted_tokens": kept[row].tolist(),
        "checked_tokens": checked[row].tolist(),
        "accept_counts": result.accept_counts[row].tolist(),
    }


def _require_stages(kind: str, checkpoint: str, trained: int, asked: int) -> None:
    if asked > trained:
        raise PolicyError(
            f"{kind} {checkpoint} was trained for {trained} stages, but {asked} are asked of it; train one for {asked} "
            f"with python train.py phase={kind}, or ask for fewer (decoding.decode.num_draft_stages, quantizer)"
        )


def _layer(point: str, backbone: Backbone) -> int:
    return backbone.num_layers + 1 if point == HEAD else int(point.removeprefix(LAYER))


def load_policy(
    *,
    backbone: Backbone,
    tokenizer: ActionTokenizer | None,
    tokenizer_checkpoint: str | None,
    head_checkpoint: str | None,
    draft_checkpoint: str | None,
    decode: Decode | None,
    num_open_loop_steps: int,
    device: str,
    jpeg: bool = True,
    num_threads: int | None = None,
    offered: dict[str, Any] | None = None,
) -> VLAPolicy:
    """Put a policy together from a loaded base model and checkpoints, holding them to one contract.

    Args:
        backbone: Loaded base model.
        tokenizer: Freshly built, filled from `tokenizer_checkpoint`; None with decode None.
        head_checkpoint: Folder; None makes the base model's own chunk the target.
        draft_checkpoint: Folder; None for decodings without a draft.
        decode: One of `rsd.decoding`, its own options bound; None for the base model's continuous head.
        num_open_loop_steps, device, jpeg: As in VLAPolicy.
        num_threads: Computing threads of this process on the CPU; None leaves them as they are.
        offered: What the environment offers, as arguments of `IOContract.check`; None checks nothing.

    Raises:
        CheckpointError: a part is missing, damaged, or was made for another part.
        PolicyError: the policy and what is offered do not fit.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    where = torch.device(device)
    common = {"backbone": backbone, "num_open_loop_steps": num_open_loop_steps, "jpeg": jpeg, "device": where}
    if decode is None:
        return _checked(VLAPolicy(tokens=None, **common), offered)
    tokenizer, provenance = load_tokenizer(
        tokenizer,
        Path(tokenizer_checkpoint),
        unnorm_key=backbone.unnorm_key,
        bounds=bounds_of(backbone.norm_stats["action"]),
    )
    contract = {
        "code_shape": tokenizer.code_shape,
        "tokenizer_sha256": provenance["sha256"],
        "base": backbone.fingerprint(),
        "unnorm_key": backbone.unnorm_key,
    }
    head, head_layer, draft, draft_layer = None, None, None, None
    if head_checkpoint is not None:
        head, head_point = load_stage_head(Path(head_checkpoint), kind="head", **contract)
        head_layer = _layer(head_point, backbone)
        _require_stages("head", head_checkpoint, head.num_stages, tokenizer.code_shape.num_stages)
        head = head.to(where)
    elif backbone.decoder not in CONTINUOUS_DECODERS:
        raise PolicyError(
            f"the base model makes its chunk with {backbone.decoder!r}, and only a continuous head's chunk "
            f"({' or '.join(CONTINUOUS_DECODERS)}) can be the target itself; train one (phase=head) and set target=head"
        )
    if draft_checkpoint is not None:
        draft, draft_point = load_stage_head(Path(draft_checkpoint), kind="draft", **contract)
        draft_layer = _layer(draft_point, backbone)
        asked = getattr(decode, "keywords", {}).get("num_draft_stages", draft.num_stages)
        _require_stages("draft", draft_checkpoint, draft.num_stages, asked)
        draft = draft.to(where)
    parts = TokenParts(tokenizer.to(where), head, head_layer, draft, draft_layer, decode)
    return _checked(VLAPolicy(tokens=parts, **common), offered)


def _checked(policy: VLAPolicy, offered: dict[str, Any] | None) -> VLAPolicy:
    if offered is not None:
        policy.contract.check(**offered)
    return policy
