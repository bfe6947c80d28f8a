"""The report's tables and sentences of one group of runs, and of those that are in no group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from experiments.report.costs import largest, measured, step_times
from experiments.report.numbers import Group, Ordering, Pair, Row, Sample, fields, known_values
from experiments.report.page import Block, Paragraph, Table
from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.expand import PROTOCOLS, Run
from repvgg_jax.errors import UsageError

NONE = "\N{EN DASH}"


def signed(value: float, digits: int = 2, plus: bool = True) -> str:
    """A number with a true minus sign, and none on a zero."""
    text = f"{value:+.{digits}f}" if plus else f"{value:.{digits}f}"
    if not float(text):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def mean_std(sample: Sample, plus: bool = False) -> str:
    """`71.02 ± 0.31`; a single seed has no deviation, and says so."""
    if not sample.values:
        return NONE
    deviation = "(1 seed)" if sample.std is None else f"± {sample.std:.2f}"
    return f"{signed(sample.mean, plus=plus)} {deviation}"


def interval(sample: Sample) -> str:
    """The mean's 95% interval."""
    if (half := sample.half_width) is None:
        return NONE
    return f"[{signed(sample.mean - half)}, {signed(sample.mean + half)}]"


def count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def done(group: Group) -> str:
    """`9 of 12`: runs that there are, of those that there should be."""
    return f"{len(group.rows)} of {group.seeds * len(group.runs)}"


def missing(group: Group) -> list[str]:
    """`identity (2 of 3 seeds)`: variants that lack runs."""
    return [
        f"`{name}` ({len(runs)} of {group.seeds} seeds)"
        for name, runs in group.runs.items()
        if len(runs) < group.seeds
    ]


def describe(group: Group) -> list[Paragraph]:
    """Which protocol, on what, from which code; and what isn't there."""
    words = [_protocol(group)]
    if steps := sorted(set(known_values(group.rows, "steps"))):
        words.append(f"{_span(steps)} steps a run")
    devices = [row.get("device") or "unknown device" for row in group.rows]
    commits = _tally(map(_code, group.rows))
    lines = [f"{', '.join(words)}. On {_tally(devices)}. Commit {commits}."]
    if gaps := missing(group):
        lines.append(f"**Incomplete: {done(group)} runs.** Not there in full: {', '.join(gaps)}.")
    if not group.runs[group.baseline]:
        lines.append(f"No differences yet: the baseline `{group.baseline}` has not been run.")
    if group.older:
        lines.append(f"{count(group.older, 'older row')} of the same variant and seed left out.")
    return [Paragraph(line) for line in lines]


def _code(row: Row) -> str:
    """The commit that a run ended with, and what else it began with."""
    earlier = [f"`{commit[:10]}`" for commit in row.get("earlier_commits") or []]
    words = f"`{(row.get('commit') or 'unknown')[:10]}`"
    words += f" begun with {' and '.join(earlier)}" if earlier else ""
    return words + (" with uncommitted changes" if row.get("dirty") else "")


def _protocol(group: Group) -> str:
    shared = ", ".join(f"`{name}={value}`" for name, value in fields(group.shared))
    words = f"Protocol `{group.protocol}`{' with ' * bool(shared)}{shared}"
    if group.protocol not in PROTOCOLS:
        return f"{words} (not in this code)"
    variants = SWEEPS[group.sweep].variants
    overrides = variants[group.baseline] | group.shared
    try:
        config = Run(group.sweep, group.baseline, 0, group.protocol, overrides).config()
    except UsageError:  # of fields that the code had when the runs were made
        return words
    train = config.train
    length = "" if train.steps else f"{train.epochs:g} epochs "  # steps are said of the rows
    words += f": {config.data.name}, {length}in batches of {train.batch_size}"
    varies = any("model.dtype" in own for own in variants.values())
    return words if varies else f"{words}, {config.model.dtype}"


def _tally(words: Iterable[str]) -> str:
    """`cpu x1 (9 runs), H100 x1 (3 runs)`: the most frequent first."""
    counts = Counter(words)
    if len(counts) == 1:
        return next(iter(counts))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{word} ({count(n, 'run')})" for word, n in ordered)


