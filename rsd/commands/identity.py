"""Which policy a server has, for clients that cannot see its files: a hash of its parts, and its Space.

What surprises first: a folder's hash is that of its policy.json, which holds the hashes of all parts; anyone with the
folder can compute it: `sha256sum released/policy.json`. Which of its decodings is used does not enter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from rsd.checkpoint import file_sha256
from rsd.commands.configured import policy_fields
from rsd.inputs import contents
from rsd.policy import CorrectedPolicy, VLAPolicy
from rsd.policy.folder import POLICY_FILE
from rsd.space import Space
from rsd.types import Policy

OF_THE_POLICY = ("decoding", "target", "unnorm_key", "num_open_loop_steps", "options", "draft")


def policy_hash(cfg: DictConfig, overrides: Sequence[str]) -> str:
    """SHA-256 of a configured policy, in hex: of what its parts hold, wherever they lie."""
    if isinstance(cfg.policy, DictConfig):
        return _sha256(OmegaConf.to_container(cfg.policy, resolve=True))
    if cfg.policy is not None:
        return file_sha256(Path(cfg.policy) / POLICY_FILE)
    fields = policy_fields(cfg, overrides)
    digests = {part: content["digest"] for part, content in contents(fields["checkpoints"]).items()}
    return _sha256({"parts": digests} | {name: fields[name] for name in OF_THE_POLICY})


def policy_space(policy: Policy) -> Space | None:
    """What a policy's actions mean; None where it does not say."""
    own = policy.policy if isinstance(policy, CorrectedPolicy) else policy
    return own.base.spec.space if isinstance(own, VLAPolicy) else cast("Space | None", getattr(own, "space", None))


def _sha256(described: object) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()
