"""Demonstrations in another format → an RLDS set that rsd trains on:

python scripts/convert_data.py lerobot SRC OUT [--name NAME] [--views front wrist] [--pictures png]
python scripts/convert_data.py hdf5 SRC OUT [--name NAME] [--no-noops]

SRC is a LeRobot v3 folder, or a folder of LIBERO's HDF5 files (or one file); the set goes to OUT/NAME/1.0.0. An
interrupted conversion goes on with the same command, and one whose SRC has grown takes what is new. The last lines say
what trains on it, and what of that is still for you to say. docs/convert_data.md has the details.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout, where the package is not installed

from rsd.data.conversion import Source, command, convert  # noqa: E402
from rsd.data.lerobot import LeRobotSet  # noqa: E402
from rsd.data.libero_hdf5 import VIEWS, HDF5Demonstrations  # noqa: E402
from rsd.options import Options, held, new_folder, old_folder, reported  # noqa: E402
from rsd.settings import Pattern, Text  # noqa: E402

VERSION = "1.0.0"
Name = Annotated[str, Pattern(r"[A-Za-z]\w*", "a name of letters, digits and underscores")]
View = Annotated[str, Pattern(r"[A-Za-z]\w*=\S+", "NAME=KEY, a name in the set and a name below obs/")]


def old_place(text: str) -> Path:
    """A file or a folder that is there."""
    return Path(text) if Path(text).is_file() else old_folder(text)


def name_of(source: Path, no_noops: bool = False) -> str:
    """The name of a set after its source, in letters that tensorflow-datasets takes."""
    name = re.sub(r"\W+", "_", source.resolve().stem if source.is_file() else source.resolve().name, flags=re.ASCII)
    name = name.strip("_") or "data"
    name = name if name[0].isalpha() else f"set_{name}"
    return f"{name}_no_noops" if no_noops and not name.endswith("_no_noops") else name


def parser() -> Options:
    """The command line."""
    options = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    formats = options.add_subparsers(dest="format", required=True, metavar="FORMAT", help="lerobot or hdf5")
    lerobot = formats.add_parser("lerobot", help="LeRobot v3: parquet tables and videos")
    hdf5 = formats.add_parser("hdf5", help="LIBERO's HDF5 files, in robomimic's layout")
    for one, source in ((lerobot, old_folder), (hdf5, old_place)):
        one.add_argument("source", type=source, metavar="SRC")
        one.add_argument("out", type=new_folder, metavar="OUT", help="data.root: the set goes to OUT/NAME/1.0.0")
        one.add_argument("--name", type=held(Name), help="of the set (that of SRC)")
        one.add_argument(
            "--pictures", choices=("jpeg", "png"), default="jpeg", help="jpeg: quality 95, 4:2:0; png: exact, larger"
        )
    lerobot.add_argument("--views", type=held(Text), nargs="+", metavar="VIEW", help="cameras to take (all)")
    lerobot.add_argument("--splits", type=held(Text), nargs="+", default=["train"], help="of info.json (train)")
    usual = " ".join(f"{view}={key}" for view, key in VIEWS.items())
    hdf5.add_argument("--views", type=held(View), nargs="+", metavar="NAME=KEY", help=f"pictures below obs/ ({usual})")
    hdf5.add_argument("--state", type=held(Text), nargs="+", metavar="KEY", help="what the state is made of (LIBERO's)")
    hdf5.add_argument("--no-noops", action="store_true", help="leave idle steps out, by the published rule")
    hdf5.add_argument(
        "--rotate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="turn pictures by 180 degrees, as published",
    )
    hdf5.add_argument("--language", choices=("name", "problem_info"), help="where the instruction is (name for …_demo)")
    return options


def opened(options: argparse.Namespace) -> Source:
    """The source that a command line names."""
    if options.format == "lerobot":
        return LeRobotSet(options.source, views=options.views, pictures=options.pictures, splits=options.splits)
    return HDF5Demonstrations(
        options.source,
        views=dict(view.split("=", 1) for view in options.views) if options.views else None,
        state=options.state,
        rotate=options.rotate,
        no_noops=options.no_noops,
        pictures=options.pictures,
        language=options.language,
    )


@reported
def main() -> None:
    options = parser().parse_args()
    name = options.name or name_of(options.source, getattr(options, "no_noops", False))
    source = opened(options)
    notes = list(source.notes)
    for note in notes:
        print(f"note: {note}")
    directory = options.out / name / VERSION
    converted = convert(source, directory)
    for note in source.notes[len(notes) :]:
        print(f"note: {note}")
    print(f"{directory}: {converted} episodes converted now, {len(source.file_paths())} in {options.source}. To train:")
    for line in command(source, directory):
        print(line)


if __name__ == "__main__":
    main()
