"""Sharded checkpoints of two ranks: each writes and reads its own, and any number of ranks reads them."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, zeros

from lightning_mllm.training.callbacks import checkpoint
from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint
from lightning_mllm.training.checkpoints.writing import Writer
from lightning_mllm.training.parallelize import ParallelPlan
from lightning_mllm.training.sharding import copy_into_shard, to_local
from lightning_mllm.weights import lineage
from lightning_mllm.weights.files import TensorFiles
from tests.distributed.ranks import on_two_ranks
from tests.distributed.test_two_ranks import STRATEGIES
from tests.training.runs import fit, last, saved_tensors, settings, weights
from tests.training.test_checkpoints import Steps
from tests.training.test_restarts import StopIn, Stopped

DATA = {"steps": 4, "micro_batch": 2}


def run(folder: Path, strategy: str, *callbacks: Any, **more: Any) -> Any:
    given = {"data": DATA, "callbacks": list(callbacks), "devices": 2, **more}
    return fit(folder, strategy=STRATEGIES[strategy](), **given)


def stopped(folder: Path, strategy: str, *callbacks: Any, **more: Any) -> None:
    with pytest.raises(Stopped):
        run(folder, strategy, *callbacks, StopIn(2, "before"), **more)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_saved_by_one_process_and_read_by_two_ranks(strategy: str, tmp_path: Path) -> None:
    expected = weights(fit(tmp_path / "whole", data={"steps": 4, "micro_batch": 4}))
    with pytest.raises(Stopped):
        fit(tmp_path / "cut", data={"steps": 4, "micro_batch": 4}, callbacks=[StopIn(2, "before")])

    found, _ = on_two_ranks(lambda rank: weights(run(tmp_path / "cut", strategy, resume=True)))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_each_rank_writes_and_reads_what_it_owns(tmp_path: Path) -> None:
    """Numbers, not files: half of the weights and of both moments, give or take what cannot be halved."""

    def work(rank: int) -> None:
        stopped(tmp_path, "fsdp2")
        read, numbers = HuggingFaceStorageReader._process_read_request, []

        def counted(self: Any, file: Any, request: Any, planner: Any) -> None:
            numbers.append(request.lengths.numel())
            read(self, file, request, planner)

        HuggingFaceStorageReader._process_read_request = counted  # type: ignore[method-assign]
        module = run(tmp_path, "fsdp2", resume=True, max_steps=2)
        own = sum(to_local(tensor).numel() for tensor in module.checkpoint_tensors().values())
        buffers = sum(each.numel() for each in module.buffers())
        assert sum(numbers) == 3 * own - 2 * buffers

    on_two_ranks(work)
    files = sorted(last(tmp_path).glob("*.safetensors"))
    assert [each.name[:11] for each in files] == ["shard-00001", "shard-00002"]
    sizes = [sum(tensor.numel() for _, tensor in TensorFiles(each).items()) for each in files]
    assert sum(sizes) == sum(each.numel() for each in saved_tensors(tmp_path).values())
    assert max(sizes) < 0.55 * sum(sizes)


def test_ranks_that_hold_the_same_shards_share_the_writing(tmp_path: Path) -> None:
    """Two copies of the parameters, as of two nodes: each tensor is written once, and both read it."""
    copies: dict[str, Any] = {"parallel": ParallelPlan(shard=1)}

    def work(rank: int) -> dict[str, Tensor]:
        stopped(tmp_path / "cut", "fsdp2", **copies)
        resumed = weights(run(tmp_path / "cut", "fsdp2", resume=True, **copies))
        whole = weights(run(tmp_path / "whole", "fsdp2", **copies))
        assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
        return whole

    assert on_two_ranks(work)[0]
    first, second = ({*TensorFiles(each)} for each in sorted(last(tmp_path / "cut").glob("*.safetensors")))
    assert first and second and not first & second


def test_a_rank_reads_its_rows_of_a_pretrained_file(tmp_path: Path) -> None:
    """Pages of the file that are in memory: those of the rows that are copied, and what the kernel maps around them."""
    save_file({"w": torch.ones(4096, 2048)}, tmp_path / "model.safetensors")

    def work(rank: int) -> tuple[float, float]:
        mesh = init_device_mesh("cpu", (2,))
        target = zeros(4096, 2048, device_mesh=mesh, placements=[Shard(0)], dtype=torch.bfloat16)
        before, source = mapped_bytes(), TensorFiles(tmp_path)["w"]
        copy_into_shard(target, source)
        assert bool((to_local(target) == 1).all())
        return mapped_bytes() - before, source.nbytes

    for read, whole in on_two_ranks(work):
        assert 0.45 * whole < read < 0.75 * whole


def test_one_rank_checks_that_what_a_stage_starts_from_is_unchanged(tmp_path: Path) -> None:
    fit(tmp_path / "align", data={"steps": 1, "micro_batch": 4}, stage=settings("align"))

    def work(rank: int) -> int:
        digest, read = lineage.sha256, []

        def counted(path: Path) -> str:
            read.append(path)
            return digest(path)

        lineage.sha256 = counted
        start = settings(init_from={"align": 1.0})
        run(tmp_path / "next", "fsdp2", stage=start, runs=str(tmp_path), fast_dev_run=True)
        return len(read)

    assert on_two_ranks(work) == [1, 0]


def mapped_bytes() -> int:
    found = re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def test_a_rank_that_cannot_write_ends_all_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    def work(rank: int) -> str:
        write = Writer.write_data

        def full(self: Writer, *arguments: Any) -> Any:
            if rank == 1 and self.final.name == "step-2":
                raise OSError(28, "No space left on device")
            return write(self, *arguments)

        Writer.write_data = full  # type: ignore[method-assign]
        with pytest.raises(OSError) as error:
            run(tmp_path, "fsdp2")
        return str(error.value)

    for told in on_two_ranks(work):
        assert "step-2: cannot write" in told and "No space left on device" in told
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


def test_training_goes_on_while_both_ranks_write(tmp_path: Path) -> None:
    """Step 3 is taken between a save's plan and its writing, which the ranks do at different times."""
    steps = Steps()
    fit(tmp_path / "whole", data={"steps": 4, "micro_batch": 4}, callbacks=[steps])

    def work(rank: int) -> None:
        write, release = Writer.write_data, threading.Event()

        def late(self: Writer, *arguments: Any) -> Any:
            assert release.wait(60)
            return write(self, *arguments)

        class Release(Callback):
            def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
                if trainer.global_step == 3:
                    threading.Timer(0.3 * rank, release.set).start()

        Writer.write_data = late  # type: ignore[method-assign]
        with pytest.raises(Stopped):
            run(tmp_path, "fsdp2", Release(), StopIn(3, "before"), every_n_steps=2)

    on_two_ranks(work)
    assert last(tmp_path).name == "step-2"
    found = saved_tensors(tmp_path)
    for name, tensor in steps.seen[2].items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_the_clock_of_rank_0_decides_for_all(tmp_path: Path) -> None:
    """Rank 1's clock runs backwards; without an agreement it would never save, and rank 0 would wait for it."""

    def work(rank: int) -> list[int]:
        steps: list[int] = []

        class Clock:
            now = 0.0

            def monotonic(self) -> float:
                self.now += 20 if rank == 0 else -1
                return self.now

        class Watched(StageCheckpoint):
            def save(self, trainer: Any) -> None:
                steps.append(trainer.global_step)
                super().save(trainer)

        checkpoint.time = Clock()  # type: ignore[assignment]
        run(tmp_path, "fsdp2", Watched("30s", folder=str(tmp_path / "own")), every_n_steps=0)
        return steps

    first, second = on_two_ranks(work)
    assert first == second and first[-1] == 4 and len(first) > 1
