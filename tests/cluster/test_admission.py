"""Admission: places by address, and requests that wait for one once their upload is complete."""

import asyncio
from contextlib import ExitStack

import pytest

from serve_app.cluster.admission import Admission, Places
from serve_app.errors import Overloaded


def test_places_are_limited_in_all_and_by_address() -> None:
    places = Places(max_taken=3, max_per_address=2, what="uploads")
    with ExitStack() as held:
        for address in ("192.0.2.1", "192.0.2.1"):
            held.enter_context(places.take(address))
        with pytest.raises(Overloaded, match="Your address has as many uploads"), places.take("192.0.2.1"):
            pass
        with (
            places.take("192.0.2.2"),
            pytest.raises(Overloaded, match="The server has as many uploads"),
            places.take("192.0.2.3"),
        ):
            pass
        assert places.taken == 2
    assert places.taken == 0
    with places.take("192.0.2.1"):
        assert places.taken == 1


async def test_a_complete_upload_waits_for_a_place_and_new_requests_are_refused_meanwhile() -> None:
    admission = Admission(max_requests=1, max_windows=1, streams=Places(1, 1), waiting=Places(1, 1))
    with ExitStack() as first, admission.request() as second_begins:
        first_begins = first.enter_context(admission.request())
        await first_begins.begin_work()
        waiting = asyncio.ensure_future(second_begins.begin_work())
        await asyncio.sleep(0)
        assert not waiting.done()
        assert admission.requests == 2
        with pytest.raises(Overloaded), admission.request():
            pass
        first.close()
        await waiting
        with pytest.raises(Overloaded), admission.request():
            pass
    with admission.request():
        assert admission.requests == 1


async def test_a_request_that_is_given_up_while_it_waits_leaves_no_trace() -> None:
    admission = Admission(max_requests=1, max_windows=1, streams=Places(1, 1), waiting=Places(1, 1))
    with ExitStack() as first:
        first_begins = first.enter_context(admission.request())
        with admission.request() as second_begins:
            await first_begins.begin_work()
            waiting = asyncio.ensure_future(second_begins.begin_work())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    with admission.request() as begins:
        await asyncio.wait_for(begins.begin_work(), 1)


def test_bytes_of_uploads_count_while_they_are_in_progress() -> None:
    admission = Admission(max_requests=1, max_windows=1, streams=Places(1, 1), waiting=Places(1, 1))
    with admission.spool() as first:
        first(100)
        with admission.spool() as second:
            second(20)
            first(3)
            assert admission.spooled_bytes == 123
        assert admission.spooled_bytes == 103
    assert admission.spooled_bytes == 0
