"""Repairs of the clinic's cases: wrong ones, each with words of the verdict that it must hear, most
of them relief (it helps for now); and right ones in another style than the case's own."""

import asyncio
import contextlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass

EVERY = []  # all repairs (list of Repair)


@dataclass
class Repair:
    case: str
    change: Callable  # a coroutine function that takes some of case, lab and js
    words: str  # of the verdict; none: it is right
    spoils: bool  # True: the right repair comes too late after it
    teaches: bool  # True: the one of its case that the tests always try

    @property
    def name(self):
        return f"{self.case}-{self.change.__name__}"

    async def carry_out(self, case):
        at_hand = {"case": case, "lab": case.lab, "js": case.lab.js}
        await self.change(
            **{name: at_hand[name] for name in inspect.signature(self.change).parameters}
        )


def wrong(case, words, spoils=False, teaches=False):
    """Registers a wrong repair of this case."""

    def register(change):
        EVERY.append(Repair(case, change, words, spoils, teaches))
        return change

    return register


def right(case):
    """Registers a right repair of this case in another style."""
    return wrong(case, "")


def wrong_ones(case):
    """The wrong repairs of this case."""
    return [each for each in EVERY if each.case == case and each.words]


def right_ones():
    """The right repairs in another style."""
    return [each for each in EVERY if not each.words]


async def change_stream(js, **changes):
    config = (await js.stream_info("ORDERS")).config
    await js.update_stream(config.evolve(**changes))


async def change_consumer(js, name="billing", **changes):
    config = (await js.consumer_info("ORDERS", name)).config
    await js.add_consumer("ORDERS", config.evolve(**changes))


async def make_stream_anew(js, **changes):
    """Deletes ORDERS and creates it with the same settings but these."""
    config = (await js.stream_info("ORDERS")).config
    await js.delete_stream("ORDERS")
    await js.add_stream(config.evolve(**changes))


async def make_consumer_anew(case, js, name="billing", **changes):
    """Deletes the consumer and creates it with the same settings but these, while the apps, which
    would create it as well, do not run."""
    config = (await js.consumer_info("ORDERS", name)).config
    await case._stop()
    await js.delete_consumer("ORDERS", name)
    await js.add_consumer("ORDERS", config.evolve(**changes))
    await case._start()


# --- reliefs of several cases


@wrong("nothing_is_stored", "NoStreamResponseError")
@wrong("europe_is_missing", "never handled")
@wrong("second_order_vanishes", "none came through to billing")
@wrong("shop_is_closed", "maximum messages exceeded")
@wrong("orders_stopped", "billing: 0 pending")
@wrong("queue_stands_still", "5 out without an answer (limit 5)")
@wrong("after_the_maintenance", "0 out without an answer")
@wrong("one_order_for_ever", "none came through to billing")
@wrong("every_second_invoice", "never handled")
@wrong("charged_twice", "did not answer its health probe")
@wrong("new_password", "Authorization Violation")
@wrong("new_firewall", "the shop sends no orders")
@wrong("connected_but_silent", "the shop sends no orders")
@wrong("one_node_fewer", "NoStreamResponseError")
@wrong("nobody_knows_the_price", "NoRespondersError")
@wrong("works_for_me", "NoRespondersError")
@wrong("gaps_in_the_chart", "SlowConsumerError")
@wrong("drill_gone_wrong", "when its node was killed again")
async def restart(case):
    await case.redeploy()


@wrong("shop_is_closed", "maximum messages exceeded")
@wrong("orders_stopped", "billing: 0 pending", spoils=True)
@wrong("queue_stands_still", "never handled", spoils=True)
@wrong("after_the_maintenance", "none came through", spoils=True)
@wrong("one_order_for_ever", "never handled", spoils=True)
async def purge(js):
    await js.purge_stream("ORDERS")


