"""T15: configurations as slips, other programs and strangers write them, each refused in one sentence.

Those of `tests/test_cli.py` and `test_wrong_commands.py` are what users get wrong in a stage's file and on the command
line. Here are numbers that are none, values of no sense, files that are none, and classes that no configuration names.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lightning_mllm.cli import main
from lightning_mllm.commands.trust import VARIABLE
from tests.commands.conftest import TOY
from tests.test_cli import refused
from tests.toy import ToyVision

SQUARES = "{class_path: tests.training.data.Squares, init_args: {samples: 8}}"
TEST = "data:\n  init_args:\n    test: {a: {source: {class_path: tests.training.data.Squares}, task: exact, %s}}\n"
Cases = dict[str, tuple[str, ...]]


def of(group: str, **values: object) -> Cases:
    """A setting each: line 2 of a file, and its key."""
    return {f"{group}:\n  {key}: {value}\n": (":2: ", f"{group}.{key}") for key, value in values.items()}


def classes(*names: str) -> Cases:
    """Classes where one of data is expected, on line 2."""
    return {
        f"data:\n  init_args: {{train: {{a: {{class_path: {name}, init_args: {{}}}}}}}}\n": (
            ":2: data.train.a",
            f"'{name}'",
        )
        for name in names
    }


def aliases(last: int, head: str, each: Callable[[int], str]) -> str:
    return "\n".join([head, *map(each, range(1, last))])


LAUGHS = aliases(10, "a0: &a0 [x, x]", lambda i: f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
MERGES = aliases(9, "a0: &a0 {k: 1, l: 2}", lambda i: f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]")
CHAIN = aliases(90, "a0: &a0 [x]", lambda i: f"a{i}: &a{i} [*a{i - 1}]")

# Refused while the file is read: text -> what the sentence says behind the name of the file.
FILES: dict[str | bytes, tuple[str, ...]] = {
    "": ("empty file",),
    " \n\n": ("empty file",),
    "stage: {lr: 1.0e-3, \n": ("no valid YAML",),
    "stage:\n  name: 'ali\n": ("no valid YAML",),
    "stage:\n\tlr: 1\n": (":2: ", "no valid YAML"),
    "stage: *a\n": (":1: ", "alias"),
    "stage: {lr: 0.1}\n---\nstage: {lr: 0.2}\n": (":2: ", "another document"),
    "stage:\n  name: a\0b\n": ("no valid YAML",),
    'stage:\n  name: "\\ud800"\n': (":2: ", "no valid YAML"),
    b"\x00\x01\xff\xfe": ("UTF-8",),
    "stage: {lr: 0.1}\n".encode("utf-16"): ("UTF-8",),
    "stage: {name: \u00e9}\n".encode("latin-1"): ("UTF-8",),
    b"\x89PNG\r\n\x1a\n" + bytes(200): ("UTF-8",),
    "\ufeffstage:\n  lrr: 1\n": (":2: stage.lrr: ", "'lr'"),
    "stage:\n  lr: 1.0e-3\n  lr: 1.0e-2\n": (":3: stage.lr: ", "second time"),
    "stage: {lr: 0.1}\nstage: {lr: 0.2}\n": (":2: stage: ", "second time"),
    "stage:\n  lr: !!python/object/apply:os.system ['touch here']\n": (":2: ", "python/object/apply:os.system"),
    "stage:\n  lr: !!python/name:os.system\n": (":2: ", "python/name"),
    "stage:\n  lr: !unknown 3\n": (":2: ", "!unknown"),
    "stage:\n  lr: !secret 3x\n": (":2: ", "!secret 3x"),
    "~: 1\n": (":1: ", "in quotes"),
    "data:\n  init_args: {train: {no: 1}}\n": (":2: data.train: ", "the key no", "in quotes"),
    "? [a, b]\n: 1\n": (":1: ", "no valid YAML"),
    f"{LAUGHS}\nstage: {{lr: *a9}}\n": (":", "more than 50,000 values"),
    f"{MERGES}\nstage: *a8\n": (":", "more than 50,000 values"),
    f"{CHAIN}\nstage: *a89\n": (":", "more than 50 deep"),
    "stage: &s\n  <<: *s\n  lr: 0.1\n": (":2: ", "no circle"),
    "stage:\n  betas: &b [*b, *b]\n": (":2: ", "no circle"),
    "stage: " + "[" * 10_000 + "]" * 10_000 + "\n": (":1: ", "more than 50 deep"),
    "[" * 100_000: (":1: ", "more than 50 deep"),
    "stage: " + "{a: " * 5000 + "1" + "}" * 5000 + "\n": (":1: ", "more than 50 deep"),
    "".join(" " * i + "a:\n" for i in range(300)): (":", "more than 50 deep"),
    "stage:\n" + "- " * 5000 + "a\n": (":2: ", "more than 50 deep"),
    "stage: {lr: 0.1}\n#" + "x" * 50_000_000: ("more than 1 MiB",),
    "stage:\n" + "".join(f"  k{i}: 1\n" for i in range(30_000)): (":25001: ", "more than 50,000 values"),
    "stage:\n  name: " + "x" * 900_000 + "\n": (":2: stage.name: ", "900,000 characters"),
    "stage:\n  steps: " + "9" * 5000 + "\n": (":2: stage.steps: ", "5000 digits"),
    "seed_everything: 99999999999999999999\n": (":1: seed_everything: ", "20 digits"),
    "stage: null\n": (":1: stage: ",),
    "trainer: null\n": (":1: trainer: ",),
    "model: null\n": (":1: model: ",),
    "stage:\n  lr: 1:30\n": (":2: stage.lr: ", "'1:30'"),
    "stage:\n  steps: 0123\n": (":2: stage.steps: ", "'0123'"),
    "stage: [1, 2]\n": (":1: stage: ", "a list"),
    "stge: {lr: 1}\n": (":1: stge: ", "'stage'"),
    "stage:\n  lrr: 1\n": (":2: stage.lrr: ", "'lr'"),
    "trainer:\n  max_step: 1\n": (":2: trainer.max_step: ", "'max_steps'"),
    "data: http://127.0.0.1:1/x.yaml\n": (":1: data: ", "download it"),
    "extends: http://127.0.0.1:1/x.yaml\n": (":1: extends: ", "download it"),
    "extends: file.yaml\n": (":1: extends: ", "no circle"),
    "extends: toi.yaml\n": (":1: extends: ", "'toy.yaml'"),
    "extends: [toy.yaml]\n": (":1: extends: ",),
    "model: {class_path: os.system}\n": (":1: model: ", "standard library"),
    "trainer:\n  callbacks: [{class_path: subprocess.Popen, init_args: {args: [touch, here]}}]\n": (
        ":2: trainer.callbacks",
        "standard library",
    ),
    "trainer:\n  callbacks: subprocess.Popen\n": (":2: trainer.callbacks", "standard library"),
    "trainer:\n  logger: {class_path: subprocess.Popen}\n": (":2: trainer.logger", "standard library"),
    "model:\n  init_args: {vision: {class_path: ctypes.CDLL, init_args: {name: libc}}}\n": (":2: model.vision", "CDLL"),
    "data:\n  init_args:\n    processor: {class_path: subprocess.Popen, init_args: {args: [touch, here]}}\n": (
        ":3: data.processor",
        "standard library",
    ),
    "data:\n  init_args: {processor: {a: {b: {class_path: subprocess.Popen, init_args: {args: [touch, here]}}}}}\n": (
        ":2: data.processor.a.b: ",
        "standard library",
    ),
    "data:\n  init_args: {processor: [{a: {class_path: lightning_mllm.commands.requeue.subprocess.Popen}}]}\n": (
        ":2: data.processor.0.a: ",
        "no module",
    ),
    f"data:\n  init_args:\n    train: {{a: {SQUARES[:-1]}, dict_kwargs: {{a: {{class_path: os.x}}}}}}}}\n": (
        ":3: data.train.a",
        "standard library",
    ),
    **classes("torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler"),
    **classes("os.system", "builtins.eval", "shutil.rmtree", "subprocess.Popen", "antigravity.fly", "this.d"),
    **classes("torch.hub.load", "torch.load", "torch.utils.cpp_extension.load_inline", "transformers.pipeline"),
    **classes("transformers.AutoModel.from_pretrained", "tests.toy.os.system", "lightning_mllm.commands.lock.Path"),
    **classes("PIL.Image.Image", "numpy.ndarray", "pytest.Item", "__main__.X", "planted.Source"),
}  # fmt: skip
# Refused once jsonargparse has read the whole.
SETTINGS: Cases = {
    **of("stage", lr=".nan", warmup=".inf", weight_decay=".nan", eps=".inf", min_lr=".nan", gradient_clip=".inf"),
    **of("stage", epochs=".nan", betas="[0.9, .nan]", steps=".inf", warmup_lr="-.inf"),
    **of("stage", lr="1e999", train="{'connector.*': {lr: .nan}}", init_from="{a/b: .inf}", lora="{dropout: .nan}"),
    "stage:\n  lr: 'nan'\n": (":2: stage.lr: ",),
    "stage:\n  warmup: Infinity\n": (":2: stage.warmup: ",),
    "model:\n  init_args: {language: {dropout: .nan}}\n": (":2: model.language.dropout: found nan",),
    "data:\n  init_args: {weights: {squares: .nan}}\n": (":2: data.weights.squares: found nan",),
    "trainer:\n  limit_train_batches: .nan\n": (":2: trainer.limit_train_batches: ", "nan"),
    **of("stage", steps=0, epochs=-1, global_batch=0, validate_every=0, micro_batch=0, lr=0, eps=0, steps_before=-1),
    **of("hardware", workers=-1, micro_batch=0, eval_batch=-64, text_micro_batch=0, prefetch=-2, shard=0),
    TEST % "limit: -4": (":3: data.test.a.limit: ", "-4"),
    "data:\n  init_args: {weights: {squares: -1}}\n": (":2: data.weights.squares: ",),
    "data:\n  init_args: {weights: {sqares: 1}}\n": (":2: data.weights.sqares: ",),
    "data:\n  init_args: {train: {}}\n": (": data.train: ",),
    "checkpoint_every: -5\n": (":1: checkpoint_every: ",),
    "checkpoint_every: often\n": (":1: checkpoint_every: ",),
    "checkpoint_every: .nan\n": (":1: checkpoint_every: ",),
    "seed_everything: -3\n": (":1: seed_everything: ",),
    "run_dir: http://127.0.0.1:1/run\n": (": run_dir: ", "address"),
    **of("trainer", strategy="ddpp", accelerator="gpuu", devices=0, max_time="soon"),
    "trainer:\n  precision: bf61\n": (":2: trainer.precision: ", "bf61"),
    "trainer:\n  strategy: {class_path: lightning_mllm.training.sharding.ShardedStrategi}\n": (
        ":2: trainer.strategy: ",
        "'ShardedStrategy'",
    ),
    **of("hardware", precision="fp61", micro_batch=2.5, compile="perhaps", language_checkpointing="some"),
    **of("stage", name="no", lr="null", reduction="mean", decay="cosin"),
    "stage:\n  name: algn\n": (":2: stage.name: ", "align"),
    **of("stage", init_from="{nope/align: 1.0}"),
    "stage:\n  init_from: {./notes: 1.0}\n": (":2: stage.init_from: ", "notes"),
    "stage:\n  init_from: {./toy.yaml: 1.0}\n": (":2: stage.init_from: ", "a file of tensors"),
    "stage:\n  train: {'conector.*': {}}\n": (":2: stage.train: ", "'connector."),
    "stage:\n  train: {'connector.*': {exclude: [connector.nope]}}\n": (":2: stage.train: ", "'connector.nope'"),
    "stage:\n  train: {'connector.*': {lr: -1}}\n": (":2: stage.train", "-1"),
    "hardware:\n  feature_cache: ${oc.env:NO_SUCH}\n": (":2: hardware.feature_cache: ", "NO_SUCH"),
    "hardware:\n  feature_cache: /data/${oc.env:HOME}\n": (":2: hardware.feature_cache: ", "alone"),
    "hardware:\n  feature_cache: !secret NO_SUCH\n": (":2: hardware.feature_cache: ", "NO_SUCH"),
    "data:\n  init_args: {train: {squares: {class_path: tests.training.data.Squares, init_args: none}}}\n": (
        ":2: data.train.squares: ",
        "init_args",
    ),
    "trainer:\n  callbacks: [{class_path: lightning.pytorch.callbacks.LambdaCallback, "
    "init_args: {setup: os.system}}]\n": (":2: trainer.callbacks", "os.system"),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a module outside of it beside which files may lie."""
    work = tmp_path / "work"
    (work / "notes").mkdir(parents=True)
    (work / "toy.yaml").write_text(TOY.read_text())
    monkeypatch.chdir(work)

    def read(self: ToyVision) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(ToyVision, "pretrained", read)
    return work


