"""Tests of the comparison of nets on a device, all of which runs on a CPU at toy size."""

import io
import json
import re

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from docs.check.pages import blocks, commands
from experiments.benchmarks.programs import Program, jax_step, noise_like
from experiments.studies.comparison import guidelines, kernels, nets
from experiments.studies.comparison.command import _parser, main
from experiments.studies.comparison.guidelines import BLOCKS, VARIANTS
from experiments.studies.comparison.measured import Setup, measured_nets
from experiments.studies.comparison.page import sections, write_page
from experiments.studies.comparison.published import PAIRS, PUBLISHED, TABLES_4_AND_5
from experiments.studies.comparison.sizes import Sizes, open_rows, read_rows
from experiments.studies.comparison.tables import (
    kernel_tables,
    pair_table,
    speed_table,
    verdict,
)
from experiments.studies.pages import DOCS
from repvgg_jax.bench.counting import count_multiplications
from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.nets import NETS, abstract

GPU = {"device": "H100", "dtype": "bfloat16", "precision": "default"}
COMMAND = "python -m experiments.comparison --minutes=4"
ABOUT = GPU | {"versions": {"jax": "1.0"}, "commit": "0123456789", "date": "2030-01-01"}
ABOUT |= {"command": COMMAND}
NETS_OF_A_GPU = {"batch": 128, "reference": "resnet50_v1", "image_size": 224, "temporaries": 10**7}
SETUP = Setup(**GPU)


def net_row(name, speed, part="nets"):
    """Returns the row of a net, with its speed divided by that of the reference."""
    about = {"part": part, "net": name, "speed_of_reference": speed}
    return ABOUT | NETS_OF_A_GPU | about | {"images_per_second": 1000 * speed}