@wrong("europe_is_missing", "ORDERS is another stream", spoils=True)
async def stream_anew_and_sent_again(case, js):
    await make_stream_anew(js, subjects=["orders.>"])
    await case.redeploy()
    book = await case.orders()
    await case.send_again(book.index[book["handled"] == 0])


@wrong("shop_is_closed", "ORDERS is another stream", spoils=True)
async def stream_anew_without_a_limit(case, js):
    await make_stream_anew(js, max_msgs=-1, max_age=86400)


@wrong("queue_stands_still", "never handled", spoils=True)
@wrong("orders_stopped", "never handled", spoils=True)
@wrong("after_the_maintenance", "never handled", spoils=True)
@wrong("one_order_for_ever", "never handled", spoils=True)
@wrong("every_second_invoice", "never handled", spoils=True)
async def stream_and_consumer_anew(case, js):
    name = case.settings["durable"]
    config = (await js.consumer_info("ORDERS", name)).config
    await case._stop()
    await make_stream_anew(js)
    await js.add_consumer("ORDERS", config.evolve(filter_subject=None, pause_until=None))
    await case._start()


# --- not stored


@wrong("nothing_is_stored", "NoStreamResponseError", spoils=True)
async def stream_without_subjects(js):
    await js.add_stream(name="ORDERS")


@wrong("nothing_is_stored", "is kept in memory", spoils=True, teaches=True)
async def stream_in_memory(js):
    await js.add_stream(name="ORDERS", subjects=["orders.>"], storage="memory")


@wrong("nothing_is_stored", "drops its oldest orders at 1000 messages", spoils=True)
async def stream_of_a_thousand(js):
    await js.add_stream(name="ORDERS", subjects=["orders.>"], max_msgs=1000)


@wrong("nothing_is_stored", "dropped after 60 s, handled or not", spoils=True)
async def stream_of_a_minute(js):
    await js.add_stream(name="ORDERS", subjects=["orders.>"], max_age=60)


@wrong("nothing_is_stored", "none came through to billing", spoils=True)
async def answers_in_the_streams_place(case, lab):
    async def answer(msg):
        await msg.respond(json.dumps({"stream": "ORDERS", "seq": 1}).encode())

    sub = await lab.nc.subscribe("orders.>", cb=answer)
    case.undo(sub.unsubscribe)


@right("nothing_is_stored")
async def stream_with_three_replicas(js):
    await js.add_stream(name="ORDERS", subjects=["orders.created"], num_replicas=3, max_msgs=10**7)


@wrong("europe_is_missing", "Stream ORDERS takes orders.*")
async def wider_filter_of_the_consumer(js):
    await change_consumer(js, filter_subject="orders.>")


@wrong("europe_is_missing", "never handled")
async def europe_only(js):
    await change_stream(js, subjects=["orders.created.*"])


@wrong("europe_is_missing", "never handled", teaches=True)
async def from_now_on(js):
    await change_stream(js, subjects=["orders.*", "orders.created.*"])


@wrong("europe_is_missing", "were handled twice", spoils=True)
async def all_sent_again(case, js):
    await change_stream(js, subjects=["orders.>"])
    await case.send_again((await case.orders()).index)


@right("europe_is_missing")
async def one_more_subject_and_only_europe_sent_again(case, js):
    await change_stream(js, subjects=["orders.*", "orders.*.eu"])
    book = (await case.orders()).reset_index()
    for row in book.itertuples():
        if row.subject.endswith(".eu") and not row.handled:
            await case.send_again([row.order])


@wrong("second_order_vanishes", "orders were handled twice", spoils=True)
async def no_id_at_all(case):
    await case.redeploy(msg_id="")


@wrong("second_order_vanishes", "never handled")
async def id_that_orders_share(case):
    await case.redeploy(msg_id="{customer}-{kind}")


@wrong("second_order_vanishes", "never handled", teaches=True)
async def right_id_from_now_on(case):
    await case.redeploy(msg_id="order-{order}")


