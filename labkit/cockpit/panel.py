"""The cockpit: a live map of the nodes beside the notebook, with a button for each fault
(`lab.cockpit()`).

Right-click its output, choose "Create New View for Output", and go on with the lesson: it refreshes
itself about twice a second until the lesson ends. It has no source of its own: what it shows is
lab.nodes() and lab.replicas(), what it does is lab.faults.

In unattended runs it shows a plain picture only, and ipywidgets is not even imported. It detects
them by the field allow_stdin of the request that runs the cell: a front end with a person sets it
to true, because it can ask for input; programs that execute notebooks (nbval, nbclient, nbconvert,
papermill) set it to false. For a person the output holds both, the widgets and the picture, so that
a saved notebook shows the picture wherever no kernel runs, on GitHub for example.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import html
import sys

from labkit.cluster import raft
from labkit.errors import LabError

PERIOD = 0.5  # seconds from one look at the cluster to the next
META = "the meta group"
VERBS = {  # verb of lab.faults: (states in which its button can be pressed, what it does)
    "kill": (["up", "paused", "isolated"], "SIGKILL: gone at once"),
    "stop": (["up", "isolated"], "SIGTERM: ends in good order"),
    "lame_duck": (["up", "isolated"], "SIGUSR2: hands over, then ends within seconds"),
    "pause": (["up", "isolated"], "SIGSTOP: stands still, connections stay open"),
    "resume": (["paused"], "SIGCONT: goes on"),
    "isolate": (["up", "paused"], "cut off from the other nodes, not from clients"),
    "rejoin": ([], "ends the partition"),  # whatever the state of the node that is cut off
    "start": (["dead"], "starts it again on its data"),
}


def show(lab):
    """The cockpit of this lab, which a cell that ends in it displays. A Cockpit for a person, else
    a Picture."""
    from labkit.cockpit import drawing  # loads matplotlib: only when somebody wants to see

    # The cell did not say `await`, and its loop is busy with the cell: the first look runs in a
    # thread, which has a loop of its own.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        nodes, replicas, consumers = pool.submit(lambda: asyncio.run(look(lab))).result()
    picture = drawing.picture(nodes, replicas)
    if not somebody_watches():
        return picture
    if lab._cockpit:
        lab._cockpit.stop()
    lab._cockpit = Cockpit(lab, picture, nodes, replicas, consumers)
    return lab._cockpit


def somebody_watches():
    """True in a cell that a person runs in a front end."""
    if "IPython" not in sys.modules:
        return False
    kernel = getattr(sys.modules["IPython"].get_ipython(), "kernel", None)
    if not kernel:
        return False
    return kernel.get_parent("shell").get("content", {}).get("allow_stdin", False)


async def look(lab):
    """(lab.nodes(), lab.replicas(), the consumers as sorted pairs of stream and name), all seen at
    the same time."""
    nodes, replicas, views = await asyncio.gather(
        lab.nodes(), lab.replicas(), raft.seen(lab.cluster, lab.topic)
    )
    return nodes, replicas, sorted({pair for view in views.values() for pair in view["consumers"]})


def with_silent(nodes, replicas, before):
    """The replicas, and those streams of an earlier look that nobody can tell of now, because all
    their nodes are silent."""
    import pandas as pd

    silent = set(nodes.index[~nodes["state"].isin(["up", "isolated"])])
    known = replicas.index.unique("stream")
    gone = [
        name
        for name in before.index.unique("stream")
        if name not in known and silent.issuperset(before.loc[name].index)
    ]
    if not gone:
        return replicas
    unknown = {"role": "follower", "state": "unknown", "lag": pd.NA, "messages": pd.NA}
    ghosts = before.loc[gone].assign(**unknown).astype(before.dtypes)
    return pd.concat([replicas, ghosts]).sort_index()


@dataclasses.dataclass
class Line:
    """A line of the cockpit's log. refused: the action failed; shown in bold."""

    text: str
    refused: bool = False

    def html(self):
        text = html.escape(self.text)
        return f"<b>✕ {text}</b>" if self.refused else text


