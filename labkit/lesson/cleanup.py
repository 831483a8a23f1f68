"""A clean slate: which streams are the lesson's own, and how they go away."""

import asyncio
import contextlib
import datetime
import json
import os
import time
from pathlib import Path

from nats.errors import Error as NatsError

from labkit import paths
from labkit.cluster import lifecycle, nodes, tables
from labkit.cluster.connection import close_client, connect, flush
from labkit.cluster.streams import delete, delete_all, stream_names
from labkit.errors import LabError

FAILURES = (
    LabError,
    NatsError,
    TimeoutError,
)  # how cleaning up may fail where the servers are not well
CREATED = (  # the server's own record of what each connection asked of JetStream
    "$JS.EVENT.ADVISORY.API"
)


class AccountStreams:
    """On the lab's own cluster the account is the lesson's, and so is every stream in it."""

    stays = ()  # words for each stream that is not known to be the lesson's, see CreatedStreams

    def __init__(self, lab):
        self.lab = lab

    def watch(self, client):
        """The streams that this client makes are the lesson's. Here they all are."""

    def count_in(self, who):
        """The same for a connection of another process, named as by connection()."""

    async def clean(self):
        """Deletes what an earlier run left behind. Returns how many streams that were."""
        names = await stream_names(self.lab.nc)
        await self._delete(self.lab.nc, names)
        return len(names)

    async def wipe(self):
        """Deletes the lesson's streams when it ends. Returns what may be left (list of words)."""
        try:
            async with self._hand() as client:
                await self._delete(client, await stream_names(client))
                return [f"stream {name}" for name in await stream_names(client)]
        except FAILURES as error:
            return [f"its streams ({error or type(error).__name__})"]

    @contextlib.asynccontextmanager
    async def _hand(self):
        """A client to clean up with: the lesson's own, or a new one where that is closed."""
        if not self.lab.nc.is_closed:
            yield self.lab.nc
            return
        client = await connect(**self.lab.cluster.login(self.lab.topic), name="clean-up")
        try:
            yield client
        finally:
            await close_client(client, drain=False)

    async def _delete(self, client, names):
        await delete_all(client, names)
        await self._until_off_disk(names)

    async def _until_off_disk(self, names, timeout=10):
        """Followers remove a deleted stream's files a moment later; a stream of the same name that
        is created before can fail with err_code 10049. Seen from here only where the nodes are
        processes of this machine."""
        streams = [
            Path(node.store, "jetstream", self.lab.topic.upper(), "streams")
            for node in self.lab.cluster.nodes
            if node.store
        ]
        for _ in range(int(timeout / 0.02)):
            if not any((folder / name).exists() for folder in streams for name in names):
                return
            await asyncio.sleep(0.02)


def connection(client):
    """How the server's audits name this connection: (server, client number there, client name)."""
    info = client._server_info  # nats-py tells the number, but not whose number it is
    return (
        info.get("server_name") or info.get("server_id"),
        client.client_id,
        client.options["name"],
    )


class CreatedStreams(AccountStreams):
    """On a cluster of the user's own, only what this lesson's connections created is the lesson's.

    The server says who created what: it publishes an audit of every call of the JetStream API, with
    the connection that made it. The audit of a create comes a moment after its answer. Which
    connections are the lesson's is known from its clients, and from its workers, who report theirs.
    Whatever is known to be the lesson's is written down at once, because the kernel may be killed
    before it can clean up.
    """

    def __init__(self, lab):
        super().__init__(lab)
        self.ours = set()  # all connections that the lesson has had, named as by connection()
        self.makers = {}  # (stream, when it was created) -> the connections that created it (list)
        self.before = set()  # names of the streams that were there when the lesson opened
        self.note = Note(lab)

    def watch(self, client):
        """This client's connection is the lesson's, and so is each one after a reconnect."""
        self.count_in(connection(client))
        reconnected = client._reconnected_cb  # the learner's own, if there is one

        async def reconnected_cb():
            self.count_in(connection(client))
            if reconnected:
                await reconnected()

        client._reconnected_cb = reconnected_cb

    def count_in(self, who):
        self.ours.add(tuple(who))
        self._write_down()

    async def clean(self):
        for client in self.lab.clients:
            self.watch(client)
        # A connection of its own: the learner may close, drain or overload the others.
        ear = await self.lab.connect(name=f"{self.lab.topic} clean-up", error_cb=self._trouble)
        await ear.subscribe(CREATED, cb=self._hear)
        await flush(ear)
        old = self.note.read()
        found = await self._created(ear, {name for streams in old.values() for name in streams})
        mine = {
            name: when
            for name, when in found.items()
            if any(streams.get(name) == when for streams in old.values())
        }
        await self._delete(ear, set(mine))
        self.note.forget(mine, kept={name for name, when in found.items() if not when})
        self.before = await stream_names(ear)
        self._refuse_company(self.before)
        return len(mine)

    def _refuse_company(self, names):
        if names and not os.environ.get("LABKIT_SHARE_ACCOUNT"):
            raise LabError(
                "This account holds streams that are not the lesson's: "
                f"{', '.join(sorted(names)[:5])}. Lessons delete and create streams by name "
                "(ORDERS, JOBS, …), so give them an account of their own with NATS_USER and "
                "NATS_PASSWORD, or NATS_CREDS. If no names can clash: LABKIT_SHARE_ACCOUNT=1."
            )

    async def wipe(self):
        """Deletes the lesson's streams. What is not known to be the lesson's is told in `stays`."""
        try:
            async with self._hand() as client:
                found = await self._explained(client)
                mine = {name: when for name, when in found.items() if self._is_ours((name, when))}
                await self._delete(client, set(mine))
                left = set(mine) & await stream_names(client)
        except FAILURES as error:
            return [f"its streams ({error or type(error).__name__})"]
        self.note.forget({}, kept=left | {name for name, when in found.items() if not when})
        self.stays = [
            f"{name} ({self._who_made(name, when)})"
            for name, when in sorted(found.items())
            if name not in mine
        ]
        return [f"stream {name}" for name in sorted(left)]

    async def _explained(self, client, timeout=3):
        """All streams that are new since the lesson opened ({name: when created}), as soon as the
        server has told who made each of them.

        timeout: seconds; what the server has not told then (this user may not hear it, say) stays
        without a maker."""
        end = time.monotonic() + timeout
        while True:
            told = {name for name, _ in self.makers}
            found = await self._created(
                client,
                {
                    name
                    for name in await stream_names(client)
                    if name in told or name not in self.before
                },
            )
            if all(key in self.makers for key in found.items()) or time.monotonic() > end:
                return found
            await asyncio.sleep(0.02)

    async def _created(self, client, names):
        """Those of these streams that are there ({name: when created}); "" where nobody answers."""

        async def ask(name):
            try:
                answer = json.loads(
                    (await client.request(f"$JS.API.STREAM.INFO.{name}", timeout=3)).data
                )
                return _when(answer["created"]) if "created" in answer else None
            except (NatsError, TimeoutError):  # it has no leader
                return ""

        times = await asyncio.gather(*map(ask, names))
        return {name: when for name, when in zip(names, times) if when is not None}

    async def _hear(self, message):
        audit = json.loads(message.data)
        answer, client = json.loads(audit.get("response") or "{}"), audit.get("client") or {}
        if not answer.get("did_create") or "stream_create" not in answer.get("type", ""):
            return
        name, when = answer["config"]["name"], _when(answer["created"])
        if name in self.before and when < _when(client["start"]):
            return  # a server alone says "created" also where it has the same stream already
        self.makers.setdefault((name, when), []).append(
            (client.get("server"), client.get("id"), client.get("name"))
        )
        self._write_down()

    def _is_ours(self, key):
        """True if the lesson has created this stream (name, when), and nobody else claims it."""
        return key in self.makers and self.ours.issuperset(self.makers[key])

    def _who_made(self, name, when):
        names = {
            client or "a connection without a name"
            for _, _, client in self.makers.get((name, when), ())
        }
        if names:
            return f"made by {' and '.join(sorted(names))}"
        return "nobody has told who made it" if when else "it does not answer"

    def _write_down(self):
        self.note.add(
            {name: when for name, when in sorted(self.makers) if self._is_ours((name, when))}
        )

    async def _trouble(self, error):
        # A user who may not hear the audits: wipe() says what that means.
        if "permissions violation" not in str(error).lower():
            await self.lab._net.error_cb(error)


