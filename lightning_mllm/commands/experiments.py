"""Where experiments are and which stages they have; `mllm experiments` lists those that ship, or copies one.

In a checkout they are its folder `experiments`; an installed package holds the same files. Beside them ship sweeps, the
files of the folder `sweeps`; the experiments below that folder are what they search, and are not listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from importlib.resources import files
from pathlib import Path

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.config import Config, ConfigError, layers, nearest, read_yaml

HEADINGS = ("name", "stages", "hardware", "what")
SWEEPS = "sweeps"
"""The folder of sweep files."""


def shipped() -> Path:
    """The folder of the experiments that come with the package."""
    package = Path(str(files("lightning_mllm")))
    inside = package / "experiments"
    return inside if inside.is_dir() else package.with_name("experiments")


def names(root: Path) -> list[str]:
    """The experiments below `root`: folders with a file a stage; those of shared files begin with `_`."""
    folders = {each.parent.relative_to(root) for each in root.rglob("*.yaml") if each.stem != "net"}
    return sorted(
        str(each) for each in folders if not any(part.startswith("_") or part == SWEEPS for part in each.parts)
    )


def sweep_names(root: Path) -> list[str]:
    """The sweep files below `root`, as `sweeps/NAME`."""
    return sorted(f"{SWEEPS}/{each.stem}" for each in (root / SWEEPS).glob("*.yaml"))


def experiment_folder(name: str | Path) -> Path:
    """The folder that `name` is, or that is called so below `experiments` here, or that ships with the package.

    Raises:
        ConfigError: There is none; names the nearest.
    """
    path = Path(name)
    inner = Path(*path.parts[1:]) if path.parts[:1] == ("experiments",) else path
    for folder in (path, Path("experiments") / path, shipped() / inner):
        if folder.is_dir():
            return folder
    beside = [str(path.with_name(each.name)) for each in path.parent.glob("*/")] if path.parent.is_dir() else []
    raise ConfigError(
        f"{path}: found no such folder, expected an experiment; mllm experiments lists those that ship"
        f"{nearest(str(path), beside) or nearest(str(inner), names(shipped()))}"
    )


def below_experiments(path: Path) -> tuple[str, ...]:
    """The part of an absolute path behind its last folder called `experiments`; else its last two names."""
    parts = path.parts
    if "experiments" not in parts[:-1]:
        return parts[-2:]
    return parts[len(parts) - parts[::-1].index("experiments") :]


def experiment_name(folder: Path) -> str:
    """The path of `folder` under `experiments`, or its own name elsewhere."""
    parts = folder.resolve().parts
    return "/".join(below_experiments(folder.resolve())) if "experiments" in parts[:-1] else parts[-1]


def order_of_stages(folder: Path) -> list[str]:
    """The stages of `folder` (its YAML files but `net.yaml`), each after those it starts from.

    Raises:
        ConfigError: There is no such folder or no stage in it, or the stages start from one another in a circle.
    """
    folder = experiment_folder(folder)
    files = sorted(each for each in folder.glob("*.yaml") if each.stem != "net")
    if not files:
        raise ConfigError(f"{folder}: found no stage, expected a YAML file a stage beside net.yaml")
    name = experiment_name(folder)
    parents = {}
    for file in files:
        parents[file.stem] = [_sibling(each, name, files) for each in sources_of(file)]
    graph = {stage: sorted(each for each in before if each) for stage, before in parents.items()}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise ConfigError(f"{folder}: found stages that start from one another: {circle}") from None


def sources_of(file: Path) -> list[str]:
    """What a stage starts from, as the last one states it of the file and those that it extends.

    Raises:
        ConfigError: A file cannot be read.
    """
    found: object = None
    for _, tree in layers(file, Config()):
        stage = tree.get("stage") if isinstance(tree, Mapping) else None
        found = stage["init_from"] if isinstance(stage, Mapping) and "init_from" in stage else found
    return [str(each) for each in found] if isinstance(found, Mapping) else []


def _sibling(source: str, name: str, files: Sequence[Path]) -> str:
    stage = str(source).removeprefix(f"{name}/")
    return stage if any(stage == file.stem for file in files) else ""


def hardware_file(folder: Path, name: str) -> Path:
    """`_hardware/NAME.yaml` in the nearest folder above the experiment, else the shipped one; `name` may be a file.

    Raises:
        ConfigError: There is none.
    """
    if name.endswith(".yaml"):
        return Path(name)
    folders = [above / "_hardware" for above in (folder, *folder.resolve().parents, shipped())]
    nearest_folder = next(each for each in folders if each.is_dir())
    known = sorted(each.stem for each in nearest_folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"--hardware: found '{name}', expected one of {', '.join(known)}{nearest(name, known)}")
    return nearest_folder / f"{name}.yaml"


def table() -> str:
    """One line an experiment, in plain columns."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for name in names(shipped()):
        folder = shipped() / name
        stages = order_of_stages(folder)
        what, hardware = _about(
            folder / "net.yaml" if (folder / "net.yaml").is_file() else folder / f"{stages[0]}.yaml"
        )
        rows.append((name, ", ".join(stages), hardware, what))
    for name in sweep_names(shipped()):
        rows.append((name, "mllm sweep", "cpu", _about(shipped() / f"{name}.yaml")[0]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def _about(file: Path) -> tuple[str, str]:
    """The first sentence of the comment that a file begins with, and what stands behind `Hardware:` in it."""
    head = re.match(r"(?:#.*\n)*", file.read_text(encoding="utf-8"))
    comment = " ".join(line.removeprefix("#").strip() for line in (head[0] if head else "").splitlines())
    hardware = re.search(r"Hardware: ([\w, ]+)\.", comment)
    sentence = re.match(r".*?\.(?= +[A-Z]| +mllm |$)", comment)
    return (sentence[0].rstrip(".") if sentence else comment), (hardware[1] if hardware else "")


def copy(name: str, to: Path) -> list[Path]:
    """Copies an experiment, the shared files that it names and the hardware files below `to`; gives what was written.

    Of a sweep, the file and the experiment that it searches.

    Raises:
        ConfigError: There is no such experiment, or another file of the same name is there already.
        OSError: A file cannot be written.
    """
    root = shipped()
    known = [*names(root), *sweep_names(root)]
    if name not in known:
        raise ConfigError(f"copy: found '{name}', expected one that mllm experiments lists{nearest(name, known)}")
    folders, wanted = [root / name], dict[Path, None]()
    if (file := root / f"{name}.yaml").is_file():
        wanted[file] = None
        folders = [root / each for each in _texts(read_yaml(file, Config()).get("command")) if (root / each).is_dir()]
    wanted |= dict.fromkeys(each for folder in folders for each in sorted(folder.glob("*.yaml")))
    wanted |= dict.fromkeys(sorted((root / "_hardware").glob("*.yaml")))
    for file in list(wanted):
        wanted |= dict.fromkeys(_named(file))
    targets = {file: to / file.resolve().relative_to(root.resolve()) for file in wanted}
    for file, target in targets.items():
        if target.exists() and target.read_bytes() != file.read_bytes():
            raise ConfigError(f"{target}: found another file, expected none or the same; name another --to")
    from lightning_mllm.weights.files import write_text

    for file, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, file.read_text(encoding="utf-8"))
    return list(targets.values())


def _named(file: Path) -> Iterator[Path]:
    """The files that a file extends or names by their path, and those that these name."""
    for own, tree in layers(file, Config()):
        if own != file:
            yield own
        for value in _texts(tree):
            other = own.parent / value
            if value.endswith(".yaml") and other.is_file():
                yield other
                yield from _named(other)


def _texts(tree: object) -> Iterator[str]:
    """Every text in a tree."""
    if isinstance(tree, Mapping | list):
        for each in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _texts(each)
    elif isinstance(tree, str):
        yield tree


def started_from(name: str) -> list[str]:
    """Stages of other experiments that the experiment starts from."""
    sources = [each for file in sorted((shipped() / name).glob("*.yaml")) for each in sources_of(file)]
    return list(dict.fromkeys(each for each in sources if "/" in each))


def main(arguments: Sequence[str]) -> None:
    """List, or copy one."""
    parser = Arguments(
        "experiments",
        description="List the experiments that ship with the package, or copy one with the shared files that it names.",
    )
    parser.add_argument("what", nargs="*", metavar="copy NAME", help="nothing lists them")
    parser.add_argument("--to", type=Path, default=Path("experiments"), metavar="DIR", help="where (experiments)")
    given = parser.parse_args(arguments)
    if not given.what:
        print(table(), end="")
        return
    if given.what[0] != "copy" or len(given.what) != 2:
        raise ConfigError(f"experiments: found '{' '.join(given.what)}', expected nothing or copy NAME")
    name = given.what[1].removeprefix("experiments/").rstrip("/")
    written = copy(name, given.to)
    print(f"{given.to / name} and {len([each for each in written if each.parent != given.to / name])} files it uses")
    for source in started_from(name):
        print(f"it starts from {source}: mllm run {source.rpartition('/')[0]}")
