"""A fake LLM judge: a server with the part of OpenAI's chat completions API that judging uses."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Rule = Callable[[str, str], str]


def likes_longer(first: str, second: str) -> str:
    """Prefer the longer answer; a tie if both have the same length."""
    if len(first) == len(second):
        return "They have the same length. [[C]]"
    return f"Length counts: [[{'A' if len(first) > len(second) else 'B'}]]"


def likes_first(first: str, second: str) -> str:
    """Prefer the answer that comes first."""
    return "The first one it is. [[A]]"


class LlmJudgeServer:
    """Judges by a rule; a context manager.

    Attributes:
        rule: Maps both answers to the judge's reply.
        fail: Maps a request number, from 0, to a status and headers to fail with, or None.
        drop: Maps a request number to whether the connection is closed without a response.
        spoil: Maps a request number to a response body to send instead, or None.
        wait: Seconds to wait before each response.
        requests: Path, headers and body of each request.
    """

    def __init__(self) -> None:
        self.rule: Rule = likes_longer
        self.fail: Callable[[int], tuple[int, dict[str, str]] | None] = lambda number: None
        self.drop: Callable[[int], bool] = lambda number: False
        self.spoil: Callable[[int], bytes | None] = lambda number: None
        self.wait = 0.0
        self.requests: list[dict[str, Any]] = []
        self.stopped = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> LlmJudgeServer:
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                judge._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def questions(self) -> list[str]:
        """The last message of each request."""
        return [each["body"]["messages"][-1]["content"] for each in self.requests]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        received = {"path": request.path, "headers": dict(request.headers), "body": body}
        with self._lock:
            number = len(self.requests)
            self.requests.append(received)
        if self.wait:
            self.stopped.wait(self.wait)
        if self.drop(number):
            request.close_connection = True
            return None
        failure = self.fail(number)
        if failure:
            status, headers = failure
            # Real servers, too, repeat the request in their errors.
            text = f"no, {request.headers.get('Authorization')}: {body['model']}"
            return self._send(request, status, text.encode(), headers)
        spoiled = self.spoil(number)
        if spoiled is not None:
            return self._send(request, 200, spoiled, {})
        question = body["messages"][-1]["content"]
        both = re.findall(r"<answer_[ab]>\n(.*?)\n</answer_[ab]>", question, re.DOTALL)
        message = {"role": "assistant", "content": self.rule(*both)}
        answer = {"id": "1", "object": "chat.completion", "choices": [{"message": message}]}
        self._send(request, 200, json.dumps(answer).encode(), {})

    @staticmethod
    def _send(
        request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]
    ) -> None:
        try:
            request.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(body)
        except OSError:
            pass  # The client has closed the connection.
