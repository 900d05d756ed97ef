"""A model provider on loopback that answers each request as the test sets it."""

import json
from types import TracebackType
from typing import Any

from tests.support.canaries import Answer
from tests.support.served import Served

_COMPLETION = {
    "id": "c-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
OK = Answer(200, [("content-type", "application/json")], [json.dumps(_COMPLETION).encode()])


class HostileProvider:
    """The provider, as a context manager.

    Attributes:
        answer: Its next answer.
        url: Its base URL, while it runs.
    """

    def __init__(self) -> None:
        self.answer = OK

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                raise RuntimeError("no lifespan here")
            await self._serve(receive, send)

        self._served = Served(app)

    def __enter__(self) -> "HostileProvider":
        self.url = self._served.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._served.__exit__(kind, error, trace)

    async def _serve(self, receive: Any, send: Any) -> None:
        answer = self.answer
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        for chunk in answer.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
