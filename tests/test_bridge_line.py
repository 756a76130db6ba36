"""A line beside others in one event loop."""

import asyncio

from bridge_loop import LAYOUT

from inspectd.bridge.line import Line
from inspectd.client import AsyncClient, Health

EVENTS = 200


def test_who_shares_the_loop_has_a_turn_after_each_event():
    """Events come as fast as they are shown: sessions, the watchdog and fail-safe are not left waiting for a pause."""

    async def go():
        line = Line(LAYOUT, hold_ms=1000, verdicts="tcp://127.0.0.1:1", control="tcp://127.0.0.1:1")
        line._client = AsyncClient()
        for _ in range(EVENTS):
            line.client._inbox.put(Health(None))
        line.client._inbox.close()
        heard, seen = [], []

        async def watcher(result):
            heard.append(result)

        async def other():
            while True:
                seen.append(len(heard))
                await asyncio.sleep(0)

        line.watcher = watcher
        beside = asyncio.create_task(other())
        await line.run()
        beside.cancel()
        return seen

    assert set(range(1, EVENTS + 1)) <= set(asyncio.run(go()))
