"""Random faults, with a fixed seed, while clients publish and consume: what was acked is stored,
once, and every consumer gets it.

A run leaves a report, a DataFrame (one row a fault) and a picture, in the folder LABKIT_SHOTS if
that is set.
"""

import asyncio
import itertools
import random
import signal

import pandas as pd
import pytest
from nats.errors import Error
from nats.js.api import ConsumerConfig
from nats.js.errors import APIError

from labkit import Lab, Recorder
from labkit.cluster import nodes
from labkit.pictures import style

FAULTS = {  # fault -> its colour, and the shape that marks its beginning
    "kill": ("#D55E00", "X"),
    "stop": ("#E69F00", "s"),
    "pause": ("#0072B2", "o"),
    "isolate": ("#CC79A7", "D"),
    "lame_duck": ("#56B4E9", "v"),
    "step_down": ("#22303c", "P"),
}
LANES = "123"  # publisher-1 and consumer-1 are connected to n1, and so on
# Error "duplicate message id is in process": the first try is neither stored nor refused yet.
BUSY = 10158
OPTIONS = {
    "max_reconnect_attempts": -1,
    "reconnect_time_wait": 0.1,
    "ping_interval": 1,
    "max_outstanding_pings": 2,
}


async def publish(lab, lane, log, stop):
    """Publishes messages one by one, each until it is acked. The ids that were acked are in the
    log."""
    name = f"publisher-{lane}"
    client = await connect(lab, lane, name)
    for number in itertools.count(1):
        if stop.is_set():
            return
        message_id = f"{name}-{number}"
        ack = await publish_until_acked(client.jetstream(), f"chaos.{name}", message_id)
        log("acked", lane=name, msg=message_id, seq=ack.seq)
        await asyncio.sleep(0.01)


async def publish_until_acked(js, subject, message_id):
    while True:
        try:
            return await js.publish(subject, timeout=0.5, headers={"Nats-Msg-Id": message_id})
        except APIError as error:
            if error.err_code != BUSY and error.code != 503:
                raise
        except (Error, OSError):  # no answer in time, no leader, no connection
            pass
        await asyncio.sleep(0.05)


async def consume(lab, lane, log, stop):
    """Processes and acks what its own durable consumer delivers, until it is told to stop."""
    name = f"consumer-{lane}"
    client = await connect(lab, lane, name)
    sub = await client.jetstream().pull_subscribe_bind(name, "CHAOS")
    while not stop.is_set():
        try:
            for message in await sub.fetch(50, timeout=0.5):
                log("processed", lane=name, msg=message.headers["Nats-Msg-Id"])
                await message.ack()
        except (Error, APIError, OSError):  # no message, no answer, no leader, no connection
            await asyncio.sleep(0.05)


async def connect(lab, lane, name):
    """Connects to the lane's own node, and to others if that is down."""
    first = lab.node(f"n{lane}").url
    servers = sorted(lab.cluster.servers, key=lambda url: url != first)
    servers = lab.addresses(servers)  # on the wire
    return await lab.connect(name=name, servers=servers, **OPTIONS)


async def break_and_heal(lab, faults, dice, at_once, log):
    """Makes one fault after the other (on `at_once` nodes together), holds each for some seconds,
    and heals it. After each, every client must go on."""
    for _ in range(faults):
        broken = [log("fault", **fault) for fault in await choose(lab, dice, at_once)]
        for entry in broken:
            if entry["fault"] == "step_down":
                await lab.faults.step_down("CHAOS")
            else:
                await getattr(lab.faults, entry["fault"])(entry["node"])
        await asyncio.sleep(dice.uniform(1, 7))
        healing = log("heal")
        await lab.faults.heal(timeout=60)
        whole = log("whole")
        for entry in broken:
            entry.update(until=healing["at"], whole=whole["at"])
        await wait_for_progress(lab, log)


