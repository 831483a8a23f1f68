"""What producer.py and consumer.py share: a connection that outlives its servers, a good end, an exit code."""
import asyncio, contextlib, logging, os, signal
import nats
from nats.errors import Error as NatsError
from nats.js.errors import BadRequestError, NotFoundError

SERVERS = os.environ.get("NATS_URL", "nats://127.0.0.1:4222").split(",")
ADDRESSES = ", ".join(url.rpartition("@")[2] for url in SERVERS)  # for messages: no password
LOGIN = {"user": os.environ.get("NATS_USER"), "password": os.environ.get("NATS_PASSWORD"),
         "user_credentials": os.environ.get("NATS_CREDS")}   # a file; all three empty where the server asks for none
REPLICAS = int(os.environ.get("REPLICAS", "3"))

async def have_stream(js, subject, **config):
    """Makes the stream. One that is there with other settings (10058) is an operator's: good if it takes the subject."""
    try:
        await js.add_stream(**config, num_replicas=REPLICAS)
    except BadRequestError as error:
        with contextlib.suppress(NotFoundError):
            if error.err_code == 10058 and await js.find_stream_name_by_subject(subject) == config["name"]:
                return
        raise

async def serve(name, work):
    """Connects and runs work(nc, ended), which returns once `ended` is done. Returns 0 after SIGTERM or Ctrl-C, else a
    text that says why it cannot go on: sys.exit makes that exit code 1."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    loop, log = asyncio.get_running_loop(), logging.getLogger(name)
    ended = loop.create_future()                             # 0 after a signal, a text if it cannot go on
    def end(why):
        ended.done() or ended.set_result(why)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(end, 0))
    async def on_error(error):
        log.warning("nats: %r", error)
        if "authorization" in str(error).lower():            # left alone, nats-py tries a wrong password for ever
            end(f"{name}: {ADDRESSES} refuse user {LOGIN.get('user')!r}: {error}")
    async def on_closed():                                   # closed is for good, also with max_reconnect_attempts=-1
        end(f"{name}: the connection was closed for good")
    async def on_disconnect():
        log.warning("disconnected")
    async def on_reconnect():
        log.warning("reconnected")
    connecting = asyncio.ensure_future(nats.connect(
        SERVERS, name=name, max_reconnect_attempts=-1, reconnect_time_wait=0.5, ping_interval=10,
        max_outstanding_pings=2, error_cb=on_error, closed_cb=on_closed, disconnected_cb=on_disconnect,
        reconnected_cb=on_reconnect, **LOGIN))
    await asyncio.wait([connecting, ended], return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        while not connecting.done():                         # once may not do: Python 3.11 can swallow a cancel
            connecting.cancel()
            await asyncio.sleep(0.01)
        return ended.result()
    try:
        nc = connecting.result()
        await work(nc, ended)
    except (NatsError, asyncio.TimeoutError) as error:
        return f"{name}: stopped by {type(error).__name__}: {error}"
    with contextlib.suppress(NatsError, OSError):
        await nc.drain()                                     # sends the last acks and what is buffered, then closes
    return ended.result()
