"""A server that speaks as much of OpenAI's chat completions as a judge needs."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Rule = Callable[[str, str], str]


def likes_longer(first: str, second: str) -> str:
    """Names the longer answer; neither, where they are as long."""
    if len(first) == len(second):
        return "They are as long. [[C]]"
    return f"Length counts: [[{'A' if len(first) > len(second) else 'B'}]]"


def likes_first(first: str, second: str) -> str:
    """Names whatever comes first."""
    return "The first one it is. [[A]]"


class LlmJudgeServer:
    """Answers by a rule; use by `with`.

    Attributes:
        rule: Of both answers, what is said.
        fail: Of the number of a request, from 0, a status and headers to fail with; None: none.
        drop: Of the number of a request, whether the line goes dead without a word.
        spoil: Of the number of a request, a body to send instead; None: none.
        wait: Seconds before each answer.
        requests: What was asked: path, headers and body of each.
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
        """What was asked."""
        return [each["body"]["messages"][-1]["content"] for each in self.requests]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        asked = {"path": request.path, "headers": dict(request.headers), "body": body}
        with self._lock:
            number = len(self.requests)
            self.requests.append(asked)
        if self.wait:
            self.stopped.wait(self.wait)
        if self.drop(number):
            request.close_connection = True
            return None
        failure = self.fail(number)
        if failure:
            status, headers = failure
            # As such servers do: what was sent is said again.
            said = f"no, {request.headers.get('Authorization')}: {body['model']}"
            return self._send(request, status, said.encode(), headers)
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
            pass  # Whoever asked did not wait.
