"""A golden checkpoint to load, to change and to damage, for the tests of loading."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, processors

from rsd.models.openvla import Robot, load_base
from rsd.models.openvla.text import WordText
from tests.models.openvla_tiny import SHORT

ROOT = Path(__file__).parents[2]
VIEWS = ("image", "wrist_image")
LIBERO = Robot(name="libero", chunk_length=8, action_dim=7, proprio_dim=8, bounds="quantiles")
WORDS = WordText.from_instructions([SHORT])


def load(directory: Path, **changes):
    """Load with arguments that fit both layouts; the statistics of a golden set may hold several data sets."""
    statistics = directory / "dataset_statistics.json"
    key = next(iter(json.loads(statistics.read_text())), None) if statistics.exists() else None
    arguments = {"unnorm_key": key, "views": VIEWS, "use_proprio": True, "chunk_length": 8, "text": WORDS}
    return load_base(checkpoint=directory, **{**arguments, **changes})


def edit_json(path: Path, change) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def llama_tokenizer(path: Path) -> None:
    """A tokenizer of Llama's kind that knows the pieces of one prompt under Llama's own ids (SPEC §5)."""
    pieces = {
        512: "▁In", 29901: ":", 1724: "▁What", 3158: "▁action", 881: "▁should", 278: "▁the", 19964: "▁robot",
        2125: "▁take", 304: "▁to", 5839: "▁pick", 701: "▁up", 4628: "▁black", 12580: "▁bow", 29880: "l",
        15284: "▁plate", 29973: "?", 3744: "Out", 29871: "▁", 0: "<unk>", 1: "<s>", 2: "</s>",
    }  # fmt: skip
    pieces |= {3 + byte: f"<0x{byte:02X}>" for byte in range(256)}
    vocabulary = [(pieces.get(index, f"<unused{index}>"), 0.0 if index in pieces else -100.0) for index in range(32000)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(path / "tokenizer.json"))
