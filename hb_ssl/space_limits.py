"""How much one visitor may ask of the Space: requests a minute, and megabytes sent."""

import json
import math
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

REQUESTS_PER_MINUTE = 120  # one recording takes four: sent, verdict, map, and clearing the old one
MAX_REQUEST_BYTES = 500_000_000  # of all files sent together; one alone: see MAX_FILE_SIZE
BYTES_PER_TEN_MINUTES = 2_000_000_000  # uploads are deleted after ten minutes
MAX_CLIENTS = 10_000  # remembered at once

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


class Allowance:
    """So much per client and period, used up at once or little by little (a token bucket).

    Args:
        amount: units a client may use in ``seconds``.
        seconds: the period.
        clock: seconds that only grow.
    """

    def __init__(
        self, amount: float, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.amount, self.seconds, self.clock = amount, seconds, clock
        self._left: dict[str, tuple[float, float]] = {}  # what was left, and when

    def take(self, client: str, units: float = 1.0) -> float:
        """Seconds until ``units`` are there for ``client``; 0 if they are, and they are taken."""
        now = self.clock()
        left, then = self._left.pop(client, (self.amount, now))
        left = min(self.amount, left + (now - then) * self.amount / self.seconds)
        wait = max(units - left, 0.0) * self.seconds / self.amount
        self._left[client] = (left if wait else left - units, now)  # the newest stand last
        if len(self._left) > MAX_CLIENTS:
            del self._left[next(iter(self._left))]
        return wait


class LimitRequests:
    """ASGI middleware that answers 413 or 429 where a client sends too much.

    Args:
        app: what answers otherwise.
        requests_per_minute: POST requests of one client.
    """

    def __init__(self, app: App, requests_per_minute: int = REQUESTS_PER_MINUTE) -> None:
        self.app = app
        self.requests = Allowance(requests_per_minute, 60)
        self.bytes = Allowance(BYTES_PER_TEN_MINUTES, 600)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        refusal = None
        if scope["type"] == "http" and scope["method"] == "POST":
            refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send)
            return
        status, message, wait = refusal
        body = json.dumps({"detail": message}).encode()
        headers = [
            (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
            *([(b"retry-after", b"%d" % wait)] if wait else []),
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Scope) -> tuple[int, str, int] | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            return 411, "The size of the request is not given; send it with Content-Length.", 0
        size = int(length)
        if size > MAX_REQUEST_BYTES:
            return 413, (
                f"Too large: {size / 1e6:.0f} MB at once; at most {MAX_REQUEST_BYTES / 1e6:.0f} MB "
                "are taken. Send fewer or shorter recordings."
            ), 0  # fmt: skip
        client = client_of(scope, headers)
        wait = math.ceil(self.requests.take(client) or self.bytes.take(client, size))
        if wait:
            return 429, (
                f"Too many requests: please try again in {wait} seconds. For many recordings, "
                "install the package and use `hb-ssl predict`."
            ), wait  # fmt: skip
        return None


def client_of(scope: Scope, headers: dict[bytes, bytes]) -> str:
    """Who asks: the address of the connection.

    In a Hugging Face Space every connection comes from its proxy, which names the visitor in
    ``X-Forwarded-For``. Elsewhere that header is anyone's to write, and is not believed.
    """
    forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")[0].strip()
    if forwarded and os.environ.get("SPACE_ID"):
        return forwarded
    return str((scope.get("client") or ("unknown",))[0])
