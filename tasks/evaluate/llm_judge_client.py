"""Asks a language model at a server that speaks OpenAI's chat completions.

The key goes into one header of each request, and nowhere else: not into errors, logs or results.
"""

from __future__ import annotations

import os
from typing import Any

from tasks.contracts.errors import BurnishError, LlmJudgeFailed, NoAccess, NotFound
from tasks.contracts.recipe_evaluation import LlmJudgeRecipe

WHERE = "evaluation.llm_judge"
RETRIES = 5
BACKOFF = 1.0
"""Seconds before the second retry; doubled for each one after it."""
_LONGEST_WAIT = 60
_CONNECT_SECONDS = 10
_BUSY = (408, 409, 429, 500, 502, 503, 504, 529)
_REFUSED = (400, 413, 422)
_EXCERPT = 300


class Unanswered(Exception):
    """The server is there, but gave no answer to this question; the text says why."""


def api_key(judge: LlmJudgeRecipe) -> str:
    """The server's key; empty where it needs none.

    Raises:
        NoAccess: The variable that shall hold it is not set.
    """
    if not judge.api_key_env:
        return ""
    key = os.environ.get(judge.api_key_env, "").strip()
    if not key:
        raise NoAccess(
            f"{WHERE}.api_key_env",
            f"no value in the environment variable {judge.api_key_env}",
            "the key of the judge's server",
            f"set {judge.api_key_env} where the run works, or leave api_key_env empty",
        )
    return key


class ChatClient:
    """A connection to the server. It may be used by several threads; close it by `with`.

    Args:
        llm_judge: Where the server is, and which model answers.

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
            # A question may be asked again: it changes nothing.
            allowed_methods=None,
            backoff_factor=BACKOFF,
            backoff_max=_LONGEST_WAIT,
            backoff_jitter=BACKOFF / 2,
            retry_after_max=_LONGEST_WAIT,
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

    def ask(self, question: str) -> str:
        """The model's answer, at temperature 0.

        Raises:
            Unanswered: The server refused this question, or said what is no answer.
            NoAccess: It refuses the key.
            NotFound: It has no such page or model.
            LlmJudgeFailed: It did not answer, however often it was asked.
        """
        import requests

        body = {
            "model": self._judge.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
        }
        try:
            response = self._session.post(
                f"{self._judge.url}/chat/completions",
                json=body,
                # Not as a header of the session: .netrc would replace it.
                auth=self._sign,
                timeout=(_CONNECT_SECONDS, self._judge.time_out_seconds),
                allow_redirects=False,
            )
        except requests.RequestException as error:
            # Neither its text nor its request, which has the key, may travel on.
            raise self._failed(f"no answer ({_kind(error)})") from None
        if response.status_code == 200:
            return self._answer_in(response)
        raise self._refusal(response) from None

    def _sign(self, request: Any) -> Any:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _answer_in(self, response: Any) -> str:
        try:
            answer = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise Unanswered("what is no chat completion") from None
        if not isinstance(answer, str):
            raise Unanswered("an answer without text")
        return self._clean(answer)

    def _refusal(self, response: Any) -> BurnishError | Unanswered:
        status = response.status_code
        if status in (401, 403):
            # What such an answer says often repeats a part of the key.
            variable = self._judge.api_key_env
            return NoAccess(
                WHERE,
                f"access denied ({status})",
                "a key that may ask this model",
                f"set {variable} to one" if variable else "name its variable as api_key_env",
            )
        said = self._clean(response.text)[:_EXCERPT]
        if status in _REFUSED:
            return Unanswered(f"a refusal ({status}: {said})")
        if status == 404:
            return NotFound(
                WHERE,
                f"no such page or model ({said})",
                f"{self._judge.url}/chat/completions with the model {self._judge.model}",
                "correct url (it mostly ends in /v1) or model",
            )
        return self._failed(f"an error ({status}: {said})")

    def _failed(self, found: str) -> LlmJudgeFailed:
        return LlmJudgeFailed(
            f"{WHERE} {self._judge.url}",
            found,
            "a server that answers",
            "see whether the server is up, or raise time_out_seconds; training, answers and the "
            "verdicts so far are kept: a retry asks only for those that are missing",
        )

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _kind(error: Exception) -> str:
    import requests

    if isinstance(error, requests.ConnectTimeout):
        return "it could not be reached in time"
    # After retries a time-out comes wrapped, and is known by its cause alone.
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "it took too long"
    return type(error).__name__
