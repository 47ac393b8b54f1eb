"""Try a base model before trusting it: python scripts/doctor.py model=oft_spatial [device=cuda]

Loads the checkpoint as every other command does, prints what it takes and gives, runs the canaries, and compares the
actions in bfloat16 with those in float32. The exit code is 1 when a canary fails.
"""

from __future__ import annotations

import sys
import time

import hydra
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from rsd.entry_point import report_errors, run
from rsd.models.openvla.backbone import OpenVLABackbone
from rsd.models.openvla.canaries import random_observation, run_canaries
from rsd.models.openvla.model import cast_weights
from rsd.normalization import unnormalize

NUM_OBSERVATIONS = 4


def contract_rows(backbone: OpenVLABackbone) -> list[tuple[str, str]]:
    """What goes in and comes out, as rows of a table."""
    size = sum(parameter.numel() for parameter in backbone.model.parameters())
    return [
        ("pictures", f"{len(backbone.views)}: {', '.join(backbone.views)}, {backbone.image_size} px to the model"),
        ("centre crop", "yes" if backbone.center_crop else "no"),
        ("proprio", "none" if backbone.proprio_dim is None else f"{backbone.proprio_dim} dims"),
        ("chunk", f"{backbone.chunk_length} steps of {backbone.action_dim} dims, by {backbone.decoder}"),
        ("statistics", f"{backbone.unnorm_key}, {' to '.join(backbone.bounds)}"),
        ("layers", f"{backbone.num_layers} of width {backbone.hidden_dim}"),
        ("weights", f"{size / 1e9:.3f} billion, {str(backbone.dtype).removeprefix('torch.')}, {backbone.device}"),
        ("execution", backbone.execution),
    ]


def rounding(backbone: OpenVLABackbone) -> str:
    """How far bfloat16 moves states and actions; changes the dtype of the model's weights."""
    observations = [random_observation(backbone, seed) for seed in range(NUM_OBSERVATIONS)]
    inputs, last = backbone.prepare(observations), backbone.num_layers
    found = {}
    for dtype in (torch.float32, torch.bfloat16):  # bfloat16 weights are exact in float32, so this order loses nothing
        cast_weights(backbone.model, dtype)
        output = backbone.forward(inputs, [last])
        raw = unnormalize(output.actions.cpu().numpy(), backbone.norm_stats["action"], backbone.bounds)
        found[dtype] = (output.hidden_states[last].float(), raw)
    (states, actions), (rounded_states, rounded_actions) = found.values()
    relative = float((states - rounded_states).norm() / states.norm())
    return f"states move by {100 * relative:.2g} %, actions by up to {np.abs(actions - rounded_actions).max():.2g}"


@hydra.main(version_base="1.3", config_path="../conf", config_name="doctor")
@report_errors
def main(cfg: DictConfig) -> None:
    started = time.monotonic()
    backbone = instantiate(cfg.backbone)(canaries=False)
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in contract_rows(backbone):
        table.add_row(name, value)
    table.add_row("loaded in", f"{time.monotonic() - started:.1f} s")
    canaries = list(run_canaries(backbone))
    for canary in canaries:
        table.add_row(f"{'ok' if canary.passed else 'FAILED'}: {canary.name}", canary.found)
    table.add_row("bfloat16 against float32", rounding(backbone))
    console.print(table)
    if not all(canary.passed for canary in canaries):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
