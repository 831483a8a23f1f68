"""What the experiments conclude holds in their committed results: the tables that the
notebooks show. After a new run of an experiment these tests say which sentence to rewrite."""

import html.parser
import itertools

import nbformat
import pytest

import lessons

BOOKS = {path.name[:2]: nbformat.read(path, 4) for path in lessons.LESSONS}


class Rows(html.parser.HTMLParser):
    """Collects the cells of a table: rows of (text, columns, rows) in `head` and `body`."""

    def __init__(self):
        super().__init__()
        self.head = []
        self.body = []
        self.rows = None
        self.is_cell = False

    def handle_starttag(self, tag, attributes):
        if tag in ("thead", "tbody"):
            self.rows = self.head if tag == "thead" else self.body
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            spans = dict(attributes)
            self.rows[-1].append(["", int(spans.get("colspan", 1)), int(spans.get("rowspan", 1))])
            self.is_cell = True

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.is_cell = False

    def handle_data(self, data):
        if self.is_cell:
            self.rows[-1][-1][0] += data


def table(number, cell_id):
    """{row: {column: number or text}} of the table that a cell of this experiment shows. Labels of
    several levels are joined by a blank."""
    (cell,) = [cell for cell in BOOKS[number].cells if cell["id"] == cell_id]
    shown = [output["data"]["text/html"] for output in cell.outputs if "data" in output]
    parser = Rows()
    parser.feed(shown[-1])
    heads = [[text for text, wide, _ in row for _ in range(wide)] for row in parser.head]
    found, above = {}, []
    depth = 1
    if not heads[-1][-1]:  # the last row holds the names of the index
        depth = len([text for text in heads.pop() if text])
    columns = [" ".join(filter(None, labels)) for labels in zip(*heads)][depth:]
    for row in parser.body:
        texts = [text for text, _, _ in row]
        labels = texts[: len(texts) - len(columns)]
        above = above[: depth - len(labels)] + labels
        values = [number_of(text) for text in texts[len(labels) :]]
        found[" ".join(above)] = dict(zip(columns, values))
    return found


def number_of(text):
    try:
        return float(text)
    except ValueError:
        return text


def test_a_table_of_two_levels_is_read_whole():
    rows = table("91", "who")
    assert list(rows) == ["1 0", "1 1", "1 2", "2 0", "2 1"]
    assert rows["1 0"]["per_s median"] == 341432 and rows["2 1"]["cores_servers max"] == 0.23


def overlap(one, other, of):
    return one[f"{of} min"] <= other[f"{of} max"] and other[f"{of} min"] <= one[f"{of} max"]


# 90: how long does a request take?

NATS = ["NATS, one process", "NATS", "NATS, across nodes"]


def test_the_median_of_one_request_at_a_time_is_below_a_millisecond():
    rows = table("90", "quiet-table")
    assert all(rows[way]["p50 max"] < 1000 for way in NATS)


def test_the_99th_percentile_is_beyond_it_in_many_trials():
    rows = table("90", "quiet-table")
    assert rows["NATS, across nodes"]["p99 over 1 ms share"] > 0.5
    assert rows["NATS"]["p99 over 1 ms share"] >= 0.2


def test_with_many_in_flight_the_median_grows_and_the_rate_by_far_less():
    rows = table("90", "little")
    for way in ("NATS", "Redis pub/sub"):
        few, ten, most = (rows[f"{way} {lanes}"] for lanes in (1, 10, 100))
        assert few["p50 median"] < ten["p50 median"] < most["p50 median"]
        assert few["per_s median"] < ten["per_s median"] < most["per_s median"]
        assert most["per_s median"] < 30 * few["per_s median"]
    assert rows["NATS 10"]["p50 median"] > 700
    assert rows["NATS 100"]["p50 median"] > 3000
    assert overlap(rows["TCP 10"], rows["TCP 100"], "per_s")


def test_up_to_a_kilobyte_the_size_hardly_counts():
    rows = table("90", "size-table")
    for way in ("NATS", "TCP"):
        assert overlap(rows[f"{way} 16"], rows[f"{way} 1024"], "p50")
    assert rows["NATS 65536"]["p50 min"] > rows["NATS 1024"]["p50 max"]


def test_one_process_saves_little_and_the_hop_costs_more():
    rows = table("90", "quiet-table")
    assert overlap(rows["NATS, one process"], rows["NATS"], "p50")
    assert rows["NATS, across nodes"]["p50 min"] > rows["NATS"]["p50 max"]


