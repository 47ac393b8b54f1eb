"""OpenVLA and OpenVLA-OFT natively: no remote code, no timm, no torchvision."""

from rsd.models.openvla.backbone import ObservationError, OpenVLABackbone
from rsd.models.openvla.canaries import CanaryError
from rsd.models.openvla.execution import ExecutionError
from rsd.models.openvla.loading import load_backbone, require_checkpoint, save_backbone
from rsd.models.openvla.robots import Robot

__all__ = [
    "CanaryError",
    "ExecutionError",
    "ObservationError",
    "OpenVLABackbone",
    "Robot",
    "load_backbone",
    "require_checkpoint",
    "save_backbone",
]