@wrong("second_order_vanishes", "never handled")
async def ids_forgotten_sooner(js):
    await change_stream(js, duplicate_window=0.1)


@right("second_order_vanishes")
async def number_as_id(case):
    await case.redeploy(msg_id="{customer}/{order}")
    rows = (await case.orders()).iterrows()
    await case.send_again([number for number, row in rows if row.handled < 1])


@wrong("shop_is_closed", "drops its oldest orders at 20 messages (max_msgs)", spoils=True)
async def discard_old(js):
    await change_stream(js, discard="old")


@wrong("shop_is_closed", "refuses new orders at 1000 messages (max_msgs)", teaches=True)
async def larger_limit(js):
    await change_stream(js, max_msgs=1000)


@wrong("shop_is_closed", "ever leaves it")
async def no_limit(js):
    await change_stream(js, max_msgs=-1)


@wrong("shop_is_closed", "A message leaves it by age, after 604800 s")
async def a_week_in_a_million(js):
    await change_stream(js, max_msgs=1_000_000, max_age=7 * 24 * 3600)


@wrong("shop_is_closed", "dropped after 3 s, handled or not", spoils=True)
async def short_age(js):
    await change_stream(js, max_age=3, duplicate_window=3, max_msgs=1000)


@wrong("shop_is_closed", "A message leaves it when it is acked", spoils=True)
async def little_room_for_a_backlog(js):
    await change_stream(js, retention="interest", max_msgs=500)


@right("shop_is_closed")
async def acked_orders_leave(js):
    await change_stream(js, retention="interest", max_msgs=1_000_000)


@right("shop_is_closed")
async def a_day_and_no_count(js):
    await change_stream(js, max_msgs=-1, max_age=24 * 3600, discard="old")


@right("shop_is_closed")
async def billing_deletes_what_it_has_handled(case, js):
    async def handle(msg, process):
        await process(json.loads(msg.data))
        await msg.ack_sync()
        await js.delete_msg("ORDERS", msg.metadata.sequence.stream)

    await js.purge_stream("ORDERS")
    await change_stream(js, max_msgs=5_000_000)
    await case.redeploy(handler=handle)


# --- stored, and not handled


@wrong("orders_stopped", "billing: 0 pending")
async def filter_in_the_app_only(case):
    await case.redeploy(filter_subject="orders.*")


@wrong("orders_stopped", "billing: 0 pending")
async def filter_with_a_capital(js):
    await change_consumer(js, filter_subject="Orders.*")


@wrong("orders_stopped", "without an error that were never handled", teaches=True)
async def right_filter_from_now_on(js):
    await change_consumer(js, filter_subject="orders.*")


@wrong("orders_stopped", "never handled", spoils=True)
async def consumer_for_new_orders(case, js):
    await make_consumer_anew(case, js, filter_subject="orders.*", deliver_policy="new")


@wrong("orders_stopped", "no app reads from consumer billing any more", spoils=True)
async def another_durable(case):
    await case.redeploy(durable="billing-2", filter_subject="orders.*")


@right("orders_stopped")
async def consumer_without_a_filter(case, js):
    await make_consumer_anew(case, js, filter_subject=None)


@right("orders_stopped")
async def another_durable_and_the_old_one_deleted(case, js):
    await case.redeploy(durable="billing-2", filter_subject="orders.>")
    await js.delete_consumer("ORDERS", "billing")


@wrong("queue_stands_still", "messages are not answered")
async def higher_limit(js):
    await change_consumer(js, max_ack_pending=1000)


@wrong("queue_stands_still", "messages are not answered")
async def no_ack_limit(js):
    await change_consumer(js, max_ack_pending=-1)


@wrong("queue_stands_still", "messages were given up without an answer", spoils=True)
async def one_delivery_is_enough(js):
    await change_consumer(js, max_deliver=1, ack_wait=0.4)


