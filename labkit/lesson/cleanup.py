"""Which streams belong to a lesson, and how they are removed."""

import asyncio
import contextlib
import datetime
import json
import os
from pathlib import Path

from nats.errors import Error as NatsError

from labkit import paths
from labkit.cluster import lifecycle, nodes, tables
from labkit.cluster.connection import close_client, connect, flush
from labkit.cluster.streams import delete, delete_all, stream_names
from labkit.errors import LabError
from labkit.waiting import until

# How a clean-up may fail when the servers are in trouble.
FAILURES = (LabError, NatsError, TimeoutError)
# Here a server publishes each request to the JetStream API, with the connection that made it.
API_ADVISORIES = "$JS.EVENT.ADVISORY.API"
PATIENCE = 10  # seconds for files to leave the disk, and for closed connections to leave the nodes
MAKERS_PATIENCE = 3  # seconds for the server to say who created the last streams


class AccountStreams:
    """On the lab's own cluster the account belongs to the lesson, and so does each stream in it."""

    kept = ()  # a text for each stream that is not known to be the lesson's, see CreatedStreams

    def __init__(self, lab):
        self.lab = lab

    def watch(self, client):
        """Registers a client whose streams belong to the lesson. Nothing to do here: all do."""

    def count_in(self, who):
        """Registers another process's connection (a tuple as made by connection())."""

    async def clean(self):
        """Deletes what an earlier run left behind. Returns the number of streams deleted."""
        async with self.lab.beside() as client:
            names = await stream_names(client)
            await self._delete(client, names)
        return len(names)

    async def wipe(self):
        """Deletes the lesson's streams when it ends. Returns what may be left (list of texts)."""
        try:
            async with self._client() as client:
                await self._delete(client, await stream_names(client))
                return [f"stream {name}" for name in await stream_names(client)]
        except FAILURES as error:
            return [_failed(error)]

    @contextlib.asynccontextmanager
    async def _client(self):
        """A client to clean up with: the lesson's own, or a new one if that is closed."""
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
        await self._wait_for_files_to_go(names)

    async def _wait_for_files_to_go(self, names):
        """Followers remove the files of a deleted stream a moment later; a stream of the same name
        that is created before that can fail with err_code 10049. The files can be seen only where
        the nodes are processes of this machine. If they stay, the lesson goes on all the same."""
        folders = [
            Path(node.store, "jetstream", self.lab.topic.upper(), "streams")
            for node in self.lab.cluster.nodes
            if node.store
        ]

        def gone():
            return not any((folder / name).exists() for folder in folders for name in names)

        with contextlib.suppress(LabError):
            await until(gone, PATIENCE)


def connection(client):
    """How the server names this connection in its API advisories: (server, the client's number
    there, the client's name)."""
    info = client._server_info  # nats-py tells the number, but not which server gave it
    server = info.get("server_name") or info.get("server_id")
    return server, client.client_id, client.options["name"]


