"""Ways in which a checkpoint comes to harm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lightning_mllm.training.checkpoints import MANIFEST, STATE, Replaced, ShardedCheckpointIO
from lightning_mllm.training.checkpoints.manifest import FileFacts, read_manifest, write_manifest


def saved(folder: Path, *steps: int, value: float | None = None) -> Path:
    """A folder with a checkpoint of each step."""
    io = ShardedCheckpointIO()
    for step in steps:
        number = float(step) if value is None else value
        tensors = {"weights.w": torch.full((40, 25), number), "exp_avg.w": torch.zeros(40, 25)}
        io.save(folder / f"step-{step}", tensors, {"step": step}, Replaced("step-*", len(steps)))
        io.wait()
    return folder


def shard(path: Path) -> Path:
    return next(path.glob("*.safetensors"))


def flip(file: Path, position: int) -> None:
    """Changes one bit of the byte at `position`."""
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def resealed(path: Path) -> None:
    """Writes the manifest anew for what the files hold now."""
    name, files = read_manifest(path)
    write_manifest(path, name, {each: FileFacts.of(path / each) for each in files})


def _not_finite(value: float) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        file = shard(path)
        with safe_open(file, framework="pt") as opened:
            facts = opened.metadata()
        tensors = {name: each.clone() for name, each in load_file(file).items()}
        tensors["weights.w"][-1, -1] = value
        save_file(tensors, file, metadata=facts)
        resealed(path)

    return change


def _another_step(path: Path) -> None:
    other = saved(path.parent / "another", 77)
    shutil.copyfile(shard(other / "step-77"), shard(path))
    shutil.rmtree(other)
    (path.parent / "another.json").unlink()


def _of_another_name(path: Path) -> None:
    """The whole folder of another step under this one's name."""
    other = saved(path.parent / "another", 77)
    shutil.rmtree(path)
    (other / "step-77").rename(path)
    shutil.rmtree(other)
    (path.parent / "another.json").unlink()


def _write(name: str, content: bytes | str) -> Callable[[Path], object]:
    text = content.encode() if isinstance(content, str) else content
    return lambda path: _file(path, name).write_bytes(text)


def _file(path: Path, name: str) -> Path:
    return shard(path) if name == "shard" else path / name


def _cut(name: str, keep: Callable[[int], int]) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        file = _file(path, name)
        file.write_bytes(file.read_bytes()[: keep(file.stat().st_size)])

    return change


def _lone_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("step")


def _stray(path: Path) -> None:
    shutil.copyfile(shard(path), path / "shard-00002-model-00001-of-00001.safetensors")


def _dangling(path: Path) -> None:
    file = shard(path)
    file.unlink()
    file.symlink_to(path / "nowhere")


def _escaping(path: Path) -> None:
    content = json.loads((path / MANIFEST).read_text())
    content["files"]["../outside"] = content["files"][STATE]
    (path / MANIFEST).write_text(json.dumps(content))


HTML = "<html><body>502 Bad Gateway</body></html>"
NAMED: dict[str, Callable[[Path], object]] = {
    "zero bytes": _write("shard", b""),
    "cut in half": _cut("shard", lambda size: size // 2),
    "1 byte short": _cut("shard", lambda size: size - 1),
    "first byte of the file flipped": lambda path: flip(shard(path), 0),
    "first byte of a tensor flipped": lambda path: flip(shard(path), -8000),
    "last byte of a tensor flipped": lambda path: flip(shard(path), -1),
    "text": _write("shard", "nothing to see"),
    "HTML": _write("shard", HTML),
    "manifest missing": lambda path: (path / MANIFEST).unlink(),
    "being written": lambda path: path.rename(path.with_name(f".{path.name}.part")),
    "NaN inside": _not_finite(float("nan")),
    "shard of another step": _another_step,
    "shard missing": lambda path: shard(path).unlink(),
    "manifest cut": _cut(MANIFEST, lambda size: size // 2),
    "manifest with another digest": lambda path: flip(
        path / MANIFEST, (path / MANIFEST).read_text().index("sha256") + 12
    ),
    "state.pt of zero bytes": _write(STATE, b""),
    "last byte of state.pt flipped": lambda path: flip(path / STATE, -1),
}
"""What the facts (T4, T12) name."""
OTHERS: dict[str, Callable[[Path], object]] = {
    "infinity inside": _not_finite(float("inf")),
    "shard longer by a byte": lambda path: shard(path).write_bytes(shard(path).read_bytes() + b"\0"),
    "shard of zeros": lambda path: shard(path).write_bytes(bytes(shard(path).stat().st_size)),
    "a second shard that nobody wrote": _stray,
    "a whole checkpoint of another step under this name": _of_another_name,
    "a file in place of the folder": _lone_file,
    "an empty folder": lambda path: [shutil.rmtree(path), path.mkdir()],
    "a manifest that is a list": _write(MANIFEST, "[]"),
    "a manifest without state.pt": _write(MANIFEST, '{"format": 2, "files": {}}'),
    "a manifest that names a file outside": _escaping,
    "a manifest nested 100,000 deep": _write(MANIFEST, "[" * 100_000),
    "a folder in place of state.pt": lambda path: [(path / STATE).unlink(), (path / STATE).mkdir()],
    "a link that leads nowhere in place of a shard": _dangling,
}
"""Others of their kind."""
