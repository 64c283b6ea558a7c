"""A client for servers with OpenAI's chat completions API, such as that of the LLM judge.

The API key goes into one header of each request and nowhere else: not into errors, logs or results.
"""

from __future__ import annotations

import os
from typing import Any

from tasks.contracts.errors import BurnishError, LlmJudgeFailed, NoAccess, NotFound
from tasks.contracts.recipe_evaluation import LlmJudgeRecipe

WHERE = "evaluation.llm_judge"
RETRIES = 5
BACKOFF = 1.0
"""Seconds before the second retry; each further wait is twice as long."""
_MAX_WAIT = 60
_CONNECT_SECONDS = 10
_BUSY = (408, 409, 429, 500, 502, 503, 504, 529)
_REFUSED = (400, 413, 422)
_EXCERPT = 300


class NoReply(Exception):
    """The server is up but gave no usable reply to this prompt; the text says why."""


def api_key(judge: LlmJudgeRecipe) -> str:
    """The server's API key; empty if it needs none.

    Raises:
        NoAccess: The environment variable for the key is not set.
    """
    if not judge.api_key_env:
        return ""
    key = os.environ.get(judge.api_key_env, "").strip()
    if not key:
        raise NoAccess(
            f"{WHERE}.api_key_env",
            f"no value in the environment variable {judge.api_key_env}",
            "the API key of the LLM judge's server",
            f"set {judge.api_key_env} in the worker's environment, or leave api_key_env empty",
        )
    return key


class ChatClient:
    """A connection to the server, for several threads. Use it in a `with` statement.

    Args:
        judge: The server and its model.

    Raises:
        NoAccess: The key is missing.
    """

    def __init__(self, judge: LlmJudgeRecipe) -> None:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        self._judge, self._key = judge, api_key(judge)
        retries = Retry(
            RETRIES,
            status_forcelist=_BUSY,
            # Prompts may be repeated, also by POST: they change nothing on the server.
            allowed_methods=None,
            backoff_factor=BACKOFF,
            backoff_max=_MAX_WAIT,
            backoff_jitter=BACKOFF / 2,
            retry_after_max=_MAX_WAIT,
            raise_on_status=False,
        )
        self._session = requests.Session()
        adapter = HTTPAdapter(pool_maxsize=judge.parallel, max_retries=retries)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def ask(self, prompt: str) -> str:
        """The model's reply to a prompt, at temperature 0.

        Raises:
            NoReply: The server refuses this prompt, or replies with something else than a text.
            NoAccess: The server refuses the key.
            NotFound: The server does not have the page or the model.
            LlmJudgeFailed: The server did not reply, after several retries.
        """
        import requests

        body = {
            "model": self._judge.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
        }
        try:
            response = self._session.post(
                f"{self._judge.url}/chat/completions",
                json=body,
                # Not a header of the session, which .netrc would replace.
                auth=self._authorize,
                timeout=(_CONNECT_SECONDS, self._judge.time_out_seconds),
                allow_redirects=False,
            )
        except requests.RequestException as error:
            # Neither its text nor its request, which holds the key, may be passed on.
            raise self._failed(f"no reply ({_cause(error)})") from None
        if response.status_code == 200:
            return self._reply_in(response)
        raise self._refusal(response) from None

    def _authorize(self, request: Any) -> Any:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _reply_in(self, response: Any) -> str:
        try:
            reply = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise NoReply("the reply is not a chat completion") from None
        if not isinstance(reply, str):
            raise NoReply("the reply has no text")
        return self._without_key(reply)

    def _refusal(self, response: Any) -> BurnishError | NoReply:
        status = response.status_code
        if status in (401, 403):
            # The text of such a response often repeats a part of the key.
            variable = self._judge.api_key_env
            return NoAccess(
                WHERE,
                f"access denied ({status})",
                "an API key with access to this model",
                f"set {variable} to one" if variable else "name its variable in api_key_env",
            )
        text = self._without_key(response.text)[:_EXCERPT]
        if status in _REFUSED:
            return NoReply(f"the server refused the prompt ({status}: {text})")
        if status == 404:
            return NotFound(
                WHERE,
                f"no such page or model ({text})",
                f"{self._judge.url}/chat/completions with the model {self._judge.model}",
                "correct url (it usually ends in /v1) or model",
            )
        return self._failed(f"an error ({status}: {text})")

    def _failed(self, found: str) -> LlmJudgeFailed:
        return LlmJudgeFailed(
            f"{WHERE} {self._judge.url}",
            found,
            "a server that replies",
            "check that the server is up, or raise time_out_seconds; the model, its answers and "
            "the verdicts so far are kept, and a retry asks only for missing verdicts",
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _cause(error: Exception) -> str:
    import requests

    if isinstance(error, requests.ConnectTimeout):
        return "the connection timed out"
    # After retries a time-out is wrapped, and only its text shows it.
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "the reply timed out"
    return type(error).__name__
