"""What the files of a stage say: whether they parse, what it starts from, how its batches come out, what it trains."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.doctor_files import is_here, named, on_the_hub
from lightning_mllm.commands.doctor_lines import Line, Subject
from lightning_mllm.commands.experiments import experiment_folder, order_of_stages
from lightning_mllm.commands.hardware import at_once
from lightning_mllm.contracts import accumulation
from lightning_mllm.weights.lineage import InitSource


def configuration(subject: Subject) -> Iterator[Line]:
    """The files parse, and the net and the data take them."""
    remedy = "correct the setting; mllm fit --model.help CLASS and --data.help CLASS tell what a key takes"
    try:
        found, data = subject.stage.resolved, subject.stage.data
    except ValueError as error:
        yield Line(check="configuration", level="red", found=str(error), remedy=remedy)
        return
    try:
        _ = subject.module
    except ValueError as error:
        if all(map(is_here, named(subject))):  # else it is told by the checks of weights and of the freezing table
            yield Line(check="configuration", level="red", found=str(error), remedy=remedy)
            return
    net = found["model"]["class_path"].rpartition(".")[2]
    told = f"{net}, stage {found['stage']['name']}, {type(data).__name__}"
    yield Line(check="configuration", level="green", found=told)


def start(subject: Subject) -> Iterator[Line]:
    """Each weight that the stage starts from is there, or is made by a stage that is known."""
    sources = subject.stage.resolved["stage"]["init_from"]
    if not sources:
        yield Line(check="init_from", level="green", found="nothing: pretrained parts and fresh ones")
    for name in sources:
        if name in subject.siblings:
            yield Line(check="init_from", level="green", found=f"{name}, a stage of this experiment")
            continue
        try:
            found = InitSource.find(name if "/" in name else f"{subject.stage.experiment}/{name}", subject.runs)
            yield Line(check="init_from", level="green", found=f"{name}: {found.path}")
        except ValueError as error:
            yield _absent(name, error)


def _absent(name: str, error: ValueError) -> Line:
    """An experiment that can be run, or nothing that is known."""
    experiment, _, stage = name.rpartition("/")
    try:
        known = stage in order_of_stages(experiment_folder(experiment)) if experiment else False
    except ConfigError:
        known = False
    if known:
        remedy = f"mllm run {experiment}"
        return Line(check="init_from", level="yellow", found=f"{name} is not trained yet", remedy=remedy)
    if on_the_hub(name):
        told = f"{name} is no stage and no folder here; it may be a name on the Hub"
        return Line(check="init_from", level="red", found=told, remedy=f"hf download {name} --local-dir {name}")
    remedy = "name a stage of this experiment, EXPERIMENT/STAGE, a folder or a file in stage.init_from"
    return Line(check="init_from", level="red", found=str(error), remedy=remedy)


def batches(subject: Subject) -> Iterator[Line]:
    """The global batch is a multiple of what the ranks take at once; how many steps the stage has."""
    found, data = subject.stage.resolved, subject.stage.data
    stage, hardware, trainer = found["stage"], found["hardware"], found["trainer"]
    world = trainer["devices"] * trainer["num_nodes"] if isinstance(trainer["devices"], int) else 1
    rows = at_once(stage["micro_batch"], hardware["micro_batch"])
    alone = partial(accumulation, "stage.global_batch", stage["global_batch"], rows)
    times = getattr(data, "accumulation", alone)
    trained = [each for each in subject.sets if each.split == "train"]
    loaded, budget = bool(trained) and all(each in subject.loaded for each in trained), hardware["token_budget"]
    told = f"{stage['global_batch']} samples a step"
    try:
        if budget is None:
            told += f" = {times(world)} x {rows} x {world}"
        elif loaded:  # the lengths of samples decide
            told += f" in {times(world)} x {world} rows of {budget} tokens"
    except ValueError as error:
        remedy = f"--hardware.micro_batch=N with N x {world} processes a divisor of {stage['global_batch']}"
        remedy = remedy if budget is None else "a larger --hardware.token_budget, or fewer processes"
        yield Line(check="batches", level="red", found=str(error), remedy=remedy)
        return
    if loaded:
        try:
            told += f", {data.optimizer_steps:,} steps"
        except ValueError as error:
            remedy = "lower stage.global_batch, or raise stage.epochs"
            yield Line(check="batches", level="red", found=str(error), remedy=remedy)
            return
    yield Line(check="batches", level="green", found=told)


def freezing(subject: Subject) -> Iterator[Line]:
    """Every pattern of the stage matches parameters of the net, each of them once."""
    try:
        net = subject.net
    except ValueError as error:
        if "stage." in str(error):
            remedy = "correct stage.train: its patterns are globs over parameter names, as connector.*"
            yield Line(check="freezing", level="red", found=str(error), remedy=remedy)
        else:
            remedy = "put the file that it names on this machine"
            yield Line(check="freezing", level="yellow", found=f"not tried: {error}", remedy=remedy)
        return
    sizes = [(each.numel(), each.requires_grad) for each in net.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    if not trained:
        remedy = "name a pattern in stage.train, or another stage.name"
        yield Line(check="freezing", level="red", found="no parameter is trained", remedy=remedy)
        return
    told = f"{trained:,} of {total:,} parameters trained: {', '.join(net.table)}"
    yield Line(check="freezing", level="green", found=told)