def wrong(text: str | bytes, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    """What is wrong about how a file is refused; empty where nothing is."""
    file, began = Path("file.yaml"), time.monotonic()
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    own = () if str(text).startswith("run_dir") else ("--run_dir=run",)
    fit, shown = ("fit", f"--config={TOY}", f"--config={file}", *own), repr(text[:100])
    try:
        sentence = refused(capsys, *fit, "--trainer.enable_progress_bar=false")
    except BaseException as error:
        return f"{shown}: {type(error).__name__}: {str(error)[:200]}"
    took, left = time.monotonic() - began, Path("run/weights/stage.json").exists() or Path("here").exists()
    told = all(each in sentence for each in parts) and "Traceback" not in sentence and len(sentence) < 1500
    return "" if told and not left and took < 10 else f"{shown}: {sentence} ({took:.1f} s)"


@pytest.mark.fault
def test_strange_files_are_refused_in_one_sentence(
    place: Path, capsys: pytest.CaptureFixture[str], fault_row: Callable[[str, str, str], None]
) -> None:
    full = os.environ.get("MLLM_FULL")
    cases = [*list(FILES.items())[:: None if full else 2], *list(SETTINGS.items())[:: None if full else 6]]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failed = [told for text, parts in cases if (told := wrong(text, parts, capsys))]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    figure = f"{len(cases) - len(failed)} of {len(cases)}"
    fault_row("T15", figure, f"strange configurations refused in a sentence with key and line; {grown >> 10} MB more")
    assert not failed, "\n".join(failed)
    assert grown < 400 << 10, f"{grown} KiB"


def test_code_beside_a_file_elsewhere_is_not_imported_until_it_is_trusted(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = place.parent / "downloaded"
    (elsewhere / "experiments" / "x").mkdir(parents=True)
    own = "from tests.training.data import Squares\nclass Own(Squares): ...\n"
    code = f"open({str(place / 'here')!r}, 'w').close()\n{own}"
    for name in ("planted", "trusted", "flash_attn"):
        (elsewhere / f"{name}.py").write_text(code)
    file = elsewhere / "experiments" / "x" / "stage.yaml"
    for name in ("planted", "trusted"):
        file.write_text(f"data:\n  init_args: {{train: {{a: {{class_path: {name}.Own}}}}}}\n")
        fit = ("fit", f"--config={TOY}", f"--config={file}", "--run_dir=run")
        sentence = refused(capsys, *fit)
        assert f"data.train.a: found class '{name}.Own', which lies in {elsewhere}" in sentence
        assert f"--trust {name} or {VARIABLE}={name} allows it" in sentence and not (place / "here").exists()
    # A module that some package would import where it is there: not from beside a stranger's file.
    assert str(elsewhere) not in sys.path
    monkeypatch.setenv(VARIABLE, "")
    for option in (["--trust", "trusted"], ["--trust=trusted"]):
        assert "samples" in refused(capsys, *fit, *option, "--data.train.a.samples=many")
    assert os.environ[VARIABLE] == "trusted,trusted" and (place / "here").is_file()
    assert "--trust: found 'a b'" in refused(capsys, *fit, "--trust=a b")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(elsewhere)])


