"""Checkpoints from one layout into another; nothing is downloaded, and an output folder is whole or not there.

python scripts/convert.py join SRC OUT              # OFT's side files among the safetensors: nothing is pickled
python scripts/convert.py split SRC OUT             # and back: action_head--…, proprio_projector--…, …
python scripts/convert.py lora BASE TUNED OUT       # adapters merged into what they were trained on, and checked
python scripts/convert.py oft SRC OUT               # what OpenVLA-OFT's own loader takes, compared key by key
python scripts/convert.py from-prismatic RUN OUT    # a Prismatic training checkpoint into the published layout
python scripts/convert.py to-prismatic SRC OUT      # and back
python scripts/convert.py average SRC SRC… OUT      # the mean of several trainings of phase=oft
python scripts/convert.py policy SRC OUT [--tokenizer DIR --head DIR --draft DIR …]   # a policy folder, for rsd.load

docs/convert.md has the details.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout, where the package is not installed

from rsd.errors import SettingError  # noqa: E402
from rsd.models.openvla import conversions  # noqa: E402
from rsd.models.openvla.average import average  # noqa: E402
from rsd.models.openvla.loading import is_own, own_inputs  # noqa: E402
from rsd.models.openvla.prismatic_folders import from_prismatic, to_prismatic  # noqa: E402
from rsd.options import Options, held, new_folder, old_folder, reported  # noqa: E402
from rsd.policy.folder import PARTS  # noqa: E402
from rsd.policy.published import base_entry, write_policy  # noqa: E402
from rsd.settings import Device, Dtype, Pattern, Range, Text, require_device  # noqa: E402

ROBOTS = ROOT / "conf" / "robot"
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
        ("from-prismatic", "Prismatic's layout into the published one"),
        ("to-prismatic", "the published layout into Prismatic's"),
        ("average", "the mean of the weights of several trainings of phase=oft"),
        ("policy", "a policy folder of a checkpoint and heads that were trained on it"),
    ):
        one = kinds.add_parser(kind, help=told)
        if kind == "lora":
            one.add_argument("base", type=old_folder, metavar="BASE", help="what the adapters were trained on")
            one.add_argument("source", type=old_folder, metavar="TUNED", help="with lora_adapter/, heads, statistics")
        elif kind == "average":
            one.add_argument("source", type=old_folder, nargs="+", metavar="SRC", help="of one model and vocabulary")
        else:
            one.add_argument("source", type=old_folder, metavar="RUN" if kind == "from-prismatic" else "SRC")
        if kind == "from-prismatic":
            one.add_argument("--tokenizer", type=old_folder, help="folder with Llama's tokenizer files (RUN)")
            one.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16", help="of the weights (bfloat16)")
        if kind == "policy":
            _add_policy(one)
        if kind in ("lora", "from-prismatic", "to-prismatic"):
            one.add_argument("--device", type=held(Device), default="cpu", help="where logits are compared (cpu)")
            one.add_argument("--no-logits", action="store_true", help="do not compare logits")
        if kind in ("split", "oft"):
            one.add_argument("--step", type=held(Step), help="in the side files' names (as there, or latest)")
        one.add_argument("out", type=new_folder, metavar="OUT", help="folder to make")
        if kind not in ("to-prismatic", "average", "policy"):
            one.add_argument("--shard-gb", type=held(ShardSize), default=5.0, help="largest shard, 10^9 bytes (5)")
    return options


def _add_policy(one: argparse.ArgumentParser) -> None:
    """What a policy needs beside the checkpoint."""
    robots = sorted(path.stem for path in ROBOTS.glob("*.yaml"))
    for part in PARTS:
        if part != "base":
            one.add_argument(f"--{part.replace('_', '-')}", type=old_folder, metavar="DIR", help="as train.py made it")
    one.add_argument("--robot", choices=robots, default="libero", help="chunk length, widths, gripper (libero)")
    one.add_argument("--views", type=held(Text), nargs="+", help="pictures, in order (image wrist_image, or image)")
    one.add_argument("--unnorm-key", type=held(Text), help="statistics, of a checkpoint with several")
    one.add_argument("--no-crop", action="store_true", help="of a model that was trained without image augmentation")
    one.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16", help="in which it is run (bfloat16)")
    one.add_argument("--link", action="store_true", help="hard links to the checkpoint's files, where possible")


def policy(options: argparse.Namespace) -> list[str]:
    """A policy folder; lines to tell."""
    base = _own_entry(options) if is_own(options.source) else _published_entry(options)
    given = {part: getattr(options, part, None) for part in PARTS}
    parts = {part: path for part, path in given.items() if path is not None}
    return write_policy(options.source, options.out, base=base, parts=parts, link=options.link)


def _own_entry(options: argparse.Namespace) -> dict[str, Any]:
    """Entry "base" of policy.json, of a checkpoint of phase=oft.

    Raises:
        SettingError: something is asked for that the checkpoint says itself.
    """
    asked = {"--views": options.views, "--unnorm-key": options.unnorm_key, "--no-crop": options.no_crop}
    if wrong := [name for name, value in asked.items() if value]:
        raise SettingError(f"{options.source} says itself what it was trained with; leave out {', '.join(wrong)}")
    return own_inputs(options.source)


def _published_entry(options: argparse.Namespace) -> dict[str, Any]:
    """Entry "base" of policy.json, of a checkpoint in the published layout."""
    robot = yaml.safe_load((ROBOTS / f"{options.robot}.yaml").read_text())
    return base_entry(
        options.source,
        robot={name: value for name, value in robot.items() if name != "_target_"},
        views=options.views,
        unnorm_key=options.unnorm_key,
        center_crop=not options.no_crop,
        dtype=options.dtype,
    )


def convert(options: argparse.Namespace) -> list[str]:
    """Do what was asked for; lines to tell."""
    if options.kind == "policy":
        return policy(options)
    source, out = options.source, options.out
    if options.kind == "average":
        return average(source, out)
    size: dict[str, Any] = {"shard_bytes": int(options.shard_gb * GIGABYTE)} if "shard_gb" in options else {}
    if options.kind == "join":
        return conversions.join(source, out, **size)
    if options.kind == "split":
        return conversions.split(source, out, step=options.step, **size)
    if options.kind == "oft":
        return conversions.export(source, out, step=options.step, **size)
    require_device(options.device)
    check: dict[str, Any] = {"check_outputs": not options.no_logits, "device": options.device}
    if options.kind == "lora":
        return conversions.merge(options.base, source, out, **check, **size)
    if options.kind == "to-prismatic":
        return to_prismatic(source, out, **check)
    return from_prismatic(source, out, tokenizer=options.tokenizer, dtype=options.dtype, **check, **size)


@reported
def main() -> None:
    """Command line."""
    for line in convert(parser().parse_args()):
        print(line)


if __name__ == "__main__":
    main()
