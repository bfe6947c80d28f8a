"""The layouts of weights in PyTorch: the nets that each has, and the names of their arrays."""

from collections.abc import Callable, Collection, Iterable
from functools import partial

from repvgg_jax.errors import UsageError
from repvgg_jax.interop import timm_layout, torchvision_layout
from repvgg_jax.interop.pytorch_layout import Entry, entries
from repvgg_jax.nets import NETS, Net
from repvgg_jax.nets.repvgg import RepVGG, RepVGGPlus

_OFFICIAL = partial(entries, layout="official")
# Layout -> class of a net -> function of the net that returns an entry for every array.
LAYOUTS: dict[str, dict[type[Net], Callable[..., Iterable[Entry]]]] = {
    "official": {RepVGG: _OFFICIAL, RepVGGPlus: _OFFICIAL},
    "torchvision": torchvision_layout.FAMILIES,
    "timm": timm_layout.FAMILIES,
}
# Fields that may differ: they do not change the outputs, or PyTorch would notice other shapes.
_FREE = ("num_classes", "hidden", "frozen", "dtype", "bn_group_size", "remat", "conv_algorithm")
_FREE += ("dropout", "drop_path", "auxiliary", "auxiliary_dropout")


def layouts_of(net: Net) -> list[str]:
    """Returns the names of the layouts that have a net, its default first.

    Raises:
      UsageError: if none has.
    """
    if found := [layout for layout, families in LAYOUTS.items() if type(net) in families]:
        return found
    known = sorted({cls.__name__ for families in LAYOUTS.values() for cls in families})
    raise UsageError(
        f"{type(net).__name__} cannot be converted to a PyTorch layout; {', '.join(known)} can"
    )


def check_layout(net: Net, layout: str) -> None:
    """Raises UsageError if a layout is unknown or does not have a net."""
    if layout not in LAYOUTS:
        raise UsageError(f"layout={layout!r}: choose from {', '.join(LAYOUTS)}")
    if layout not in (usable := layouts_of(net)):
        choices = " or ".join(f"layout={name!r}" for name in usable)
        raise UsageError(f"{layout} has no {type(net).__name__}; use {choices}")


def entries_in(net: Net, layout: str, paths: Collection[str]) -> list[Entry]:
    """Returns an entry for every array of a net, given the paths of all, named as in a layout.

    Raises:
      UsageError: if the layout does not have the net with its block.
    """
    listed = list(LAYOUTS[layout][type(net)](net))
    if {path for _, path, _ in listed} != set(paths):
        options = f" with {dict(net.block_options)}" if net.block_options else ""
        raise UsageError(
            f"block={net.block!r}{options} of this {type(net).__name__} has no counterpart in "
            f"{layout}; use the model's own block and block options, in train form"
        )
    return listed


def recognized(net: Net, names: Collection[str], paths: Collection[str]) -> tuple[str, list[Entry]]:
    """Returns the layout with the most of the given names, and the net's entries in it.

    Raises:
      UsageError: as for `layouts_of` and `entries_in`.
    """
    found = {layout: entries_in(net, layout, paths) for layout in layouts_of(net)}
    layout = max(found, key=lambda layout: sum(entry.name in names for entry in found[layout]))
    return layout, found[layout]


def check_registered(net: Net) -> None:
    """Raises UsageError unless a net is a model of `list_models()`, whose PyTorch side is known.

    Names and shapes do not tell strides and poolings, so PyTorch might load the weights of another
    net without an error, and compute another function.
    """
    fields = [field for field in _FREE if hasattr(net, field)]
    for make in NETS.values():
        model = make()
        if type(model) is type(net) and net == model.clone(**{f: getattr(net, f) for f in fields}):
            return
    raise UsageError(
        f"this {type(net).__name__} differs from every model of rj.list_models() in fields other "
        f"than {', '.join(fields)}, so PyTorch's model could compute something else with its "
        "weights; --mode=export --format=torch writes any net (docs/guides/pytorch_weights.md)"
    )
