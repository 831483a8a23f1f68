"""The recorder, and the pictures drawn from it."""
import matplotlib
import pytest

from labkit import Recorder, ideas, lives, pictures


@pytest.fixture
def log():
    log = Recorder()
    for number in range(1, 5):
        log("published", lane="publisher", msg=number)
        if number == 1:
            log("lost", lane="publisher", msg=number)
        else:
            log("delivered", lane=f"subscriber {'AB'[number % 2]}", msg=number)
    return log


LANES = ["publisher", "subscriber A", "subscriber B"]


def test_a_recorder_keeps_order_and_time_and_answers_questions(log):
    frame = log.frame()
    assert list(frame.columns) == ["at", "event", "lane", "msg"] and len(frame) == 8
    assert frame["at"].is_monotonic_increasing and frame["at"].between(0, 60).all()
    assert log.count("published") == 4 and log.count(msg=1) == 2
    assert log.last("delivered")["msg"] == 4 and log.last("acked") is None
    assert list(Recorder().frame().columns) == ["at", "event"]


def test_a_picture_carries_its_finding_in_words(log):
    picture = pictures.timeline(log, LANES, "One message had nobody to go to", "The first of four messages was lost.")
    data, metadata = picture._repr_mimebundle_()
    assert data["text/plain"] == "Picture: The first of four messages was lost."
    assert metadata["image/png"]["alt"] == "The first of four messages was lost."
    assert picture.png.startswith(b"\x89PNG")


def test_the_same_record_draws_the_same_picture(log):
    assert len({pictures.timeline(log, LANES, "t", "a").png for _ in range(2)}) == 1


def test_a_lost_answer_is_drawn_on_its_way_back():
    def drawn(**answer):
        log = Recorder()
        for event, lane, fields in [("published", "publisher", {}), ("acked", "stream", {}), ("lost", "stream", answer)]:
            log(event, lane=lane, msg=1, **fields)["at"] = len(log.events)
        return pictures.timeline(log, ["publisher", "stream"], "t", "a").png
    assert drawn(answer=True) != drawn()


def test_drawing_leaves_the_learners_own_settings_alone(log):
    before = dict(matplotlib.rcParams)
    pictures.timeline(log, LANES, "t", "a")
    pictures.bars({"A": 1, "B": 900}, "t", "a", "messages", expected=450)
    pictures.ecdf({"idle": [.1, .2], "loaded": [3, 4]}, "t", "a", "ms", limit=(1, "1 ms"))
    assert dict(matplotlib.rcParams) == before


def test_outcomes_differ_by_shape_as_well_as_by_colour():
    colours, shapes = zip(*pictures.OUTCOME.values())
    assert len(set(colours)) == len(colours) == len(set(shapes))


@pytest.mark.parametrize("draw", [
    lambda: pictures.timeline(Recorder(), LANES, "t", "a"),
    lambda: pictures.bars({}, "t", "a", "messages"), lambda: pictures.ecdf({}, "t", "a", "ms"),
    lambda: lives.lives(Recorder(), ["charged"], "t", "a", curves={"charged": "charged"}), ideas.two_steps])
def test_an_empty_record_draws_an_empty_picture(draw):
    assert draw().png


def test_lives_of_workers_in_lanes():
    log = Recorder()
    for at, event, worker, fields in [(.1, "ordered", None, {"order": 1}), (.2, "ready", "A1", {}), (.3, "here", "A1", {"order": 1}),
                                      (.4, "killed", "A1", {"point": "here"}), (.5, "ready", "A2", {}), (.6, "here", "A2", {"order": 1}),
                                      (.9, "resumed", "A2", {}), (1, "ready", "B", {})]:
        log(event, worker=worker, **fields)["at"] = at
    drawn = lives.lives(log, ["here"], "t", "a", curves={"ordered": "ordered", "done": "here"})
    assert drawn.png == lives.lives(log, ["here"], "t", "a", curves={"ordered": "ordered", "done": "here"}).png
    assert lives.looks_of(log, ["here"], many=False).keys() == {"here", "killed at here"}
