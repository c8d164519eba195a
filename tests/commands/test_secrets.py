"""No secret of a run stands in any of its files, in what it prints, or in the sentence of an error."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from lightning_mllm.commands.config import Config, ConfigError, read_yaml
from lightning_mllm.commands.launch import main
from lightning_mllm.commands.secrets import hidden, recorded, revealed
from tests.training.data import Squares
from tests.training.loggers.test_wandb_tracker import TOY, Tracked

CANARIES = [f"canary{number}{'0123456789abcdef' * 2}" for number in range(8)]
IN_KEY, IN_ENVIRONMENT, IN_FILE, NESTED, IN_ARGUMENT, IN_REMOTE, NAMED, IN_ADDRESS = CANARIES


class PrivateSquares(Squares):
    """Squares of a server that wants to know who asks."""

    given: ClassVar[list[dict[str, Any]]] = []

    def __init__(
        self, samples: int, token: str, password: str, client_secret: str, server: str, note: str, headers: list[Any]
    ) -> None:
        super().__init__(samples)
        self.given.append({"token": token, "password": password, "client_secret": client_secret})
        self.given[-1] |= {"server": server, "note": note, "headers": headers}


@pytest.mark.fault
def test_none_of_eight_secrets_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fault_row: Callable[[str, str, str], None],
) -> None:
    source = tmp_path / "checkout"
    source.mkdir()
    for command in (["init", "-q"], ["remote", "add", "origin", f"https://me:{IN_REMOTE}@example.org/x.git"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    monkeypatch.chdir(source)
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_API_KEY": IN_KEY,
        "HF_TOKEN": IN_ENVIRONMENT,
        "WORD_OF_THE_DAY": NAMED,
    }.items():
        monkeypatch.setenv(name, value)
    arguments = {
        "samples": 8,
        "token": "${oc.env:WORD_OF_THE_DAY}",
        "password": IN_FILE,
        "server": f"https://me:{IN_ADDRESS}@example.org/squares",
        "note": IN_ENVIRONMENT,
        "headers": [{"api_key": NESTED}],
    }
    squares = {"class_path": f"{__name__}.PrivateSquares", "init_args": arguments}
    (tmp_path / "private.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"train": {"squares": squares}}}}))
    fit = ["fit", *TOY, f"--config={tmp_path / 'private.yaml'}", f"--run_dir={tmp_path / 'runs/x/align'}"]
    monkeypatch.setattr("sys.argv", ["mllm", *fit, f"--data.train.squares.client_secret={IN_ARGUMENT}"])
    main([*fit, "--stage.epochs=1", f"--data.train.squares.client_secret={IN_ARGUMENT}"])

    assert PrivateSquares.given[-1] == {
        "token": NAMED,
        "password": IN_FILE,
        "server": arguments["server"],
        "note": IN_ENVIRONMENT,
        "client_secret": IN_ARGUMENT,
        "headers": [{"api_key": NESTED}],
    }
    printed = "".join(capfd.readouterr())
    files = [each for each in (tmp_path / "runs").rglob("*") if each.is_file()]
    assert {"config.yaml", "stage.json", "state.pt", "debug.log", "metrics.csv"} <= {each.name for each in files}
    hits = [each for each in CANARIES if each in printed or any(each.encode() in file.read_bytes() for file in files)]
    fault_row("T26", f"{len(hits)} hits of 8", "canaries in all files of a run tracked by W&B, and in what it prints")
    assert hits == []
    kept = yaml.safe_load((tmp_path / "runs/x/align/config.yaml").read_text())
    tracked = Tracked(tmp_path / "runs/x/align").config
    for config in (kept, tracked):
        found = config["data"]["init_args"]["train"]["squares"]["init_args"]
        assert found["token"] == "${oc.env:WORD_OF_THE_DAY}" and found["password"] == "${oc.env:PASSWORD}"
        assert found["note"] == "${oc.env:HF_TOKEN}" and found["server"] == "https://***@example.org/squares"
        assert found["client_secret"] == "${oc.env:CLIENT_SECRET}"
        assert found["headers"] == [{"api_key": "${oc.env:API_KEY}"}]

    told = []
    for wrong in (
        [*fit, f"--data.train.squares.token={IN_ARGUMENT}", "--data.train.squares.headers=3"],
        [*fit, f"--data.train.squares.tokn={IN_ENVIRONMENT}"],
        [*fit, f"--data.train.squares.samples={IN_ENVIRONMENT}"],
        [*fit, f"token={IN_ARGUMENT}"],
        [*fit, f"--data.train.squares.server=ftp://me:{IN_ADDRESS}@x", "--data.train.squares.samples=many"],
    ):
        with pytest.raises(ConfigError) as error:
            main(wrong)
        told.append(str(error.value))
    assert not [each for each in told if any(canary in each for canary in CANARIES)], told


OWN = [f"canary{number}{'fedcba9876543210' * 2}" for number in range(10, 26)]
ELSEWHERE = {
    "apiKey": OWN[0],
    "X-API-Key": OWN[1],
    "db_pass": OWN[2],
    "pwd": [OWN[3], {"inner": OWN[4]}],
    "credentials": {"user": {"name": "me", "phrase": OWN[5]}},
    "auth_header": f"Basic {OWN[6]}",
    "pin": f"the password={OWN[7]}, and --api-key {OWN[8]}",
    "signed": f"https://h/x.tar?part=1&X-Amz-Signature={OWN[9]}#a",
    "mirror": f"postgresql://me:{OWN[10]}@h/db",
    "sent": f"Bearer {OWN[11]}",
    "hook": f"https://hooks.slack.com/services/T0/B0/{OWN[12]}",
    "hub": f"hf_{OWN[13]}",
    "model": f"sk-{OWN[14]}",
    "pem": f"-----BEGIN RSA PRIVATE KEY-----\n{OWN[15]}\n-----END RSA PRIVATE KEY-----\n",
}


@pytest.mark.fault
def test_secrets_are_known_by_their_place_and_by_their_look(
    fault_row: Callable[[str, str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_mllm.commands.secrets._seen", {})
    kept, told = str(recorded({"data": ELSEWHERE})), hidden(f"data.hub: found '{ELSEWHERE}', expected a text")
    hits = [each for each in OWN if each in kept or each in told]
    fault_row("T26", f"{len(hits)} hits of {len(OWN)}", "secrets by name in other spellings, nested, in texts, by look")
    assert not hits
    assert recorded({"apiKey": OWN[0]}) == {"apiKey": "${oc.env:API_KEY}"}
    assert recorded({"secrets": {"class_path": "data_modules.sources.Pope"}})["secrets"] == {  # pyright: ignore
        "class_path": "data_modules.sources.Pope"
    }
    # A number is one as well, and prose is none.
    assert recorded({"password": 12345678, "pin": 12}) == {"password": "${oc.env:PASSWORD}", "pin": 12}
    prose = {"a": "Say the token: yes or no", "b": "a bearer certificate", "c": "risk-free-of-charge", "d": "key=value"}
    assert recorded(prose) == prose


def test_a_secret_is_named_by_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("data:\n  note: !secret WORD_OF_THE_DAY\n")
    read = read_yaml(tmp_path / "a.yaml", Config())
    assert read == {"data": {"note": "${oc.env:WORD_OF_THE_DAY}"}} and recorded(read) == read
    monkeypatch.setenv("WORD_OF_THE_DAY", OWN[0])
    assert revealed(read) == {"data": {"note": OWN[0]}}


def test_a_part_of_a_text_is_no_variable() -> None:
    with pytest.raises(
        ValueError, match=r"^data\.images: found '/x/\$\{oc\.env:HOME\}', expected \$\{oc\.env:NAME\} alone"
    ):
        revealed({"data": {"init_args": {"images": "/x/${oc.env:HOME}"}}})


def test_a_variable_that_is_absent_is_named() -> None:
    with pytest.raises(ValueError, match="found no environment variable NO_SUCH_ONE, expected it to hold this setting"):
        revealed({"token": "${oc.env:NO_SUCH_ONE}"})


def test_variables_that_hold_no_secret_change_no_other_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", "/mnt/pictures")
    settings = {"images": "${oc.env:DATA_ROOT}", "annotations": "/mnt/pictures/train.json"}
    assert revealed(settings) == {"images": "/mnt/pictures", "annotations": "/mnt/pictures/train.json"}
    assert recorded(settings) == settings
    assert hidden("/mnt/pictures/train.json: found no file") == "/mnt/pictures/train.json: found no file"


def test_one_secret_inside_of_another_and_a_token_in_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "0123456789")
    monkeypatch.setenv("LONG_TOKEN", "0123456789abcdef")
    assert recorded({"note": "is 0123456789abcdef"}) == {"note": "is ***"}
    addresses = {"a": "https://ghp_0a1b2c@example.org/x.git", "b": "ssh://git@example.org/x.git"}
    assert recorded(addresses) == {"a": "https://***@example.org/x.git", "b": "ssh://git@example.org/x.git"}


def test_settings_of_tokens_that_are_read_are_no_secrets() -> None:
    settings = {"pad_token": "<pad>", "eos_token": "</s>", "image_token": "<image>", "max_new_tokens": 12, "token": ""}
    assert recorded(settings) == settings
    assert hidden("data.token: found 'int', expected a text; max_new_tokens=3") == (
        "data.token: found 'int', expected a text; max_new_tokens=3"
    )
    assert hidden("HTTP 401: api_key=abc123 is wrong") == "HTTP 401: api_key=*** is wrong"


def test_a_long_sentence_is_searched_in_no_time() -> None:
    began = time.monotonic()
    for text in ("--" * 9000, "-- " * 6000, "a_" * 9000, "://a" * 5000, "?a-" * 6000, "password: " * 2000):
        hidden(text)
    assert time.monotonic() - began < 10
