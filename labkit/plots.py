"""Pictures of experiments: every trial is a dot, the median is a line or a bar, and the spread is never hidden."""
from labkit.pictures import DASHES, GRID, INK, MUTED, SERIES, Picture, canvas, styled

SHAPES = ["o", "s", "^", "D", "v", "P", "X", "*"]


def _look(index):
    return SERIES[index % len(SERIES)], SHAPES[index % len(SHAPES)], DASHES[index // len(SERIES) % len(DASHES)]


def _numbers(axis):
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")


@styled
def trials(frame, x, y, by, title, alt, xlabel="", ylabel="", log="xy", line=None):
    """Each trial a dot at (x, y), one colour and shape for each value of the column `by`; lines through the medians.

    frame: a DataFrame as sweep() returns it; log: which axes are logarithmic; line: (y, text) of a limit drawn across.
    """
    figure, ax = canvas(8, 3.9)
    for index, (name, group) in enumerate(frame.dropna(subset=[y]).groupby(by, sort=False)):
        colour, shape, dash = _look(index)
        ax.plot(group[x], group[y], shape, color=colour, ms=4, alpha=.45, mew=0)
        middle = group.groupby(x)[y].median()
        ax.plot(middle.index, middle, marker=shape, ls=dash, color=colour, ms=6, lw=1.6, label=str(name))
    _dress(ax, log)
    if "x" in log:
        _numbers(ax.xaxis)
        ax.set_xticks(sorted(frame[x].unique()), minor=False)
        ax.set_xticks([], minor=True)
    if line:
        ax.axhline(line[0], color=INK, lw=1, ls=":")
        ax.annotate(line[1], (1, line[0]), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
                    ha="right", fontsize=9, color=INK)
    ax.set_xlabel(xlabel or x)
    ax.set_ylabel(ylabel or y)
    ax.set_title(title)
    figure.legend(loc="outside lower center", ncol=4, fontsize=9)
    return Picture(figure, alt)


@styled
def strips(frame, y, by, title, alt, xlabel="", band=None, log=True):
    """One row for each value of the column `by`: every trial a dot, the median a bar across.

    band: (from, to, text) of a range that a source predicts, drawn behind."""
    names = list(dict.fromkeys(frame[by]))
    figure, ax = canvas(8, 1.3 + .38 * len(names))
    for row, name in enumerate(names):
        values = frame.loc[frame[by] == name, y].dropna()
        colour, shape, _ = _look(row)
        spread = [row + .24 * ((i % 5) - 2) / 2 for i in range(len(values))]  # so that equal ones do not hide each other
        ax.plot(values, spread, shape, color=colour, ms=5, alpha=.6, mew=0)
        if len(values):
            ax.plot([values.median()] * 2, [row - .36, row + .36], color=INK, lw=2.2)
    if band:
        ax.axvspan(band[0], band[1], color=GRID, zorder=-1)
        ax.annotate(band[2], (band[0], 1), xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points",
                    fontsize=9, color=MUTED)
    _dress(ax, "x" if log else "")
    _numbers(ax.xaxis)
    ax.set_yticks(range(len(names)), [f"{name} (n = {int((frame[by] == name).sum())})" for name in names])
    ax.set_ylim(len(names) - .5, -.5)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(xlabel or y)
    figure.suptitle(title, x=.01, ha="left", fontsize=11, weight="bold", color=INK)  # the names at the left may be long
    return Picture(figure, alt)


@styled
def quantiles(frame, columns, by, title, alt, xlabel, limit=None):
    """What share of all answers had come after so long (an ECDF, drawn from each trial's quantiles): the line is the
    median of the trials, the shade reaches from the least to the most.

    columns: {column of the frame: quantile between 0 and 1}; limit: (value, text), drawn as a line.
    """
    figure, ax = canvas(8, 4)
    middle = list(columns)[len(columns) // 2]
    groups = sorted(frame.dropna(subset=list(columns)).groupby(by), key=lambda item: item[1][middle].median())
    for index, (name, group) in enumerate(groups):
        colour, _, dash = _look(index)
        values, shares = group[list(columns)], list(columns.values())
        ax.fill_betweenx(shares, values.min(), values.max(), color=colour, alpha=.18, lw=0)
        ax.plot(values.median(), shares, color=colour, ls=DASHES[index % len(DASHES)] if dash == "-" else dash, lw=1.8, label=str(name))
    _dress(ax, "x")
    _numbers(ax.xaxis)
    if limit:
        ax.axvline(limit[0], color=INK, lw=1, ls=":")
        ax.annotate(limit[1], (limit[0], .03), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points",
                    fontsize=9, color=INK)
    ax.set_yticks([0, .5, .9, .99], ["0", "p50", "p90", "p99"])
    ax.set_ylim(0, 1.02)
    ax.set_xlabel(xlabel)
    ax.set_title(title)
    figure.legend(loc="outside lower center", ncol=3, fontsize=9)
    return Picture(figure, alt)


def _dress(ax, log):
    for letter in log:
        getattr(ax, f"set_{letter}scale")("log")
    ax.grid(color=GRID)
