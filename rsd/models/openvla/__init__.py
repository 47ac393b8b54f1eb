"""OpenVLA and OpenVLA-OFT natively: no remote code, no timm, no torchvision."""

from rsd.models.openvla.base import ObservationError, OpenVLABase
from rsd.models.openvla.canaries import CanaryError
from rsd.models.openvla.execution import ExecutionError
from rsd.models.openvla.fp8 import Fp8, Fp8Error
from rsd.models.openvla.loading import load_base, require_checkpoint, save_base
from rsd.models.openvla.robots import Robot

__all__ = [
    "CanaryError",
    "ExecutionError",
    "Fp8",
    "Fp8Error",
    "ObservationError",
    "OpenVLABase",
    "Robot",
    "load_base",
    "require_checkpoint",
    "save_base",
]
