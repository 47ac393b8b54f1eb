"""Who may connect, without a socket."""

from http import HTTPStatus

import pytest

from rsd.errors import SettingError
from rsd.serving.access import Access

PAGE = "http://localhost:3000"


def test_a_robot_is_fine_and_a_page_only_where_its_origin_is_named():
    assert Access().refusal("/", [], []) is None
    for origin in (PAGE, "null", "", "http://evil.example"):
        status, why = Access().refusal("/", [origin], [])
        assert status == HTTPStatus.FORBIDDEN and why == f"a page of origin {origin!r} may not connect; see origins="
    access = Access(origins=[PAGE])
    assert access.refusal("/", [PAGE], []) is None
    assert access.refusal("/", [PAGE, "http://evil.example"], []) is not None


@pytest.mark.parametrize(
    ("path", "authorizations", "said"),
    [
        ("/", ["Bearer a sécret"], None),
        ("/?token=a%20s%C3%A9cret", [], None),
        ("/", ["Basic x", "Bearer a sécret"], None),
        ("/", [], "this server wants a token and got none; send 'Authorization: Bearer TOKEN'"),
        ("/?token=", ["Basic a sécret"], "this server wants a token and got none"),
        ("/?token=a", [], "the token is not this server's"),
        ("//[?token=a", [], "the token is not this server's"),
        ("//[", [], "this server wants a token and got none"),
        ("//[?token=a%20s%C3%A9cret", [], None),
        ("/?" + "&" * 5000 + "token=a", [], "the token is not this server's"),
        ("/?token=%ff", [], "the token is not this server's"),
        ("/", ["Bearer a sécret "], "the token is not this server's"),
        ("/", ["Bearer \udcff"], "the token is not this server's"),
    ],
)
def test_a_token_opens(path, authorizations, said):
    refusal = Access(token="a sécret").refusal(path, [], authorizations)
    assert refusal is None if said is None else refusal[0] == HTTPStatus.UNAUTHORIZED and said in refusal[1]
    assert "sécret" not in repr(Access(token="a sécret"))


@pytest.mark.parametrize("origins", [PAGE, None, ["*"], ["localhost"], [f"{PAGE}/"], [3]])
def test_origins_are_those_that_browsers_send(origins):
    with pytest.raises(SettingError, match=r"expected a list of such: origins=\[http://localhost:3000\]"):
        Access(origins=origins)


@pytest.mark.parametrize("token", ["", "  "])
def test_an_empty_token_is_no_token(token):
    with pytest.raises(SettingError, match="RSD_TOKEN is empty; give it a value, or unset it"):
        Access(token=token)