async def choose(lab, dice, at_once):
    """Returns the next faults: list of {"fault": …, "node": …}."""
    kinds = list(FAULTS)
    if at_once > 1:  # there may be no leader that could hand over
        kinds.remove("step_down")
    if not hasattr(signal, "SIGUSR2"):
        kinds.remove("lame_duck")
    leader = await lab.wait_for_leader("CHAOS")
    names = dice.sample(nodes.NAMES, 3)
    if dice.random() < 0.6:  # often the node that matters most
        names.sort(key=lambda name: name != leader)
    chosen = [{"fault": dice.choice(kinds), "node": name} for name in names[:at_once]]
    for fault in chosen:
        if fault["fault"] == "step_down":
            fault["node"] = leader
    return chosen


async def wait_for_progress(lab, log):
    """Waits until each publisher has an ack more than now, and each consumer a message more."""
    before = counts(log)

    def all_go_on():
        now = counts(log)
        return all(now[lane] > before[lane] for lane in before)

    await lab.until(all_go_on, timeout=60)


def counts(log):
    """Returns {lane: number of acks of its publisher, or of messages that its consumer got}."""
    return {
        f"{role}-{n}": log.count(event, lane=f"{role}-{n}")
        for role, event in (("publisher", "acked"), ("consumer", "processed"))
        for n in LANES
    }


