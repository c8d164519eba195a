"""An OpenAI-compatible endpoint, asked through OpenAI's client: OpenAI's own, vLLM, Ollama, `mllm serve`, ..."""

from __future__ import annotations

import os
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from data_modules.synthesis.backends.completion import answer_of, body_of, failure_of
from data_modules.synthesis.request import Answer, Refused, Request, Retry, Stop

MAX_ANSWER_BYTES = 8 * 2**20
"""Of a response; one that is longer is no answer."""
SECRET_LENGTH = 8
"""Characters of the key that are not shown in a row."""
NO_KEY = "none"
"""What is sent to endpoints that need none: OpenAI's client demands a text."""


class OpenAIEndpoint:
    """Answers of one model.

    Args:
        model: As the endpoint names it.
        base_url: Where it is, such as http://127.0.0.1:8000/v1; None for OpenAI's own.
        key_env: The environment variable that holds the key; None for an endpoint without one.
        timeout: Seconds until a call is given up.

    Raises:
        ValueError: The variable is empty, the address holds a secret, or `openai` is not installed.
    """

    def __init__(self, model: str, base_url: str | None, key_env: str | None, timeout: float) -> None:
        try:
            import openai
        except ImportError as error:
            raise ValueError(
                "--backend openai: found no package openai, expected the extra: pip install lightning-mllm[synthesis]"
            ) from error
        if base_url is not None:
            check_address(base_url)
        if not timeout > 0:
            raise ValueError(f"--timeout: found {timeout}, expected more than 0 seconds")
        # httpx in openai 2, httpx2 in openai 3.
        http: Any = sys.modules[openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]]
        self._key = _key(key_env, base_url)
        self._errors = (openai.OpenAIError, http.HTTPError, http.StreamError)
        self._before_sending = (http.ConnectError, http.ConnectTimeout, http.PoolTimeout)
        self._status_error = openai.APIStatusError
        self._timeouts = (openai.APITimeoutError, http.TimeoutException)
        self._client = openai.OpenAI(
            api_key=self._key or NO_KEY,
            base_url=base_url or "https://api.openai.com/v1",
            timeout=openai.Timeout(timeout, connect=min(timeout, 20.0)),
            max_retries=0,
        )
        self._model, self._timeout = model, timeout
        self._limit = "max_completion_tokens" if base_url is None else "max_tokens"

    def ask(self, request: Request) -> Answer:
        """As in `Backend`."""
        try:
            body = body_of(request, self._model, self._limit)
        except ValueError as error:
            raise Refused(str(error)) from error
        try:
            answer = answer_of(self._post(body))
        except (Retry, Refused, Stop) as error:
            error.reason = self._without_key(error.reason)
            raise
        # Shorter ones ('x', for servers that want any) are no secret, and occur in texts.
        if len(self._key) >= SECRET_LENGTH and self._without_key(told := f"{answer.text}\n{answer.model}") != told:
            raise Refused("the answer holds characters of the key, and is not stored", paid=True)
        return answer

    def _post(self, body: dict[str, Any]) -> bytes:
        """The body of a response of status 200, as it came."""
        begun = time.monotonic()
        try:
            with self._client.chat.completions.with_streaming_response.create(**body) as response:
                data = bytearray()
                for piece in response.iter_bytes():
                    data += piece
                    if len(data) > MAX_ANSWER_BYTES:
                        raise Retry(f"found more than {MAX_ANSWER_BYTES} bytes of an answer, expected less", paid=True)
                    if time.monotonic() - begun > self._timeout:
                        raise self._too_slow()
                return bytes(data)
        except self._status_error as error:
            raise failure_of(error.status_code, error.response.content, error.response.headers) from None
        except self._errors as error:
            cause = error.__cause__ or error
            paid = not isinstance(cause, self._before_sending)
            if paid and (isinstance(error, self._timeouts) or isinstance(cause, self._timeouts)):
                raise self._too_slow() from None
            told = " ".join(str(cause).split()) or type(cause).__name__
            raise Retry(f"found no response: {told[:160]}", paid=paid) from None

    def _too_slow(self) -> Retry:
        return Retry(f"found no complete answer within {self._timeout:g} s", paid=True)

    def _without_key(self, text: str) -> str:
        """A text in which no part of the key of 8 characters is left."""
        if not (key := self._key):
            return text
        text = text.replace(key, "***")
        for start in range(len(key) - SECRET_LENGTH + 1):
            text = text.replace(key[start : start + SECRET_LENGTH], "***")
        return text


def check_address(base_url: str) -> None:
    """Refuses an address that cannot be written down.

    Raises:
        ValueError: It is no http address, or holds a user, a password or a query.
    """
    parts = urlsplit(base_url)
    if parts.username or parts.password or parts.query:
        raise ValueError("--base-url: found a user, a password or a query in it, expected the key in --key-env alone")
    try:
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # Of a port that is none.
        known = False
    if not known:
        raise ValueError(f"--base-url: found '{base_url}', expected an address such as http://127.0.0.1:8000/v1")


def _key(key_env: str | None, base_url: str | None) -> str:
    if key_env is None and base_url is None:
        raise ValueError("--key-env: found none, expected the environment variable that holds the key of OpenAI's API")
    if key_env is None:
        return ""
    if not (key := os.environ.get(key_env, "").strip()):
        # Without what was given: it may be the key itself.
        raise ValueError("--key-env: found no such environment variable, expected the name of one that holds the key")
    return key
