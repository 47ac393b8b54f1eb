"""Law 8: who may import whom, and one heavy dependency in one room."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A room may import the rooms listed for it, and itself. "rsd" alone is the package's version.
ALLOWED = {
    "types": set(),
    "runs": set(),
    "jpeg": set(),
    "images": set(),
    "normalization": set(),
    "checkpoint": set(),
    "tokenizer": {"types", "checkpoint"},
    "models": {"types", "jpeg", "images", "normalization", "checkpoint", "tokenizer"},
    "decoding": {"types"},
    "policy": {"types", "jpeg", "normalization", "tokenizer", "models", "decoding"},
    "data": {"types", "jpeg", "normalization"},
    "workers": set(),
    "envs": {"types", "workers"},
    "evaluation": {"types", "runs", "workers"},
    "comparison": {"types", "runs", "evaluation"},
    "training": {"types", "runs", "images", "normalization", "checkpoint", "tokenizer", "models", "decoding"},
    "serving": {"types", "evaluation"},
    "entry_point": {"runs"},
    "pipeline": {"runs"},
}
HEAVY = {
    "libero": ["envs"],
    "robosuite": ["envs"],
    "mujoco": ["envs"],
    "transformers": ["models/openvla"],
    "peft": ["models/openvla/lora.py"],
    "pytorch_lightning": ["training", "data/datamodules.py", "data/hidden_states.py"],
    "hydra": ["entry_point.py", "evaluation/sweep.py"],
    "websockets": ["serving/server.py"],
    "msgpack": ["serving/server.py"],
    "wandb": ["training/loggers.py"],
    "tensorflow_datasets": ["data"],
    "tensorflow": [],
    "timm": [],
    "torchvision": [],
}


def modules():
    for path in sorted((ROOT / "rsd").rglob("*.py")):
        yield path.relative_to(ROOT / "rsd"), ast.parse(path.read_text())


def imported(tree: ast.AST):
    """Dotted names of all imports, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_rooms_import_only_what_they_may():
    wrong = []
    for path, tree in modules():
        room = path.parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in ALLOWED, f"rsd/{room} is not in the picture of the rooms"
        for name in imported(tree):
            parts = name.split(".")
            if parts[0] == "rsd" and len(parts) > 1 and parts[1] != room and parts[1] not in ALLOWED[room]:
                wrong.append(f"rsd/{path} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_heavy_dependencies_stay_in_their_rooms():
    wrong = []
    for path, tree in modules():
        for name in imported(tree):
            rooms = HEAVY.get(name.split(".")[0])
            if rooms is not None and not any(str(path).startswith(room) for room in rooms):
                wrong.append(f"rsd/{path} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_runs_at_import():
    """Module level holds definitions, constants and imports; calls only where they build a constant."""
    wrong = []
    for path, tree in modules():
        for node in tree.body:
            if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
                wrong.append(f"rsd/{path}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_entry_points_define_nothing_but_main():
    for name in ("train.py", "eval.py"):
        tree = ast.parse((ROOT / name).read_text())
        kinds = ast.FunctionDef | ast.ClassDef | ast.Lambda
        assert [getattr(node, "name", "lambda") for node in ast.walk(tree) if isinstance(node, kinds)] == ["main"], name
