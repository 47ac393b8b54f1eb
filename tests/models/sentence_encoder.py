"""A small random sentence encoder in the layout of sentence-transformers, and a small model that reads sentences."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import safetensors.torch
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from rsd.models.openvla import OpenVLABase
from rsd.models.openvla.model import OpenVLAOFT, SentenceShape
from rsd.models.openvla.sentences import SentenceEncoder
from rsd.models.openvla.text import SentenceText
from tests.models.openvla_tiny import LONG, SHORT, build_base

WIDTH = 12
TOKENS = 4
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SIGNS = "abcdefghijklmnopqrstuvwxyz0123456789"
LETTERS = [*SIGNS, *(f"##{sign}" for sign in SIGNS)]


def write_encoder(folder: Path, *, seed: int = 0, whole_words: Iterable[str] = ()) -> Path:
    """Files of an encoder that reads any letters and digits; returns the folder."""
    folder.mkdir(parents=True)
    known = [*SPECIAL, *LETTERS, *whole_words]
    ids = {word: number for number, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    tokenizer.enable_padding(length=40)  # as the published file has it
    tokenizer.save(str(folder / "tokenizer.json"))
    config = BertConfig(
        vocab_size=len(known), hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=256,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config)
        for parameter in model.parameters():  # BERT's own 0.02 would make all sentences alike
            torch.nn.init.normal_(parameter, std=0.5)
    safetensors.torch.save_file(dict(model.state_dict()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 200, "do_lower_case": False}))
    return folder


def reading(encoder: SentenceEncoder, seed: int = 0) -> OpenVLABase:
    """`build_base` with sentences in place of words."""
    base, text = build_base(), SentenceText.of(encoder, TOKENS, [SHORT, LONG])
    own = base.model.architecture
    architecture = dataclasses.replace(
        own, llm={**own.llm, "vocab_size": text.vocab_size}, sentence=SentenceShape(encoder.width, TOKENS)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = OpenVLAOFT(architecture).eval()
    return OpenVLABase(
        model=model, processor=base.processor, text=text, space=base.space, views=base.views, chunk_length=8,
        center_crop=True, weights_sha256=lambda: "sentences",
    )  # fmt: skip
