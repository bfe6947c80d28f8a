"""Tables and sentences of the report on a group of runs, and on rows outside of groups."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments.report.costs import largest, step_times, throughput_setup
from experiments.report.numbers import Group, Ordering, Pair, Row, Sample, as_text, present_values
from experiments.report.page import Block, Paragraph, Table
from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.expand import PROTOCOLS, Run, count
from repvgg_jax.config.describe import data_name
from repvgg_jax.errors import UsageError

NONE = "\N{EN DASH}"
_UNRECORDED = "an unrecorded library"
_MIXED = (
    "**Different devices or libraries computed these runs**, or some rows do not say which. "
    "Differences between such runs are not due to the variants alone."
)
_NOISE = {True: "yes", False: "no", None: "unknown: fewer than two seeds of both"}


def signed(value: float, digits: int = 2, plus: bool = True) -> str:
    """Formats a number with a true minus sign, and zero without a sign."""
    text = f"{value:+.{digits}f}" if plus else f"{value:.{digits}f}"
    if not float(text):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def mean_std(sample: Sample, plus: bool = False) -> str:
    """Formats `71.02 ± 0.31`, or `71.02 (1 seed)`."""
    if not sample.values:
        return NONE
    deviation = "(1 seed)" if sample.std is None else f"± {sample.std:.2f}"
    return f"{signed(sample.mean, plus=plus)} {deviation}"


def interval(sample: Sample) -> str:
    """Formats the mean's 95% interval."""
    if (half := sample.half_width) is None:
        return NONE
    return f"[{signed(sample.mean - half)}, {signed(sample.mean + half)}]"


def progress(group: Group) -> str:
    """Formats the number of finished runs: `9 of 12`."""
    return f"{len(group.rows)} of {group.seeds * len(group.runs)}"


def title(group: Group, separator: str = " with ") -> str:
    """Formats the protocol and the additional fields shared by the group's runs."""
    shared = ", ".join(f"`{name}={value}`" for name, value in as_text(group.shared))
    return f"`{group.protocol}`{separator if shared else ''}{shared}"


def setup(group: Group) -> list[Paragraph]:
    """Returns paragraphs on protocol, device and code, and on missing runs."""
    parts = [_protocol(group)]
    if steps := sorted(set(present_values(group.rows, "steps"))):
        span = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
        parts.append(f"{span} steps per run")
    devices = [row.get("device") or "unknown device" for row in group.rows]
    libraries = [_library(row) for row in group.rows]
    sentences = [f"{', '.join(parts)}. On {_tally(devices)}."]
    if set(libraries) != {_UNRECORDED}:
        sentences.append(f"Convolutions by {_tally(libraries)}.")
    sentences.append(f"Commit {_tally(map(_commit, group.rows))}.")
    lines = [" ".join(sentences)]
    kinds = [device.split(",")[0] for device in devices]  # without the number of cores
    if len(set(zip(kinds, libraries, strict=True))) > 1:
        lines.append(_MIXED)
    if missing := [
        f"`{name}` ({group.seeds - len(runs)} of {group.seeds} seeds)"
        for name, runs in group.runs.items()
        if len(runs) < group.seeds
    ]:
        lines.append(f"**Incomplete: {progress(group)} runs.** Missing: {', '.join(missing)}.")
    if not group.runs[group.baseline]:
        lines.append(f"No differences yet: the baseline `{group.baseline}` has not been run.")
    if group.older:
        lines.append(f"{count(group.older, 'older row')} of the same variant and seed left out.")
    return [Paragraph(line) for line in lines]


def _library(row: Row) -> str:
    """Formats the libraries of a run's convolutions, by start: `oneDNN 2023.2.0 (JAX 0.10.2)`."""
    found = [*(row.get("earlier_environments") or []), row.get("environment")]
    names = [f"{e['convolutions']} (JAX {e['versions']['jax']})" for e in found if e]
    return " then ".join(dict.fromkeys(names)) or _UNRECORDED


def _commit(row: Row) -> str:
    """Formats the commit that a run ended with, and those that it started with."""
    earlier = [f"`{commit[:10]}`" for commit in row.get("earlier_commits") or []]
    text = f"`{(row.get('commit') or 'unknown')[:10]}`"
    if earlier:
        text += f" begun with {' and '.join(earlier)}"
    return f"{text} with uncommitted changes" if row.get("dirty") else text