class Cockpit:
    """The widgets of one output, which refresh themselves until stop() or the end of the lesson."""

    def __init__(self, lab, picture, nodes, replicas, consumers):
        import ipywidgets as widgets

        self.lab = lab
        self.picture = picture  # what a saved notebook shows
        self.replicas = replicas  # as of the latest look
        self.leaders = {}  # stream: (node that leads it, when it was last seen to lead)
        self.lines = collections.deque(maxlen=5)  # the latest Lines of the log
        self.loop = asyncio.get_running_loop()
        self.over = self.loop.create_future()  # done when it no longer refreshes itself
        self.map = widgets.HTML()
        self.log = widgets.HTML()
        self.streams = widgets.Dropdown(layout={"width": "184px"})
        self.buttons = {
            (node.name, verb): self._fault_button(node.name, verb)
            for node in lab.cluster.nodes
            for verb in VERBS
        }
        self.box = widgets.VBox([self.map, *self._rows(), self.log])
        self._draw(nodes, replicas, consumers)
        lab.on_close(self.end)
        self.task = asyncio.create_task(self._refresh())

    def _repr_mimebundle_(self, **_):
        from labkit.notebooks import WIDGETS  # loads nbformat, which labkit itself does not need

        data, metadata = self.picture._repr_mimebundle_()
        return {**data, WIDGETS: self.box._repr_mimebundle_()[WIDGETS]}, metadata

    # --- buttons

    def _rows(self):
        """A row of buttons for each node, and one for the cluster."""
        import ipywidgets as widgets

        for node in self.lab.cluster.nodes:
            buttons = [self.buttons[node.name, verb] for verb in VERBS]
            yield widgets.HBox([self._name(node.name), *buttons])
        heal = self._button("heal all", "undo every fault", self._heal, style="success")
        down = self._button("step down", "the leader hands over", self._step_down)
        yield widgets.HBox([self._name(""), heal, self.streams, down])

    def _name(self, text):
        import ipywidgets as widgets

        look = "color: var(--jp-ui-font-color1)"
        return widgets.HTML(f"<b style='{look}'>{text}</b>", layout={"width": "34px"})

    def _fault_button(self, node, verb):
        words = verb.replace("_", " ")
        fault = getattr(self.lab.faults, verb)
        _, tip = VERBS[verb]
        button = self._button(words, tip, lambda: self._do(f"{verb} {node}", lambda: fault(node)))
        button.add_class(f"labkit-{verb}-{node}")
        return button

    def _button(self, words, tip, action, style=""):
        """A button that awaits action() when it is pressed."""
        import ipywidgets as widgets

        look = {"button_style": style, "layout": {"width": "90px"}}
        button = widgets.Button(description=words, tooltip=tip, **look)
        # JupyterLab may deliver the click in another thread (a subshell), so that it works while a
        # cell waits.
        button.on_click(lambda _: asyncio.run_coroutine_threadsafe(action(), self.loop))
        return button

    async def _heal(self):
        await self._do("heal all", self.lab.faults.heal)

    async def _step_down(self):
        name = self.streams.label
        group = self.streams.value
        await self._do(f"step down of {name}", lambda: self.lab.faults.step_down(*group))

    async def _do(self, words, action):
        """Does it, and says in the cockpit how it went: an error must not end in a log that nobody
        reads."""
        line = Line(f"{words} …")
        self._say(line)
        began = self.loop.time()
        try:
            leader = await action()
        except LabError as error:
            line.text = f"{words}: {error}"
            line.refused = True
        except Exception as error:  # any error: who pressed the button wants to know
            line.text = f"{words}: {error!r}"
            line.refused = True
        else:
            line.text = f"{words}: done in {self.loop.time() - began:.1f} s"
            if leader:
                line.text += f", {leader} leads now"
        self._show_lines()

    def _say(self, line):
        self.lines.append(line)
        self._show_lines()

    def _show_lines(self):
        look = "line-height:1.5; color: var(--jp-ui-font-color1)"
        text = "<br>".join(line.html() for line in self.lines)
        self.log.value = f"<div style='{look}'>{text}</div>"

    # --- the picture in motion

    async def _refresh(self):
        while not self.over.done():
            began = self.loop.time()
            try:
                self._draw(*await look(self.lab))
            except Exception as error:  # it is shown, and the next look may succeed
                self._say(Line(f"the cluster could not be seen: {error!r}", refused=True))
            rest = PERIOD - (self.loop.time() - began)
            await asyncio.wait([self.over], timeout=max(0.1, rest))

    def _draw(self, nodes, replicas, consumers):
        from labkit.cockpit import drawing

        self.replicas = with_silent(nodes, replicas, self.replicas)
        self.map.value = drawing.page(nodes, self.replicas)
        for (node, verb), button in self.buttons.items():
            button.disabled = not self._can(verb, node, nodes.loc[node, "state"])
        self._offer(self.replicas.index.unique("stream"), consumers)
        self._note_new_leaders()

    def _can(self, verb, node, state):
        """True if this fault can be injected now, and does something."""
        isolated = node in self.lab.faults.isolated
        if verb == "rejoin":
            return isolated
        if verb == "isolate" and isolated:
            return False
        states, _ = VERBS[verb]
        return state in states

    def _offer(self, streams, consumers):
        """Puts what has a leader into the list; what was chosen stays chosen."""
        groups = {name: (name, None) for name in streams}
        groups |= {f"{name} of {stream}": (stream, name) for stream, name in consumers}
        groups[META] = (None, None)
        if tuple(groups.items()) == self.streams.options:
            return
        chosen = self.streams.label
        self.streams.options = list(groups.items())
        # The meta group stands alone while there is no stream: nobody has chosen it.
        stays = chosen in groups and chosen != META
        self.streams.label = chosen if stays else next(iter(groups))

    def _note_new_leaders(self):
        """Says who leads a stream now, and how long nobody was seen to lead it."""
        now = self.loop.time()
        for stream, node in self.replicas.index[self.replicas["role"] == "leader"]:
            before, at = self.leaders.get(stream, (node, now))
            if before != node:
                gap = f"{now - at:.1f} s after {before} was last seen to lead"
                self._say(Line(f"{stream}: {node} leads, {gap}"))
            self.leaders[stream] = node, now

    # --- the end

    def stop(self):
        """Ends the refreshing."""
        if not self.over.done():
            self.over.set_result(None)

    async def end(self):
        """Ends the refreshing, and the buttons; the map stays as it was last."""
        self.stop()
        await self.task
        for button in self.buttons.values():
            button.disabled = True
        self._say(Line("The lesson is closed: the map no longer moves."))
