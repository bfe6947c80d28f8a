"""The ablations as data: all can be built, and their published figures are the papers'."""

import json
import re
from pathlib import Path

import pytest

from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.expand import PROTOCOLS, expand
from experiments.sweeps.jobs import LONGEST_NAME

FACTS = Path(__file__).parents[3] / "shared" / "facts.json"


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_can_be_built_in_both_protocols(name):
    sweep = SWEEPS[name]
    for protocol in PROTOCOLS:
        runs = expand(name, protocol)
        assert len(runs) == 3 * len(sweep.variants)
        names = {run.job_name for run in runs}
        assert len(names) == len(runs)
        assert all(re.fullmatch(r"[a-z]([a-z0-9]|-[a-z0-9])*", name) for name in names)
        assert max(map(len, names)) <= LONGEST_NAME
    assert sweep.baseline in sweep.variants
    assert sweep.published.keys() <= sweep.variants.keys()
    references = {pair.reference for pair in sweep.own_papers.values()}
    assert references | sweep.own_papers.keys() <= sweep.variants.keys()
    assert bool(sweep.published) == bool(sweep.source)


@pytest.mark.skipif(not FACTS.exists(), reason="shared/facts.json, the papers' figures, is missing")
def test_published_figures_are_the_papers():
    paper = json.loads(FACTS.read_text())
    assert SWEEPS["groups"].published == {
        str(groups): paper["repvgg"][name]["paper_table4_120ep"]["top1"]
        for groups, name in ((1, "B1"), (2, "B1g2"), (4, "B1g4"))
    }
    rows = paper["repvgg_paper"]["table6_ablation_B0"]
    both = {(row["identity"], row["conv1x1"]): row["top1"] for row in rows}
    found = {
        (name in ("identity", "both"), name in ("1x1", "both")): top1
        for name, top1 in SWEEPS["branches"].published.items()
    }
    assert found == both
    variants = SWEEPS["variants"].published
    table = list(paper["repvgg_paper"]["table7_variants_B0"].values())
    assert list(variants.values()) == table  # in the paper's order, the names being ours
    blocks = {"plain": both[False, False], "repvgg": both[True, True]} | variants
    assert SWEEPS["blocks"].published.items() <= blocks.items()


@pytest.mark.skipif(not FACTS.exists(), reason="shared/facts.json, the papers' figures, is missing")
def test_pairs_are_their_papers():
    paper = json.loads(FACTS.read_text())["other_results"]
    plain, acb, dbb = paper["DBB_table2"]["ResNet-18"]
    orepa = paper["OREPA_table4"]["RepVGG-A0"]
    doconv, gain = paper["DOConv_gain"]["Plain-18"]
    csla = {name: paper["RepOpt_table2"][name][0] for name in ("RepVGG-B1", "RepOpt-VGG-B1")}
    assert {name: pair[1:3] for name, pair in SWEEPS["blocks"].own_papers.items()} == {
        "acb": (plain, acb),
        "dbb": (plain, dbb),
        "orepa": (orepa["repvgg"][0], orepa["orepa"][0]),
        "doconv": (pytest.approx(doconv - gain), doconv),
        "csla": tuple(csla.values()),
    }