@wrong("queue_stands_still", "has ack_policy=none", spoils=True)
async def no_acks_at_all(case, js):
    await make_consumer_anew(case, js, ack_policy="none", max_ack_pending=None, ack_wait=None)


@wrong("queue_stands_still", "never handled", spoils=True)
async def from_today_on(case, js):
    await make_consumer_anew(case, js, deliver_policy="new")


async def ack_in_the_end(msg, process):
    order = json.loads(msg.data)
    await process(order)
    await msg.ack_sync()


@wrong("queue_stands_still", "5 out without an answer (limit 5)", teaches=True)
async def better_handler_alone(case):
    await case.redeploy(handler=ack_in_the_end)


@wrong("queue_stands_still", "were answered before that")
async def ack_before_the_work(case, js):
    async def handle(msg, process):
        await msg.ack()
        await process(json.loads(msg.data))

    await case.redeploy(handler=handle)
    await js.reset_consumer("ORDERS", "billing")


@wrong("queue_stands_still", "were answered before that")
async def work_in_the_background(case, js):
    async def handle(msg, process):
        asyncio.create_task(process(json.loads(msg.data)))
        await msg.ack()

    await case.redeploy(handler=handle)
    await js.reset_consumer("ORDERS", "billing")


@wrong("queue_stands_still", "orders were handled twice")
async def shorter_ack_wait_alone(case, js):
    await case.redeploy(handler=case.defaults()["handler"])
    await change_consumer(js, ack_wait=0.4)


@right("queue_stands_still")
async def five_come_back_by_a_reset(case, js):
    await case.redeploy(handler=ack_in_the_end)
    await js.reset_consumer("ORDERS", "billing")


@right("queue_stands_still")
async def consumer_anew_after_its_floor(case, js):
    floor = (await js.consumer_info("ORDERS", "billing")).ack_floor.stream_seq
    await make_consumer_anew(
        case, js, deliver_policy="by_start_sequence", opt_start_seq=floor + 1, ack_wait=30
    )
    await case.redeploy(handler=ack_in_the_end)


@wrong("after_the_maintenance", "orders were handled twice", spoils=True)
async def another_consumer(case):
    await case.redeploy(durable="billing-2")


@wrong("after_the_maintenance", "orders were handled twice", spoils=True)
async def consumer_anew(case, js):
    await make_consumer_anew(case, js, pause_until=None)


@wrong("after_the_maintenance", "never handled", spoils=True, teaches=True)
async def consumer_anew_for_new_orders(case, js):
    await make_consumer_anew(case, js, pause_until=None, deliver_policy="new")


@wrong("after_the_maintenance", "none came through")
async def pause_taken_out_of_the_settings(js):
    await change_consumer(js, pause_until=None)


@right("after_the_maintenance")
async def pause_until_the_past(js):
    await js.pause_consumer("ORDERS", "billing", "2000-01-01T00:00:00Z")


@right("after_the_maintenance")
async def consumer_anew_where_it_stood(case, js):
    floor = (await js.consumer_info("ORDERS", "billing")).ack_floor.stream_seq
    start = {"deliver_policy": "by_start_sequence", "opt_start_seq": floor + 1}
    await make_consumer_anew(case, js, pause_until=None, **start)


@wrong("one_order_for_ever", "was handed out", spoils=True)
async def delete_the_message(js):
    info = await js.consumer_info("ORDERS", "billing")
    await js.delete_msg("ORDERS", info.ack_floor.stream_seq + 1)


@wrong("one_order_for_ever", "messages were given up without an answer", spoils=True, teaches=True)
async def max_deliver(js):
    await change_consumer(js, max_deliver=5)


def puts_aside(keep, end="term"):
    """A handler that calls keep(msg) for an order that cannot be billed, and ends it so."""

    async def handle(msg, process):
        try:
            await process(json.loads(msg.data))
        except ValueError:
            await keep(msg)
            await getattr(msg, end)()
        else:
            await msg.ack()

    return handle


async def nowhere(msg): ...


