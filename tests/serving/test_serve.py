"""What `mllm serve` refuses before a model is loaded."""

from __future__ import annotations

import socket

import pytest

from lightning_mllm.commands import serve
from lightning_mllm.commands.config import ConfigError


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "load_given", lambda model, given: pytest.fail("a model was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port: found {port} of 127.0.0.1, where no server can listen"):
            serve.main(["runs/none", f"--port={port}", "--no-page"])
    with pytest.raises(ConfigError, match=r"--port: found 70000 of 127.0.0.1"):
        serve.main(["runs/none", "--port=70000", "--no-page"])
