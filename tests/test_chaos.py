"""Seeded random faults under publishers and consumers: what was acked is stored, once, and
everybody gets it.

The report of a run is a DataFrame (one row a fault) and a picture, kept in the folder LABKIT_SHOTS
if that is set.
"""

import asyncio
import random
import signal
import time

import pandas as pd
import pytest
from nats.errors import Error
from nats.js.api import ConsumerConfig
from nats.js.errors import APIError

from labkit import Lab, Recorder
from labkit.pictures import style

FAULTS = {  # fault -> its colour and the shape at its begin
    "kill": ("#D55E00", "X"),
    "stop": ("#E69F00", "s"),
    "pause": ("#0072B2", "o"),
    "isolate": ("#CC79A7", "D"),
    "lame_duck": ("#56B4E9", "v"),
    "step_down": ("#22303c", "P"),
}
# "duplicate message id is in process": the first try is neither stored nor refused yet. Try again
# later
BUSY = 10158
OPTIONS = {
    "max_reconnect_attempts": -1,
    "reconnect_time_wait": 0.1,
    "ping_interval": 1,
    "max_outstanding_pings": 2,
}


async def publish(lab, name, node, log, stop):
    """Publishes one message after the other, each until it is acked; the ids that were acked are in
    the log."""
    client = await lab.connect(node=node, name=name, servers=in_order(lab, node), **OPTIONS)
    js, number = client.jetstream(), 0
    while not stop.is_set():
        number += 1
        began, tries = time.perf_counter(), 0
        while True:
            tries += 1
            try:
                ack = await js.publish(
                    f"chaos.{name}", b"", timeout=0.5, headers={"Nats-Msg-Id": f"{name}-{number}"}
                )
                break
            except APIError as error:
                if error.err_code != BUSY and error.code != 503:
                    raise
            except (Error, OSError):  # no answer in time, no leader, no connection
                pass
            await asyncio.sleep(0.05)
        log(
            "acked",
            lane=name,
            msg=f"{name}-{number}",
            seq=ack.seq,
            tries=tries,
            took=time.perf_counter() - began,
        )
        await asyncio.sleep(0.01)


async def consume(lab, name, node, log, stop):
    """Processes and acks what its own durable consumer delivers, until told to stop and nothing
    comes any more."""
    client = await lab.connect(node=node, name=name, servers=in_order(lab, node), **OPTIONS)
    sub = await client.jetstream().pull_subscribe_bind(name, "CHAOS")
    while not stop.is_set():
        try:
            for message in await sub.fetch(50, timeout=0.5):
                log("processed", lane=name, msg=message.headers["Nats-Msg-Id"])
                await message.ack()
        except (
            Error,
            APIError,
            OSError,
        ):  # nothing there, no answer, no leader, no connection: ask again
            await asyncio.sleep(0.05)


def in_order(lab, first):
    """The URLs of all nodes, those of this one first."""
    return sorted(lab.cluster.servers, key=lambda url: url != lab.node(first).url)


async def break_things(lab, seconds, dice, at_once, log):
    """One fault after the other (on `at_once` nodes together), each held for a while and healed,
    until time is up."""
    end, verbs = time.monotonic() + seconds, list(FAULTS)
    if at_once > 1:  # nobody leads that could hand over
        verbs.remove("step_down")
    if not hasattr(signal, "SIGUSR2"):
        verbs.remove("lame_duck")
    while time.monotonic() < end:
        broken, names = [], dice.sample(["n1", "n2", "n3"], 3)
        if dice.random() < 0.6:  # the one that matters most
            leader = await lab.wait_for_leader("CHAOS")
            names.sort(key=lambda name: name != leader)
        for node in names[:at_once]:
            fault = dice.choice(verbs)
            if fault == "step_down":  # asked of who leads
                broken.append(log("fault", fault=fault, node=await lab.wait_for_leader("CHAOS")))
                await lab.faults.step_down("CHAOS")
                continue
            broken.append(log("fault", fault=fault, node=node))
            await getattr(lab.faults, fault)(node)
        await asyncio.sleep(min(dice.uniform(1, 7), max(1, end - time.monotonic())))
        healing = log("heal")
        await lab.faults.heal(timeout=60)
        for entry in broken:
            entry.update(until=healing["at"], whole=log("whole")["at"])
        await asyncio.sleep(dice.uniform(0.2, 1))