class Note:
    """What a lesson has made on clusters of the user's own, in a file.

    {cluster and user: {stream: when created}}, without any secret. What stands there of one cluster
    outlives lessons on another: it is still to be removed where a killed kernel left it."""

    def __init__(self, lab):
        login = lab.cluster.login(lab.topic)
        user = login.get("user") or login.get("user_credentials") or ""
        self.here = f"{lab.cluster.shown} {user}".strip()
        self.file = paths.home() / "lessons" / f"{lab.topic}.made.json"

    def read(self):
        """All that is written down; nothing where the file is not whole."""
        try:
            told = json.loads(self.file.read_text(encoding="utf-8"))
            return {str(where): dict(streams) for where, streams in told.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def add(self, streams):
        """These streams of this cluster are there ({name: when created})."""
        told = self.read()
        if streams and told.get(self.here) != {**told.get(self.here, {}), **streams}:
            self._write({**told, self.here: {**told.get(self.here, {}), **streams}})

    def forget(self, gone, kept=()):
        """Strikes out these streams ({name: when created}), and all of this cluster but `kept`."""
        told = {
            where: {
                name: when
                for name, when in streams.items()
                if gone.get(name) != when and (where != self.here or name in kept)
            }
            for where, streams in self.read().items()
        }
        if any(told.values()):
            self._write({where: streams for where, streams in told.items() if streams})
        else:
            self.file.unlink(missing_ok=True)

    def _write(self, told):
        paths.write_whole(self.file, json.dumps(told))


def _when(text):
    """A time as the server writes it, with up to 9 digits, in a form that compares (text)."""
    when = datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    return when.isoformat(timespec="microseconds")


async def wipe_accounts(topics):
    """Deletes all streams of these lessons' accounts on the running cluster of the lab. Returns a
    line that says so."""
    unknown = [topic for topic in topics if topic not in nodes.accounts()]
    if unknown:
        raise LabError(
            f"There is no lesson {unknown[0]!r}; wanted: one of {', '.join(nodes.accounts())}."
        )
    cluster = await lifecycle.find()
    if not cluster:
        return "no cluster is up, so there is nothing to reset"
    if cluster.backend == "attached":
        raise LabError(
            "NATS_URL is set: a cluster of your own is never wiped. Unset it to reset the lab's "
            "cluster."
        )
    deleted = 0
    for topic in topics:
        client = await connect(**cluster.login(topic))
        try:
            for name in await stream_names(client):
                deleted += await delete(client.jetstream(timeout=2), name)
        finally:
            await close_client(client, drain=False)
    return f"reset {len(topics)} account(s): {deleted} stream(s) deleted"


async def connections_left(cluster, topic):
    """Connections of this account that are still open some seconds after all of ours were closed
    (list of words)."""
    end = time.monotonic() + 10
    while True:
        rows = await tables.connection_rows(cluster, topic)
        if not rows or time.monotonic() > end:
            names = [(row["name"] or "without a name", row["node"]) for row in rows]
            return [f"connection {name} to {node}" for name, node in names]
        await asyncio.sleep(0.02)
