"""The cockpit: a live map of the nodes beside the notebook, with a button for each fault
(`lab.cockpit()`).

Right-click its output, "Create New View for Output", and go on with the lesson: it refreshes itself
about twice a second until the lesson ends. It knows nothing of its own: what it shows is
lab.nodes() and lab.replicas(), what it does is lab.faults.

Where nobody sits in front it must leave no trace. How does it know? By the protocol itself: a front
end with a person asks for cells to be run with allow_stdin (they could be asked something),
programs that execute notebooks (nbval, nbclient, nbconvert, papermill) say that they will not
answer. These get a plain picture, and ipywidgets is not even imported. In front of a person the
output holds both, the widgets and the picture, so that a notebook that was saved shows the picture
wherever no kernel runs, on GitHub for one.
"""

import asyncio
import collections
import concurrent.futures
import html
import sys

from labkit.cluster import raft
from labkit.errors import LabError

PERIOD = 0.5  # seconds between two looks
WIDGETS = "application/vnd.jupyter.widget-view+json"
META = "the meta group"
VERBS = {  # verb of lab.faults -> (states in which its button can be pressed, what it does)
    "kill": ("up paused isolated", "SIGKILL: gone at once"),
    "stop": ("up isolated", "SIGTERM: ends in good order"),
    "lame_duck": ("up isolated", "SIGUSR2: hands over, then ends within seconds"),
    "pause": ("up isolated", "SIGSTOP: stands still, connections stay open"),
    "resume": ("paused", "SIGCONT: goes on"),
    "isolate": ("up paused", "cut off from the other nodes, not from clients"),
    "rejoin": ("", "ends the partition"),
    "start": ("dead", "starts it again on its data"),
}


def show(lab):
    """The cockpit of this lab: what a cell that ends in it displays. A Cockpit in front of a
    person, else a Picture."""
    from labkit.cockpit import drawing  # and matplotlib: not before somebody wants to see something

    # The cell did not say `await`, and its loop is busy with the cell: the first look has a loop,
    # in a thread, of its own.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        seen = pool.submit(lambda: asyncio.run(look(lab))).result()
    picture = drawing.picture(*seen[:2])
    if not somebody_watches():
        return picture
    if earlier := getattr(lab, "_cockpit", None):
        earlier.over.done() or earlier.over.set_result(None)
    lab._cockpit = Cockpit(lab, picture, seen)
    return lab._cockpit


def somebody_watches():
    """True in a cell that a person runs in a front end."""
    shell = "IPython" in sys.modules and sys.modules["IPython"].get_ipython()
    kernel = getattr(shell, "kernel", None)
    return bool(kernel) and kernel.get_parent("shell").get("content", {}).get("allow_stdin", False)


async def look(lab):
    """(lab.nodes(), lab.replicas(), the consumers as sorted pairs of stream and name), at one
    time."""
    nodes, replicas, views = await asyncio.gather(
        lab.nodes(), lab.replicas(), raft.seen(lab.cluster, lab.topic)
    )
    return nodes, replicas, sorted({pair for view in views.values() for pair in view["consumers"]})


def with_silent(nodes, replicas, before):
    """The replicas, and those streams of an earlier look all of whose nodes are silent now: nobody
    can tell of them."""
    import pandas as pd

    silent = set(nodes.index[~nodes["state"].isin(["up", "isolated"])])
    gone = [
        name
        for name in before.index.unique("stream")
        if name not in replicas.index.unique("stream") and silent.issuperset(before.loc[name].index)
    ]
    ghosts = (
        before.loc[gone]
        .assign(role="follower", state="unknown", lag=pd.NA, messages=pd.NA)
        .astype(before.dtypes)
    )
    return pd.concat([replicas, ghosts]).sort_index() if gone else replicas


