"""Answers to the exercises of monitoring."""

import json

import pandas

from answers import answers_to

right, wrong = answers_to("monitoring")


async def by_consumer(js, stream, number):
    """{consumer: number(its info)}, without those that are 0 or less."""
    numbers = {info.name: number(info) for info in await js.consumers_info(stream)}
    return {name: count for name, count in numbers.items() if count > 0}


@wrong("given_up", "all acked but message 2, which failed once and is in flight again")
async def takes_all_redelivered_for_given_up(js, stream):
    return await by_consumer(js, stream, lambda info: info.num_redelivered)


@wrong("given_up", "the ack floor has jumped over 2")
async def looks_at_the_ack_floor(js, stream):
    def behind(info):
        if info.num_ack_pending:
            return 0
        return info.delivered.stream_seq - info.ack_floor.stream_seq

    return await by_consumer(js, stream, behind)


@wrong("given_up", "message 3 is in flight for the second time")
async def wants_nothing_in_flight(js, stream):
    def settled(info):
        return 0 if info.num_ack_pending else info.num_redelivered

    return await by_consumer(js, stream, settled)


@wrong("given_up", "has given up 1; wanted: 2")
async def counts_consumers_and_not_messages(js, stream):
    lost = await by_consumer(js, stream, lambda info: info.num_redelivered - info.num_ack_pending)
    return dict.fromkeys(lost, 1)


@wrong("given_up", "wanted: it only looks")
async def fetches_to_see_what_comes(js, stream):
    for info in await js.consumers_info(stream):
        sub = await js.pull_subscribe_bind(info.name, stream)
        try:
            await sub.fetch(5, timeout=0.2)
        except TimeoutError:
            pass
    return await by_consumer(js, stream, lambda info: info.num_redelivered - info.num_ack_pending)


@wrong("given_up", "wanted: it only looks")
async def raises_the_limit_as_well(js, stream):
    lost = await by_consumer(js, stream, lambda info: info.num_redelivered - info.num_ack_pending)
    for name in lost:
        info = await js.consumer_info(stream, name)
        await js.add_consumer(stream, info.config.evolve(max_deliver=9))
    return lost


@wrong("given_up", "a list; wanted: a dict")
async def names_only(js, stream):
    infos = await js.consumers_info(stream)
    return [info.name for info in infos if info.num_redelivered > info.num_ack_pending]


@wrong("given_up", "three messages pending, nobody has asked for them")
async def counts_pending(js, stream):
    return await by_consumer(js, stream, lambda info: info.num_pending)


@wrong("given_up", "which the stream does not have")
async def writes_the_names_in(js, stream):
    return {"gave-up": 1, "moved-on": 1, "both": 1}


@wrong("given_up", "only consumers that have given up a message")
async def leaves_the_zeros_in(js, stream):
    infos = await js.consumers_info(stream)
    return {info.name: max(0, info.num_redelivered - info.num_ack_pending) for info in infos}


@right("given_up")
async def asks_the_api_itself(js, stream):
    msg = await js._nc.request(f"$JS.API.CONSUMER.LIST.{stream}", timeout=6)
    lost = {
        facts["name"]: facts["num_redelivered"] - facts["num_ack_pending"]
        for facts in json.loads(msg.data)["consumers"]
    }
    return {name: number for name, number in lost.items() if number > 0}


@right("given_up")
async def asks_for_one_consumer_after_the_other(js, stream):
    found = {}
    for name in [info.name for info in await js.consumers_info(stream)]:
        info = await js.consumer_info(stream, name)
        found[name] = info.num_redelivered - info.num_ack_pending
    return {name: number for name, number in found.items() if number}


def reports(answers, account):
    """What each node tells of the streams of this account: list of (node, stream)."""
    return [
        (node, stream)
        for node, answer in answers.items()
        for entry in answer["account_details"]
        if entry["name"] == account
        for stream in entry.get("stream_detail", [])
    ]


def leads(node, what):
    return what["cluster"]["leader"] == node


def stored(told):
    return sum(stream["state"]["messages"] for node, stream in told if leads(node, stream))


def pending(told):
    return sum(
        consumer["num_pending"]
        for node, stream in told
        for consumer in stream.get("consumer_detail", [])
        if leads(node, consumer)
    )


@wrong("count_once", "16 messages; wanted: 8")
def adds_up_all_copies(answers, account):
    told = reports(answers, account)
    return sum(stream["state"]["messages"] for _, stream in told), pending(told)


@wrong("count_once", "5.33 messages; wanted: 8")
def divides_by_three(answers, account):
    told = reports(answers, account)
    return sum(stream["state"]["messages"] for _, stream in told) / 3, pending(told)


@wrong("count_once", "0 pending; wanted: 4")
def trusts_the_leader_of_the_stream_with_consumers(answers, account):
    told = reports(answers, account)
    return stored(told), sum(
        consumer["num_pending"]
        for node, stream in told
        for consumer in stream.get("consumer_detail", [])
        if leads(node, stream)
    )


@wrong("count_once", "one still holds a message that its leader has deleted")
def takes_the_largest_copy(answers, account):
    most = {}
    for _, stream in reports(answers, account):
        name, messages = stream["name"], stream["state"]["messages"]
        most[name] = max(messages, most.get(name, 0))
    return sum(most.values()), pending(reports(answers, account))


@wrong("count_once", "one still holds a message that its leader has deleted")
def takes_the_last_copy(answers, account):
    told = reports(answers, account)
    last = {stream["name"]: stream["state"]["messages"] for _, stream in told}
    return sum(last.values()), pending(told)


@wrong("count_once", "108 messages; wanted: 8")
def counts_all_accounts(answers, account):
    told = reports(answers, account) + reports(answers, "SOMEBODY_ELSE")
    return stored(told), pending(told)


@wrong("count_once", "messages; wanted: 8")
def asks_one_node(answers, account):
    node, answer = next(iter(answers.items()))
    told = reports({node: answer}, account)
    return stored(told), pending(told)


@right("count_once")
def adds_up_what_leaders_tell(answers, account):
    told = reports(answers, account)
    return [stored(told), pending(told)]


@right("count_once")
def puts_both_in_a_table_first(answers, account):
    rows = []
    for node, stream in reports(answers, account):
        rows.append((node, stream["cluster"], "messages", stream["state"]["messages"]))
        for consumer in stream.get("consumer_detail", []):
            rows.append((node, consumer["cluster"], "pending", consumer["num_pending"]))
    table = pandas.DataFrame(rows, columns=["node", "cluster", "what", "number"])
    led = table[table["node"] == [cluster["leader"] for cluster in table["cluster"]]]
    return tuple(led.groupby("what")["number"].sum()[["messages", "pending"]])


@wrong("count_once", "as if")
def writes_the_two_numbers_in(answers, account):
    return 8, 4
