"""Who may connect: robots and harnesses, which send no Origin; pages of allowed origins; with a token, who knows it.

What surprises: a browser lets a page of any origin open a websocket to this machine, and says only in the Origin header
which page that is. So one that is not allowed is refused, whatever address the server listens on.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs

from rsd.errors import SettingError

BEARER = "Bearer "


@dataclass(frozen=True)
class Access:
    """What a client has to show.

    Attributes:
        origins: Of pages that may connect, such as "http://localhost:3000"; a client without an Origin is no page.
        token: That clients send as "Authorization: Bearer TOKEN" or as ws://…/?token=TOKEN; None asks for none.

    Raises:
        SettingError: an origin that no browser sends, or an empty token.
    """

    origins: Sequence[str] = ()
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.origins, list | tuple) or not all(map(_is_origin, self.origins)):
            raise SettingError(f"origins is {self.origins!r}, expected a list of such: origins=[http://localhost:3000]")
        if self.token is not None and not self.token.strip():
            raise SettingError("RSD_TOKEN is empty; give it a value, or unset it to ask clients for none")

    def refusal(
        self, path: str, origins: Sequence[str], authorizations: Sequence[str]
    ) -> tuple[HTTPStatus, str] | None:
        """Why a client may not connect, in one line; None when it may.

        Args:
            path: That it asks for, with its query.
            origins, authorizations: Its headers Origin and Authorization, as often as they come.
        """
        strange = [origin for origin in origins if origin not in self.origins]
        if strange:
            return HTTPStatus.FORBIDDEN, f"a page of origin {strange[0][:100]!r} may not connect; see origins="
        if self.token is None:
            return None
        given = parse_qs(path.partition("#")[0].partition("?")[2]).get("token", [])
        given += [one[len(BEARER) :] for one in authorizations if one.startswith(BEARER)]
        if not given:
            what = f"send 'Authorization: {BEARER}TOKEN', or connect to ws://HOST:PORT/?token=TOKEN"
            return HTTPStatus.UNAUTHORIZED, f"this server wants a token and got none; {what}"
        if not any(hmac.compare_digest(_bytes(one), _bytes(self.token)) for one in given):
            return HTTPStatus.UNAUTHORIZED, "the token is not this server's; see its RSD_TOKEN"
        return None


def _is_origin(origin: object) -> bool:
    return isinstance(origin, str) and origin.startswith(("http://", "https://")) and origin.count("/") == 2


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