async def chaos(faults, seed, at_once):
    """Runs it. Returns a Recorder with what happened, the ids that are stored (list), and those
    with a PubAck on the wire (set)."""
    lab = await Lab.open("checks", private=True)
    log = Recorder()
    await lab.js.add_stream(name="CHAOS", subjects=["chaos.*"], num_replicas=3)
    for n in LANES:
        config = ConsumerConfig(durable_name=f"consumer-{n}", ack_policy="explicit", ack_wait=5)
        await lab.js.add_consumer("CHAOS", config)
    await lab.settled("CHAOS")
    enough = asyncio.Event()
    done = asyncio.Event()
    publishers = [asyncio.create_task(publish(lab, n, log, enough)) for n in LANES]
    consumers = [asyncio.create_task(consume(lab, n, log, done)) for n in LANES]
    tasks = publishers + consumers
    try:
        await wait_for_progress(lab, log)  # so that no first connection meets a paused node
        await break_and_heal(lab, faults, random.Random(seed), at_once, log)
        enough.set()
        await lab.until(lambda: all(task.done() for task in publishers), timeout=60)
        acked = {entry["msg"] for entry in log.all("acked")}
        await lab.until(lambda: all(acked <= processed(log, n) for n in LANES), timeout=60)
        confirmed = confirmed_on_the_wire(lab.wire)
        stored = await everything(lab)
    finally:
        done.set()
        ended = [task for task in tasks if task.done() and not task.cancelled()]
        errors = [task.exception() for task in ended if task.exception()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await lab.close()
        if errors:  # the cause, rather than what came of it
            raise errors[0]
    return log, stored, confirmed


def confirmed_on_the_wire(wire):
    """The message ids that a stream has answered with a PubAck, as the wire saw it (set)."""
    published = {event["number"]: event for event in wire.all("published")}
    acks = wire.all("stored") + wire.all("duplicate")
    assert wire.forgotten == 0, "the record is whole"
    return {published[ack["of"]]["headers"]["Nats-Msg-Id"] for ack in acks}


def processed(log, number):
    return {entry["msg"] for entry in log.all("processed", lane=f"consumer-{number}")}


async def everything(lab):
    """Returns the ids in the stream, in order."""
    client = await lab.connect(**OPTIONS)
    js = client.jetstream()
    sub = await js.subscribe("chaos.*", ordered_consumer=True)
    last = (await js.stream_info("CHAOS")).state.last_seq
    ids = []
    while len(ids) < last:
        ids.append((await sub.next_msg(timeout=5)).headers["Nats-Msg-Id"])
    return ids


def report(log):
    """Returns one row a fault: when, which, on which node, how long it was held, how long the
    cluster then took to be whole, and the longest time without any ack meanwhile (seconds)."""
    acks = [entry["at"] for entry in log.all("acked")]

    def gap(begin, end):
        inside = [
            max([at for at in acks if at <= begin], default=0),
            *(at for at in acks if begin < at < end),
            min([at for at in acks if at >= end], default=end),
        ]
        return max(b - a for a, b in zip(inside, inside[1:]))

    return pd.DataFrame(
        [
            {
                "at": round(f["at"], 2),
                "fault": f["fault"],
                "node": f["node"],
                "held": round(f["until"] - f["at"], 2),
                "whole_after": round(f["whole"] - f["until"], 2),
                "gap": round(gap(f["at"], f["whole"]), 2),
            }
            for f in log.all("fault")
        ]
    )


@style.styled
def picture(log, table, title):
    """Draws a lane for each node, with its faults, and one for each publisher, with a thin line for
    each ack: a white stretch is a gap."""
    figure, ax = style.canvas(8, 2.9)
    row = {
        "n1": 0,
        "n2": -1,
        "n3": -2,
        "publisher-1": -3.2,
        "publisher-2": -3.8,
        "publisher-3": -4.4,
    }
    for name, y in row.items():
        ax.axhline(y, color=style.GRID, lw=9 if name.startswith("n") else 1, zorder=0)
    for f in table.itertuples():
        colour, shape = FAULTS[f.fault]
        ax.plot([f.at, f.at + f.held], [row[f.node]] * 2, color=colour, lw=9, solid_capstyle="butt")
        ax.plot(f.at, row[f.node], shape, color=colour, mec="white", ms=11)
        ax.annotate(
            f.fault,
            (f.at, row[f.node]),
            xytext=(0, 8),
            textcoords="offset points",
            fontsize=8,
            ha="left",
        )
    for entry in log.all("acked"):
        ax.vlines(
            entry["at"],
            row[entry["lane"]] - 0.22,
            row[entry["lane"]] + 0.22,
            color="#009E73",
            lw=0.5,
        )
    ax.set_yticks(
        list(row.values()), [name if name.startswith("n") else f"acks of {name}" for name in row]
    )
    ax.set_ylim(-4.8, 0.8)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("seconds since start")
    ax.set_title(title)
    return style.Picture(
        figure,
        f"{title}: {len(table)} faults, and the longest gap in acks was {table['gap'].max()} s.",
    )


async def survives(faults, seed, at_once, folder):
    """The run, its report, and what must be true after it."""
    log, stored, confirmed = await chaos(faults, seed, at_once)
    acked = [entry["msg"] for entry in log.all("acked")]
    table = report(log)
    drawn = picture(
        log, table, f"{len(acked):,} acked, {len(stored):,} stored, {len(table)} faults"
    )
    name = f"chaos-{faults}-faults-{at_once}-at-once"
    (folder / f"{name}.png").write_bytes(drawn.png)
    table.to_csv(folder / f"{name}.csv", index=False)
    twice = {
        n: log.count("processed", lane=f"consumer-{n}") - len(processed(log, n)) for n in LANES
    }
    print(f"{folder / name}.png and .csv\n{drawn}\n{table.to_string()}")
    print(f"processed more than once, by consumer: {twice}")
    assert len(table) == faults * at_once
    assert sorted(stored) == sorted(acked), "what was acked is stored, each message once"
    assert confirmed == set(acked), "and had a PubAck on the wire, and nothing else had"
    places = {entry["msg"]: entry["seq"] for entry in log.all("acked")}
    assert [places[msg] for msg in stored] == list(range(1, len(stored) + 1)), "where the ack said"
    for n in LANES:
        assert processed(log, n) == set(stored), f"consumer-{n} processed every message"


async def test_random_faults_lose_nothing(own, shots):
    await survives(3, seed=38, at_once=1, folder=shots)


@pytest.mark.soak
async def test_a_dozen_random_faults_lose_nothing(own, shots):
    await survives(12, seed=2024, at_once=1, folder=shots)


@pytest.mark.soak
async def test_faults_on_two_nodes_at_a_time_lose_nothing(own, shots):
    await survives(4, seed=7, at_once=2, folder=shots)
