"""Law 8: who may import whom, and one heavy dependency in one room."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A room may import the rooms listed for it, the leaves, and itself. "rsd" alone is the package's version.
LEAVES = {
    "errors",
    "files",
    "differences",
    "record",
    "schema",
    "settings",
    "options",
}  # they do not know what this is about
ALLOWED = {
    "errors": set(),
    "files": set(),
    "differences": set(),
    "record": set(),
    "schema": set(),
    "settings": set(),
    "options": set(),
    # the vocabulary: what numbers mean, the account, points, files; the records and protocols that travel
    "space": set(),
    "work": set(),
    "points": set(),
    "jpeg": set(),
    "images": set(),
    "finding": set(),
    "protocols": set(),
    "checkpoint": set(),
    "types": {"space", "work"},
    "clock": set(),
    "queue": {"types", "work", "clock"},
    # types, space, work, checkpoint ← tokenizer ← stages ← decoding ← policy, and models → policy
    "tokenizer": {"types", "space", "checkpoint"},
    "stages": {"types", "work", "points", "checkpoint", "tokenizer"},
    "decoding": {"types", "work", "stages"},
    "models": {"types", "space", "work", "points", "jpeg", "images", "finding", "checkpoint"},
    "policy": {
        "types", "space", "work", "points", "finding", "checkpoint", "clock", "queue", "tokenizer", "stages",
        "decoding", "models",
    },
    # data and training
    "processes": set(),
    "progress": set(),
    "requeue": set(),
    "interrupts": {"requeue"},
    "data": {"types", "space", "points", "jpeg", "finding", "processes", "progress", "requeue"},
    "training": {
        "types", "space", "points", "images", "processes", "progress", "requeue", "checkpoint", "tokenizer", "stages",
        "decoding", "models", "runs",
    },
    # simulators and evaluation are blind to what they run and measure: they see a policy through a queue
    "silence": set(),
    "workers": {"silence"},
    "pool": {"workers"},
    "envs": {"types", "finding", "silence"},
    "demos": {"types", "envs", "clock", "queue", "silence", "workers", "pool"},
    "locks": set(),
    "provenance": set(),
    "runs": {"locks", "provenance"},
    "inputs": {"checkpoint", "data", "processes"},
    "evaluation": {
        "types", "space", "protocols", "work", "clock", "queue", "runs", "silence", "workers", "pool", "progress",
        "interrupts",
    },
    # looks into a policy on frames of a data set
    "diagnosis": {"types", "space", "finding", "data", "models", "stages", "policy", "evaluation"},
    "comparison": {"types", "work", "runs", "evaluation"},
    # tokenizers of all kinds beside each other, on chunks alone
    "arena": {"space", "tokenizer", "evaluation", "pool"},
    "serving": {"types", "clock", "queue", "evaluation", "space"},
    # what leaves this machine, and what is said about it
    "hub": set(),
    "cards": {"checkpoint", "data", "models", "policy", "space"},
    "selfcheck": {"types", "tokenizer", "stages", "decoding", "models", "policy"},
    # what the entry points have in common
    "commands": {
        "types", "space", "points", "locks", "runs", "inputs", "processes", "silence", "checkpoint", "clock", "stages",
        "decoding", "models", "policy", "progress", "requeue", "interrupts", "evaluation", "comparison", "data",
    },
}  # fmt: skip
RUNS_A_POLICY = ("tokenizer", "stages", "decoding", "models", "policy")
NOT_TO_RUN_A_POLICY = {"hydra", "omegaconf", "pytorch_lightning", "lightning", "wandb", "matplotlib"}
HEAVY = {
    "libero": ["envs"],
    "robosuite": ["envs"],
    "mujoco": ["envs"],
    "transformers": ["models/openvla"],
    "huggingface_hub": ["models/openvla", "hub.py"],
    "peft": ["models/openvla/lora.py"],
    "tokenizers": ["models/openvla", "arena/byte_pairs.py"],
    "vector_quantize_pytorch": ["arena/residual_vq.py"],
    "pytorch_lightning": ["training", "data/datamodules.py", "data/hidden_states.py", "data/mixture_module.py"],
    "hydra": ["commands"],
    "submitit": ["commands/cluster.py", "commands/forecast.py"],
    "hydra_plugins": ["commands/cluster.py"],
    "optuna": ["commands/search.py"],
    "matplotlib": ["training/plots.py"],
    "websockets": ["serving/server.py"],
    "zmq": ["envs/edgeml.py"],
    "lz4": ["envs/edgeml.py"],
    "msgpack": ["serving/encoding.py", "serving/server.py"],
    "fastapi": ["serving/rest.py"],
    "starlette": ["serving/rest.py"],
    "uvicorn": ["serving/rest.py"],
    "wandb": ["training/wandb_logger.py"],
    "trackio": ["training/trackio_logger.py"],
    "tensorflow_datasets": ["data"],
    "h5py": ["data/libero_hdf5.py", "demos/starts.py"],
    "pyarrow": ["data/lerobot_tables.py", "commands/episodes.py"],
    "av": ["data/lerobot_videos.py"],
    "tensorflow": [],
    "timm": [],
    "torchvision": [],
}


def trees():
    for path in sorted((ROOT / "rsd").rglob("*.py")):
        yield path.relative_to(ROOT / "rsd"), ast.parse(path.read_text())


@functools.cache
def modules() -> dict[Path, list[str]]:
    """Path of each module → the dotted names that it imports."""
    return {path: list(imported(tree)) for path, tree in trees()}


def imported(tree: ast.AST):
    """Dotted names of all imports, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_rooms_import_only_what_they_may():
    wrong = []
    for path, names in modules().items():
        room = path.parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in ALLOWED, f"rsd/{room} is not in the picture of the rooms"
        for name in names:
            parts = name.split(".")
            if parts[0] == "rsd" and len(parts) > 1 and parts[1] != room and parts[1] not in ALLOWED[room] | LEAVES:
                wrong.append(f"rsd/{path} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_picture_of_the_rooms_is_one_of_rooms_that_are_there():
    rooms = {path.parts[0].removesuffix(".py") for path in modules()} - {"__init__"}
    assert rooms == set(ALLOWED)
    for room, others in ALLOWED.items():
        assert not any(room in ALLOWED[other] for other in others), f"{room} and one of {others} import each other"


def test_running_a_policy_needs_no_framework_of_training_or_configuration():
    """Nor does anything that those rooms import."""
    found_in = {
        ".".join(("rsd", *path.with_suffix("").parts)).removesuffix(".__init__"): names
        for path, names in modules().items()
    }
    waiting = [name for name in found_in if name.split(".")[1:2] and name.split(".")[1] in RUNS_A_POLICY]
    reached = set()
    while waiting:
        name = waiting.pop()
        if name in found_in and name not in reached:
            reached.add(name)
            waiting += [one for one in found_in[name] if one.startswith("rsd.")]
            found = {one.split(".")[0] for one in found_in[name]} & NOT_TO_RUN_A_POLICY
            assert not found, f"{name} imports {sorted(found)}"
    assert {"rsd.policy.policy", "rsd.models.openvla.passes", "rsd.queue", "rsd.space"} <= reached


def test_heavy_dependencies_stay_in_their_rooms():
    wrong = []
    for path, names in modules().items():
        for name in names:
            rooms = HEAVY.get(name.split(".")[0])
            if rooms is not None and not any(str(path).startswith(room) for room in rooms):
                wrong.append(f"rsd/{path} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_runs_at_import():
    """Module level holds definitions, constants and imports; calls only where they build a constant."""
    wrong = []
    for path, tree in trees():
        for node in tree.body:
            if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
                wrong.append(f"rsd/{path}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_entry_points_define_no_function_but_main():
    """What they would decide has a name in the room where it belongs."""
    for name in ("train.py", "eval.py"):
        functions = [
            node.name
            for node in ast.walk(ast.parse((ROOT / name).read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
        assert functions == ["main"], name