def _protocol(group: Group) -> str:
    text = f"Protocol {title(group)}"
    if group.protocol not in PROTOCOLS:
        return f"{text} (not in this code)"
    variants = SWEEPS[group.sweep].variants
    overrides = variants[group.baseline] | group.shared
    try:
        config = Run(group.sweep, group.baseline, 0, group.protocol, overrides).config()
    except UsageError:  # the runs have fields that this code no longer has
        return text
    train = config.train
    text += f": {_data(group, config)}, "
    if not train.steps:  # the rows have the steps
        text += f"{train.epochs:g} epoch{'' if train.epochs == 1 else 's'} "
    text += f"in batches of {train.batch_size}"
    varies = any("model.dtype" in overrides for overrides in variants.values())
    return text if varies else f"{text}, {config.model.dtype}"


def _data(group: Group, config: ConfigDict) -> str:
    """Returns the name of the data; for class folders, the end of the path that runs recorded."""
    paths = present_values(group.rows, "environment", "data", "train", "name")
    if config.data.source != "folder" or not paths:
        return data_name(config.data)
    return _tally(os.path.join(*Path(path).parts[-2:]) for path in paths)


def _tally(texts: Iterable[str]) -> str:
    """Formats `cpu x1 (9 runs), H100 x1 (3 runs)`, the most frequent first."""
    counts = Counter(texts)
    if len(counts) == 1:
        return next(iter(counts))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{text} ({count(n, 'run')})" for text, n in ordered)


def accuracy_table(group: Group) -> Table:
    """Returns top-1 of both forms, the difference to the baseline, and the paper's figures."""
    published, baseline = SWEEPS[group.sweep].published, group.baseline
    header = ["variant", "seeds", "train form, %", "fused, %"]
    header += [f"minus `{baseline}`, points", "95% interval"]
    if published:
        header += ["paper, %", f"paper minus `{baseline}`"]
    rows = []
    for name, runs in group.runs.items():
        seeds = f"{len(runs)}" if len(runs) == group.seeds else f"{len(runs)} of {group.seeds}"
        fused = group.top1(name, "fused")
        row = [f"`{name}`", seeds, mean_std(group.top1(name))]
        row.append("cannot be fused" if runs and not fused.values else mean_std(fused))
        if name == baseline:
            row += ["baseline", NONE]
        else:
            difference = group.difference(name, baseline)
            row += [mean_std(difference, plus=True), interval(difference)]
        if published:
            row.append(f"{published[name]:.2f}" if name in published else NONE)
            both = name != baseline and name in published and baseline in published
            row.append(signed(published[name] - published[baseline]) if both else NONE)
        rows.append(row)
    return Table(header, rows, len(header) - 1)


def own_papers_table(group: Group) -> Table:
    """Returns our differences next to those in the blocks' own papers, on other nets."""
    header = ["variant", "compared with", "paper", "top-1 there, %", "difference there"]
    header += ["ours, points", "95% interval"]
    rows = []
    for name, pair in SWEEPS[group.sweep].own_papers.items():
        ours = group.difference(name, pair.reference)
        row = [f"`{name}`", f"`{pair.reference}`", pair.source]
        row += [f"{pair.without:.2f} → {pair.with_it:.2f}", signed(pair.with_it - pair.without)]
        rows.append([*row, mean_std(ours, plus=True), interval(ours)])
    return Table(header, rows, 4)


