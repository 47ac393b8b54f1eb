"""What policy.json holds. Reading holds it to these types, and its JSON schema is made of them."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from rsd.settings import Count, Finite, Share, Total


class PartEntry(TypedDict):
    """A part of a policy.

    Attributes:
        path: Its folder, relative to policy.json and inside of its folder.
        sha256: Of its checkpoint.json, which holds that of the weights, or of a published base model's files.json.
    """

    path: str
    sha256: str


class BaseEntry(TypedDict):
    """Arguments of `load_base` beside the checkpoint.

    Attributes:
        views: Names of the pictures, in their order.
        use_proprio: Whether it reads the robot's state.
        chunk_length: Control steps of an action chunk.
        center_crop: Whether pictures are cut at their edges as in training.
        unnorm_key: The statistics that actions are un-normalised with; null takes the only ones.
        dtype: Of the numbers that it computes in.
        action_head: What makes actions of its states.
        num_images: How many pictures; null takes one for each view.
        robot: Name, chunk_length and what else is said of a robot that is not LIBERO's.
        visual_tokens: Kind of the selection of picture tokens, num_tokens, and its other options.
    """

    views: list[str]
    use_proprio: bool
    chunk_length: Count
    center_crop: NotRequired[bool]
    unnorm_key: str | None
    dtype: NotRequired[str]
    action_head: NotRequired[str]
    num_images: NotRequired[Count | None]
    robot: NotRequired[dict[str, Any]]
    visual_tokens: NotRequired[dict[str, Any]]


class DecodingEntry(TypedDict):
    """A decoding; its options stand beside these entries, each under its own name.

    Attributes:
        kind: Its class in rsd.decoding.
        target: Who verifies; the head, where the policy has one, without a word.
        draft: The part that drafts; "draft" without a word.
    """

    kind: str
    target: NotRequired[Literal["head", "base"]]
    draft: NotRequired[str]


class DataEntry(TypedDict):
    """Demonstrations.

    Attributes:
        content: SHA-256 of what they hold.
    """

    name: str
    content: str


class CalibrationEntry(TypedDict):
    """What a decoding's threshold was found by, and for what it holds; see scripts/calibrate.py.

    Attributes:
        decoding: The decoding as it stood in policy.json.
        parts: Part to its hash, of those that the gate goes by.
        base: Entry "base" as it was.
        num_open_loop_steps: Actions of a chunk that were executed.
        suites: Task suites that the promise is for.
        units: "model" or "robot": in which actions distances were measured.
        data: Demonstrations whose held-out episodes were used.
        rule: How the threshold was chosen.
        tau: Largest distance from the base model's chunk that is not wrong.
        risk: What is promised: the largest expected share of an episode's chunks that are wrong, or of episodes lost.
        delta: Largest probability that the promise is not kept.
        num_episodes, num_frames: How many it was found on.
        threshold: The threshold that was found.
        coverage: Share of the chunks that it lets through.
        p: p-value of "its risk is larger".
        mean_risk: Measured share of wrong chunks, mean over episodes.
        bound: Upper end of the interval of episodes lost.
        num_failures: Episodes lost that the base model solves.
        init_states: First and last init state of the evaluations.
        runs: Names of the evaluations' folders.
        coverage_blind: Canary to the share that passes with black pictures, or a frozen camera.
        curve: Of each threshold: itself, coverage, risk, and p-value or bound.
        plot: Picture of the curve, relative to policy.json.
    """

    decoding: NotRequired[dict[str, Any]]
    parts: NotRequired[dict[str, str]]
    base: NotRequired[dict[str, Any]]
    num_open_loop_steps: NotRequired[Count]
    suites: NotRequired[list[str]]
    units: NotRequired[Literal["model", "robot"]]
    data: NotRequired[DataEntry]
    rule: NotRequired[str]
    tau: NotRequired[Finite]
    risk: NotRequired[Share]
    delta: NotRequired[Share]
    num_episodes: NotRequired[Total]
    num_frames: NotRequired[Total]
    threshold: NotRequired[Finite]
    coverage: NotRequired[Share]
    p: NotRequired[Share]
    mean_risk: NotRequired[Share]
    bound: NotRequired[Share]
    num_failures: NotRequired[Total]
    init_states: NotRequired[list[Total]]
    runs: NotRequired[list[str]]
    coverage_blind: NotRequired[dict[str, Share]]
    curve: NotRequired[list[tuple[Finite, Share, Share, Share]]]
    plot: NotRequired[str]


class PolicyRecord(TypedDict):
    """Attributes:
    schema: This layout's version.
    parts: Part to where it lies: base, tokenizer, head, draft, micro (a draft with eyes of its own), numbers (a draft
        in numbers), earlier (a draft at an earlier point), correction (of late chunks), visual_tokens.
    space: Digest of the base model's space.
    num_open_loop_steps: Actions of a chunk that are executed.
    decoding: Name of the one that is used unless another is asked for.
    decodings: Name to a decoding.
    calibrations: Name of a decoding to what its threshold was found by.
    """

    schema: Literal[1]
    parts: dict[str, PartEntry]
    base: BaseEntry
    space: str
    num_open_loop_steps: int
    decoding: str
    decodings: dict[str, DecodingEntry]
    calibrations: NotRequired[dict[str, CalibrationEntry]]
