"""Policy folders and data sets, to a hub of Hugging Face's kind and from there.

What is sent is packed first: every file with its size and hash, and one digest of all of them, which whoever pulls it
gets again. What surprises first: huggingface_hub tries for most of a minute to reach a server that is not there, so one
short question goes ahead of it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rsd.errors import RSDError
from rsd.files import CODE
from rsd.settings import Pattern

PROBE_S = 5.0
PARTIAL = ".part"  # ending of a folder that is being pulled
CARD = "README.md"
NO_TOKEN = "make one in the hub's settings, then run: hf auth login (or set HF_TOKEN)"

_WORD = r"[a-zA-Z0-9_]([a-zA-Z0-9_.-]{0,94}[a-zA-Z0-9_])?"  # without -- and .., by the hub's rules
_REPO = rf"(?!.*(--|\.\.|\.git$)){_WORD}/{_WORD}"
RepoId = Annotated[str, Pattern(_REPO, "OWNER/NAME, each of letters, digits and single - _ . between them")]
Kind = Literal["model", "dataset"]


class HubError(RSDError, RuntimeError):
    """The hub cannot be reached or says no, or what is to be sent cannot be."""


@dataclass(frozen=True)
class File:
    """One file of a parcel.

    Attributes:
        name: In the repository.
        content: Bytes, or the file that has them.
    """

    name: str
    content: Path | bytes
    size: int
    sha256: str

    @classmethod
    def of(cls, name: str, content: Path | bytes) -> File:
        if isinstance(content, bytes):
            return cls(name, content, len(content), hashlib.sha256(content).hexdigest())
        with open(content, "rb") as file:
            return cls(name, content, content.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class Parcel:
    """What is sent, or has come."""

    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over all names and hashes: of what `sha256sum` prints for the sorted names."""
        lines = "".join(f"{file.sha256}  {file.name}\n" for file in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()

    def lines(self) -> list[str]:
        """A line a file: bytes, hash and name; and their sum."""
        rows = [f"{file.size:>14,}  {file.sha256[:12]}  {file.name}" for file in self.files]
        return [*rows, f"{self.size:>14,}  bytes in {len(self.files)} files; digest {self.digest}"]


def pack(folder: Path, *, prefix: str = "", card: str | None = None) -> Parcel:
    """The files of a folder as they would be sent; hidden and temporary ones are left out.

    Args:
        prefix: What the names in the repository begin with; the card stands before it.
        card: README.md, for a folder that has none.

    Raises:
        HubError: a link leads out of the folder, a file is code, or there is no file.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") or part == "__pycache__" for part in name.split("/"))
        if hidden or name.endswith((".tmp", PARTIAL)) or not path.is_file():
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            raise HubError(f"{path} is a link that leads out of {folder}; put the file itself there")
        if any(fnmatch(name, pattern) for pattern in CODE):
            raise HubError(
                f"{path} is code or pickled objects, which a pull never takes; take it out of the folder, or write the "
                "policy anew with scripts/convert.py policy, which leaves it out"
            )
        found[name if name == CARD else f"{prefix}{name}"] = File.of(name if name == CARD else f"{prefix}{name}", path)
    if not found:
        raise HubError(f"{folder} holds no files; name a policy folder, or a data set's <root>/<name>/<version>")
    if card is not None and CARD not in found:
        found[CARD] = File.of(CARD, card.encode())
    return Parcel(tuple(found[name] for name in sorted(found)))


def push(parcel: Parcel, repo_id: str, kind: Kind, *, private: bool, message: str, endpoint: str | None = None) -> str:
    """Send a parcel as one commit, making the repository if it is not there.

    Args:
        private: Whether a repository that is not there yet is made a private one.
        endpoint: Of the hub; None for HF_ENDPOINT, or Hugging Face's own.

    Returns:
        Where it can be seen.

    Raises:
        HubError: no token, the hub cannot be reached, or says no.
    """
    hub = _library()
    token = hub.get_token()
    if token is None:
        raise HubError(f"sending needs a token, and there is none; {NO_TOKEN}")
    endpoint = _endpoint(endpoint)
    _probe(f"{endpoint}/api/whoami-v2", token, what=f"{repo_id} was not sent")
    operations = [
        hub.CommitOperationAdd(
            path_in_repo=file.name,
            path_or_fileobj=file.content if isinstance(file.content, bytes) else str(file.content),
        )
        for file in parcel.files
    ]
    with _said(f"{repo_id} was not sent"):
        api = hub.HfApi(endpoint=endpoint, token=token)
        api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
        made = api.create_commit(repo_id, operations, commit_message=message, repo_type=kind)
    return str(made.commit_url)


def pull(
    repo_id: str,
    out: Path,
    kind: Kind,
    *,
    holds: Callable[[set[str]], object],
    check: Callable[[Path], None],
    revision: str | None = None,
    endpoint: str | None = None,
) -> Parcel:
    """Fetch a repository into a folder, which appears when all of it is there and has been checked.

    Files arrive in OUT.part, where an interrupted pull goes on. Code is never fetched.

    Args:
        holds: Raises when files of these names are not what is wanted; called before anything is fetched.
        check: Raises when what has come is not whole.
        revision: Branch, tag or commit; None for the newest.

    Raises:
        HubError: `out` is there or has no name, OUT.part is of something else, the hub cannot be reached, or has no
            such repository.
    """
    if out.name in ("", ".."):
        raise HubError(f"{str(out)!r} is no name for a folder that is to be made; give one, such as ./NAME")
    if (out.exists() or out.is_symlink()) and not (out.is_dir() and not any(out.iterdir())):
        raise HubError(f"{out} exists already and is not empty; move it away or choose another folder")
    hub = _library()
    endpoint = _endpoint(endpoint)
    what = f"{repo_id} was not fetched"
    _probe(f"{endpoint}/api/{kind}s/{repo_id}", hub.get_token(), what=what)
    partial = out.with_name(out.name + PARTIAL)
    with _said(what):
        info = hub.HfApi(endpoint=endpoint).repo_info(repo_id, repo_type=kind, revision=revision)
    names = {one.rfilename for one in info.siblings}
    holds(names)
    _require_own(partial, names, repo_id)
    with _said(what):
        hub.snapshot_download(
            repo_id,
            repo_type=kind,
            revision=info.sha,
            local_dir=partial,
            endpoint=endpoint,
            ignore_patterns=[*CODE, ".gitattributes"],
        )
    check(partial)
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    partial.replace(out)
    return pack(out)


def _require_own(partial: Path, names: set[str], repo_id: str) -> None:
    """See that what an interrupted pull has left is of this repository.

    Raises:
        HubError: a file is not, and would become part of what is pulled.
    """
    files = {path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file()}
    if strange := sorted(name for name in files - names if not name.startswith(".cache/")):
        raise HubError(f"{partial} holds {strange[0]}, which {repo_id} does not have; move {partial} away")


def _library() -> Any:
    """The module, which nothing else here needs."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE is set, so that nothing is sent or fetched; unset it")
    return huggingface_hub


def _endpoint(given: str | None) -> str:
    from huggingface_hub import constants

    return (given or constants.ENDPOINT).rstrip("/")


def _probe(url: str, token: str | None, *, what: str) -> None:
    """One question with a short time-out.

    Raises:
        HubError: no answer, or no.
    """
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    host = url.partition("/api/")[0]
    try:
        with urlopen(Request(url, headers=headers), timeout=PROBE_S):
            return
    except HTTPError as error:
        if error.code in (401, 403, 404):
            raise HubError(
                f"{what}: {host} answers {error.code}; see that the name is right, and if it is private or of others "
                f"that the token may do this: {NO_TOKEN}"
            ) from error
        raise HubError(f"{what}: {host} answers {error.code} {error.reason}; try again later") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise HubError(
            f"{what}: {host} cannot be reached ({reason}); see that this machine has a network and that HF_ENDPOINT "
            "names the hub"
        ) from error


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Errors of huggingface_hub and of the network in one line."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.HTTPError, errors.HfHubHTTPError, OSError, RuntimeError, ValueError, KeyError) as error:
        line = " ".join(str(error).split())[:300]
        raise HubError(f"{what}: {type(error).__name__}: {line}; the same command goes on") from error
