"""The pipelines around the policy: names and batch axis before it, the CPU behind it, and no numbers changed.

The same steps by the same names as LeRobot's own policies have, which its commands override (--rename_map, device).
"""

from __future__ import annotations

from typing import Any

import torch
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    make_policy_processor_pipelines,
)

from lerobot_policy_rsd.configuration_rsd import RSDConfig


def make_rsd_pre_post_processors(
    config: RSDConfig, dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]], PolicyProcessorPipeline[PolicyAction, PolicyAction]
]:
    """Preprocessor and postprocessor; found by LeRobot by their name.

    Args:
        dataset_stats: Not used: the policy has its own statistics.
    """
    return make_policy_processor_pipelines(
        input_steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device=config.device or "cpu"),
        ],
        output_steps=[DeviceProcessorStep(device="cpu")],
    )
