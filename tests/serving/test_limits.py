"""What one client may take: the rate against a naive count, places, and limits that make no sense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pydantic")

from palimpsest.errors import InputError
from palimpsest.serving.limits import Limits, Turnstile
from palimpsest.serving.openai_errors import ApiError


@given(rate=st.integers(1, 20), waits=st.lists(st.floats(0, 30), max_size=60))
def test_the_rate_is_that_of_a_token_bucket(rate, waits):
    now = [0.0]
    turnstile = Turnstile(Limits(key_rate=rate), clock=lambda: now[0])
    left, then = float(rate), 0.0
    for wait in waits:
        now[0] += wait
        left, then = min(rate, left + (now[0] - then) * rate / 60), now[0]
        if left >= 1:
            left -= 1
            turnstile.pass_through("a")
        else:
            with pytest.raises(ApiError) as caught:
                turnstile.pass_through("a")
            assert caught.value.status == 429
            after = int(caught.value.headers["Retry-After"])
            assert (after - 1) * rate / 60 < 1 - left <= after * rate / 60 + 1e-9


def test_one_clients_rate_is_not_anothers():
    turnstile = Turnstile(Limits(key_rate=1), clock=lambda: 0.0)
    turnstile.pass_through("a")
    turnstile.pass_through("b")
    with pytest.raises(ApiError):
        turnstile.pass_through("a")


def test_without_a_rate_nothing_is_counted():
    turnstile = Turnstile(Limits())
    for _ in range(10_000):
        turnstile.pass_through("a")
    assert not turnstile._buckets


def test_addresses_do_not_pile_up(monkeypatch):
    monkeypatch.setattr("palimpsest.serving.limits._REMEMBERED", 10)
    turnstile = Turnstile(Limits(key_rate=5), clock=lambda: 0.0)
    for number in range(100):
        turnstile.pass_through(f"address {number}")
    assert len(turnstile._buckets) == 10


def test_places_are_taken_and_given_back():
    turnstile = Turnstile(Limits(key_streams=4))
    turnstile.take("a", 3)
    with pytest.raises(ApiError, match="3 texts are being written") as caught:
        turnstile.take("a", 2)
    assert (caught.value.status, caught.value.kind) == (429, "rate_limit_error")
    turnstile.take("a", 1)
    turnstile.take("b", 4)
    turnstile.give_back("a", 3)
    turnstile.take("a", 3)
    with pytest.raises(ApiError) as caught:  # to wait would not help
        turnstile.take("c", 5)
    assert caught.value.status == 400
    turnstile.give_back("a", 4)
    turnstile.give_back("b", 4)
    assert not turnstile._streams


@pytest.mark.parametrize("limit", ["max_body", "body_timeout", "request_timeout", "stall_timeout", "stream_buffer", "max_trace"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_that_let_nothing_through_are_refused(limit, value):
    with pytest.raises(InputError, match=limit):
        Limits(**{limit: value})


@pytest.mark.parametrize("limit", ["key_rate", "key_streams"])
def test_limits_below_zero_are_refused(limit):
    with pytest.raises(InputError, match=limit):
        Limits(**{limit: -1})
