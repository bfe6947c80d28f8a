"""The report on sweeps: statistics against scipy's, and the same bytes for the same rows."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments.benchmarks.throughput import with_throughput
from experiments.report.build import SHARED, digest_line, main, report_blocks, write_report
from experiments.report.figures import seed_curves
from experiments.report.numbers import Sample, compare_order, group_rows
from experiments.report.page import Table, to_markdown
from experiments.report.tables import mean_std, setup, signed
from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.rows import RESULTS, read_sweeps
from repvgg_jax.errors import UsageError
from tests.support.report_rows import TOP1, all_rows, row

ROOT = Path(__file__).parents[2]


def write(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "branches.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.mark.system
def test_rebuilt_bit_for_bit_whatever_the_order_of_the_rows(tmp_path):
    rows = all_rows()
    rows[3] |= {"device": "gpu x1"}
    rows += [row("both", 1, 60.0, config_hash="f" * 12)]  # finished in the same second
    rows += [row("none", i, 60.0, "lost") for i in range(3)]
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    for name, some in (("a", rows), ("b", shuffled)):
        write(tmp_path / name, some)
    write_report(tmp_path / "a", tmp_path / "out_a")
    # In another process, to detect anything that differs between processes.
    command = [sys.executable, "-m", "experiments.report", "--results", tmp_path / "b"]
    subprocess.run([*command, "--out", tmp_path / "out_b"], check=True, cwd=ROOT, timeout=300)
    files = sorted(p.relative_to(tmp_path / "out_a") for p in (tmp_path / "out_a").rglob("*.*"))
    assert len(files) > 7
    for file in files:
        ours, theirs = (tmp_path / out / file for out in ("out_a", "out_b"))
        assert ours.read_bytes() == theirs.read_bytes(), file


def test_means_and_paired_differences_equal_scipys():
    (group, *_), _ = group_rows(all_rows())
    ours, difference = group.top1("1x1"), group.difference("1x1", "both")
    assert ours.mean == pytest.approx(72.3)
    assert ours.std == pytest.approx(0.7549834)  # by hand: sqrt((0.49 + 0.01 + 0.64) / 2)
    test = stats.ttest_rel(TOP1["1x1"], TOP1["both"])
    assert difference.mean == pytest.approx(-1.1 / 3)  # by hand: -0.4, -0.9, +0.2
    low, high = test.confidence_interval(0.95)
    assert difference.mean - difference.half_width == pytest.approx(low)
    assert difference.mean + difference.half_width == pytest.approx(high)
    for name in ("none", "identity", "1x1"):
        test = stats.ttest_rel(TOP1[name], TOP1["both"])
        assert group.difference(name, "both").beyond_noise == (test.pvalue < 0.05)


def test_runs_that_shared_a_device_have_no_step_times():
    rows = [row(name, seed) | {"steps": 1000} for name in TOP1 for seed in range(3)]
    (group,), _ = group_rows(rows)
    timed = to_markdown(report_blocks(rows, {}), "figures")
    shared = to_markdown(report_blocks(rows, {group.name: f"{SHARED}\n\nA remark."}), "figures")
    assert "step, ms" in timed
    assert "step, ms" not in shared
    assert "\nA remark.\n" in shared
    assert SHARED not in shared


def test_differences_are_of_the_seeds_of_both():
    rows = [row("both", 0), row("both", 2), row("none", 1), row("none", 2)]
    (group,), _ = group_rows(rows)
    assert group.difference("none", "both").values == {2: pytest.approx(-2.5)}
    assert group.difference("1x1", "both").values == {}


def test_of_two_runs_of_a_seed_the_later_counts():
    rows = [row("both", 0), row("both", 0, 60.0, config_hash="f" * 12)]
    rows[1]["finished"] = "2025-01-01T00:00:00Z"
    for some in (rows, rows[::-1]):
        (group,), _ = group_rows(some)
        assert (group.top1("both").values, group.older) == ({0: pytest.approx(72.0)}, 1)
    assert "1 older row of" in to_markdown(report_blocks(rows, {}), "figures")


def test_order_is_compared_by_kendalls_tau():
    (group, *_), _ = group_rows(all_rows())
    published = SWEEPS["branches"].published
    order = compare_order(group, published)
    means = [np.mean(TOP1[name]) for name in TOP1]
    assert order.tau == pytest.approx(stats.kendalltau(means, list(published.values())).statistic)
    (pair,) = order.reversed
    assert (pair.above, pair.below, pair.paper) == ("1x1", "identity", pytest.approx(-1.64))
    assert pair.ours.beyond_noise  # 0.6, 1.0, 1.2
    tied = {"none": 1.0, "identity": 1.0, "1x1": 2.0, "both": 0.5}
    expected = stats.kendalltau(means, list(tied.values())).statistic
    assert compare_order(group, tied).tau == pytest.approx(expected)
    two = {name: published[name] for name in ("none", "both")}
    assert compare_order(group, two).tau is None
    (one_seed, *_), _ = group_rows([row(name, 0) for name in TOP1])
    assert compare_order(one_seed, published).tau is None


def tables(rows):
    return [block for block in report_blocks(rows, {}) if isinstance(block, Table)]


def test_a_table_says_what_computed_its_runs_and_whether_that_differs():
    def words(*environments, devices=("cpu x1, 2 cores",) * 3):
        rows = [
            row("both", seed, device=device) | ({} if found is None else {"environment": found})
            for seed, (found, device) in enumerate(zip(environments, devices, strict=True))
        ]
        [group], _ = group_rows(rows)
        return " ".join(paragraph.text for paragraph in setup(group))

    jax = {"versions": {"jax": "0.10.2"}}
    xla, onednn = ({"convolutions": name, **jax} for name in ("XLA", "oneDNN 2023.2.0"))
    same = words(onednn, onednn, onednn, devices=("cpu x1, 1 core", *("cpu x1, 2 cores",) * 2))
    assert "Convolutions by oneDNN 2023.2.0 (JAX 0.10.2). Commit" in same
    old = words(None, None, None)  # rows of earlier versions
    assert "Convolutions" not in old
    mixed = words(onednn, onednn, xla)
    assert "by oneDNN 2023.2.0 (JAX 0.10.2) (2 runs), XLA (JAX 0.10.2) (1 run)." in mixed
    for text in (
        mixed,
        words(xla, xla, None),
        words(xla, xla, xla, devices=("cpu", "H100", "cpu")),
    ):
        assert "Different devices or libraries" in text
    assert "Different devices or libraries" not in same + old


@pytest.mark.medium
def test_incomplete_sweeps_say_so():
    rows = [r for r in all_rows() if (r["name"], r["seed"]) != ("identity", 1)]
    rows = [r for r in rows if r["name"] != "1x1"]
    text = to_markdown(report_blocks(rows, {}), "figures")
    assert "8 of 12 runs" in text
    assert "`identity` (1 of 3 seeds), `1x1` (3 of 3 seeds)" in text
    accuracy = next(t for t in tables(rows) if t.header[0] == "variant")
    assert [line[1] for line in accuracy.rows] == ["3", "2 of 3", "0 of 3", "3"]
    assert "70.00 (1 seed)" in text  # of groups
    alone = to_markdown(report_blocks([row("none", 0)], {}), "figures")
    assert "baseline `both` has not been run" in alone
    assert "## Not run yet" in alone


def test_variants_that_cannot_be_fused_have_one_form():
    rows = [row("full", 0, 70.0, "variants"), row("relu_in_branch", 0, 71.0, "variants")]
    rows[1] |= {"top1": {"train_form": 0.71}, "fusion_error": None, "params": {"train_form": 9}}
    rows[1] |= {"macs": {"train_form": 9e6}}
    accuracy = next(t for t in tables(rows) if t.header[0] == "variant")
    line = next(line for line in accuracy.rows if line[0] == "`relu_in_branch`")
    assert line[2:5] == ["71.00 (1 seed)", "cannot be fused", "+1.00 (1 seed)"]


def test_runs_with_other_fields_are_not_mixed_with_the_protocols_own():
    epochs = {"train.epochs": 60.0}
    longer = row("none", 0, 90.0, overrides={"model.branches": ["kxk"], **epochs}, config_hash="1")
    plain, changed = group_rows([*all_rows(), longer])[0][:2]
    assert (plain.shared, changed.shared) == ({}, epochs)
    assert changed.name == "branches-cifar10_short-train.epochs=60.0"
    many = {f"model.field_{i}": i for i in range(40)}
    names = {replace(changed, shared=many | {"seed": i}).name for i in range(2)}
    assert len(names) == 2
    assert max(map(len, names)) < 100  # figures are files of these names
    assert plain.top1("none").values[0] == pytest.approx(69.1)
    steps = row("none", 0, overrides={"model.branches": ["kxk"], "train.steps": 300})
    fields = {"model.branches": ["kxk"], "train.epochs": 1.0}
    digits = row("none", 0, overrides=fields | {"data.source": "digits"})
    data = {"data": {"train": {"name": "/home/me/photos/train"}}}
    environment = {"convolutions": "XLA", "versions": {"jax": "0.10.2"}, **data}
    photos = row("none", 0, overrides=fields | {"data.source": "folder"}, environment=environment)
    text = to_markdown(report_blocks([longer, steps, digits, photos], {}), "figures")
    assert "`train.epochs=60.0`: cifar10, 60 epochs in batches of 128" in text
    assert "`train.steps=300`: cifar10, in batches of 128, float32, 300 steps per run" in text
    assert "`train.epochs=1.0`: digits, 1 epoch in batches of 128" in text
    assert "`train.epochs=1.0`: photos/train, 1 epoch in batches of 128" in text
    assert "Not run yet" not in text  # the others are of the protocols' own data


@pytest.mark.medium
@pytest.mark.parametrize("changes", [{"name": "gone|x"}, {"sweep": "lost"}, {"top1": {}}])
def test_unknown_rows_are_listed(changes):
    odd = row("none", 0, config_hash="abcabcabcabc") | changes
    text = to_markdown(report_blocks([*all_rows(), odd], {}), "figures")
    (line,) = [line for line in text.splitlines() if "abcabcabcabc" in line]
    assert line.count("|") == 8  # the name is escaped


class Loads(HTMLParser):
    """Collects the URLs that a page refers to, and its ids."""

    def __init__(self):
        super().__init__()
        self.found, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        self.found += [tag] if tag in ("script", "link", "iframe", "object", "img") else []
        names = ("src", "href", "xlink:href", "srcset", "data", "poster", "action")
        self.found += [value for name, value in attributes if name in names]
        self.ids += [value for name, value in attributes if name == "id"]


def test_page_needs_no_other_file(tmp_path):
    rows = [*all_rows(), row("none", 5, 1.0, "lost", name="<script src=x>")]
    write(tmp_path, rows)
    (tmp_path / "branches-cifar10_short.md").write_text(
        "A remark with `code` & more.\nContinued.\n\nAnother."
    )
    _, page = write_report(tmp_path, tmp_path)
    loads = Loads()
    loads.feed(page.read_text())
    assert loads.found
    assert all(target.startswith("#") for target in loads.found)
    assert {target[1:] for target in loads.found} <= set(loads.ids)
    assert len(loads.ids) == len(set(loads.ids))  # of several pictures
    rest = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page.read_text())
    assert not re.search(r"https?:|@import|url\((?!#)|\bnan\b", rest)
    assert "<p>A remark with <code>code</code> &amp; more. Continued.</p>" in rest
    for picture in re.findall(r"\(([^)]*\.svg)\)", (tmp_path / "RESULTS.md").read_text()):
        assert (tmp_path / picture).exists()


@pytest.mark.medium
def test_figures_are_drawn_again_only_if_rows_have_changed(tmp_path):
    write(tmp_path, [row("both", 0)])
    _, page = write_report(tmp_path, tmp_path)
    picture = tmp_path / "figures/branches-cifar10_short-fusion.svg"
    picture.write_text(other := picture.read_text().replace("<svg ", '<svg class="other" ', 1))
    write_report(tmp_path, tmp_path)  # as with another version of matplotlib
    assert picture.read_text() == other
    assert 'class="other"' in page.read_text()
    write(tmp_path, [row("both", 0), row("both", 1)])
    write_report(tmp_path, tmp_path)
    assert 'class="other"' not in picture.read_text() + page.read_text()


def test_the_committed_report_is_that_of_the_committed_rows():
    results = ROOT / RESULTS
    line = digest_line(with_throughput(read_sweeps(results), results))
    assert (results / "RESULTS.md").read_text().endswith(line), "run `make report`, and commit it"


def test_no_rows_is_one_line(tmp_path, capsys):
    assert main(["--results", str(tmp_path), "--out", str(tmp_path)]) == UsageError.exit_code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "python -m experiments.run branches" in error


def test_curves_are_taken_where_all_seeds_have_them():
    rows = [row("none", 0), row("none", 1), row("none", 2, curves=None)]
    rows[0]["curves"]["train"] = {"step": [1, 2, 3, 4], "loss": [4.0, 3.0, None, 1.0]}
    rows[1]["curves"]["train"] = {"step": [2, 3, 4], "loss": [5.0, 4.0, 3.0]}
    steps, values = seed_curves(rows, "train", "loss")
    assert steps.tolist() == [2, 4]
    assert values.tolist() == [[3, 1], [5, 3]]


@pytest.mark.parametrize(
    ("value", "text"), [(-0.001, "0.00"), (0.126, "+0.13"), (-1.5, "\N{MINUS SIGN}1.50")]
)
def test_numbers_as_text(value, text):
    assert signed(value) == text
    assert mean_std(Sample({0: value}), plus=True) == f"{text} (1 seed)"
