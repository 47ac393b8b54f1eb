"""Milliseconds from decoded pictures to robot commands: 7B shapes, and the released policy, each arm in turn.

    python scripts/benchmark_latency.py                            # one H100 and two cores; docs/results/latency.json
    python scripts/benchmark_latency.py --sections policy_cpu      # no GPU: the released policy on two cores
    python scripts/benchmark_latency.py --size smoke --calls 10 --sections shapes --out /tmp/smoke   # a minute on a GPU
    python scripts/benchmark_latency.py --budget                   # what each combination saves at most, from there

shapes      depth 32/16/8 x tokens 256/128/64 a view x bf16/fp8, up the ladder eager/captured/compiled, random weights
vision      the vision towers of these shapes alone, run in several ways
policy_gpu  the released policy by decoding, in recorded episodes, on the ladder
policy_cpu  the same on two cores

Results are written as they come. A run that was cut, by --minutes or by anybody, is gone on with by the same command:
what has all its calls is not timed again, but for what ratios are taken over.

What surprises first: ratios are over the *fastest* bf16 way of the whole model in the same run, and stand beside an arm
only if its outputs on the timed observations are the eager model's, as far as its way of running promises.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout, where the package is not installed

from rsd.errors import RSDError, SettingError  # noqa: E402
from rsd.files import write_atomically  # noqa: E402
from rsd.options import Options, any_path, held, new_folder, old_file, old_folder, reported  # noqa: E402
from rsd.settings import Count, Device, Natural, Positive, Processes, require_device  # noqa: E402
from scripts.latency.budget import budget  # noqa: E402
from scripts.latency.policies import DECODINGS, Policies  # noqa: E402
from scripts.latency.runs import (  # noqa: E402
    CIRCUMSTANCES,
    POLICY,
    RESULTS,
    SHAPES,
    TABLE,
    TOWERS,
    LatencyError,
    Run,
    groups,
    store,
    stored_runs,
)
from scripts.latency.shapes import Shapes  # noqa: E402
from scripts.latency.table import table  # noqa: E402
from scripts.latency.vision import measure_vision  # noqa: E402
from scripts.recorded import EPISODES, recorded_episodes  # noqa: E402

FOLDER = ROOT / "docs" / "results"
SECTIONS = ("shapes", "vision", "policy_gpu", "policy_cpu")
SHARE = 0.6  # of the time that is left, for each section but the last


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """All threads of this process on the first `count` cores that it may use.

    Raises:
        SettingError: there are fewer.
    """
    before = os.sched_getaffinity(0)
    if count > len(before):
        raise SettingError(f"--threads is {count}, and this process may use {len(before)} cores; set 1..{len(before)}")
    _pin(set(sorted(before)[:count]))
    try:
        yield
    finally:
        _pin(before)


def _pin(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cores)


class Benchmark:
    """Sections one after the other, and the file that they fill.

    Attributes:
        new: The runs of this command.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.started = options, time.perf_counter()
        self.file: Path = options.out / RESULTS
        self.runs = stored_runs(self.file)
        self.new: list[Run] = []
        self._shapes: Shapes | None = None
        self._end = self.started

    def report(self, line: str) -> None:
        print(f"[{time.perf_counter() - self.started:5.0f} s] {line}", flush=True)

    def left(self) -> float:
        """Seconds until the last timed call of this section may begin."""
        return self._end - time.perf_counter()

    def section(self, name: str) -> None:
        """Run a section within its share of the time that is left."""
        now, end = time.perf_counter(), self.started + 60 * self.options.minutes
        self._end = end if name == self.options.sections[-1] else now + SHARE * (end - now)
        if name == "shapes":
            self._time_shapes()
        elif name == "vision":
            self._time_towers()
        elif name == "policy_gpu":
            self._time_policy(self.options.device, None, "GPU")
        else:
            threads = self.options.threads
            with on_cores(threads):
                self._time_policy("cpu", threads, f"{threads} cores")

    def _begin(self, section: str, device: str, what: str) -> tuple[Run, set[str]]:
        """A new run, and the arms that earlier ones have timed."""
        run: Run = {
            "section": section, "what": what, "torch": torch.__version__, "device": name_of(device),
            "label": "", "command": sys.argv, "load": round(os.getloadavg()[0], 2), "arms": {}, "failed": {},
        }  # fmt: skip
        if self.options.again:
            self.runs = [one for one in self.runs if any(one[name] != run[name] for name in CIRCUMSTANCES)]
        self.runs.append(run)
        self.new.append(run)
        (group,) = [one for one in groups(self.runs, section) if one.last is run]
        return run, group.measured(self.options.calls)

    def _keep(self, run: Run, found: dict[str, Any]) -> None:
        """Write what is known so far."""
        run.update(found, seconds=time.perf_counter() - self.started)
        store(self.file, self.runs)
        write_atomically(self.file.with_name(TABLE), table([one for one in self.runs if one["arms"]]))

    def _model(self) -> Shapes:
        """The model of random weights; made once."""
        if self._shapes is None:
            options = self.options
            self._shapes = Shapes(torch.device(options.device), options.size, left=self.left, report=self.report)
            self.report(f"{options.size} model of random weights on {name_of(options.device)}")
        return self._shapes

    def _time_shapes(self) -> None:
        run, known = self._begin(SHAPES, self.options.device, f"{self.options.size} shapes")
        self._model().measure(
            known, warmup=self.options.warmup, calls=self.options.calls, write=partial(self._keep, run)
        )

    def _time_towers(self) -> None:
        run, known = self._begin(TOWERS, self.options.device, f"vision towers of {self.options.size} shapes")
        base = self._model().base_of("device")
        pixels = base.on_device(base.prepare_live([self._model().race.observations[0]]))["pixel_values"]
        assert pixels is not None
        measure_vision(
            base.model, pixels, known, warmup=self.options.warmup, calls=self.options.calls, report=self.report,
            left=self.left, write=partial(self._keep, run),
        )  # fmt: skip

    def _time_policy(self, device: str, threads: int | None, where: str) -> None:
        options = self.options
        source = None if options.text_source is None else str(options.text_source)
        run, known = self._begin(POLICY, device, f"policy {options.policy.resolve().name} on {where}")
        Policies(
            options.policy, options.decodings, recorded_episodes(options.episodes), device=device, threads=threads,
            text_source=source, left=self.left, report=self.report,
        ).measure(known, warmup=options.warmup, calls=options.calls, write=partial(self._keep, run))  # fmt: skip