@wrong("one_order_for_ever", "are in no stream any more", spoils=True)
async def ack_the_poison(case):
    await case.redeploy(handler=puts_aside(nowhere, "ack"))


@wrong("one_order_for_ever", "are in no stream any more", spoils=True)
async def term_the_poison(case):
    await case.redeploy(handler=puts_aside(nowhere))


@wrong("one_order_for_ever", "are in no stream any more", spoils=True)
async def told_to_nobody(case, lab):
    async def keep(msg):
        await lab.nc.publish("dead.orders", msg.data)

    await case.redeploy(handler=puts_aside(keep))


@wrong("one_order_for_ever", "were billed", spoils=True)
async def an_amount_out_of_the_air(case):
    async def handle(msg, process):
        await process({"amount": 0, **json.loads(msg.data)})
        await msg.ack()

    await case.redeploy(handler=handle)


async def keep_in(case, js, **config):
    """A stream DEAD with these settings, and a handler that puts the bad ones there."""
    await js.add_stream(name="DEAD", subjects=["dead"], **config)

    async def keep(msg):
        await js.publish("dead", msg.data)

    await case.redeploy(handler=puts_aside(keep))


@wrong("one_order_for_ever", "has room for 100: at 25 orders a second", spoils=True)
async def room_for_a_hundred(case, js):
    await keep_in(case, js, max_msgs=100)


@wrong("one_order_for_ever", "keeps the bad ones for 60 s", spoils=True)
async def kept_for_a_minute(case, js):
    await keep_in(case, js, max_age=60)


@wrong("one_order_for_ever", "is memory", spoils=True)
async def kept_in_memory(case, js):
    await keep_in(case, js, storage="memory")


@right("one_order_for_ever")
async def kept_in_a_bucket(case, js):
    bucket = await js.create_key_value(bucket="bad_orders")

    async def keep(msg):
        await bucket.put(f"seq.{msg.metadata.sequence.stream}", msg.data)

    await case.redeploy(handler=puts_aside(keep, "ack_sync"))


@right("one_order_for_ever")
async def looks_before_it_bills(case, js):
    await js.add_stream(name="LATER", subjects=["later.>"], num_replicas=3)

    async def handle(msg, process):
        order = json.loads(msg.data)
        if "amount" in order:
            await process(order)
        else:
            note = {"why": "no amount", "what": order}
            await js.publish(f"later.{order['order']}", json.dumps(note).encode())
        await msg.ack()

    await case.redeploy(handler=handle)


@wrong("every_second_invoice", "never handled")
async def one_filter_for_both(js):
    await change_consumer(js, "worker", filter_subject="orders.*")


@wrong("every_second_invoice", "never handled")
async def another_filter_at_the_start_of_shipping(case):
    await case.redeploy(shipping_filter="orders.*")


@wrong("every_second_invoice", "never handled", teaches=True)
async def two_durables_from_now_on(case):
    await case.redeploy(shipping_durable="shipping")


@wrong("every_second_invoice", "no app reads from consumer worker any more", spoils=True)
async def the_old_one_left_behind(case):
    await case.redeploy(durable="billing", shipping_durable="shipping")


@right("every_second_invoice")
async def two_new_durables(case, js):
    await case.redeploy(durable="billing", shipping_durable="shipping")
    await js.delete_consumer("ORDERS", "worker")


@right("every_second_invoice")
async def from_the_first_invoice_that_is_missing(case, js):
    await case.redeploy(shipping_durable="parcels")
    book = await case.orders()
    first = book.index[(book["subject"] == "orders.created") & (book["handled"] == 0)].min()
    stored = await js.get_msg("ORDERS", 1)
    assert json.loads(stored.data)["order"] == 1  # so sequence and number are the same
    await js.reset_consumer("ORDERS", "worker", int(first))


# --- billed twice


@wrong("charged_twice", "did not answer its health probe", teaches=True)
async def longer_ack_wait(js):
    await change_consumer(js, ack_wait=3)


