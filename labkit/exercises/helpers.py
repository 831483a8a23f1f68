"""What several checks need: a stream made anew, a queue of jobs, a fetch that may find nothing."""

import asyncio
import inspect

from labkit.cluster.streams import delete
from labkit.errors import LabError, is_library
from labkit.exercises.engine import want
from labkit.waiting import until


def wants_function(answer, arguments, coroutine=True):
    """Raises NotYet unless the answer is a function, of the right kind, that takes these arguments.
    arguments: as in a def, as text ("nc, stop", "servers, **options")."""
    wanted = f"{'async ' if coroutine else ''}def …({arguments})"
    want(
        callable(answer),
        f"{answer!r} is not a function (its type: {type(answer).__name__})",
        wanted,
    )
    kind = "an" if inspect.iscoroutinefunction(answer) else "not an"
    name = getattr(answer, "__name__", repr(answer))
    is_right = inspect.iscoroutinefunction(answer) == coroutine
    want(is_right, f"{name} is {kind} async function", wanted)
    signature = inspect.signature(answer)
    names = arguments.split(", ")
    keywords = {name: None for name in names if name.startswith("**")}
    try:
        signature.bind(*(name for name in names if name not in keywords), **keywords)
    except TypeError:
        want(False, f"{name} takes {signature}", f"({arguments})")


async def fresh_stream(lab, name, **config):
    """Makes this stream anew, with no message in it and no id remembered."""
    await delete(lab.js, name)
    await lab.js.add_stream(name=name, **config)
    await lab.settled(name)


async def client_beside(lab, stream):
    """A client on the node that leads this stream, which has one replica. A consumer that an answer
    makes on it answers at once; asked from another node, a new one may say 503 for a moment, or
    give none of the messages that it has (see cluster/readiness.py)."""
    node = None if lab.attached else await lab.wait_for_leader(stream)
    return await lab.connect(node=node, name="exercise")


async def queue(lab, name, bodies, workers=1, stream=None, **consumer):
    """A stream made anew, a message in it for each of these bodies (bytes), and the durable
    consumer `worker` with these settings. stream: settings of the stream. Returns the
    subscriptions of so many workers (list)."""
    subject = name.lower()
    await delete(lab.js, name)
    await lab.js.add_stream(name=name, subjects=[f"{subject}.*"], **(stream or {}))
    await lab.js.add_consumer(name, durable_name="worker", ack_policy="explicit", **consumer)
    await lab.settled(name)
    for body in bodies:
        await lab.js.publish(f"{subject}.new", body)
    binds = [lab.js.pull_subscribe_bind("worker", name) for _ in range(workers)]
    return await asyncio.gather(*binds)


async def fetch(sub, batch=1, timeout=1):
    """What a fetch finds within so many seconds (list); empty if nothing comes."""
    try:
        return await sub.fetch(batch, timeout=timeout)
    except TimeoutError:
        return []


async def comes_true(condition, timeout):
    """Waits until condition() is true; returns False if it is not within so many seconds."""
    try:
        await until(condition, timeout, describe=lambda: "it")  # nobody reads the error
        return True
    except LabError:
        return False


def tasks_since(others, folder=None):
    """The tasks that run the code of an answer, and that still run (set).

    others: tasks that are not looked at (set): those that ran before. folder: of a library whose
    tasks count too (text), such as nats-py's."""

    def counts(task):
        code = getattr(task.get_coro(), "cr_code", None)
        if not code:
            return False
        return not is_library(code.co_filename) or (folder and code.co_filename.startswith(folder))

    return {
        task for task in asyncio.all_tasks() - others - {asyncio.current_task()} if counts(task)
    }
