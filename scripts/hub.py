"""Policy folders and data sets, to the Hugging Face hub and from there:

python scripts/hub.py push FOLDER OWNER/NAME --dry-run   # every file that would be sent, with size and hash; no network
python scripts/hub.py push FOLDER OWNER/NAME             # send it; a new repository is private unless --public
python scripts/hub.py pull OWNER/NAME OUT                # fetch and check it; --type dataset for data
python scripts/hub.py card FOLDER                        # print the README.md that push would write for it

FOLDER is a policy folder, or a data set's <root>/<name>/<version>. docs/convert.md has the details.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout, where the package is not installed

from rsd import hub  # noqa: E402
from rsd.cards import data_card, policy_card  # noqa: E402
from rsd.data.rlds import RLDSDataset  # noqa: E402
from rsd.finding import FAILED  # noqa: E402
from rsd.hub import HubError, Kind, Parcel, RepoId, pack  # noqa: E402
from rsd.options import Options, held, new_folder, old_folder, reported  # noqa: E402
from rsd.policy.examination import finite_parts  # noqa: E402
from rsd.policy.folder import POLICY_FILE, parts_in  # noqa: E402
from rsd.settings import Pattern, Text  # noqa: E402

INFO_FILE = "dataset_info.json"
CONFIG_FILE = "config.json"  # of a published checkpoint
PUBLISHED = (
    f"holds no {POLICY_FILE} and looks like a published checkpoint, which alone says neither robot nor pictures; "
    "make a policy folder of it"
)
License = Annotated[str, Pattern(r"[a-z0-9.-]+", "a license as the hub names it, such as mit or cc-by-4.0")]


def parser() -> Options:
    """The command line."""
    options = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = options.add_subparsers(dest="action", required=True, metavar="ACTION", help="push, pull or card")
    push = kinds.add_parser("push", help="send a folder")
    pull = kinds.add_parser("pull", help="fetch a folder")
    card = kinds.add_parser("card", help="print a folder's README.md")
    for one in (push, card):
        one.add_argument("folder", type=old_folder, metavar="FOLDER")
        one.add_argument("--license", type=held(License), help="for a README.md that is made")
    push.add_argument("repo", type=held(RepoId), metavar="OWNER/NAME")
    push.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")
    push.add_argument("--public", action="store_true", help="a repository that is made now is for everybody to see")
    push.add_argument("--message", type=held(Text), default="Upload with rsd", help="of the commit")
    pull.add_argument("repo", type=held(RepoId), metavar="OWNER/NAME")
    pull.add_argument("out", type=new_folder, metavar="OUT", help="folder to make; of data, the new data.root")
    pull.add_argument("--type", choices=("model", "dataset"), default="model", help="policy or data (model)")
    pull.add_argument("--revision", type=held(Text), help="branch, tag or commit (the newest)")
    return options


def kind_of(folder: Path) -> Kind:
    """What a folder is.

    Raises:
        HubError: neither a policy nor a data set.
    """
    published = f"{PUBLISHED}: python scripts/convert.py policy {shlex.quote(str(folder))} OUT"
    return kind_by({path.name for path in folder.iterdir() if path.is_file()}, str(folder), published)


def kind_by(names: set[str], where: str, published: str) -> Kind:
    """What files of these names are; `published` says what to do with a published checkpoint."""
    if POLICY_FILE in names:
        return "model"
    if INFO_FILE in {name.rpartition("/")[2] for name in names}:
        return "dataset"
    if CONFIG_FILE in names:
        raise HubError(f"{where} {published}")
    raise HubError(
        f"{where} holds neither {POLICY_FILE} (a policy) nor {INFO_FILE} (a data set, <root>/<name>/<version>)"
    )


def check_policy(folder: Path) -> None:
    """See that a policy folder is whole.

    Raises:
        RSDError: a part is missing, damaged or another one.
    """
    for finding in finite_parts(parts_in(folder)):
        if finding.status == FAILED:
            raise HubError(f"{finding.name}: {finding.found}")


def check_data(root: Path) -> None:
    """See that a data root holds a whole data set.

    Raises:
        RSDError: none, or a damaged one.
    """
    found = sorted(path.parent for path in root.rglob(INFO_FILE))
    if not found:
        raise HubError(f"{root} holds no data set: no {INFO_FILE} below it; it is left there to look at")
    for folder in found:
        RLDSDataset(folder)


def packed(folder: Path, repo: str | None, license_name: str | None) -> tuple[Kind, Parcel]:
    """A folder that has been checked, with a card where it has none."""
    kind, needs_card = kind_of(folder), not (folder / hub.CARD).is_file()
    if kind == "model":
        check_policy(folder)
        return kind, pack(folder, card=policy_card(folder, repo, license_name) if needs_card else None)
    rlds = RLDSDataset(folder)
    card = data_card(folder, repo, license_name) if needs_card else None
    return kind, pack(folder, prefix=f"{rlds.name}/{rlds.version}/", card=card)


def act(options: argparse.Namespace) -> list[str]:
    """Do what was asked for; lines to tell."""
    if options.action == "card":
        made = policy_card if kind_of(options.folder) == "model" else data_card
        return made(options.folder, None, options.license).splitlines()
    if options.action == "pull":
        check = check_policy if options.type == "model" else check_data
        fetch = f"{PUBLISHED}: hf download {options.repo} --local-dir DIR, python scripts/convert.py policy DIR OUT"
        parcel = hub.pull(
            options.repo,
            options.out,
            options.type,
            holds=lambda names: kind_by(names, options.repo, fetch),
            check=check,
            revision=options.revision,
        )
        return [*parcel.lines(), f"{options.out}: whole, from {options.type} {options.repo}"]
    kind, parcel = packed(options.folder, options.repo, options.license)
    visible = "public" if options.public else "private"
    if options.dry_run:
        said = f"dry run: would be sent to {kind} {options.repo} ({visible} if it is made now); nothing was sent"
        return [*parcel.lines(), said]
    url = hub.push(parcel, options.repo, kind, private=not options.public, message=options.message)
    return [*parcel.lines(), f"sent to {kind} {options.repo}: {url}"]


@reported
def main() -> None:
    """Command line."""
    for line in act(parser().parse_args()):
        print(line)


if __name__ == "__main__":
    main()
