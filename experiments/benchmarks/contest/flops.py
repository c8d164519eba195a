"""How much work a step is, and how fast a core multiplies matrices."""

from __future__ import annotations

import statistics
import time

import torch

from contest.workload import Workload

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def useful_flops(workload: Workload) -> float:
    """Of a mean counted step."""
    sizes, counts = workload.sizes, workload.counts()
    layer = 4 * sizes.width**2 + 3 * sizes.width * sizes.inner
    images = workload.batch * workload.images
    # A frozen weight has no gradient of its own; adapters are left out.
    passes = 3 if workload.stage == "instruct" else 2
    attention = 2 * sizes.width * sizes.layers * counts["squares"]
    language = 2 * layer * sizes.layers * counts["tokens"] + attention
    head = 2 * sizes.width * sizes.vocabulary * counts["supervised"]
    connector = 2 * (sizes.tower_width + sizes.width) * sizes.width * sizes.slots * images
    vectors = sizes.slots + 1
    block = 2 * 12 * sizes.tower_width**2 * vectors + 4 * sizes.tower_width * vectors**2
    return passes * (language + head) + 3 * connector + (sizes.tower_layers - 1) * block * images


def matmul_flops_per_cpu_second(precision: str, threads: int) -> float:
    """Of products of 1024 x 1024 matrices on the CPU."""
    torch.set_num_threads(threads)
    a, b = (torch.randn(1024, 1024).to(PRECISIONS[precision]) for _ in range(2))
    found = []
    for _ in range(12):
        begin = time.process_time()
        a @ b
        found.append(time.process_time() - begin)
    return 2 * 1024**3 / statistics.median(found[2:])
