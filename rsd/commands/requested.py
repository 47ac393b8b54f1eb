"""What may be asked of a scheduler: the parameters of a launcher, held to what sbatch takes before anything is sent.

What surprises first: sbatch itself would take a partition called 'a b' to be one that does not exist, and would say so
of the first array that it gets. Here it is said by --dry-run, too, and where no SLURM is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from rsd.errors import SettingError
from rsd.settings import Count, Natural, NotNegative, Pattern, Positive, Range, Text, require

LOCAL_NOTICE_S = 30  # before its limit submitit tells a local job to end
WORD = r"[\w.@+-]+"
Name = Annotated[str, Pattern(WORD, "a name of letters, digits and . @ + - without spaces")] | Natural
Names = Annotated[str, Pattern(f"{WORD}(,{WORD})*", "names without spaces, with commas between them")] | Natural
Nodes = Annotated[str, Pattern(r"[\w.,\[\]-]+", "nodes without spaces, such as node[1-3],node7")]
Features = Annotated[str, Pattern(r"[\w.@+&|*,!()\[\]-]+", "features without spaces, such as h100|h200")]
Resources = Annotated[str, Pattern(r"[\w.:,()-]+", "resources without spaces, such as gpu:h100:1")]
Line = Annotated[str, Pattern(r"[^\n\r]*\S[^\n\r]*", "a line that is not empty")]
Amount = Annotated[str, Pattern(r"\d+[KMGT]?B?", "an amount of memory, such as 16GB")]
Seconds = Annotated[int, Range(0, 65535)]  # what sbatch --signal takes
OF_ALL: dict[str, Any] = {
    "submitit_folder": Text,
    "timeout_min": Count,
    "name": Line,
    "nodes": Count,
    "tasks_per_node": Count,
    "cpus_per_task": Count | None,
    "gpus_per_node": Natural | None,
    "mem_gb": Positive | None,
    "stderr_to_stdout": bool,
}
OF_SLURM: dict[str, Any] = {
    **OF_ALL,
    "signal_delay_s": Seconds,
    "max_num_timeout": Natural,
    "partition": Names | None,
    "account": Name | None,
    "qos": Names | None,
    "constraint": Features | None,
    "exclude": Nodes | None,
    "gres": Resources | None,
    "comment": Line | None,
    **dict.fromkeys(("cpus_per_gpu", "gpus_per_task"), Count | None),
    **dict.fromkeys(("mem_per_gpu", "mem_per_cpu"), Amount | None),
    "array_parallelism": Count,
    "setup": list[Line] | None,
    "additional_parameters": dict[str, Any] | None,
}
OPTION = Annotated[str, Pattern(r"[a-z][a-z0-9_-]*", "the name of an option of sbatch, without --")]
Value = bool | int | float | Line | None


def check_parameters(parameters: Mapping[str, Any], scheduler: str) -> None:
    """Hold a launcher's parameters to what they may be, and to each other.

    Args:
        scheduler: "slurm" or "local".

    Raises:
        SettingError: one is none, or a job would be told to end before it could begin.
    """
    known = OF_SLURM if scheduler == "slurm" else OF_ALL
    for name, value in parameters.items():
        if name not in known:
            others = "; sbatch's others go into hydra.launcher.additional_parameters" if scheduler == "slurm" else ""
            raise SettingError(
                f"hydra.launcher.{name} is no parameter of submitit_{scheduler}: {', '.join(known)}{others}"
            )
        require(f"hydra.launcher.{name}", value, known[name])
    for option, value in (parameters.get("additional_parameters") or {}).items():
        require("a key of hydra.launcher.additional_parameters", option, OPTION)
        require(f"hydra.launcher.additional_parameters.{option}", value, Value)
    minutes, notice = parameters["timeout_min"], parameters.get("signal_delay_s", LOCAL_NOTICE_S)
    require("hydra.launcher.signal_delay_s", notice, NotNegative)
    if notice >= 60 * minutes:
        raise SettingError(
            f"hydra.launcher.timeout_min is {minutes:g} min, and a job is told to end {notice:g} s before "
            f"that (signal_delay_s): the time limit is shorter than one step; expected a longer limit or shorter notice"
        )