class Cockpit:
    """The widgets of one output. `over` is the flag that ends it."""

    def __init__(self, lab, picture, seen):
        import ipywidgets as widgets

        self.lab, self.picture, self.loop = lab, picture, asyncio.get_running_loop()
        self.over, self.said, self.leads = (
            self.loop.create_future(),
            collections.deque(maxlen=5),
            {},
        )
        self.replicas = seen[1]
        self.map, self.log, self.buttons = widgets.HTML(), widgets.HTML(), {}
        self.streams = widgets.Dropdown(layout={"width": "184px"})
        rows = [
            widgets.HBox(
                [self._name(node.name), *(self._button(verb, node.name) for verb in VERBS)]
            )
            for node in lab.cluster.nodes
        ]
        down = self._make("step down", "the leader hands over", self._step_down)
        heal = self._make(
            "heal all",
            "undo every fault",
            lambda: self._do("heal all", lab.faults.heal),
            style="success",
        )
        rows.append(widgets.HBox([self._name(""), heal, self.streams, down]))
        self.box = widgets.VBox([self.map, *rows, self.log])
        self._draw(*seen)
        lab.on_close(self.end)
        self.task = asyncio.create_task(self._refresh())

    def _repr_mimebundle_(self, **_):
        data, metadata = self.picture._repr_mimebundle_()
        return {**data, WIDGETS: self.box._repr_mimebundle_()[WIDGETS]}, metadata

    # --- buttons

    def _name(self, text):
        import ipywidgets as widgets

        return widgets.HTML(
            f"<b style='color: var(--jp-ui-font-color1)'>{text}</b>", layout={"width": "34px"}
        )

    def _button(self, verb, node):
        fault = getattr(self.lab.faults, verb)
        button = self._make(
            verb.replace("_", " "),
            VERBS[verb][1],
            lambda: self._do(f"{verb} {node}", lambda: fault(node)),
        )
        button.add_class(f"labkit-{verb}-{node}")
        self.buttons[node, verb] = button
        return button

    def _make(self, words, tip, action, style=""):
        import ipywidgets as widgets

        button = widgets.Button(
            description=words, tooltip=tip, button_style=style, layout={"width": "90px"}
        )
        # JupyterLab may deliver the click in another thread (a subshell), so that it works while a
        # cell waits.
        button.on_click(lambda _: asyncio.run_coroutine_threadsafe(action(), self.loop))
        return button

    async def _step_down(self):
        name, group = self.streams.label, self.streams.value
        await self._do(f"step down of {name}", lambda: self.lab.faults.step_down(*group))

    async def _do(self, words, action):
        """Does it, and says in the cockpit how it went: an error must not end in a log that nobody
        reads."""
        line, began = {"text": f"{words} …"}, self.loop.time()
        self._say(line)
        try:
            leader = await action()
        except LabError as error:
            line.update(text=f"{words}: {error}", refused=True)
        except Exception as error:  # whatever it is, it is news for who pressed the button
            line.update(text=f"{words}: {error!r}", refused=True)
        else:
            line["text"] = f"{words}: done in {self.loop.time() - began:.1f} s" + (
                f", {leader} leads now" if leader else ""
            )
        self._say()

    def _say(self, line=None):
        self.said.extend([line] if line else [])
        self.log.value = (
            "<div style='line-height:1.5; color: var(--jp-ui-font-color1)'>"
            + "<br>".join(
                (
                    f"<b>✕ {html.escape(line['text'])}</b>"
                    if line.get("refused")
                    else html.escape(line["text"])
                )
                for line in self.said
            )
            + "</div>"
        )

    # --- the picture in motion

    async def _refresh(self):
        while not self.over.done():
            began = self.loop.time()
            try:
                self._draw(*await look(self.lab))
            except Exception as error:  # a look that fails is shown, and the next one may be better
                self._say({"text": f"no look at the cluster: {error!r}", "refused": True})
            await asyncio.wait([self.over], timeout=max(0.1, PERIOD - (self.loop.time() - began)))

    def _draw(self, nodes, replicas, consumers):
        from labkit.cockpit import drawing

        self.replicas = replicas = with_silent(nodes, replicas, self.replicas)
        self.map.value = drawing.page(nodes, replicas)
        for (node, verb), button in self.buttons.items():
            state, cut = nodes.loc[node, "state"], node in self.lab.faults.isolated
            usable = (
                cut
                if verb == "rejoin"
                else state in VERBS[verb][0].split() and not (verb == "isolate" and cut)
            )
            button.disabled = not usable
        groups = {name: (name, None) for name in replicas.index.unique("stream")}
        groups |= {
            f"{consumer} of {stream}": (stream, consumer) for stream, consumer in consumers
        } | {META: (None, None)}
        if tuple(groups.items()) != self.streams.options:
            chosen = self.streams.label
            self.streams.options = list(groups.items())
            self.streams.label = (
                chosen if chosen in groups and chosen != META else next(iter(groups))
            )
        self._note_new_leaders(replicas)

    def _note_new_leaders(self, replicas):
        now = self.loop.time()
        for stream, node in replicas.index[replicas["role"] == "leader"]:
            before, at = self.leads.get(stream, (node, now))
            if before != node:
                self._say(
                    {
                        "text": (
                            f"{stream}: {node} leads, {now - at:.1f} s after {before} was last seen"
                            " to lead"
                        )
                    }
                )
            self.leads[stream] = node, now

    async def end(self):
        """Ends the refreshing; the map stays as it was last."""
        self.over.done() or self.over.set_result(None)
        await self.task
        for button in self.buttons.values():
            button.disabled = True
        self._say({"text": "The lesson is closed: the map no longer moves."})