def test_uvloop_has_not_shown_an_effect_on_nats():
    rows = table("90", "loops")
    assert rows["NATS"]["from"] < 1 < rows["NATS"]["to"]


# 91: how many messages a second?


def test_a_publisher_that_nobody_listens_to_fills_its_core():
    assert table("91", "who")["1 0"]["cores_publishers median"] >= 0.95


def test_with_a_subscriber_no_side_is_full_and_the_subscriber_costs_most():
    row = table("91", "who")["1 1"]
    cost = {side: row[f"cores_{side} median"] for side in ("subscribers", "publishers", "servers")}
    assert all(cores < 0.95 for cores in cost.values())
    assert list(cost) == sorted(cost, key=cost.get, reverse=True)
    assert cost["subscribers"] > 2 * cost["publishers"]


def test_that_a_second_publisher_helps_a_subscriber_is_not_shown():
    rows = table("91", "who")
    assert overlap(rows["1 1"], rows["2 1"], "per_s")


def test_small_messages_cost_what_a_message_costs():
    rows = table("91", "sizes-cores")
    assert overlap(rows["16"], rows["1024"], "per_s")
    assert rows["16384"]["per_s max"] < rows["1024"]["per_s min"]


def test_many_in_flight_gain_a_factor_and_fill_the_publisher():
    rows = table("91", "stored-cores")
    for kind in ("R1 file", "R1 memory", "R3 file", "R3 memory"):
        one, many = rows[f"{kind}, each awaited"], rows[f"{kind}, up to 500 in flight"]
        assert many["per_s min"] > 4 * one["per_s max"]
        assert one["cores_servers median"] > one["cores_publisher median"] < 0.5
        assert many["cores_publisher median"] > one["cores_publisher median"]
    for kind in ("R1 file", "R1 memory"):
        assert 0.85 <= rows[f"{kind}, up to 500 in flight"]["cores_publisher median"] <= 0.95
    for kind in ("R3 file", "R3 memory"):
        many = rows[f"{kind}, up to 500 in flight"]
        assert many["cores_publisher median"] < 0.8
        assert 0.8 < many["cores_servers median"] / many["cores_publisher median"] < 1.25


def test_the_gain_of_not_waiting_is_above_ten_for_three_kinds_of_four():
    rows = table("91", "stored-cores")
    gains = [
        rows[f"{kind}, up to 500 in flight"]["per_s median"]
        / rows[f"{kind}, each awaited"]["per_s median"]
        for kind in ("R1 file", "R1 memory", "R3 file", "R3 memory")
    ]
    assert sum(gain > 10 for gain in gains) == 3


def test_which_side_is_busier_with_many_in_flight():
    sizes, batches = table("91", "stored-sizes-cores"), table("91", "fetch-cores")
    for row in (sizes["R1 file 16"], sizes["R1 file 128"], sizes["R1 file 1024"]):
        assert row["cores_publisher median"] > row["cores_servers median"]
    for row in (batches["R1 file 100"], batches["R1 file 1000"], batches["R3 file 1000"]):
        assert row["cores_worker median"] > row["cores_servers median"]
    for row in (sizes["R1 file 16384"], sizes["R3 file 16384"]):
        assert row["cores_servers median"] > row["cores_publisher median"]


@pytest.mark.parametrize(
    "copies, how",
    list(itertools.product(["R1", "R3"], ["each awaited", "up to 500 in flight"])),
)
def test_the_ranges_of_file_and_memory_overlap(copies, how):
    rows = table("91", "stored-cores")
    assert overlap(rows[f"{copies} file, {how}"], rows[f"{copies} memory, {how}"], "per_s")


def test_three_copies_cost_half_the_rate_where_each_is_awaited_and_at_16_kb():
    rows, sizes = table("91", "stored-cores"), table("91", "stored-sizes-cores")
    ratios = [
        rows["R3 file, each awaited"]["per_s median"]
        / rows["R1 file, each awaited"]["per_s median"],
        sizes["R3 file 16384"]["per_s median"] / sizes["R1 file 16384"]["per_s median"],
    ]
    assert all(0.35 < ratio < 0.65 for ratio in ratios)
    small = sizes["R3 file 16"]["per_s median"] / sizes["R1 file 16"]["per_s median"]
    assert small > 0.7


def test_with_large_messages_and_three_copies_the_servers_are_busy():
    rows = table("91", "stored-sizes-cores")
    sizes = [rows[f"R3 file {size}"] for size in (16, 1024, 16384)]
    publisher = [row["cores_publisher median"] for row in sizes]
    assert publisher == sorted(publisher, reverse=True)
    assert sizes[-1]["cores_servers median"] > 4 * sizes[-1]["cores_publisher median"]


