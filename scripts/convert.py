"""Checkpoints from one layout into another; nothing is downloaded, and an output folder is whole or not there.

python scripts/convert.py join SRC OUT              # OFT's side files among the safetensors: nothing is pickled
python scripts/convert.py split SRC OUT             # and back: action_head--…, proprio_projector--…, vision_backbone--…
python scripts/convert.py lora BASE TUNED OUT       # adapters merged into what they were trained on, and checked
python scripts/convert.py oft SRC OUT               # what OpenVLA-OFT's own loader takes, compared key by key

docs/convert.md has the details.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout, where the package is not installed

from rsd.models.openvla import conversions  # noqa: E402
from rsd.options import Options, held, new_folder, old_folder, reported  # noqa: E402
from rsd.settings import Device, Pattern, Range, require_device  # noqa: E402

GIGABYTE = 10**9
Step = Annotated[str, Pattern(r"\d+|latest", "a number of steps, or latest")]
ShardSize = Annotated[float, Range(0.001, 1000)]


def parser() -> Options:
    """The command line."""
    options = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = options.add_subparsers(dest="kind", required=True, metavar="KIND", help="what is to be made; KIND --help")
    for kind, told in (
        ("join", "side files into the safetensors"),
        ("split", "heads out of the safetensors into side files"),
        ("lora", "adapters into the weights"),
        ("oft", "what OpenVLA-OFT's own loader takes"),
    ):
        one = kinds.add_parser(kind, help=told)
        if kind == "lora":
            one.add_argument("base", type=old_folder, metavar="BASE", help="what the adapters were trained on")
            one.add_argument("source", type=old_folder, metavar="TUNED", help="with lora_adapter/, heads, statistics")
            one.add_argument("--device", type=held(Device), default="cpu", help="where logits are compared (cpu)")
            one.add_argument("--no-logits", action="store_true", help="compare merged weights alone")
        else:
            one.add_argument("source", type=old_folder, metavar="SRC")
        if kind in ("split", "oft"):
            one.add_argument("--step", type=held(Step), help="in the side files' names (as there, or latest)")
        one.add_argument("out", type=new_folder, metavar="OUT", help="folder to make")
        one.add_argument("--shard-gb", type=held(ShardSize), default=5.0, help="largest shard, 10^9 bytes (5)")
    return options


def convert(options: argparse.Namespace) -> list[str]:
    """Do what was asked for; lines to tell."""
    size = {"shard_bytes": int(options.shard_gb * GIGABYTE)}
    if options.kind == "join":
        return conversions.join(options.source, options.out, **size)
    if options.kind == "split":
        return conversions.split(options.source, options.out, step=options.step, **size)
    if options.kind == "oft":
        return conversions.export(options.source, options.out, step=options.step, **size)
    require_device(options.device)
    return conversions.merge(
        options.base, options.source, options.out, check_outputs=not options.no_logits, device=options.device, **size
    )


@reported
def main() -> None:
    """Command line."""
    for line in convert(parser().parse_args()):
        print(line)


if __name__ == "__main__":
    main()
