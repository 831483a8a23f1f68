"""A clean slate: which streams are the lesson's own, and how they go away."""
import asyncio
import contextlib
import json
import os
import time
from pathlib import Path

from nats.errors import NoRespondersError
from nats.js.errors import NotFoundError

from labkit import cluster as clusters
from labkit import nodes, tables
from labkit.client import connect
from labkit.errors import LabError

NO_JETSTREAM = (10039, 10076)  # not enabled for the account, not enabled at all
CREATED = "$JS.EVENT.ADVISORY.API"  # the server's own record of what each connection asked of JetStream


async def stream_names(client, timeout=15):
    """Names of all streams of the client's account (set); the empty set where there is no JetStream. timeout: seconds;
    raises LabError if nobody answers so long: silence is not "no streams".

    Of the names the meta leader knows all; a list with their state (streams_info) it gathers from the streams' leaders, waits
    four seconds for each that is silent, and then leaves it out."""
    found, total, end = [], 1, time.monotonic() + timeout
    while len(found) < total:
        try:
            answer = await client.request("$JS.API.STREAM.NAMES", b'{"offset": %d}' % len(found), timeout=3)
            page = json.loads(answer.data)
        except NoRespondersError:
            break
        except TimeoutError:
            page = {"error": {"err_code": None}}
        if "error" in page and page["error"]["err_code"] not in NO_JETSTREAM:  # busy, or no meta leader at this moment
            if time.monotonic() > end or not client.is_connected:
                raise LabError("JetStream does not answer, so nobody knows which streams there are. "
                               "Look with: python -m labkit status")
            await asyncio.sleep(0.02)
            continue
        names, total = page.get("streams") or [], page.get("total", 0)
        found += names
        if not names:
            break
    return set(found)


async def delete(js, name):
    """Deletes a stream. Returns False if it was gone already: a list may name one for a moment after its end."""
    with contextlib.suppress(NotFoundError):
        return await js.delete_stream(name)
    return False


async def delete_all(client, names, timeout=10):
    """Deletes these streams (set of names) and waits until the meta leader names them no more, which takes it a moment: whoever
    notes what is there meanwhile takes them for somebody else's."""
    for name in names:
        await delete(client.jetstream(), name)
    for _ in range(int(timeout / 0.02)):
        if not names or not names & await stream_names(client):
            return
        await asyncio.sleep(0.02)


class Account:
    """On the lab's own cluster the account belongs to the lesson, and so does every stream in it."""

    def __init__(self, lab):
        self.lab = lab

    async def streams(self):
        return await stream_names(self.lab.nc)

    async def clean(self):
        """Deletes the lesson's streams. Returns how many there were."""
        names = await self.streams()
        await delete_all(self.lab.nc, names)
        await self._until_off_disk(names)
        return len(names)

    async def wipe(self):
        """Deletes them when the lesson ends. Returns what may be left (list of words)."""
        try:
            await self.clean()
            return [f"stream {name}" for name in await self.streams()]
        except LabError as error:
            return [f"its streams ({error})"]

    async def _until_off_disk(self, names, timeout=10):
        """Followers remove a deleted stream's files a moment later; a stream of the same name that is created before
        can fail with err_code 10049. Seen from here only where the nodes are processes of this machine."""
        streams = [Path(node.store, "jetstream", self.lab.topic.upper(), "streams") for node in self.lab.cluster.nodes
                   if node.store]
        for _ in range(int(timeout / 0.02)):
            if not any((folder / name).exists() for folder in streams for name in names):
                return
            await asyncio.sleep(0.02)


class Made(Account):
    """On a cluster of the user's own, only the streams that this lesson's connections created are the lesson's.

    The server says which those are: it publishes an audit of every JetStream API call with the connection that made
    it. The names are also written down, for the case that the kernel is killed before it can clean up.
    """

    def __init__(self, lab):
        super().__init__(lab)
        self.file = nodes.home() / "lessons" / f"{lab.topic}.made.json"
        self.made = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}  # name -> time of creation
        self.listening = False

    async def streams(self):
        found = set()
        for name, created in self.made.items():
            with contextlib.suppress(NotFoundError):
                if str((await self.lab.js.stream_info(name)).created) == created:
                    found.add(name)
        return found

    async def clean(self):
        count = await super().clean()
        self._refuse_company(await stream_names(self.lab.nc))
        self.made = {}
        self.file.unlink(missing_ok=True)
        if not self.listening:
            self.listening = True
            await self.lab.nc.subscribe(CREATED, cb=self._note)
        return count

    def _refuse_company(self, names):
        if names and not self.listening and not os.environ.get("LABKIT_BESIDE"):
            raise LabError(f"This account holds streams that are not the lesson's: {', '.join(sorted(names)[:5])}. Lessons delete "
                           "and create streams by name (ORDERS, JOBS, …), so give them an account of their own with NATS_USER and "
                           "NATS_PASSWORD, or NATS_CREDS. If no name can meet one of theirs: LABKIT_BESIDE=1.")

    async def _note(self, message):
        audit = json.loads(message.data)
        answer = json.loads(audit.get("response") or "{}")
        who = (audit.get("client", {}).get("name"), audit.get("client", {}).get("id"))
        ours = {(client.options["name"], client.client_id) for client in self.lab.clients if client.is_connected}
        if answer.get("did_create") and "stream_create" in answer.get("type", "") and who in ours:
            name = answer["config"]["name"]
            with contextlib.suppress(NotFoundError):  # deleted meanwhile
                self.made[name] = str((await self.lab.js.stream_info(name)).created)
                self.file.write_text(json.dumps(self.made), encoding="utf-8")


async def wipe_accounts(topics):
    """Deletes all streams of these lessons' accounts on the running cluster of the lab. Returns a line that says so."""
    unknown = [topic for topic in topics if topic not in nodes.accounts()]
    if unknown:
        raise LabError(f"There is no lesson {unknown[0]!r}; wanted: one of {', '.join(nodes.accounts())}.")
    cluster = await clusters.find()
    if not cluster:
        return "no cluster is up, so there is nothing to reset"
    if cluster.backend == "attached":
        raise LabError("NATS_URL is set: a cluster of your own is never wiped. Unset it to reset the lab's cluster.")
    deleted = 0
    for topic in topics:
        client = await connect(**cluster.login(topic))
        for name in await stream_names(client):
            deleted += await delete(client.jetstream(), name)
        await client.close()
    return f"reset {len(topics)} account(s): {deleted} stream(s) deleted"


async def connections_left(cluster, topic):
    """Connections of this account that are still open some seconds after all of ours were closed (list of words)."""
    end = time.monotonic() + 10
    while True:
        table = await tables.connections(cluster, topic)
        if not len(table) or time.monotonic() > end:
            return [f"connection {row['name'] or 'without a name'} to {row['node']}" for _, row in table.iterrows()]
        await asyncio.sleep(0.02)