def test_a_batch_reads_several_times_as_fast():
    rows = table("91", "fetch-cores")
    for kind in ("R1 file", "R3 file"):
        assert rows[f"{kind} 1000"]["per_s min"] > 3 * rows[f"{kind} 1"]["per_s max"]
        assert rows[f"{kind} 1"]["cores_servers median"] > rows[f"{kind} 1"]["cores_worker median"]


# 92: how long is the gap?


def test_a_leader_that_says_so_costs_tens_of_milliseconds_and_now_and_then_half_a_second():
    rows = table("92", "table")
    for fault in ("step down", "stop", "lame duck"):
        row = rows[f"leader {fault}"]
        assert row["50%"] < 50 and 500 <= row["max"] < 600 and 0 < row["trials over 400 ms"] < 10


def test_one_that_cannot_costs_an_election():
    rows = table("92", "table")
    for fault in ("kill", "pause", "isolate"):
        assert rows[f"leader {fault}"]["min"] > 4000 and rows[f"leader {fault}"]["max"] < 9000
    assert 8000 < max(row["max"] for row in rows.values()) < 9000


def test_a_follower_that_goes_can_hardly_be_told_from_no_fault():
    rows = table("92", "table")
    followers = [row for name, row in rows.items() if name.startswith("follower")]
    assert all(row["50%"] <= 2 * rows["leader no fault"]["50%"] for row in followers)
    assert all(row["max"] < 20 for row in followers)


def test_no_acked_message_was_lost():
    assert all(row["lost"] == 0 and row["twice"] == 0 for row in table("92", "table").values())


# 93: what does each guarantee cost?


def costs(in_flight):
    """{design: (median, least, most)} in microseconds."""
    return {
        name.removeprefix(f"{in_flight} "): (
            row["us"],
            *map(float, row["least – most"].split(" – ")),
        )
        for name, row in table("93", "table").items()
        if name.startswith(f"{in_flight} ")
    }


def ranges_overlap(one, other):
    return one[1] <= other[2] and other[1] <= one[2]


def test_one_copy_costs_about_a_request_and_three_are_dearer():
    of = costs(1)
    assert ranges_overlap(of["stored once"], of["request-reply"])
    assert of["stored three times"][1] > of["stored once"][2]


def test_a_message_id_costs_nothing_that_can_be_told_from_the_noise():
    for in_flight in (1, 100):
        of = costs(in_flight)
        assert ranges_overlap(of["+ message id"], of["stored three times"])


def test_with_many_in_flight_the_double_ack_costs_most():
    steps = {name: row["times the step before"] for name, row in table("93", "table").items()}
    many = {name: step for name, step in steps.items() if name.startswith("100 ") and step == step}
    of = costs(100)
    assert max(many, key=many.get) == "100 + double ack"
    assert of["+ double ack"][1] > of["+ message id"][2]
    assert of["+ effect once"][0] - of["+ double ack"][0] < of["+ double ack"][0]
    assert ranges_overlap(costs(1)["+ double ack"], costs(1)["+ message id"])


def test_the_cpu_falls_with_the_time_where_many_are_in_flight():
    rows = table("93", "table")
    for design in ("request-reply", "stored once", "stored three times", "+ message id"):
        one, many = rows[f"1 {design}"], rows[f"100 {design}"]
        assert many["us"] < one["us"]
        assert many["server_us"] < one["server_us"] and many["client_us"] < one["client_us"]


# 94: how does cost grow?


def test_streams_and_consumers_take_a_hundred_kilobytes_a_node_and_connections_an_eighth():
    one = {kind: row["memory of one (kB)"] for kind, row in table("94", "table").items()}
    assert 80 < one["streams"] / 3 < 150 and 80 < one["consumers"] / 3 < 150
    assert 6 < one["streams"] / one["connections"] < 10
    assert 50 < one["streams"] / one["subjects"] < 200


def test_a_thousand_streams_take_no_longer_each_than_a_few():
    rows = table("94", "table")
    power = "time to create them all grows with the power"
    assert all(0.8 < rows[kind][power] < 1 for kind in ("streams", "consumers"))
    assert rows["connections"][power] > 1


def test_beyond_the_ring_each_listed_thing_is_paid_for():
    rows = table("94", "table")
    for kind in ("streams", "consumers"):
        beyond = rows[kind]["time to list them all grows with the power"].rpartition("beyond ")[2]
        assert 0.8 < float(beyond.split()[1]) < 1.2
