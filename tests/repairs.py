"""Wrong repairs of the clinic's cases, each with words of the verdict that it must hear."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

EVERY = []  # all wrong repairs (list of Repair)


@dataclass
class Repair:
    case: str
    change: Callable  # a coroutine function that takes some of case, lab and js
    words: str  # of the verdict
    spoils: bool  # True: the right repair comes too late after it

    async def carry_out(self, case):
        at_hand = {"case": case, "lab": case.lab, "js": case.lab.js}
        await self.change(
            **{name: at_hand[name] for name in inspect.signature(self.change).parameters}
        )


def wrong(case, words, spoils=False):
    """Registers a wrong repair of this case."""

    def register(change):
        EVERY.append(Repair(case, change, words, spoils))
        return change

    return register


def of(case, spoils):
    """The wrong repairs of this case after which the right one still helps, or comes too late."""
    return [each for each in EVERY if (each.case, each.spoils) == (case, spoils)]


async def change_stream(js, **changes):
    config = (await js.stream_info("ORDERS")).config
    await js.update_stream(config.evolve(**changes))


async def change_consumer(js, name="billing", **changes):
    config = (await js.consumer_info("ORDERS", name)).config
    await js.add_consumer("ORDERS", config.evolve(**changes))


@wrong("nothing_is_stored", "NoStreamResponseError")
@wrong("queue_stands_still", "5 out without an answer (limit 5)")
@wrong("after_the_maintenance", "0 out without an answer")
@wrong("connected_but_silent", "the shop sends no orders")
@wrong("drill_gone_wrong", "when its node was killed again")
async def restart(case):
    await case.redeploy()


@wrong("shop_is_closed", "maximum messages exceeded")
@wrong("one_order_for_ever", "never handled", spoils=True)
async def purge(js):
    await js.purge_stream("ORDERS")


@wrong("nothing_is_stored", "NoStreamResponseError", spoils=True)
async def stream_without_subjects(js):
    await js.add_stream(name="ORDERS")


@wrong("europe_is_missing", "Stream ORDERS takes orders.*")
async def wider_filter_of_the_consumer(js):
    await change_consumer(js, filter_subject="orders.>")


@wrong("europe_is_missing", "never handled")
async def europe_only(js):
    await change_stream(js, subjects=["orders.created.*"])


@wrong("second_order_vanishes", "orders were handled twice")
async def no_id_at_all(case):
    await case.redeploy(msg_id="")


@wrong("second_order_vanishes", "never handled")
async def id_that_orders_share(case):
    await case.redeploy(msg_id="{customer}-{kind}")


@wrong("shop_is_closed", "drops its oldest orders", spoils=True)
async def discard_old(js):
    await change_stream(js, discard="old")


@wrong("orders_stopped", "billing: 0 pending")
async def filter_in_the_app_only(case):
    await case.redeploy(filter_subject="orders.*")


@wrong("orders_stopped", "billing: 0 pending")
async def filter_with_a_capital(js):
    await change_consumer(js, filter_subject="Orders.*")


@wrong("orders_stopped", "without an error that were never handled")
async def right_filter_from_now_on(js):
    await change_consumer(js, filter_subject="orders.*")


@wrong("queue_stands_still", "are not answered")
async def higher_limit(js):
    await change_consumer(js, max_ack_pending=1000)


@wrong("after_the_maintenance", "orders were handled twice", spoils=True)
async def another_consumer(case):
    await case.redeploy(durable="billing-2")


@wrong("one_order_for_ever", "was handed out")
async def delete_the_message(js):
    info = await js.consumer_info("ORDERS", "billing")
    await js.delete_msg("ORDERS", info.ack_floor.stream_seq + 1)


@wrong("one_order_for_ever", "no consumer will hand", spoils=True)
async def max_deliver(js):
    await change_consumer(js, max_deliver=5)


@wrong("every_second_invoice", "never handled")
async def one_filter_for_both(js):
    await change_consumer(js, "worker", filter_subject="orders.*")


@wrong("every_second_invoice", "never handled")
async def another_filter_at_the_start_of_shipping(case):
    await case.redeploy(shipping_filter="orders.*")


@wrong("charged_twice", "did not answer its health probe")
async def longer_ack_wait(js):
    await change_consumer(js, ack_wait=30)


@wrong("new_password", "Authorization Violation")
async def another_server(case, lab):
    await case.redeploy(servers=[lab.node("n3").url])


@wrong("new_password", "NoStreamResponseError")
async def no_login(case):
    await case.redeploy(user=None, password=None)


@wrong("new_firewall", "the shop sends no orders")
async def port_of_the_monitoring(case, lab):
    await case.redeploy(servers=[f"nats://127.0.0.1:{lab.node('n1').monitor}"])


@wrong("connected_but_silent", "does not answer")
@wrong("one_node_fewer", "NoStreamResponseError")
async def first_server_of_the_cluster(case, lab):
    await case.redeploy(servers=lab.cluster.servers[:1])


@wrong("one_node_fewer", "one replica")
async def start_the_node_and_leave_it_at_that(lab):
    for name, node in (await lab.nodes()).iterrows():
        if node["state"] != "up":
            await lab.faults.start(name)
    await lab.wait_for_leader("ORDERS")
    await lab.settled("ORDERS")


@wrong("nobody_knows_the_price", "NoRespondersError")
async def more_patience(case):
    await case.redeploy(timeout=5)


@wrong("nobody_knows_the_price", "NoRespondersError")
async def wildcard_in_a_request(case):
    await case.redeploy(request_subject="prices.*")


@wrong("works_for_me", "NoRespondersError")
async def node_of_the_laptop(case, lab):
    await case.redeploy(servers=[lab.node("n1").url])


@wrong("gaps_in_the_chart", "SlowConsumerError")
async def slightly_longer_queue(case):
    await case.redeploy(pending_msgs_limit=64)


@wrong("gaps_in_the_chart", "SlowConsumerError")
async def faster_chart(case):
    await case.redeploy(draw_seconds=0)


@wrong("drill_gone_wrong", "when its node was killed again")
async def more_attempts(case):
    await case.redeploy(max_reconnect_attempts=1000)
