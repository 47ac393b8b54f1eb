"""OpenVLA-OFT natively: no remote code, no timm, no torchvision."""

from rsd.models.openvla.backbone import ObservationError, OpenVLABackbone
from rsd.models.openvla.loading import load_backbone, require_checkpoint, save_backbone

__all__ = ["ObservationError", "OpenVLABackbone", "load_backbone", "require_checkpoint", "save_backbone"]
