"""Which streams an account has, and how they go away."""

import asyncio
import itertools
import json
import time

from nats.errors import NoRespondersError
from nats.js.errors import NotFoundError

from labkit.cluster.readiness import until_answered
from labkit.errors import LabError

NO_JETSTREAM = (10039, 10076)  # not enabled for the account, not enabled at all


async def stream_names(client, timeout=15):
    """Names of all streams of the client's account (set); the empty set where there is no
    JetStream. timeout: seconds; raises LabError if nobody answers so long: silence is not "no
    streams".

    The meta leader knows all names. A list with their state (streams_info) it gathers from the
    streams' leaders: it waits four seconds for each that is silent, and then leaves it out."""
    found, total, end = [], 1, time.monotonic() + timeout
    while len(found) < total:
        try:
            answer = await client.request(
                "$JS.API.STREAM.NAMES", b'{"offset": %d}' % len(found), timeout=3
            )
            page = json.loads(answer.data)
        except NoRespondersError:
            break
        except TimeoutError:
            page = {"error": {"err_code": None}}
        # busy, or no meta leader at this moment
        if "error" in page and page["error"]["err_code"] not in NO_JETSTREAM:
            if time.monotonic() > end or not client.is_connected:
                raise LabError(
                    "JetStream does not answer, so nobody knows which streams there are. "
                    "Look with: python -m labkit status"
                )
            await asyncio.sleep(0.02)
            continue
        names, total = page.get("streams") or [], page.get("total", 0)
        found += names
        if not names:
            break
    return set(found)


async def delete(js, name, timeout=20):
    """Deletes a stream; asks again where nobody answers. Returns False if it was gone already: a
    list may name one for a moment after its end. timeout: seconds; raises LabError after it."""
    tries = itertools.count()

    async def ask():
        first = next(tries) == 0
        try:
            return await js.delete_stream(name)
        except NotFoundError:
            return not first  # a try before deleted it, and its answer was lost

    return await until_answered(ask, time.monotonic() + timeout, f"stream {name}")


async def delete_all(client, names, timeout=10):
    """Deletes these streams (set of names) and waits until the meta leader no longer names them:
    until then, who looks for streams finds them, and takes them for somebody else's."""
    for name in names:
        await delete(client.jetstream(timeout=2), name)
    for _ in range(int(timeout / 0.02)):
        if not names or not names & await stream_names(client):
            return
        await asyncio.sleep(0.02)
