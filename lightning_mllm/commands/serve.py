"""`mllm serve RUN`."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.model import RUN, add_options, load_given

NEEDED = ("fastapi", "uvicorn", "gradio")


def main(arguments: Sequence[str]) -> None:
    """Serve a trained model until it is stopped."""
    parser = Arguments("serve", description="An OpenAI-compatible endpoint with images, and a page to talk with it.")
    parser.add_argument("model", metavar="RUN", help=RUN)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="(8000)")
    parser.add_argument("--name", help="what requests call the model (the name of the run)")
    parser.add_argument("--api-key", metavar="ENV", help="the environment variable that holds the key to be asked for")
    parser.add_argument("--no-page", action="store_true", help="no page, the endpoint alone")
    add_options(parser)
    given = parser.parse_args(arguments)
    needed = [each for each in NEEDED if not (given.no_page and each == "gradio")]
    if missing := [each for each in needed if find_spec(each) is None]:
        raise ConfigError(
            f"serve: found no {', '.join(missing)} here, expected them: pip install 'lightning-mllm[serve]'"
        )
    key = None
    if given.api_key is not None and not (key := os.environ.get(given.api_key)):
        # Without what was given: it may be the key itself.
        raise ConfigError("--api-key: found no such environment variable, expected the name of one that holds the key")
    loopback = _is_loopback(given.host)
    if not loopback and key is None:
        raise ConfigError(f"--host: found {given.host}, where others can ask too, expected --api-key ENV with it")

    _check_free(given.host, given.port)

    import uvicorn

    from lightning_mllm.serving.app import build_app

    model = load_given(given.model, given)
    name = given.name or name_of(given.model)
    hosts = [given.host, "localhost", "127.0.0.1", "[::1]"] if loopback else []
    app = build_app(model, name, key, hosts)
    if not given.no_page:
        from lightning_mllm.serving.page import mount_page

        app = mount_page(app, model, name, key)
    host = f"[{given.host}]" if ":" in given.host else given.host
    print(f"http://{host}:{given.port}/v1 serves {name}", flush=True)
    uvicorn.run(app, host=given.host, port=given.port, log_level="warning")


def _check_free(host: str, port: int) -> None:
    """Before a model is loaded.

    Raises:
        ConfigError: Nobody can listen there.
    """
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--port: found {port} of {host}, where no server can listen ({reason})") from None


def name_of(model: str) -> str:
    """What a model is called: the name of its folder, or OWNER/NAME."""
    return Path(model).resolve().name if Path(model).exists() else model


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
