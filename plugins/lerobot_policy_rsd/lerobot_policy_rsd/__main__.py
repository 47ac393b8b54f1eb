"""python -m lerobot_policy_rsd FOLDER OUT: a policy folder with LeRobot's files beside it, for --policy.path=OUT."""

from __future__ import annotations

import sys

from lerobot_policy_rsd import RSDConfig, RSDPolicy, make_rsd_pre_post_processors
from rsd.errors import RSDError
from rsd.options import Options, new_folder, old_folder


def main() -> None:
    parser = Options(prog="python -m lerobot_policy_rsd", description=__doc__)
    parser.add_argument("folder", type=old_folder, help="policy folder")
    parser.add_argument("out", type=new_folder, help="folder to be made")
    parser.add_argument("--decoding", help="another than the folder's own")
    given = parser.parse_args()
    try:
        config = RSDConfig(folder=str(given.folder), decoding=given.decoding, device="cpu")
        RSDPolicy(config).save_pretrained(given.out)
    except RSDError as error:
        sys.exit(f"error: {error}")
    for pipeline in make_rsd_pre_post_processors(config):
        pipeline.save_pretrained(given.out)
    print(f"lerobot-eval --policy.path={given.out} --env.type=libero --env.task=libero_spatial")


if __name__ == "__main__":
    main()