async def chaos(seconds, seed, at_once=1):
    """Runs it. Returns a Recorder with what happened, the ids that are stored (list), and those
    that each processed."""
    lab, log = await Lab.open("checks", private=True), Recorder()
    await lab.js.add_stream(name="CHAOS", subjects=["chaos.*"], num_replicas=3)
    for number in "123":
        await lab.js.add_consumer(
            "CHAOS",
            ConsumerConfig(durable_name=f"consumer-{number}", ack_policy="explicit", ack_wait=5),
        )
    await lab.settled("CHAOS")
    enough, done = asyncio.Event(), asyncio.Event()
    publishers = [
        asyncio.create_task(publish(lab, f"publisher-{n}", f"n{n}", log, enough)) for n in "123"
    ]
    consumers = [
        asyncio.create_task(consume(lab, f"consumer-{n}", f"n{n}", log, done)) for n in "123"
    ]
    try:
        await lab.until(
            lambda: all(
                log.count("acked", lane=f"publisher-{n}") and processed(log, n) for n in "123"
            ),
            timeout=20,
        )  # a first connection must not meet a paused node
        await break_things(lab, seconds, random.Random(seed), at_once, log)
        enough.set()
        async with asyncio.timeout(30):
            await asyncio.gather(*publishers)
        acked = {entry["msg"] for entry in log.all("acked")}
        await lab.until(lambda: all(acked <= processed(log, n) for n in "123"), timeout=60)
        stored = await everything(lab, OPTIONS)
    finally:
        done.set()
        raised = [
            task.exception()
            for task in (*publishers, *consumers)
            if task.done() and not task.cancelled()
        ]
        for task in (*publishers, *consumers):
            task.cancel()
        await asyncio.gather(*publishers, *consumers, return_exceptions=True)
        await lab.close()
        for error in filter(None, raised):  # rather than what came of it
            raise error
    return log, stored


def processed(log, number):
    return {entry["msg"] for entry in log.all("processed", lane=f"consumer-{number}")}


async def everything(lab, options):
    """The ids in the stream, in order."""
    client = await lab.connect(**options)
    sub = await client.jetstream().subscribe("chaos.*", ordered_consumer=True)
    ids, last = [], (await client.jetstream().stream_info("CHAOS")).state.last_seq
    while len(ids) < last:
        ids.append((await sub.next_msg(timeout=5)).headers["Nats-Msg-Id"])
    return ids


def report(log):
    """One row a fault: when, which, on which node, how long until the cluster was whole again, and
    the longest time without any ack from its begin until then."""
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
    """Lanes of nodes with their faults, and below, each ack as a thin line: a white stretch is a
    gap."""
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


async def survives(seconds, seed, at_once, folder):
    """The run, its proofs and its report."""
    began = time.monotonic()
    async with asyncio.timeout(seconds + 150):  # no hang
        log, stored = await chaos(seconds, seed, at_once)
    acked = [entry["msg"] for entry in log.all("acked")]
    table = report(log)
    title = f"{len(acked):,} acked, {len(stored):,} stored, through {len(table)} faults"
    drawn = picture(log, table, title)
    name = f"chaos-{seconds}s-{at_once}-at-once"
    (folder / f"{name}.png").write_bytes(drawn.png)
    table.to_csv(folder / f"{name}.csv", index=False)
    twice = {
        n: log.count("processed", lane=f"consumer-{n}") - len(processed(log, n)) for n in "123"
    }
    print(
        f"{folder / name}.png and .csv\n{drawn}\n{table.to_string()}\nprocessed more than once, by"
        f" consumer: {twice}; {time.monotonic() - began:.0f} s in all"
    )
    assert len(acked) > seconds and table["fault"].size >= at_once
    assert sorted(stored) == sorted(acked), "acked == stored, each once"
    assert all(
        log.all("acked", msg=msg)[0]["seq"] == at + 1 for at, msg in list(enumerate(stored))[::50]
    ), "where the ack said"
    for number in "123":
        assert processed(log, number) == set(stored), f"consumer-{number} processed every message"


async def test_random_faults_lose_nothing_for_twelve_seconds(own, shots):
    await survives(12, seed=38, at_once=1, folder=shots)


@pytest.mark.soak
async def test_random_faults_lose_nothing_for_a_minute(own, shots):
    await survives(60, seed=2024, at_once=1, folder=shots)


@pytest.mark.soak
async def test_faults_on_two_nodes_at_a_time_lose_nothing(own, shots):
    await survives(20, seed=7, at_once=2, folder=shots)
