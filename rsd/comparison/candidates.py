"""What is compared: run folders, several of which make one candidate when they differ in nothing but their seed.

A difference between two success rates means something only when the episodes are the same: the same tasks from the
same init states, under the same protocol, in the same simulator. `check_comparable` refuses everything else by name;
versions of packages can be let through by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from rsd.differences import differences, told
from rsd.errors import RSDError
from rsd.evaluation.old_runs import SCORE_VERSIONS, read_plan
from rsd.evaluation.plan import MAY_DIFFER, Plan
from rsd.evaluation.results import RESULTS_FILE, ResultsError, read_episodes
from rsd.runs import PROVENANCE_FILE, read_provenance
from rsd.types import EpisodeResult

EpisodeKey = tuple[str, int, int, int]  # suite, task_id, init_state_id, the run's seed or ANY_SEED
ANY_SEED = -1


class ComparisonError(RSDError, ValueError):
    """Runs that cannot be compared."""


@dataclass(frozen=True)
class Run:
    """A run folder that was read. plan and provenance are None where nothing tells them."""

    path: Path
    results: list[EpisodeResult]
    plan: Plan | None
    provenance: dict[str, Any] | None

    @property
    def seed(self) -> int | None:
        return None if self.plan is None else self.plan.seed

    @property
    def num_missing(self) -> int | None:
        """Planned episodes without a result; None when nobody knows the plan."""
        return None if self.plan is None else len(self.plan.episodes) - len(self.results)

    @property
    def score_versions(self) -> tuple[str, ...]:
        """Packages whose version changes scores."""
        return SCORE_VERSIONS if self.plan is None else self.plan.score_versions

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [] if self.provenance is None else self.provenance["starts"]

    def versions(self, package: str) -> list[str]:
        """All versions of a package that this run's episodes were made with; empty when none was recorded."""
        found = {result.versions[package] for result in self.results if package in result.versions}
        for start in self.starts:
            found |= {
                part[package] for part in (start.get("packages", {}), start.get("simulator") or {}) if package in part
            }
        return sorted(found)


@dataclass(frozen=True)
class Candidate:
    """One run, or several that differ in their seed or in their suite only; `letter` is its name in tables."""

    letter: str
    runs: list[Run]

    @property
    def name(self) -> str:
        first, more = self.runs[0].path.resolve().name, len(self.runs) - 1
        if len(self.suites) > 1:
            return f"{first} of {len(self.suites)} suites"
        return first if not more else f"{first} and {more} more seed{'s' if more > 1 else ''}"

    @property
    def suites(self) -> list[str]:
        return sorted({run.results[0].suite for run in self.runs})

    def of(self, suite: str) -> Candidate:
        """Its runs of one suite alone."""
        return Candidate(self.letter, [run for run in self.runs if run.results[0].suite == suite])

    @property
    def results(self) -> list[EpisodeResult]:
        return [result for run in self.runs for result in run.results]

    def versions(self, package: str) -> list[str]:
        """All versions of a package that its runs were made with; empty when none was recorded."""
        return sorted({version for run in self.runs for version in run.versions(package)})

    def episodes(self, by_seed: bool) -> dict[EpisodeKey, EpisodeResult]:
        """Its episodes by what pairs them; without `by_seed` there must be one run."""
        return {
            (result.suite, result.task_id, result.init_state_id, seed): result
            for run in self.runs
            for seed in [run.seed if by_seed and run.seed is not None else ANY_SEED]
            for result in run.results
        }


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        ResultsError: it has no results.jsonl, no episode, or a damaged line.
        PlanError: its plan cannot be read.
    """
    if not (path / RESULTS_FILE).is_file():
        raise ResultsError(f"{path / RESULTS_FILE} does not exist; give the folders of evaluations")
    results = read_episodes(path / RESULTS_FILE)
    if not results:
        raise ResultsError(f"{path / RESULTS_FILE} holds no episode yet")
    return Run(
        path, results, read_plan(path, results), cast("dict[str, Any] | None", read_provenance(path / PROVENANCE_FILE))
    )


def group_by_seed(runs: Sequence[Run]) -> list[Candidate]:
    """Runs that differ in their seed only become one candidate; if that left a single one, each run is one of its own.

    Runs without a plan, and repetitions with the same seed, stay apart.

    Raises:
        ComparisonError: fewer than two runs, or one given twice.
    """
    if len(runs) < 2:
        raise ComparisonError(f"got {len(runs)} run, expected two or more to compare")
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise ComparisonError("a run folder is given twice; a run equals itself")
    groups: list[list[Run]] = []
    for run in runs:
        same = [group for group in groups if all(_only_seed_differs(other, run) for other in group)]
        if same:
            same[0].append(run)
        else:
            groups.append([run])
    if len(groups) == 1:
        groups = [[run] for run in runs]
    return [Candidate(_letter(number), group) for number, group in enumerate(groups)]


def group_by_name(runs: Sequence[Run]) -> list[Candidate]:
    """Runs in folders of the same name, each of another suite, become one candidate: "l1" of three suites.

    Raises:
        ComparisonError: fewer than two names; two runs of a name are of the same suite or of other decodings; or names
            are not of the same suites.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.path.resolve().name, []).append(run)
    if len(groups) < 2:
        raise ComparisonError(
            f"the folders have {len(groups)} names, {', '.join(groups)}; expected two or more to compare"
        )
    found = [Candidate(_letter(number), group) for number, group in enumerate(groups.values())]
    for name, candidate in zip(groups, found, strict=True):
        first, *others = candidate.runs
        if len(candidate.suites) < len(candidate.runs):
            raise ComparisonError(
                f"of the {len(candidate.runs)} runs named {name} two are of one suite; give one of them"
            )
        if candidate.suites != found[0].suites:
            raise ComparisonError(
                f"{name} is of {', '.join(candidate.suites)}, {next(iter(groups))} of {', '.join(found[0].suites)}; "
                "expected the same suites of all"
            )
        for other in others:
            if different := differences(_acting(first), _acting(other)):
                raise ComparisonError(f"{first.path} and {other.path} are not of the same decoding: {told(different)}")
    return found


