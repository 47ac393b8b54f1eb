"""The policy: observations in, action chunks of robot commands out. The only room where all parts meet."""

from rsd.policy.assemble import Checkpoints, assemble
from rsd.policy.contract import IOContract, PolicyError
from rsd.policy.corrected import CorrectedPolicy, load_corrected
from rsd.policy.folder import describe_folder, load_folder, write_folder
from rsd.policy.policy import Tokens, VLAPolicy

__all__ = [
    "Checkpoints",
    "CorrectedPolicy",
    "IOContract",
    "PolicyError",
    "Tokens",
    "VLAPolicy",
    "assemble",
    "describe_folder",
    "load_corrected",
    "load_folder",
    "write_folder",
]
