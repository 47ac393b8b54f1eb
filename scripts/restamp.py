"""Describe a policy folder anew: python scripts/restamp.py released

policy.json is written over the parts that lie in the folder, and heads get the present words for their base model; see
rsd/policy/description.py. It changes no weights, and refuses heads that were made for something else.
"""

from __future__ import annotations

from pathlib import Path

from rsd.options import Options, any_path, reported
from rsd.policy.description import stamp
from rsd.policy.folder import POLICY_FILE


def restamp(folder: Path) -> None:
    """Describe a policy folder anew; see the head of this file.

    Raises:
        RSDError: a part is missing, damaged, or made for something else; nothing has been written.
    """
    print(f"{folder / POLICY_FILE}: {stamp(folder)}")


@reported
def main() -> None:
    """Command line."""
    parser = Options(description=__doc__.split("\n")[0])
    parser.add_argument(
        "folder",
        type=any_path,
        help="folder with policy.json, or a folder for each part",
    )
    restamp(parser.parse_args().folder)


if __name__ == "__main__":
    main()