def cells(text, start):
    """Returns the cells of the line of a table whose first cell is a text."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    [found] = [line for line in lines if line[:1] == [start]]
    return found


def test_published_nets():
    assert {"repvgg_a0", "vgg16_bn", "regnetx_12gf"} <= PUBLISHED.keys() & NETS.keys()
    assert len(TABLES_4_AND_5) == 23
    # A speedup of the text, of A1 over ResNet-34: 64%.
    assert PUBLISHED["repvgg_a1"].speed / PUBLISHED["resnet34"].speed == pytest.approx(1.65, 0.01)
    for ours, theirs in PAIRS:
        assert PUBLISHED[ours].top1 > PUBLISHED[theirs].top1 - 0.05


def test_tables_of_nets():
    counts = {"fused_parameters": 8_309_384, "fused_macs": 1.361e9}
    counts |= {"winograd_multiplications": 747_296_768}
    rows = [
        net_row("resnet50_v1", 1.0),
        net_row("repvgg_a0", 3.0),
        net_row("resnet18", 4.0),
        net_row("repvgg_a2", 2.0),
        net_row("repvgg_a2", 0.5, part="steps"),
        net_row("resnet50_v1", 1.0, part="steps"),
        {"part": "counts", "net": "repvgg_a0", "image_size": 224, **counts},
        net_row("resnet18", 100.0) | {"device": "cpu"},
        net_row("repvgg_a0", 9.0) | {"image_size": 32},
        net_row("resnet18", 8.0) | {"image_size": 32},
    ]
    measured, small = measured_nets(rows, SETUP)
    assert cells(speed_table(small), "**RepVGG-A0**")[1:4] == ["`repvgg_a0`", "32", "-"]
    assert cells(speed_table(small), "**RepVGG-A0**")[7:10] == ["9,000", "9.00", "-"]
    assert pair_table(small) == verdict(small, SETUP) == ""
    table = speed_table(measured)
    names = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert names == ["ResNet-18", "**RepVGG-A0**", "**RepVGG-A2**", "ResNet-50"]
    found = cells(table, "**RepVGG-A0**")
    assert found[2:7] == ["224", "72.41", "8.31", "1.36", "0.747"]
    assert found[7:10] == ["3,000", "3.00", "4.53"]
    assert found[11:] == ["-", "-", "-"]
    assert "ResNet-50 | `resnet50_v1`" in re.sub(" +", " ", table)
    assert "--only=counts" in "".join(sections(rows[:1], SETUP))
    assert "--only=counts" not in "".join(sections([rows[1], rows[6]], SETUP))
    pairs = pair_table(measured)
    assert cells(pairs, "RepVGG-A0 / ResNet-18")[1:] == ["+1.25", "1.33", "0.75", "-"]
    assert cells(pairs, "RepVGG-A2 / ResNet-50")[2:] == ["1.84", "2.00", "0.50"]
    text = verdict(measured, SETUP)
    assert (
        "On H100, bfloat16, batch 128, RepVGG is faster than the other net in 1 of 2 pairs; the "
        "geometric mean of its speedups is 1.22. In the paper"
    ) in text
    assert "faster in 2 of them; the mean is 1.57." in text


@pytest.mark.medium
def test_page_has_each_setup_once(tmp_path):
    rows = [net_row("resnet50_v1", 1.0), net_row("repvgg_a0", 3.0)]
    flags = " --batch=8 --dtype=float32 --layers=8x56 --kernels=4x56x256 --only=nets"
    rows.append(
        rows[0] | {"device": "cpu, 2 cores", "dtype": "float32", "command": COMMAND + flags}
    )
    text = "# Title\n<!-- measured -->\n## H100, bfloat16\n<!-- end -->\nThe end.\n"
    (tmp_path / "comparison.md").write_text(text)
    page, *figures = write_page(rows, tmp_path)
    text = page.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("\nThe end.\n")
    assert text.count("## H100, bfloat16\n") == text.count("## cpu, 2 cores, float32\n") == 1
    assert "## Counts" not in text  # since there are none
    calls = [command for block in blocks(page) for command in commands(block)]
    own = [f"{command} --out=runs/comparison" for command in (COMMAND, COMMAND + flags)]
    assert [re.sub(" +", " ", call) for call in calls] == own
    assert max(map(len, re.findall("^(?:python|    --).*", text, re.MULTILINE))) <= 100
    names = ["1080ti", "h100-bfloat16-128", "cpu-2-cores-float32-128"]
    assert [path.name for path in figures] == [f"comparison-{name}.svg" for name in names]
    assert all(f"({path.name})" in text and "ResNet-50" in path.read_text() for path in figures)


@pytest.mark.medium
def test_the_committed_page_is_that_of_the_committed_rows(tmp_path):
    committed = (DOCS / "comparison.md").read_text()
    (tmp_path / "comparison.md").write_text(committed)
    page, *figures = write_page(read_rows(DOCS / "comparison.jsonl"), tmp_path)
    assert page.read_text() == committed, "run `python -m experiments.comparison --minutes=0`"
    assert {path.name for path in figures} == {path.name for path in DOCS.glob("comparison-*.svg")}


def test_guidelines_have_equal_costs_and_the_counted_ones():
    for variants in VARIANTS.values():
        costs = []
        for variant in variants:
            case = guidelines._case("", variant, 2, 4, "float32")
            images = jax.ShapeDtypeStruct(case.images, np.float32)
            weights = [jax.ShapeDtypeStruct(shape, np.float32) for shape in case.kernels]
            assert count_multiplications(case.function, images, weights) == case.macs
            costs.append(case.macs / BLOCKS)
        assert max(costs) < 1.06 * min(costs)


def test_guidelines_compute_the_blocks():
    x = np.random.default_rng(0).normal(size=(1, 3, 3, 2)).astype(np.float32)
    a, b = np.random.default_rng(1).normal(size=(2, 1, 1, 2, 2)).astype(np.float32)

    def block(**fields):
        variant = guidelines.Variant("", 1, ((1, 1, 2, 2),) * 2, **fields)
        return guidelines._stacked(x, [a, b], variant, "float32")

    def relu(array):
        return np.maximum(array, 0)

    first, second = x @ a[0, 0], x @ b[0, 0]
    expected = {
        (): relu(relu(first) @ b[0, 0]),
        ("parallel",): relu(first) + relu(second),
        ("shortcut",): relu(relu(first) @ b[0, 0] + x),
    }
    for fields, y in expected.items():
        np.testing.assert_allclose(block(**dict.fromkeys(fields, True)), y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(block(relu=False), first @ b[0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.medium
def test_kernels_are_measured_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    sizes = Sizes(output=str(path), kernels="1x8x4", dtype="float32", rounds=1)

    def measure():
        file = io.StringIO()
        kernels.measure(sizes, file)
        return [json.loads(line) | {"part": "kernels"} for line in file.getvalue().splitlines()]

    rows = measure()
    assert [row["case"] for row in rows] == ["1x1", "3x3", "5x5", "7x7", *kernels.WINOGRAD.values()]
    assert rows[1]["operations_per_second"] == pytest.approx(
        2 * 9 * 64 * 16 / rows[1]["milliseconds"] * 1e3, rel=0.01
    )
    table, note = kernel_tables(rows)
    rate = 9 * rows[1]["speed_of_first"]
    assert cells(table, "3x3")[5:] == [f"{rate:.2f}", "3.83"]
    assert "and 3.60 times on the 1080Ti" in note
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"part": "kern')
    assert len(read_rows(path)) == 6
    assert measure() == []


def test_nets_beside_a_reference_that_failed_are_measured_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    names = ["repvgg_a0", "repvgg_a1", "resnet18"]
    sizes = Sizes(output=str(path), nets=",".join(names), reference="resnet18", together=2)

    def measure(missing):
        file = io.StringIO()

        def make(sizes, name):
            if name == missing:
                raise UsageError("out of memory")
            return Program(lambda: None, 0, 0.0)

        nets._measure(open_rows("nets", sizes, file), sizes, make)
        rows = [json.loads(line) | {"part": "nets"} for line in file.getvalue().splitlines()]
        measured = [row for row in rows if "error" not in row]
        with path.open("a") as output:
            output.writelines(f"{json.dumps(row)}\n" for row in measured)
        failed = [row["net"] for row in rows if "error" in row]
        return {row["net"]: row["speed_of_reference"] for row in measured}, failed

    assert measure(missing="resnet18") == (dict.fromkeys(names[:2]), ["resnet18"])
    speeds, failed = measure(missing="repvgg_a1")
    assert speeds.keys() == {"resnet18", "repvgg_a0"}
    assert None not in speeds.values()
    assert failed == ["repvgg_a1"]
    speeds, failed = measure(missing="resnet18")  # which was compiled only for repvgg_a1
    assert (speeds, failed) == ({"repvgg_a1": None}, ["resnet18"])
    assert measure(missing=None)[0].keys() == {"repvgg_a1"}
    assert measure(missing=None) == ({}, [])


@pytest.mark.medium
def test_a_step_of_a_net_without_batch_norm():
    net = rj.create("vgg11", depths=(1,), widths=(4,), strides=(2,), num_classes=3)
    net = net.clone(hidden=(5,))
    variables = noise_like(abstract(net))
    step = jax_step(net, variables, 2, 8)
    state = step.run()
    changes = jax.tree.map(lambda new, old: float(np.abs(new - old).max()), state, variables)
    assert state.keys() == {"params"}
    assert min(jax.tree.leaves(changes)) > 0
    assert np.isfinite(jax.tree.leaves(step.run())[0]).all()


@pytest.mark.system
def test_the_command_at_toy_size(tmp_path, capsys):
    flags = ["--nets=mobilenetv1_025,resnet51", "--reference=mobilenetv1_025", "--image_size=32"]
    flags += ["--batch=2", "--rounds=2", "--only=nets", f"--out={tmp_path}"]
    assert main(flags) == 0
    output = capsys.readouterr()
    assert output.err.startswith("left out: unknown model 'resnet51': did you mean resnet50")
    assert main(["--nets=resnet51", f"--out={tmp_path}"]) == 2
    assert "--nets=resnet51: no known net" in capsys.readouterr().err
    assert main(["--nets=inception_resnet_v2", *flags[1:]]) == RunError.exit_code
    assert "nothing was measured: nets inception_resnet_v2: " in capsys.readouterr().err
    [row] = read_rows(tmp_path / "comparison.jsonl")
    assert row["commit"]
    assert row["device"].startswith("cpu")
    assert row["dtype"] == "float32"  # the default on a CPU
    assert row["speed_of_reference"] == 1
    assert "--out" not in row["command"]
    assert cells(output.out, "mobilenetv1_025")[2:5] == ["32", "-", "-"]
    assert (tmp_path / "comparison.md").exists()


def test_defaults_suit_the_device():
    gpu, cpu = (_parser(platform).parse_args([]) for platform in ("cuda", "cpu"))
    assert (gpu.batch, gpu.dtype, gpu.kernels) == (128, "bfloat16", "32x56x2048")
    assert (cpu.batch, cpu.dtype, cpu.kernels) == (8, "float32", "4x56x256")
    assert _parser("cpu").parse_args(["--batch=2"]).batch == 2


def test_wrong_flags_are_one_line(tmp_path, capsys):
    wrong = {
        "--kernels=32x56": "must be 3 positive numbers, such as 32x56x2048",
        "--layers=0x56": "must be 2 positive numbers",
        "--batch=0": "must be positive",
        "--dtype=float8": "choose from bfloat16, float32",
        "--precision=low": "choose from default, high, highest",
        "--only=nets,speed": "no part 'speed'; choose from counts, kernels",
        "--reference=resnet51": "did you mean resnet50",
        "--minutes=-1": "must be 0 (only write the page) or more",
    }
    for flag, message in wrong.items():
        assert main([flag, f"--out={tmp_path}"]) == UsageError.exit_code
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
