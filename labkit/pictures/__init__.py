"""The pictures of the lessons: `from labkit import pictures`, then `pictures.timeline(…)`.

Each function but samples() returns a Picture, which shows itself at the end of a cell. matplotlib,
whose import takes most of a second, is loaded when the first function is asked for."""

import importlib

MODULES = {  # module of this package: its functions
    "timelines": ["timeline"],
    "gantt": ["deliveries"],
    "streams": ["stream_log", "depths", "attempts"],
    "consumers": ["lag", "shares", "spread"],
    "workers": ["lifelines"],
    "outages": ["answers"],
    "metrics": ["lines", "lanes"],
    "maps": ["cluster_map"],
    "charts": ["bars", "ecdf"],
    "measurements": ["trials", "samples", "strips", "quantiles", "spans"],
    "concepts": ["request_endings", "two_steps", "settings_on_the_way"],
}
_WHERE = {name: module for module, names in MODULES.items() for name in names}
__all__ = list(_WHERE)


def __getattr__(name):
    if name not in _WHERE:
        raise AttributeError(
            f"labkit.pictures has no {name!r}; it has {', '.join(sorted(_WHERE))}."
        )
    return getattr(importlib.import_module(f"labkit.pictures.{_WHERE[name]}"), name)


def __dir__():
    return sorted(__all__)