def _span(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def accuracy_table(group: Group) -> Table:
    """Both forms' top-1, the paired difference to the baseline, and the paper's beside them."""
    published, baseline = SWEEPS[group.sweep].published, group.baseline
    header = ["variant", "seeds", "train form, %", "fused, %"]
    header += [f"minus `{baseline}`, points", "its 95% interval"]
    header += ["paper, %", f"paper minus `{baseline}`"] if published else []
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
    """Ours beside what a block's own paper has of it, on another net."""
    header = ["variant", "beside", "its paper", "top-1 there, %", "difference there"]
    header += ["ours, points", "its 95% interval"]
    rows = []
    for name, pair in SWEEPS[group.sweep].own_papers.items():
        ours = group.difference(name, pair.beside)
        row = [f"`{name}`", f"`{pair.beside}`", pair.source]
        row += [f"{pair.without:.2f} → {pair.with_it:.2f}", signed(pair.with_it - pair.without)]
        rows.append([*row, mean_std(ours, plus=True), interval(ours)])
    return Table(header, rows, 4)


def cost_table(group: Group) -> Table:
    """Size and cost of both forms, and how exactly they agree."""
    times, how = step_times(group)
    header = ["variant", "parameters, train form", "parameters, fused"]
    header += ["MACs (M), train form", "MACs (M), fused", "images/s as deployed"]
    header += [f"step, ms ({how})", f"times `{group.baseline}`"]
    header += ["temporaries, MB", "fusion error, max"]
    # Of one code for all where measured: the runs' own are of the commits that trained them.
    alike = measured(group, "training")
    temporaries = (("throughput", "training") if alike else ()) + ("temporaries_bytes",)
    columns = [(("params", form), "{:,.0f}", 1) for form in ("train_form", "fused")]
    columns += [(("macs", form), "{:,.1f}", 1e6) for form in ("train_form", "fused")]
    columns += [(("throughput", "deployed", "images_per_second"), "{:,.0f}", 1)]
    figures = [_formatted(largest(group, *path), form, unit) for path, form, unit in columns]
    figures.append(_formatted(times, "{:.1f}", 1))
    figures.append(_formatted(times, "{:.2f}", times.get(group.baseline)))
    figures.append(_formatted(largest(group, *temporaries), "{:,.1f}", 1e6))
    errors = _formatted(largest(group, "fusion_error"), "{:.1e}", 1)
    figures.append({name: text.replace("-", "\N{MINUS SIGN}") for name, text in errors.items()})
    rows = [[f"`{name}`", *(of.get(name, NONE) for of in figures)] for name in group.runs]
    return Table(header, rows, len(header) - 1)


def _formatted(values: Mapping[str, float], form: str, unit: float | None) -> dict[str, str]:
    """Each in a unit, where that is known."""
    if unit is None:
        return {}
    return {name: form.format(value / unit) for name, value in values.items()}


def order_blocks(group: Group, order: Ordering) -> list[Block]:
    """How our order of the variants compares with the paper's, and every reversed pair."""
    published, source = SWEEPS[group.sweep].published, SWEEPS[group.sweep].source
    if not published:
        return [Paragraph("No published figures to compare the order with.")]
    if order.tau is None:
        return [Paragraph(f"Too few variants yet to compare the order with {source}.")]
    kept, turned = order.kept, order.reversed
    text = (
        f"**Our order against the paper's** ({source}): Kendall's tau {signed(order.tau)} over "
        f"{len(order.variants)} of its {len(published)} variants. "
        f"Of {count(len(order.pairs), 'pair')}, {len(kept)} stand as in the paper "
        f"({_clear(kept)} by more than noise) and {len(turned)} the other way round"
    )
    if not turned:
        return [Paragraph(text + ".")]
    header = ["ours above", "ours below", "by, points", "its 95% interval", "paper's difference"]
    header.append("larger than noise")
    rows = []
    for pair in sorted(turned, key=_by_weight):
        row = [f"`{pair.above}`", f"`{pair.below}`", mean_std(pair.ours, plus=True)]
        row += [interval(pair.ours), signed(pair.paper), _NOISE[pair.ours.beyond_noise]]
        rows.append(row)
    return [Paragraph(f"{text} ({_clear(turned)} by more than noise):"), Table(header, rows, 4)]


def clear(order: Ordering) -> str:
    """`3 of 28`: pairs that more than noise tells apart."""
    return f"{_clear(order.pairs)} of {len(order.pairs)}"


def _clear(pairs: Sequence[Pair]) -> int:
    return sum(pair.ours.beyond_noise is True for pair in pairs)


def _by_weight(pair: Pair) -> tuple[bool, float, str, str]:
    """Those beyond noise first, then the larger ones."""
    size = pair.ours.mean if pair.ours.values else 0.0
    return pair.ours.beyond_noise is not True, -size, pair.above, pair.below


_NOISE = {True: "yes", False: "no", None: "not known: under two seeds of both"}


def other_table(others: Sequence[tuple[Row, str]]) -> Table:
    """Rows that are in no sweep's table, and why."""
    header = ["sweep", "variant", "seed", "protocol", "config", "why here", "train form, %"]
    rows = []
    for row, problem in others:
        words = [str(row.get(name, NONE)) for name in ("sweep", "name", "seed", "protocol")]
        top1 = known_values([row], "top1", "train_form")
        last = f"{100 * top1[0]:.2f}" if top1 else NONE
        rows.append([*words, f"`{row.get('config_hash', NONE)}`", problem, last])
    return Table(header, rows, 1)