def cost_table(group: Group, timed: bool = True) -> Table:
    """Returns size and cost of both forms, and the fusion error; step times if `timed`."""
    # Measured by one version of the code if possible, since the runs have different commits.
    if throughput_setup(group, "training"):
        temporaries = largest(group, "throughput", "training", "temporaries_bytes")
    else:
        temporaries = largest(group, "temporaries_bytes")
    rates = largest(group, "throughput", "deployed", "images_per_second")
    errors = _formatted(largest(group, "fusion_error"), "{:.1e}")
    columns = {
        "parameters, train form": _formatted(largest(group, "params", "train_form"), "{:,.0f}"),
        "parameters, fused": _formatted(largest(group, "params", "fused"), "{:,.0f}"),
        "MACs (M), train form": _formatted(largest(group, "macs", "train_form"), "{:,.1f}", 1e6),
        "MACs (M), fused": _formatted(largest(group, "macs", "fused"), "{:,.1f}", 1e6),
        "images/s as deployed": _formatted(rates, "{:,.0f}"),
        **(_step_columns(group) if timed else {}),
        "temporaries, MB": _formatted(temporaries, "{:,.1f}", 1e6),
        "fusion error, max": {n: text.replace("-", "\N{MINUS SIGN}") for n, text in errors.items()},
    }
    rows = [[f"`{name}`", *(of.get(name, NONE) for of in columns.values())] for name in group.runs]
    return Table(["variant", *columns], rows, len(columns))


def _step_columns(group: Group) -> dict[str, dict[str, str]]:
    times, how = step_times(group)
    return {
        f"step, ms ({how})": _formatted(times, "{:.1f}"),
        f"times `{group.baseline}`": _formatted(times, "{:.2f}", times.get(group.baseline)),
    }


def _formatted(values: Mapping[str, float], form: str, unit: float | None = 1.0) -> dict[str, str]:
    """Formats values in a unit; returns an empty dict if the unit is unknown."""
    if unit is None:
        return {}
    return {name: form.format(value / unit) for name, value in values.items()}


def order_blocks(group: Group, order: Ordering) -> list[Block]:
    """Returns the comparison of our order with the paper's, and all reversed pairs."""
    published, source = SWEEPS[group.sweep].published, SWEEPS[group.sweep].source
    if not published:
        return [Paragraph("No published figures to compare the order with.")]
    if order.tau is None:
        return [Paragraph(f"Too few variants or seeds yet to compare the order with {source}.")]
    text = (
        f"**Our order against the paper's** ({source}): Kendall's tau {signed(order.tau)} over "
        f"{len(order.variants)} of its {len(published)} variants. "
        f"Of {count(len(order.pairs), 'pair')}, {len(order.kept)} are as in the paper "
        f"({_clear_pairs(order.kept)} by more than noise) and {len(order.reversed)} reversed"
    )
    if not order.reversed:
        return [Paragraph(text + ".")]
    header = [
        "higher in ours",
        "lower in ours",
        "difference, points",
        "95% interval",
        "paper's difference",
        "larger than noise",
    ]
    rows = []
    for pair in sorted(order.reversed, key=_by_weight):
        row = [f"`{pair.above}`", f"`{pair.below}`", mean_std(pair.ours, plus=True)]
        row += [interval(pair.ours), signed(pair.paper), _NOISE[pair.ours.beyond_noise]]
        rows.append(row)
    text += f" ({_clear_pairs(order.reversed)} by more than noise):"
    return [Paragraph(text), Table(header, rows, 4)]


def pairs_beyond_noise(order: Ordering) -> str:
    """Formats `3 of 28`: pairs whose difference is larger than noise."""
    return f"{_clear_pairs(order.pairs)} of {len(order.pairs)}"


def _clear_pairs(pairs: Sequence[Pair]) -> int:
    return sum(pair.ours.beyond_noise is True for pair in pairs)


def _by_weight(pair: Pair) -> tuple[bool, float, str, str]:
    """Returns a sort key: pairs beyond noise first, then larger differences."""
    size = pair.ours.mean if pair.ours.values else 0.0
    return pair.ours.beyond_noise is not True, -size, pair.above, pair.below


def other_table(others: Sequence[tuple[Row, str]]) -> Table:
    """Returns the rows outside of all sweeps' tables, with the reason."""
    header = ["sweep", "variant", "seed", "protocol", "config", "reason", "train form, %"]
    rows = []
    for row, problem in others:
        cells = [str(row.get(name, NONE)) for name in ("sweep", "name", "seed", "protocol")]
        top1 = present_values([row], "top1", "train_form")
        last = f"{100 * top1[0]:.2f}" if top1 else NONE
        rows.append([*cells, f"`{row.get('config_hash', NONE)}`", problem, last])
    return Table(header, rows, 1)