class CreatedStreams(AccountStreams):
    """On a cluster of the user's own, only what this lesson's connections created is the lesson's.

    The server says who created what: it publishes an advisory for each call of the JetStream API,
    with the connection that made the call. The advisory arrives a moment after the answer to the
    call. Which connections are the lesson's is known from its clients, and from its workers, which
    report theirs. Each stream that is known to be the lesson's is written to a file at once,
    because the kernel may be killed before it can clean up.
    """

    def __init__(self, lab):
        super().__init__(lab)
        self.ours = set()  # the lesson's connections so far, each as connection() returns it
        self.makers = {}  # (stream, when it was created) -> list of connections that created it
        self.deletions = {}  # stream -> when it was deleted, the last time that was heard of
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
        # It has a connection of its own: the learner may close, drain or overload the others.
        listener = await self.lab.connect(
            name=f"{self.lab.topic} clean-up", wire=False, error_cb=self._on_error
        )
        await listener.subscribe(API_ADVISORIES, cb=self._note_creation)
        await flush(listener)
        noted = self.note.read()
        names = {name for streams in noted.values() for name in streams}
        found = await self._created(listener, names)
        mine = {
            name: when
            for name, when in found.items()
            if any(streams.get(name) == when for streams in noted.values())
        }
        await self._delete(listener, set(mine))
        self.note.forget(mine, kept={name for name, when in found.items() if not when})
        self.before = await stream_names(listener)
        self._refuse_other_streams(self.before)
        return len(mine)

    def _refuse_other_streams(self, names):
        if names and not os.environ.get("LABKIT_SHARE_ACCOUNT"):
            raise LabError(
                "This account holds streams that are not the lesson's: "
                f"{', '.join(sorted(names)[:5])}. Lessons delete and create streams by name "
                "(ORDERS, JOBS, …), so give them an account of their own with NATS_USER and "
                "NATS_PASSWORD, or NATS_CREDS. If no names can clash: LABKIT_SHARE_ACCOUNT=1."
            )

    async def wipe(self):
        """Deletes the lesson's streams. Those that are not known to be the lesson's are in `kept`
        afterwards. Returns what may be left (list of texts)."""
        try:
            async with self._client() as client:
                found = await self._new_streams_and_makers(client)
                mine = {name for name, when in found.items() if self._is_ours(name, when)}
                await self._delete(client, mine)
                left = mine & await stream_names(client)
        except FAILURES as error:
            return [_failed(error)]
        self.note.forget({}, kept=left | {name for name, when in found.items() if not when})
        self.kept = [
            f"{name} ({self._who_made(name, when)})"
            for name, when in sorted(found.items())
            if name not in mine
        ]
        return [f"stream {name}" for name in sorted(left)]

    async def _new_streams_and_makers(self, client):
        """The same as _new_streams(), once the server has said who created each of them, and lists
        each that the lesson is known to have created: on a busy machine the meta leader may list a
        stream a moment after its creation was answered. What is not said in time (because this user
        may not hear it, for example) has no maker."""
        found = {}

        async def all_makers_known():
            nonlocal found
            found = await self._new_streams(client)
            mine = {
                key for key in self.makers if self._is_ours(*key) and not self._is_deleted(*key)
            }
            return mine <= found.items() <= self.makers.keys()

        try:
            await until(all_makers_known, MAKERS_PATIENCE)
        except LabError:
            found = await self._new_streams(client)  # or it raises what kept it from being known
        return found

    async def _new_streams(self, client):
        """All streams that were created since the lesson opened ({name: when created})."""
        told = {name for name, _ in self.makers}
        names = await stream_names(client)
        return await self._created(
            client, {name for name in names if name in told or name not in self.before}
        )

    async def _created(self, client, names):
        """Those of these streams that exist ({name: when created}; "" if the stream is silent)."""
        times = await asyncio.gather(*(_creation_time(client, name) for name in names))
        return {name: when for name, when in zip(names, times) if when is not None}

    async def _note_creation(self, message):
        advisory = json.loads(message.data)
        answer = json.loads(advisory.get("response") or "{}")
        client = advisory.get("client") or {}
        if answer.get("success") and "stream_delete" in answer.get("type", ""):
            name = advisory["subject"].rpartition(".")[2]
            when = _comparable(advisory["timestamp"])
            self.deletions[name] = max(when, self.deletions.get(name, ""))
        if not answer.get("did_create") or "stream_create" not in answer.get("type", ""):
            return
        name = answer["config"]["name"]
        when = _comparable(answer["created"])
        if name in self.before and when < _comparable(client["start"]):
            # A server without a cluster reports did_create even for a stream that existed.
            return
        maker = (client.get("server"), client.get("id"), client.get("name"))
        self.makers.setdefault((name, when), []).append(maker)
        self._write_down()

    def _is_ours(self, name, when):
        """True if the lesson's connections, and no others, created this stream."""
        makers = self.makers.get((name, when))
        return makers is not None and self.ours.issuperset(makers)

    def _is_deleted(self, name, when):
        """True if a stream of this name was deleted later. The advisories come in any order."""
        return self.deletions.get(name, "") > when

    def _who_made(self, name, when):
        makers = self.makers.get((name, when), ())
        names = {client or "a connection without a name" for _, _, client in makers}
        if names:
            return f"made by {' and '.join(sorted(names))}"
        if when:
            return "the server did not say who made it"
        return "it does not answer"

    def _write_down(self):
        ours = {name: when for name, when in sorted(self.makers) if self._is_ours(name, when)}
        self.note.add(ours)

    async def _on_error(self, error):
        # If this user may not hear the advisories, wipe() tells what that means.
        if "permissions violation" not in str(error).lower():
            await self.lab._net.error_cb(error)


