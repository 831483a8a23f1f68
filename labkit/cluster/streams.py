"""Which streams an account has, and how they are deleted."""

import json

from nats.errors import NoRespondersError
from nats.js.errors import NotFoundError

from labkit.cluster.readiness import until_answered
from labkit.errors import LabError
from labkit.waiting import until

NO_JETSTREAM = (10039, 10076)  # not enabled for the account, not enabled at all


async def stream_names(client, timeout=15):
    """Returns the names of all streams of the client's account (set); the empty set if it has no
    JetStream. timeout: seconds. Raises LabError if nobody answers: silence does not mean that there
    are no streams.

    The meta leader knows all names. For a list with their state (streams_info) it asks the streams'
    leaders: it waits four seconds for each that does not answer, and then leaves its stream out."""
    names = []
    total = 1
    while len(names) < total:
        page = await until(
            lambda: _page_of_names(client, len(names)),
            timeout,
            lambda: "JetStream to list the streams. Look with: python -m labkit status",
        )
        total = page.get("total", 0)
        found = page.get("streams") or []
        if not found:
            break
        names += found
    return set(names)


async def _page_of_names(client, offset):
    """Returns one page of the list of names (dict), or None if nobody answers, or JetStream is busy
    or has no meta leader at this moment."""
    try:
        answer = await client.request(
            "$JS.API.STREAM.NAMES", json.dumps({"offset": offset}).encode(), timeout=3
        )
    except NoRespondersError:  # the account has no JetStream
        return {"total": 0}
    except TimeoutError:
        answer = None
    page = json.loads(answer.data) if answer else {}
    if page and ("error" not in page or page["error"]["err_code"] in NO_JETSTREAM):
        return page
    if not client.is_connected:
        raise LabError("The client has lost its connection, so it cannot list the streams.")
    return None


async def delete(js, name, timeout=20):
    """Deletes a stream, and asks again if nobody answers. Returns False if there was none: a list
    may name a stream for a moment after its end. timeout: seconds; raises LabError."""
    tries = 0

    async def ask():
        nonlocal tries
        tries += 1
        try:
            return await js.delete_stream(name)
        except NotFoundError:
            return tries > 1  # an earlier try has deleted it, and its answer was lost

    return await until_answered(ask, timeout, f"stream {name}")


async def delete_all(client, names, timeout=10):
    """Deletes these streams (set of names) and waits until the meta leader no longer lists them.
    Until then, a client that looks for streams would still find them. timeout: seconds; raises
    LabError."""
    for name in names:
        await delete(client.jetstream(timeout=2), name)

    async def gone():
        listed = names & await stream_names(client)
        return not listed

    if names:
        await until(gone, timeout, "deleted streams to disappear from the list")
