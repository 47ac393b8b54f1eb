"""A full fine-tuning step of a 7B language model's shape under FSDP2: memory and time beside the floor.

torchrun --standalone --nproc_per_node=2 scripts/benchmark_fsdp.py            # two GPUs
torchrun --standalone --nproc_per_node=2 scripts/benchmark_fsdp.py --tiny     # two CPU processes, no figure of worth
Random weights: the shape counts. The vision towers (0.7B of OpenVLA's 7.5B) are left out. The last line is a record.
"""

import argparse
import json
import os
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from rsd.options import Options, held
from rsd.settings import Count

PEAK_FLOPS = 989e12  # bf16 without sparsity, of an H100 or H200 SXM


def sharded_model(tiny: bool, device: torch.device) -> LlamaForCausalLM:
    """Built without memory, sharded, and only then filled: no process ever holds the whole model."""
    shape: dict[str, Any] = {"vocab_size": 32064}  # the rest is Llama-2 7B by default
    if tiny:
        shape = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128}
        shape |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(use_cache=False, **shape)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    apply_activation_checkpointing(model, check_fn=lambda part: isinstance(part, LlamaDecoderLayer))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    model.to_empty(device=device)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)  # its frequencies are no weights
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0) if "norm" in name else weight.normal_(std=0.02)
    return model


def main() -> None:
    parser = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--batch", type=held(Count), default=8, help="sequences a process and step")
    parser.add_argument("--length", type=held(Count), default=288, help="tokens a sequence: 256 patches and a prompt")
    parser.add_argument("--steps", type=held(Count), default=10, help="steps timed, after 3 that are not")
    args = parser.parse_args()
    rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu") if args.tiny else torch.device("cuda", rank)
    if not args.tiny:
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if args.tiny else "nccl")
    torch.manual_seed(rank)
    model = sharded_model(args.tiny, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    ids = torch.randint(0, model.config.vocab_size, (args.batch, args.length), device=device)  # (batch, length)
    seconds = []
    for _ in range(3 + args.steps):
        begun = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()  # waits for the loss only
        if not args.tiny:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    step = sorted(seconds[3:])[args.steps // 2]
    weights = sum(weight.numel() for weight in model.parameters())  # the whole model's, not the shard's
    flops = 6 * weights * args.batch * args.length  # a process; the recomputed forward pass is not counted, as in MFU
    record = {"processes": dist.get_world_size(), "weights": weights, "batch": args.batch, "length": args.length}
    record |= {"step_s": step, "loss": value, "state_floor_gb": 16 * weights / dist.get_world_size() / 1e9}
    if not args.tiny:
        record |= {"device": torch.cuda.get_device_name(), "peak_gb": torch.cuda.max_memory_allocated() / 1e9}
        record |= {"floor_s": flops * 8 / 6 / PEAK_FLOPS, "mfu": flops / step / PEAK_FLOPS}
    if rank == 0:
        print(json.dumps(record))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
