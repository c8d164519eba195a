"""Whether W&B is asked for, where its server is, and whether that answers: told without importing `wandb`."""

from __future__ import annotations

import base64
import configparser
import http.client
import json
import netrc
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["online", "offline", "disabled"]

MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
"""What `WANDB_MODE` may say."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """What the environment and W&B's own files say."""

    server: str
    key: str = field(repr=False)
    """Empty where there is none."""
    mode: Mode | None
    """None where nothing says so."""

    @property
    def host(self) -> str:
        return urlsplit(self.server).netloc.rpartition("@")[2]

    @property
    def is_asked_for(self) -> bool:
        """Whether stages are tracked where no setting says so: there is a key, or a mode other than `disabled`."""
        return self.mode in ("online", "offline") or (self.mode is None and bool(self.key))


def account(environment: Mapping[str, str] = os.environ) -> Account:
    """As `wandb` finds it: the environment first, then its settings file, then the netrc file.

    Raises:
        ValueError: WANDB_MODE is none of W&B's modes.
    """
    stated = environment.get("WANDB_MODE", "")
    if stated and stated not in MODES:
        raise ValueError(f"WANDB_MODE: found '{stated}', expected one of {', '.join(MODES)}")
    kept = _settings(environment)
    server = (environment.get("WANDB_BASE_URL") or kept.get("base_url") or "https://api.wandb.ai").rstrip("/")
    key = environment.get("WANDB_API_KEY") or _netrc_key(urlsplit(server).netloc, environment)
    return Account(server=server, key=key, mode=MODES.get(stated or kept.get("mode", "")))


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Of `wandb login`, `wandb offline` and `wandb disabled`; those of the working directory win."""
    home = Path(environment.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([home / "settings", Path("wandb") / "settings"], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}


def _netrc_key(host: str, environment: Mapping[str, str]) -> str:
    file = Path(environment.get("NETRC") or Path.home() / ".netrc").expanduser()
    try:
        found = netrc.netrc(file).authenticators(host)
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return ""
    return (found[2] or "") if found else ""


def trouble(account: Account, seconds: float) -> str:
    """What is wrong with the server, in a few words; empty where it answers and takes the key.

    Takes `seconds` at most, whatever names, connections or answers take.
    """
    if not account.key:
        return f"found no key for {account.host}"
    found: list[str] = []
    began = time.monotonic()
    # A name that is looked up, or a server that sends a byte a second, keeps to no timeout.
    asking = threading.Thread(target=lambda: found.append(_asked(account, seconds)), daemon=True)
    asking.start()
    asking.join(seconds)
    waited = time.monotonic() - began
    return found[0] if found else f"no answer from {account.host} in {waited:.0f} s"


def _asked(account: Account, seconds: float) -> str:
    token = base64.b64encode(f"api:{account.key}".encode()).decode()
    request = urllib.request.Request(
        f"{account.server}/graphql",
        data=json.dumps({"query": "query Viewer { viewer { id } }"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    # Of this host alone: urllib takes other headers along to where it is redirected.
    request.add_unredirected_header("Authorization", f"Basic {token}")
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            told = json.loads(answer.read(1 << 20))
        data = told.get("data") if isinstance(told, dict) else None
        known = isinstance(data, dict) and data.get("viewer")
        return "" if known else f"{account.host} does not know the key"
    except urllib.error.HTTPError as error:
        refused = error.code in (401, 403)
        return f"{account.host} refuses the key" if refused else f"{account.host} answers with error {error.code}"
    except TimeoutError:
        return f"no answer from {account.host} in {seconds:.0f} s"
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return f"no answer from {account.host} in {seconds:.0f} s"
        return f"no answer from {account.host} ({getattr(reason, 'strerror', None) or type(reason).__name__})"