def name_of(device: str) -> str:
    """What a device is called."""
    where = torch.device(device)
    return torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU"


def arguments() -> argparse.Namespace:
    parser = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=new_folder, default=FOLDER, metavar="DIR", help="(docs/results)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--minutes", type=held(Positive), default=60, help="end the timed calls after so many (60)")
    parser.add_argument("--device", type=held(Device), default="cuda", help="of all sections but policy_cpu (cuda)")
    parser.add_argument("--size", choices=("7b", "smoke", "tiny"), default="7b", help="of the model of random weights")
    parser.add_argument("--policy", type=old_folder, default=ROOT / "released", metavar="DIR", help="(released)")
    parser.add_argument(
        "--decodings", nargs="+", default=list(DECODINGS), metavar="NAME", help=f"({', '.join(DECODINGS)})"
    )
    parser.add_argument(
        "--text-source", type=any_path, help="files of the sentence encoder, of a policy that reads sentences"
    )
    parser.add_argument("--episodes", type=old_file, default=EPISODES, metavar="FILE", help="of record_policy.py")
    parser.add_argument("--threads", type=held(Processes), default=2, help="cores of policy_cpu (2)")
    parser.add_argument("--warmup", type=held(Natural), default=20, help="calls of each before those that count (20)")
    parser.add_argument("--calls", type=held(Count), default=200, help="timed calls of each arm (200)")
    parser.add_argument("--again", action="store_true", help="forget these sections' earlier runs here")
    parser.add_argument(
        "--budget", type=any_path, nargs="?", const=FOLDER / RESULTS, metavar="FILE",
        help="run nothing; print ceilings from the parts in FILE (docs/results/latency.json)",
    )  # fmt: skip
    return parser.parse_args()


@reported
def main() -> int:
    """Command line."""
    options = arguments()
    if options.budget is not None:
        if not (runs := stored_runs(options.budget)):
            raise LatencyError(f"{options.budget} holds no measured part; run the benchmark first, or name another")
        print(budget(runs), end="")
        return 0
    if set(options.sections) - {"policy_cpu"}:
        require_device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(options)
    for section in options.sections:
        try:
            benchmark.section(section)
        except RSDError:
            raise
        except Exception:  # noqa: BLE001  what has been measured is kept; the run fails all the same
            benchmark.new[-1]["failed"][section] = traceback.format_exc()
    print(table([run for run in benchmark.runs if run["arms"]]))
    wrong = [f"{name}\n{error}" for run in benchmark.new for name, error in run["failed"].items()]
    wrong += [
        f"{name}: outputs failed their check"
        for run in benchmark.new
        for name, arm in run["arms"].items()
        if not arm["check"]["passed"]
    ]
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
