"""All ablations can be built, and their published figures are the papers'."""

import json
import re
from pathlib import Path

import pytest

import repvgg_jax as rj
from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.expand import PROTOCOLS, expand
from experiments.sweeps.jobs import LONGEST_NAME
from repvgg_jax.bench.counting import count_macs
from repvgg_jax.config.build import make_net
from repvgg_jax.nets import abstract

FACTS = json.loads((Path(__file__).parents[1] / "data" / "facts.json").read_text())


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_can_be_built_in_all_protocols(name):
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


@pytest.mark.parametrize("name", ["cifar10_b0", "cifar10_a0"])
def test_protocols_have_the_depths_of_the_papers_nets(name):
    net = make_net(PROTOCOLS[name]())
    paper = rj.create(f"repvgg_{name.removeprefix('cifar10_')}")
    assert net.depths == paper.depths == make_net(PROTOCOLS[f"{name}_short"]()).depths


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_variants_have_the_protocols_number_of_layers(protocol):
    for run in expand("variants", protocol, seeds=[0]):
        plan = make_net(run.config()).plan()
        depth = sum(spec.role != "shortcut" for spec in plan)
        assert depth == sum(PROTOCOLS[protocol]().model.depths)


@pytest.mark.medium
@pytest.mark.parametrize(("sweep", "macs"), [("comparison", 41e6), ("comparison_small", 10.25e6)])
def test_nets_of_the_comparison_have_equal_cost(sweep, macs):
    for run in expand(sweep, seeds=[0]):
        net = make_net(run.config()).clone(block="fused")
        assert count_macs(net, abstract(net), 32) == pytest.approx(macs, rel=0.05), run.name


def test_published_figures_are_the_papers():
    table4 = FACTS["repvgg_table4"]
    published = SWEEPS["groups"].published
    assert published == {"1": table4["B1"], "2": table4["B1g2"], "4": table4["B1g4"]}
    table6 = {(identity, conv): top1 for identity, conv, top1 in FACTS["repvgg_table6_b0"]["rows"]}
    found = {
        (name in ("identity", "both"), name in ("1x1", "both")): top1
        for name, top1 in SWEEPS["branches"].published.items()
    }
    assert found == table6
    variants = SWEEPS["variants"].published
    table7 = FACTS["repvgg_table7_b0"]["top1"]
    assert list(variants.values()) == list(table7.values())  # in the paper's order, other names
    blocks = {"plain": table6[False, False], "repvgg": table6[True, True]} | variants
    assert SWEEPS["blocks"].published.items() <= blocks.items()


def test_pairs_are_their_papers():
    dbb, orepa = FACTS["dbb_table2_resnet18"], FACTS["orepa_table4_a0"]
    doconv, csla = FACTS["doconv_plain18"], FACTS["repoptimizer_table2_b1"]
    assert {name: pair[1:3] for name, pair in SWEEPS["blocks"].own_papers.items()} == {
        "acb": (dbb["original"], dbb["acnet"]),
        "dbb": (dbb["original"], dbb["dbb"]),
        "orepa": (orepa["repvgg"], orepa["orepa"]),
        "doconv": (pytest.approx(doconv["top1"] - doconv["gain"]), doconv["top1"]),
        "csla": (csla["repvgg"], csla["repopt"]),
    }