def check_comparable(first: Candidate, second: Candidate, allow: Collection[str] = ()) -> list[str]:
    """Refuse to compare what was measured differently.

    Args:
        allow: Packages whose versions may differ, of those that change scores.

    Returns:
        A line for each difference that was allowed.

    Raises:
        ComparisonError: another suite, protocol, environment, or version, or no episode in common; it says which. Or
            a package is allowed that changes no score.
    """
    pair = f"{first.letter} ({first.name}) and {second.letter} ({second.name})"
    _same(pair, "suite", _values(first, attrgetter("suite")), _values(second, attrgetter("suite")))
    _same(pair, "protocol", _values(first, attrgetter("protocol")), _values(second, attrgetter("protocol")))
    left, right = first.runs[0].plan, second.runs[0].plan
    if left is not None and right is not None:
        shared = {task.task_id for task in left.tasks} & {task.task_id for task in right.tasks}
        different = differences(_conditions(left, shared), _conditions(right, shared))
        if different:
            raise ComparisonError(
                f"{pair} cannot be compared: their environments differ in {'; '.join(map(str, different))}"
            )
    allowed = []
    packages = dict.fromkeys(package for c in (first, second) for run in c.runs for package in run.score_versions)
    if unknown := sorted(set(allow) - set(packages)):
        raise ComparisonError(f"versions of {unknown} are allowed to differ, but change no score; known: {[*packages]}")
    for package in packages:
        here, there = first.versions(package), second.versions(package)
        if package in allow and here != there and here and there:
            allowed.append(f"{pair}: {package} {', '.join(here)} and {', '.join(there)}, allowed by name")
        elif package not in allow:
            hint = f"; scores are not comparable, --allow-version {package} compares them all the same"
            _same(pair, f"{package} version", here, there, hint)
    if not shared_episodes(first, second):
        raise ComparisonError(
            f"{pair} share no episode: {_extent(first)}; {_extent(second)}. "
            "Evaluate both with the same tasks, num_trials and, for several seeds, seed"
        )
    return allowed


def shared_episodes(first: Candidate, second: Candidate) -> list[tuple[EpisodeKey, EpisodeResult, EpisodeResult]]:
    """Pairs of the same episode, crashed ones included, in the order of task, init state and seed.

    Two single runs are paired whatever their seeds; as soon as one side has several, seeds have to agree too.
    """
    by_seed = len(first.runs) > 1 or len(second.runs) > 1
    left, right = first.episodes(by_seed), second.episodes(by_seed)
    return [(key, left[key], right[key]) for key in sorted(left.keys() & right.keys())]


def _acting(run: Run) -> dict[str, Any]:
    """What has to be the same on all suites for runs to be of one candidate."""
    if run.plan is None:
        return {}
    names = ("decoding", "target", "draft", "options", "num_open_loop_steps")
    return {name: getattr(run.plan.policy, name) for name in names} | {"ablation": run.plan.ablation}


def _only_seed_differs(first: Run, second: Run) -> bool:
    if first.plan is None or second.plan is None or first.seed == second.seed:
        return False
    return not differences(first.plan.settings(), second.plan.settings(), (*MAY_DIFFER, "seed"))


def _conditions(plan: Plan, task_ids: Collection[int]) -> dict[str, Any]:
    """Under which episodes of these tasks are run; the names of suite and protocol are compared apart."""
    tasks = {
        str(task.task_id): {"max_steps": task.max_steps, "control_hz": task.control_hz, "limits": task.limits}
        for task in plan.tasks
        if task.task_id in task_ids
    }
    return {"protocol": plan.protocol.values, "tasks": tasks}


def _values(candidate: Candidate, value: Callable[[EpisodeResult], str]) -> list[str]:
    return sorted({value(result) for result in candidate.results} - {""})


def _same(pair: str, what: str, first: list[str], second: list[str], hint: str = "") -> None:
    """See that both sides have the same value; a side that recorded none is let through."""
    if len({*first, *second}) > 1:
        raise ComparisonError(f"{pair} cannot be compared: {what} {', '.join(first)} and {', '.join(second)}{hint}")


def _extent(candidate: Candidate) -> str:
    tasks = sorted({result.task_id for result in candidate.results})
    states = [result.init_state_id for result in candidate.results]
    seeds = [run.seed for run in candidate.runs]
    return f"{candidate.letter} has tasks {tasks}, init states {min(states)}..{max(states)}, seeds {seeds}"


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"R{number + 1}"
