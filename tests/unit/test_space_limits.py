"""What one visitor of the Space may ask for."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hb_ssl import space_limits
from hb_ssl.space_limits import Allowance, LimitRequests, client_of


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 20), min_size=1, max_size=80), st.integers(1, 9))
def test_no_period_sees_more_than_twice_the_allowance(pauses: list[float], amount: int) -> None:
    """A full bucket and what flows in meanwhile: the bound of a token bucket, and always some."""
    clock = Clock()
    allowance = Allowance(amount, 60, clock)
    taken = []
    for pause in pauses:
        clock.now += pause
        wait = allowance.take("a")
        if wait == 0:
            taken.append(clock.now)
        else:
            assert 0 < wait <= 60 / amount + 1e-9
    for start in taken:
        assert sum(start <= time < start + 60 for time in taken) <= 2 * amount
    assert len(taken) >= min(len(pauses), amount)


def test_waiting_as_long_as_told_is_enough() -> None:
    clock = Clock()
    allowance = Allowance(100, 60, clock)
    assert allowance.take("a", 90) == 0
    wait = allowance.take("a", 40)
    assert wait == pytest.approx(18)
    assert allowance.take("b", 100) == 0, "others have their own"
    clock.now += wait + 1e-6
    assert allowance.take("a", 40) == 0


def test_memory_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space_limits, "MAX_CLIENTS", 3)
    allowance = Allowance(1, 60, Clock())
    for name in "abcd":
        assert allowance.take(name) == 0
    assert allowance.take("d") > 0
    assert allowance.take("a") == 0  # forgotten, the longest unseen first


def answers(limits: LimitRequests, **changes: Any) -> tuple[int, str]:
    """Status and text of one request."""
    headers = {"content-length": "10", **changes.pop("headers", {})}
    scope = {
        "type": "http", "method": "POST", "client": ("1.2.3.4", 5),
        "headers": [(k.encode(), v.encode()) for k, v in headers.items() if v is not None],
        **changes,
    }  # fmt: skip
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(limits(scope, None, send))
    return sent[0]["status"], json.loads(sent[1]["body"])["detail"]


async def served(scope: Any, receive: Any, send: Any) -> None:
    await send({"status": 200})
    await send({"body": b'{"detail": ""}'})


def test_what_is_refused() -> None:
    limits = LimitRequests(served, requests_per_minute=3)
    assert [answers(limits)[0] for _ in range(4)] == [200, 200, 200, 429]
    assert "try again in" in answers(limits)[1]
    assert answers(limits, method="GET")[0] == 200
    assert answers(limits, type="websocket")[0] == 200
    assert answers(limits, client=("1.2.3.5", 5))[0] == 200
    assert answers(limits, client=None)[0] == 200
    status, text = answers(limits, client=("2.2.2.2", 5), headers={"content-length": "600000000"})
    assert (status, "600 MB at once; at most 500 MB" in text) == (413, True)
    for length in (None, "", "-1", "many", "1e9"):
        assert answers(limits, client=("9", 9), headers={"content-length": length})[0] == 411


def test_bytes_are_counted_too() -> None:
    limits = LimitRequests(served, requests_per_minute=100)
    sizes = {"headers": {"content-length": "450000000"}}
    assert [answers(limits, **sizes)[0] for _ in range(5)] == [200] * 4 + [429]
    assert answers(limits)[0] == 200  # a small one still goes through


def test_a_forged_address_is_believed_from_the_proxy_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scope = {"client": ("10.0.0.1", 5)}
    headers = {b"x-forwarded-for": b"7.7.7.7, 10.0.0.9"}
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert client_of(scope, headers) == "10.0.0.1"
    monkeypatch.setenv("SPACE_ID", "me/space")
    assert client_of(scope, headers) == "7.7.7.7"
    assert client_of(scope, {}) == "10.0.0.1"