def test_a_file_of_settings_of_another_name_is_read_with_the_same_bounds(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(place / "pipe")
    (place / "stage.json").write_text('{"lrr": 1}')
    (place / "laughs.txt").write_text(LAUGHS)
    (place / "self.yaml").write_text("class_path: data_modules.sources.Blind\ninit_args: {source: self.yaml}\n")
    (place / "file.yaml").write_text("data:\n  init_args: {train: {a: self.yaml}}\n")
    assert "more than 50 deep" in refused(capsys, "fit", f"--config={TOY}", "--run_dir=run", "--config=file.yaml")
    for name, told in {"pipe": "pipe", "stage.json": "'lr'", "laughs.txt": "more than 50,000 values"}.items():
        (place / "file.yaml").write_text(f"stage: {name}\n")
        for each in ("--config=file.yaml", f"--stage={name}"):
            assert told in refused(capsys, "fit", f"--config={TOY}", "--run_dir=run", each), (name, each)


def test_own_code_needs_no_trust(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "experiments" / "x").mkdir(parents=True)
    (place / "own_squares.py").write_text("from tests.training.data import Squares\nclass Own(Squares): ...\n")
    (place / "experiments" / "x" / "beside_squares.py").write_text((place / "own_squares.py").read_text())
    file = place / "experiments" / "x" / "stage.yaml"
    for name in ("own_squares", "beside_squares"):
        file.write_text(f"data:\n  init_args: {{train: {{a: {{class_path: {name}.Own}}}}}}\n")
        fit = ("fit", f"--config={TOY}", f"--config={file}", "--run_dir=run", "--data.train.a.samples=many")
        assert f"{file}" not in (told := refused(capsys, *fit)) and "samples: found 'many'" in told
    (place / "own_functions.py").write_text("def begin(trainer, module, stage):\n    raise ValueError('begun')\n")
    file.write_text(
        "trainer:\n  callbacks: [{class_path: lightning.pytorch.callbacks.LambdaCallback, "
        "init_args: {setup: own_functions.begin}}]\n"
    )
    with pytest.raises(ValueError, match="begun"):
        main(["fit", f"--config={TOY}", f"--config={file}", "--run_dir=run"])


@pytest.mark.fault
def test_no_setting_is_read_from_an_address(
    place: Path, capsys: pytest.CaptureFixture[str], fault_row: Callable[[str, str, str], None]
) -> None:
    asked, wrongly = list[str](), list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"lr: 0.5\n")

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{running.server_address[1]}"
    groups = ("data", "model", "stage", "hardware", "trainer")
    files = [f"{each}: {address}/{each}{end}\n" for each in groups for end in ("", ".yaml")]
    files += [
        f"data:\n  init_args: {{train: {{squares: {address}/source}}}}\n",
        f"model:\n  init_args: {{vision: {address}/vision}}\n",
        f"stage:\n  lora: {address}/lora\n",
        f"stage:\n  init_from: {{'{address}/a.safetensors': 1.0}}\n",
        f"trainer:\n  callbacks: {address}/callbacks\n",
        f"trainer:\n  callbacks: ['{address}/callback']\n",
        f"trainer:\n  strategy: {address}/strategy\n",
        f"extends: {address}/net.yaml\n",
        f"data: simplecache::{address}/data.yaml\n",
        f"data: zip://x.yaml::{address}/x.zip\n",
        "data: memory://x.yaml\n",
        "data: s3://bucket/x.yaml\n",
    ]
    options = [f"--{key}={address}/x" for key in ("config", "stage", "ckpt_path", "data")]
    try:
        for text in files if os.environ.get("MLLM_FULL") else files[::4]:
            wrongly += filter(None, [wrong(text, (":",), capsys)])
        for option in options:
            assert refused(capsys, "fit", f"--config={TOY}", "--run_dir=run", option)
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
    fault_row(
        "T30", f"{len(asked)} requests", f"addresses where a setting or a file is expected ({len(files)} of them)"
    )
    assert not asked and not wrongly, (asked, wrongly)