class Note:
    """What a lesson has created on clusters of the user's own, in a file: {cluster and user:
    {stream: when created}}, without any secret.

    The entries of one cluster survive lessons on another. If a kernel was killed, its streams are
    still to be removed there."""

    def __init__(self, lab):
        login = lab.cluster.login(lab.topic)
        user = login.get("user") or login.get("user_credentials") or ""
        self.here = f"{lab.cluster.shown} {user}".strip()
        self.file = paths.home() / "lessons" / f"{lab.topic}.made.json"

    def read(self):
        """All that is in the file (dict); empty if the file is missing or broken."""
        try:
            noted = json.loads(self.file.read_text(encoding="utf-8"))
            return {str(where): dict(streams) for where, streams in noted.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def add(self, streams):
        """Adds these streams of this cluster ({name: when created})."""
        noted = self.read()
        before = noted.get(self.here)
        after = {**(before or {}), **streams}
        if streams and after != before:
            self._write({**noted, self.here: after})

    def forget(self, gone, kept=()):
        """Removes these streams ({name: when created}), and all of this cluster except `kept`."""
        rest = {
            where: {
                name: when
                for name, when in streams.items()
                if gone.get(name) != when and (where != self.here or name in kept)
            }
            for where, streams in self.read().items()
        }
        if any(rest.values()):
            self._write({where: streams for where, streams in rest.items() if streams})
        else:
            self.file.unlink(missing_ok=True)

    def _write(self, noted):
        paths.write_whole(self.file, json.dumps(noted))


async def _creation_time(client, name):
    """When this stream was created (text that compares); None if it does not exist, "" if nobody
    answers, because it has no leader."""
    try:
        reply = await client.request(f"$JS.API.STREAM.INFO.{name}", timeout=3)
    except (NatsError, TimeoutError):
        return ""
    answer = json.loads(reply.data)
    return _comparable(answer["created"]) if "created" in answer else None


def _comparable(time):
    """A time as the server writes it, with up to 9 digits, in a form that compares (text)."""
    when = datetime.datetime.fromisoformat(time).astimezone(datetime.UTC)
    return when.isoformat(timespec="microseconds")


def _failed(error):
    """What is left when a clean-up failed (text)."""
    return f"its streams ({error or type(error).__name__})"


async def wipe_accounts(topics):
    """Deletes all streams of these lessons' accounts on the running cluster of the lab. Returns a
    line that says so. Raises LabError if a lesson is unknown, no cluster is up, or the cluster is
    the user's own."""
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
    """Connections to this account that are still open after all of the lesson's were closed (list
    of texts). A node lists a closed connection for a moment, so this waits for up to PATIENCE
    seconds."""

    rows = []

    async def none():
        nonlocal rows
        rows = await tables.connection_rows(cluster, topic)
        return not rows

    with contextlib.suppress(LabError):
        await until(none, PATIENCE)
    return [f"connection {row['name'] or 'without a name'} to {row['node']}" for row in rows]