@wrong("charged_twice", "did not answer its health probe", spoils=True)
async def one_try_only(js):
    await change_consumer(js, max_deliver=1)


@wrong("charged_twice", "the bank takes 1.2 s", spoils=True)
async def no_charge_at_all(case):
    await case.redeploy(worker=case.settings["worker"].replace("        charge(order)\n", ""))


@wrong("charged_twice", "the others were answered too soon", spoils=True)
async def ack_first(case):
    source = case.defaults()["worker"].replace("        await msg.ack()\n", "")
    charge = "await msg.ack_sync()\n        await asyncio.to_thread(charge, order)"
    source = source.replace("charge(order)\n        await", f"{charge}\n        await")
    await case.redeploy(
        worker=source.replace("beating = asyncio.create_task(beat(msg))", "pass").replace(
            "        beating.cancel()\n", ""
        )
    )


@right("charged_twice")
async def long_ack_wait_and_an_executor(case, js):
    await change_consumer(js, ack_wait=5)
    thread = "await asyncio.get_running_loop().run_in_executor(None, charge, order)"
    source = case.settings["worker"].replace("    charge(order)", f"    {thread}")
    await case.redeploy(worker=source)


# --- not connected, not answered


@wrong("new_password", "Authorization Violation")
async def another_server(case, lab):
    await case.redeploy(servers=[lab.node("n3").url])


@wrong("new_password", "NoStreamResponseError", teaches=True)
async def no_login(case):
    await case.redeploy(user=None, password=None)


@wrong("new_password", "NoStreamResponseError")
async def login_of_somebody_else(case):
    await case.redeploy(user="monitoring", password="lab")


@right("new_password")
async def password_alone(case):
    await case.redeploy(password="lab")


@wrong("new_firewall", "the shop sends no orders", teaches=True)
async def port_of_the_monitoring(case, lab):
    await case.redeploy(servers=[f"nats://127.0.0.1:{lab.node('n1').monitor}"])


@wrong("new_firewall", "the shop sends no orders")
async def name_instead_of_the_address(case):
    port = case.settings["servers"][0].rpartition(":")[2]
    await case.redeploy(servers=[f"nats://localhost:{port}"])


@right("new_firewall")
async def one_more_server(case, lab):
    await case.redeploy(servers=[*case.settings["servers"], lab.node("n2").url])


@wrong("connected_but_silent", "does not answer")
@wrong("one_node_fewer", "NoStreamResponseError")
async def first_server_of_the_cluster(case, lab):
    await case.redeploy(servers=lab.cluster.servers[:1])


@wrong("connected_but_silent", "had no answer for", teaches=True)
async def resume_and_leave_it_at_that(lab):
    for name, node in (await lab.nodes()).iterrows():
        if node["state"] != "up":
            await lab.faults.resume(name)


@wrong("connected_but_silent", "had no answer for")
async def resume_and_all_servers(case, lab):
    await resume_and_leave_it_at_that(lab)
    await case.redeploy(servers=lab.cluster.servers)


@right("connected_but_silent")
async def resume_and_short_pings(case, lab):
    await resume_and_leave_it_at_that(lab)
    await case.redeploy(ping_interval=0.5)


@right("connected_but_silent")
async def two_servers_and_one_ping(case, lab):
    await resume_and_leave_it_at_that(lab)
    settings = {"ping_interval": 1.5, "max_outstanding_pings": 1}
    await case.redeploy(servers=lab.cluster.servers[1:], **settings)


async def start_all(lab):
    for name, node in (await lab.nodes()).iterrows():
        if node["state"] != "up":
            await lab.faults.start(name)


@wrong("one_node_fewer", "one replica", teaches=True)
async def start_the_node_and_leave_it_at_that(lab):
    await start_all(lab)
    await lab.wait_for_leader("ORDERS")
    await lab.settled("ORDERS")


