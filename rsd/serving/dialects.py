"""What POST /act is asked, and how its answer looks: OpenVLA's deploy script, OpenVLA-OFT's, and this project's own.

    openvla   {"image", "instruction"}                            → the next action, [A]
    oft       {"full_image", "wrist…", "state", "instruction"}    → the actions of a chunk, a list of T times [A]
    rsd       {"images": {view: …}, "proprio", "instruction"}     → robot commands; a session's next one, or a chunk

What surprises first: those two servers say *standard* actions: not normalised, the gripper as the model has it (1 open,
0 closed), not clipped. Their clients make robot commands of them, and would make the wrong ones of robot commands.
As they do, each request is answered by itself, from its own picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsd.errors import RSDError
from rsd.serving.messages import MessageError, checked_instruction, decode_array, decode_image, in_short, part
from rsd.settings import Side
from rsd.space import Space, UnknownKeyError, resolve_unnorm_key
from rsd.types import Chunk, Observation

OPENVLA, OFT, OWN = "openvla", "oft", "rsd"
PICTURE = {OPENVLA: "image", OFT: "full_image", OWN: "images"}  # the key that tells them apart
PROPRIO = ("proprio", "state")
MAX_SIDE = 4096  # pixels of a picture; the model resizes it
SESSION, STEP = "session", "step"
MAX_PROPRIO = 1000  # numbers


class DialectError(RSDError, RuntimeError):
    """The policy cannot answer in the words of another server."""


@dataclass(frozen=True)
class Dialects:
    """Reads requests for a policy.

    Attributes:
        views: Names of the pictures that the policy needs, in its order.
        image_size: Height and width of the pictures of the own dialect; None takes any. The others resize as their
            servers do.
        proprio_dim: P that the policy needs; None for one that is not told the proprio.
        max_instruction: Characters.
        space: What the actions mean; None where the policy does not say it, which then speaks the own dialect alone.
    """

    views: Sequence[str]
    image_size: Side | None
    proprio_dim: int | None
    max_instruction: int
    space: Space | None

    def of(self, payload: dict[str, Any]) -> str:
        """Which dialect a request is in.

        Raises:
            MessageError: none.
            DialectError: one that the policy does not speak.
        """
        found = [name for name, key in PICTURE.items() if key in payload] or [OWN] * (SESSION in payload)
        if len(found) != 1:
            raise MessageError(
                f"the request has the keys {in_short(sorted(payload))}; expected one of {list(PICTURE.values())}"
            )
        if found[0] != OWN and self.space is None:
            raise DialectError(f"this policy has no Space to say {found[0]!r} actions in; ask with {PICTURE[OWN]!r}")
        return found[0]

    def read(self, payload: dict[str, Any], dialect: str) -> Observation:
        """The observation of a request.

        Raises:
            MessageError: a part is missing, or of another shape, type or key than the policy's.
        """
        self._check_key(payload)
        instruction = part(payload, "instruction", str, "the request")
        checked_instruction(instruction, "instruction", self.max_instruction)
        return Observation(
            images=self._images(payload, dialect),
            proprio=self._proprio(payload),
            instruction=instruction,
        )

    def standard(self, chunk: Chunk) -> np.ndarray:
        """A chunk's actions as OpenVLA's servers say them, [T, A], float64.

        Raises:
            DialectError: the policy keeps no chunk in model space.
        """
        if self.space is None or chunk.memory is None:
            raise DialectError(f"this policy says robot commands alone; ask with {PICTURE[OWN]!r}")
        return self.space.action.unnormalize(chunk.memory.chunk)

    def _check_key(self, payload: dict[str, Any]) -> None:
        key = payload.get("unnorm_key")
        if key is None:
            return
        if not isinstance(key, str) or self.space is None:
            raise MessageError(
                f"unnorm_key is {in_short(repr(key))}, expected the name of statistics that this policy has"
            )
        try:
            resolve_unnorm_key({self.space.name: {}}, key)
        except UnknownKeyError:
            raise MessageError(
                f"unnorm_key is {in_short(repr(key))}, and this policy's actions are un-normalised with "
                f"{self.space.name!r}; leave it out, or ask another server"
            ) from None

    def _images(self, payload: dict[str, Any], dialect: str) -> dict[str, np.ndarray]:
        if dialect == OWN:
            images = part(payload, PICTURE[OWN], dict, "the request")
            entries = {view: (part(images, view, dict, PICTURE[OWN]), f"{PICTURE[OWN]}.{view}") for view in self.views}
        elif dialect == OPENVLA:
            keys = dict(zip(self.views, (PICTURE[OPENVLA], *self.views[1:]), strict=True))
            entries = {view: (part(payload, key, dict, "the request"), key) for view, key in keys.items()}
        else:
            wrists = [key for key in payload if "wrist" in key]
            if len(wrists) < len(self.views) - 1:
                raise MessageError(
                    f"the request has {len(wrists)} pictures with 'wrist' in their name, and the policy needs "
                    f"{len(self.views) - 1}; it has {in_short(sorted(payload))}"
                )
            keys = dict(zip(self.views, (PICTURE[OFT], *wrists), strict=False))
            entries = {view: (part(payload, key, dict, "the request"), key) for view, key in keys.items()}
        return {view: self._picture(entry, name, dialect) for view, (entry, name) in entries.items()}

    def _picture(self, entry: dict[str, Any], name: str, dialect: str) -> np.ndarray:
        if dialect == OWN and self.image_size is not None:
            return decode_image(entry, name, (self.image_size, self.image_size, 3))
        picture = decode_array(entry, name)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise MessageError(f"picture {name!r} is {picture.dtype} {list(picture.shape)}, expected uint8 [H, W, 3]")
        if not 1 <= min(picture.shape[:2]) <= max(picture.shape[:2]) <= MAX_SIDE:
            raise MessageError(
                f"picture {name!r} has the shape {list(picture.shape)}, expected 1 to {MAX_SIDE} pixels a side"
            )
        return picture

    def _proprio(self, payload: dict[str, Any]) -> np.ndarray:
        name = next((name for name in PROPRIO if payload.get(name) is not None), None)
        if self.proprio_dim is None:
            return np.zeros(0)  # whatever came, nobody looks at it
        if name is None:
            raise MessageError(
                f"the request has no {PROPRIO[0]!r} (OpenVLA-OFT: {PROPRIO[1]!r}), of which the policy needs "
                f"{self.proprio_dim} numbers; it has {in_short(sorted(payload))}"
            )
        value = payload[name]
        if isinstance(value, list):
            if len(value) > MAX_PROPRIO or not all(type(one) in (int, float) and abs(one) < 1e300 for one in value):
                raise MessageError(f"{name} is {in_short(value)}; expected {self.proprio_dim} finite numbers")
            value = np.array(value, dtype=np.float64)
        else:
            value = decode_array(part(payload, name, dict, "the request"), name)
        if value.shape != (self.proprio_dim,) or value.dtype.kind not in "iuf" or not np.isfinite(value).all():
            raise MessageError(
                f"{name} is {value.dtype} {list(value.shape)}: {in_short(value)}; expected [{self.proprio_dim}] finite "
                "numbers"
            )
        return value.astype(np.float64)
