"""What the parallel plan costs on a GPU: an `instruct` step of a LLaVA-1.5 of 7B random parameters, beside the oracle.

    mllm bench plan_on_gpu                  one GPU of 141 GB, at most 5 minutes
    mllm bench plan_on_gpu --tiny           the same on a CPU, in seconds

Printed as JSON, in bytes, seconds and FLOP/s:

    oracle, peak      what `mllm memory` tells of a step, and what the allocator saw
    mfu               useful FLOPs (recomputation is not) against 989 TFLOP/s, the dense bf16 peak of H100 and H200
                      (NVIDIA's data sheets)
    mfu_of_matmul     the same against the fastest product of 8192 x 8192 matrices of this GPU
    checkpoint        bytes of trained tensors that were written and read back, equal to the bit
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.connectors.projector import MlpConnector
from lightning_mllm.contracts import IGNORE, Batch
from lightning_mllm.language.causal import CausalLM
from lightning_mllm.processing.full_rows import full_batch
from lightning_mllm.training.checkpoints import SavedTensors, ShardedCheckpointIO
from lightning_mllm.training.initialise import materialise
from lightning_mllm.training.memory import step_memory
from lightning_mllm.training.parallelize import ParallelPlan, sharding_mesh
from lightning_mllm.training.sharding import to_local
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.tower import OpenClipTower

PEAK = 989e12
"""FLOP/s of bf16 products, dense: H100 SXM and H200."""
LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""arXiv 2302.13971, table 2."""


def llava(tiny: bool) -> LLaVA:
    stage = StageSettings(name="instruct")
    if tiny:
        return LLaVA.tiny(stage=stage, max_length=256)
    vision = OpenClipTower(model="ViT-L-14-336-quickgelu", weights=None)
    language = CausalLM(config=LLAMA_7B)
    return LLaVA(vision=vision, connector=MlpConnector(), language=language, max_length=2048, stage=stage)


def useful_flops(module: LLaVA, batch: Batch) -> float:
    """Of a forward and a backward pass: two for each weight and token forwards, four backwards; attention is causal.

    The net is built, and not sharded yet: FSDP2 changes the classes by which blocks are found.
    """

    def weights(blocks: list[nn.Module]) -> int:
        return sum(p.numel() for block in blocks for p in block.parameters() if p.ndim > 1)

    specs, own = module.components, {name: module.net.get_submodule(name) for name in module.components}
    layers, tower = specs["language"].blocks(own["language"]), specs["vision"].blocks(own["vision"])
    tokens, patches = batch.tokens.numel(), batch.num_images * module.processor.vectors_per_image
    head = own["language"].get_parameter("lm_head.weight")
    supervised = int((batch.labels[:, 1:] != IGNORE).sum())
    attention = 2 * batch.tokens.shape[1] * head.shape[1] * len(layers) * tokens
    forward = 2 * weights(layers) * tokens + attention + 2 * head.numel() * supervised
    forward += 2 * weights([own["connector"]]) * patches
    return 3 * forward + 2 * weights(tower) * patches


def seconds(work: Callable[[], object], device: torch.device, times: int) -> float:
    """The median of `times` runs, each waited for."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def matmul_peak(device: torch.device, side: int) -> float:
    """FLOP/s of a product of two square matrices in bf16."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds(lambda: a @ b, device, 3)
    return 2 * side**3 / seconds(lambda: a @ b, device, 20)


def checkpoint(tensors: dict[str, Tensor], folder: Path) -> dict[str, float]:
    """Writes and reads them back."""
    io, path = ShardedCheckpointIO(), folder / "step-1"
    start = time.perf_counter()
    io.save(path, tensors, {})
    io.wait()
    written = time.perf_counter() - start
    saved = SavedTensors(path)
    targets = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    start = time.perf_counter()
    saved.read_into(targets)
    read = time.perf_counter() - start
    assert all(torch.equal(to_local(targets[name]), to_local(tensor)) for name, tensor in tensors.items())
    io.teardown()
    return {"bytes": sum(tensor.nbytes for tensor in tensors.values()), "write_seconds": written, "read_seconds": read}


def main(arguments: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a net of some thousand parameters, on the CPU")
    parser.add_argument("--rows", type=int, default=4, help="of 2,048 tokens (4)")
    parser.add_argument("--steps", type=int, default=5, help="that are timed (5)")
    parser.add_argument("--checkpointing", default="full", help="of the language model (full)")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoint-gb", type=float, default=8.0, help="of tensors that are written (8)")
    given = parser.parse_args(arguments)

    plan = ParallelPlan(precision="bf16", language_checkpointing=given.checkpointing, compile=given.compile)
    module = llava(given.tiny)
    module.parallel = plan
    batch = full_batch(module.processor, given.rows)
    # Before the GPU is touched: the oracle forks.
    plain = llava(given.tiny)
    plain.build(None)
    flops = useful_flops(plain, batch)
    oracle, _ = step_memory(module, batch, ranks=1, sharded=True, accumulates=False)

    device = torch.device("cpu" if given.tiny else "cuda")
    backend = "gloo" if given.tiny else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        module = llava(given.tiny)
        module.parallel = plan
        found = measure(module, batch.to(device), device, flops, given)
    finally:
        dist.destroy_process_group()
    found = {"oracle": oracle.total, **found}
    print(json.dumps(found, indent=1))
    return found


def measure(
    module: LLaVA, batch: Batch, device: torch.device, flops: float, given: argparse.Namespace
) -> dict[str, object]:
    module.build(sharding_mesh(device.type, 1, 1, None))
    materialise(module, device)
    with torch.no_grad():
        for parameter in module.parameters():
            to_local(parameter).normal_(std=0.02) if parameter.ndim > 1 else to_local(parameter).fill_(1.0)
    module.to(device).train()
    trained = {name: p for name, p in module.net.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        module(batch).loss.backward()
        optimizer.step()

    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    duration = seconds(step, device, given.steps)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    fastest = matmul_peak(device, 256 if given.tiny else 8192)
    kept: dict[str, Tensor] = {}
    for name, tensor in trained.items():
        if sum(each.nbytes for each in kept.values()) + tensor.nbytes <= given.checkpoint_gb * 1e9:
            kept[name] = tensor.detach()
    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoint(kept, Path(folder))
    tokens = int((batch.segments > 0).sum())
    return {
        "peak": peak,
        "flops": flops,
        "step_seconds": duration,
        "tokens_per_second": tokens / duration,
        "flops_per_second": flops / duration,
        "mfu": flops / duration / PEAK,
        "matmul_flops_per_second": fastest,
        "mfu_of_matmul": flops / duration / fastest,
        "checkpoint": saved,
    }


if __name__ == "__main__":
    main()
