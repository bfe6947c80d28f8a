"""MobileOne and the reorganized residual net."""

import jax
import pytest

import repvgg_jax as rj
from repvgg_jax.bench.counting import count_macs, count_parameters
from repvgg_jax.nets import abstract
from repvgg_jax.runtime.compilation import jit_once
from tests.support.variables import random_images, random_variables

MOBILEONE = {  # train form, fused, multiply-adds of the fused form at 224 pixels
    "mobileone_s0": (5293272, 2078504, 275110400),
    "mobileone_s1": (4825192, 4764840, 825057024),
    "mobileone_s2": (7884648, 7808168, 1298426496),
    "mobileone_s3": (10170600, 10078312, 1895790592),
    "mobileone_s4": (14951248, 14838352, 2979269760),
}


@pytest.mark.medium
@pytest.mark.parametrize("name", MOBILEONE)
def test_mobileone_has_its_papers_counts(name):
    net = rj.create(name)
    shapes = abstract(net)
    plain = net.clone(block="fused")
    fused = jax.eval_shape(lambda v: rj.fuse(net, v)[1], shapes)
    found = count_parameters(shapes), count_parameters(fused), count_macs(plain, fused)
    assert found == MOBILEONE[name]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("mobileone_s0", {"depths": (1, 1, 2, 1, 1), "widths": (8, 8, 16, 16, 24)}),
        ("mobileone_s4", {"depths": (1, 1, 1, 6, 1), "widths": (16, 16, 16, 16, 24)}),
        ("mobileone_s1", {"depths": (1, 1), "widths": (8, 16), "strides": (2, 1), "block": "dbb"}),
        (
            "residual_reorg_b0",
            {"depths": (1, 2, 4, 1), "widths": (8, 8, 16, 24), "strides": (1, 2, 2, 2)},
        ),
    ],
)
def test_other_nets_fuse_block_by_block(name, overrides):
    net = rj.create(name, num_classes=5, **overrides)
    variables = random_variables(net, 3)
    x = random_images(8, 32, 40, 3)
    report = rj.verify(net, variables, x)
    assert set(report.blocks) == set(net.blocks())
    assert report.max_relative_error < 1e-5
    maps, _ = jit_once(net.features)(variables, x)
    for array, info in zip(maps, net.feature_info(), strict=True):
        rows, columns = -(-32 // info.stride), -(-40 // info.stride)
        assert array.shape == (8, rows, columns, info.channels)


def test_residual_reorganisation_keeps_its_shortcuts():
    net = rj.create("residual_reorg_b0")
    roles = [spec.role for spec in net.plan()]
    assert roles.count("shortcut") == 3  # where a stage halves the map
    assert len(roles) - roles.count("shortcut") == 1 + 4 + 6 + 16 + 1


def test_residual_reorganisation_needs_pairs():
    with pytest.raises(rj.UsageError, match="must be even except in the first and last stage"):
        rj.create("residual_reorg_b0", depths=(1, 4, 3, 16, 1))


def test_squeeze_excite_of_mobileone_stands_in_the_last_stages_alone():
    net = rj.create("mobileone_s4")
    names = [spec.name for spec in net.plan() if spec.se_hidden]
    late = [f"stage3_block{i}" for i in range(5, 10)] + ["stage4_block0"]
    assert names == [f"{n}_{part}" for n in late for part in ("depthwise", "pointwise")]


def test_the_models_own_block_by_name_is_the_models_own():
    assert rj.create("mobileone_s1", block="mobileone") == rj.create("mobileone_s1")
    with pytest.raises(rj.UsageError, match="se_reduction"):
        rj.create("mobileone_s4", depths=(1, 1), widths=(8, 8), strides=(2, 2))