@wrong("one_node_fewer", "two replicas")
async def two_replicas(js, lab):
    await start_the_node_and_leave_it_at_that(lab)
    await change_stream(js, num_replicas=2)
    await lab.wait_for_current("ORDERS")


@wrong("one_node_fewer", "ORDERS is another stream", spoils=True)
async def stream_anew_on_the_living(js, lab):
    with contextlib.suppress(TimeoutError):  # nobody confirms it
        await js.delete_stream("ORDERS")
    await js.add_stream(name="ORDERS", subjects=["orders.>"])
    await lab.settled("ORDERS")


@right("one_node_fewer")
async def replicas_by_the_raw_api(lab):
    await start_the_node_and_leave_it_at_that(lab)
    info = json.loads((await lab.nc.request("$JS.API.STREAM.INFO.ORDERS", timeout=5)).data)
    config = json.dumps({**info["config"], "num_replicas": 3}).encode()
    await lab.nc.request("$JS.API.STREAM.UPDATE.ORDERS", config, timeout=5)
    await lab.wait_for_current("ORDERS")


@wrong("nobody_knows_the_price", "NoRespondersError")
@wrong("works_for_me", "NoRespondersError")
async def more_patience(case):
    await case.redeploy(timeout=5)


@wrong("nobody_knows_the_price", "NoRespondersError", teaches=True)
async def wildcard_in_a_request(case):
    await case.redeploy(request_subject="prices.*")


async def answer_in_its_place(case, nc, subject):
    async def answer(msg):
        await msg.respond(b"20")

    sub = await nc.subscribe(subject, cb=answer)
    await nc.flush()

    async def end():
        with contextlib.suppress(Exception):
            await sub.unsubscribe()
            await nc.flush()

    return end


@wrong("nobody_knows_the_price", "0 of them by the price service", spoils=True)
async def the_notebook_answers(case, lab):
    case.undo(await answer_in_its_place(case, lab.nc, case.settings["request_subject"]))


@right("nobody_knows_the_price")
async def the_service_moves(case):
    await case.redeploy(service_subject="Prices.get")


@right("nobody_knows_the_price")
async def the_service_takes_all(case):
    await case.redeploy(service_subject="*.get", timeout=2)


@wrong("works_for_me", "NoRespondersError", teaches=True)
async def node_of_the_laptop(case, lab):
    await case.redeploy(servers=[lab.node("n1").url])


@wrong("works_for_me", "NoRespondersError")
async def account_of_somebody_else(case):
    await case.redeploy(user="monitoring", password="lab")


@right("works_for_me")
async def login_of_the_price_service(case, lab):
    await case.redeploy(**lab.cluster.login(lab.topic))


@wrong("gaps_in_the_chart", "SlowConsumerError", teaches=True)
async def slightly_longer_queue(case):
    await case.redeploy(pending_msgs_limit=64)


@wrong("gaps_in_the_chart", "SlowConsumerError")
async def faster_chart(case):
    await case.redeploy(draw_seconds=0)


@right("gaps_in_the_chart")
async def room_for_two_bursts(case):
    await case.redeploy(pending_msgs_limit=400)


@wrong("drill_gone_wrong", "when its node was killed again", teaches=True)
async def more_attempts(case):
    await case.redeploy(max_reconnect_attempts=1000)


@wrong("drill_gone_wrong", "when its node was killed again")
async def the_other_node_first(case):
    await case.redeploy(servers=case.settings["nodes"][1:])


@wrong("drill_gone_wrong", "when its node was killed again")
async def one_of_two_addresses(case):
    [first, _] = case.settings["nodes"]
    _, other = case.settings["advertise"]
    advertise = [first.removeprefix("nats://"), other]
    await case.redeploy(advertise=advertise, servers=[first])


@right("drill_gone_wrong")
async def both_in_the_list_of_the_shop(case):
    await case.redeploy(servers=case.settings["nodes"])
