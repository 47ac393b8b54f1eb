"""What can be found out about a policy without a robot: its contract, whether it fits into memory, whether it looks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rsd.checkpoint import JSON_FILE, CheckpointError, load_checkpoint
from rsd.decoding import EARLIER
from rsd.finding import FAILED, OK, Finding, judged
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.canaries import random_observation, run_canaries
from rsd.models.openvla.model import cast_weights
from rsd.points import point_name
from rsd.policy.contract import PolicyError
from rsd.policy.folder import DRAFTS
from rsd.policy.policy import VLAPolicy
from rsd.space import BOUNDS
from rsd.stages.files import EYES

NUM_OBSERVATIONS = 4
WORKING_MEMORY = 1.2  # memory that a model needs, relative to its weights
PHASES = {"base": "oft", "tokenizer": "rfsq", "head": "head", "draft": "draft", "visual_tokens": "tokens"}


def openvla_base(policy: VLAPolicy) -> OpenVLABase:
    """The policy's base model; PolicyError where it is of another family, which nothing here can look into."""
    if not isinstance(policy.base, OpenVLABase):
        raise PolicyError(f"the base model is a {type(policy.base).__name__}, and only OpenVLAs can be examined")
    return policy.base


def parts_of(policy: VLAPolicy) -> str:
    """The parts that its decoding uses, in words."""
    in_tokens = policy.tokens is not None and policy.tokens.tokenizer is not None
    return ", ".join(["base model", *(["tokenizer"] if in_tokens else []), *sorted(policy.decoding.needs)])


def contract(base: OpenVLABase) -> Iterator[Finding]:
    """What goes in and comes out."""
    size = sum(parameter.numel() for parameter in base.model.parameters())
    spec = base.spec
    rows = {
        "pictures": f"{len(spec.views)}: {', '.join(spec.views)}, {base.image_size} px to the model",
        "visual tokens": spec.visual_tokens,
        "centre crop": "yes" if base.center_crop else "no",
        "proprio": "none" if spec.proprio_dim is None else f"{spec.proprio_dim} dims",
        "chunk": f"{spec.chunk_length} steps of {spec.action_dim} dims, by {spec.action_head}",
        "statistics": f"{spec.space.name}, {' to '.join(BOUNDS[spec.space.bounds])}, space {spec.space.digest}",
        "layers": f"{base.model.num_layers} of width {base.model.llm_config.hidden_size}",
        "weights": f"{size / 1e9:.3f} billion, {str(base.dtype).removeprefix('torch.')}",
        "execution": base.execution,
    }
    yield from (Finding(name, OK, found) for name, found in rows.items())


def memory(model: torch.nn.Module, device: str) -> Iterator[Finding]:
    """Weights and as much as the forward pass of one observation takes, against what is free."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    if device.startswith("cuda"):
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = WORKING_MEMORY * weights
    found = f"about {needed / 1e9:.2f} GB needed, {free / 1e9:.1f} GB free on {device}"
    remedy = "end other processes, or choose another device or a smaller model"
    yield judged("memory", needed <= free, found, remedy)


def finite_parts(folders: Mapping[str, Path]) -> Iterator[Finding]:
    """Whether the weights of parts that are there are what was written, and finite: of those that no decoding asks too.

    Args:
        folders: Part, a name in `rsd.policy.folder.PARTS` → its folder in our own layout; one that is not there is
            left out.
    """
    eyes = {f"eyes of the {name}": path / EYES for name, path in folders.items() if name in DRAFTS}
    for name, folder in {**folders, **eyes}.items():
        if not (folder / JSON_FILE).is_file():
            continue
        kind = "draft" if name in (*DRAFTS, EARLIER) else "base" if name.startswith("eyes") else name
        try:
            load_checkpoint(folder, kind=kind, produce=f"python train.py phase={PHASES[kind]}")
        except CheckpointError as error:
            yield Finding(f"weights of the {name}", FAILED, str(error))
        else:
            yield Finding(f"weights of the {name}", OK, "finite, and those that were written")


def weights(base: OpenVLABase) -> Iterator[Finding]:
    """The canaries, and what rounding does; needs the weights, and changes their dtype."""
    remedy = "the weights are not what the model's code expects: fetch the checkpoint again"
    yield from (replace(finding, remedy=remedy) for finding in run_canaries(base))
    yield Finding("bfloat16 against float32", OK, rounding(base))


def rounding(base: OpenVLABase) -> str:
    """How far bfloat16 moves states and actions; changes the dtype of the model's weights."""
    observations = [random_observation(base, seed) for seed in range(NUM_OBSERVATIONS)]
    inputs, last = base.prepare(observations), point_name(base.model.num_layers)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):  # bfloat16 weights are exact in float32, so this order loses nothing
        cast_weights(base.model, dtype)
        looked = base.look(inputs)
        found[dtype] = (looked.at(last).float(), base.space.to_robot(looked.chunk().cpu().numpy()))
    (states, actions), (rounded_states, rounded_actions) = found.values()
    relative = float((states - rounded_states).norm() / states.norm())
    return f"states move by {100 * relative:.2g} %, actions by up to {np.abs(actions - rounded_actions).max():.2g}"
