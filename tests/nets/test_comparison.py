"""The nets that RepVGG is compared with: counts, fusion, blocks in their places, errors."""

from functools import partial

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.bench.counting import count_macs, count_parameters
from repvgg_jax.blocks.plain import PlainBlock
from repvgg_jax.layers.norm import local_response_norm
from repvgg_jax.nets import abstract
from repvgg_jax.nets.efficientnet import IMAGE_SIZES
from repvgg_jax.runtime.compilation import jit_once
from tests.support.variables import random_images, random_variables

# Parameters of the train form and of the fused form, multiply-adds at 224 pixels, or of SIZES.
COUNTS = {
    "densenet121": (7978856, 7971368, 2834161664),
    "densenet169": (14149480, 14138920, 3359843328),
    "densenet201": (20013928, 20001320, 4291365888),
    "densenet161": (28681000, 28665928, 7727907072),
    "diracnet18": (11523368, 11511784, 1794805760),
    "diracnet34": (21638952, 21616232, 3644493824),
    "efficientnet_b0": (5288548, 5267540, 385814752),
    "efficientnet_b1": (7794184, 7763160, 686802832),
    "efficientnet_b2": (9109994, 9076210, 993561872),
    "efficientnet_b3": (12233232, 12189584, 1827141392),
    "efficientnet_b4": (19341616, 19279016, 4393771024),
    "efficientnet_b5": (30389784, 30303416, 10266384752),
    "efficientnet_b6": (43040704, 42928488, 19067593536),
    "efficientnet_b7": (66347960, 66192600, 37745884192),
    "googlenet": (6998552, 6998552, 1582671872),
    "googlenet_bn": (6624904, 6617624, 1498376192),
    "inception_resnet_v2": (55843464, 55813192, 13155794016),
    "mobilenetv1_100": (4231976, 4221032, 568740352),
    "mobilenetv2_100": (3504872, 3487816, 300774272),
    "nasnetamobile": (5289978, 5271609, 563638816),
    "nasnetalarge": (88753150, 88654816, 23783414658),
    "pnasnet5large": (86057668, 85969174, 24937395792),
    "pnasnet5mobile": (5064487, 5047655, 587293200),
    "regnetx_400mf": (5495976, 5477048, 413812608),
    "regnetx_3_2gf": (15296552, 15265272, 3176621952),
    "regnetx_12gf": (46106056, 46057864, 12086678016),
    "regnetx_16gf": (54278536, 54222952, 15940755456),
    "regnety_400mf": (4344144, 4330568, 401842848),
    "regnety_3_2gf": (19436338, 19403258, 3176482752),
    "regnety_12gf": (51822544, 51774352, 12092376576),
    "resnet18": (11689512, 11684712, 1814073344),
    "resnet34": (21797672, 21789160, 3663761408),
    "resnet50": (25557032, 25530472, 4089184256),
    "resnet101": (44549160, 44496488, 7801405440),
    "resnet152": (60192808, 60117096, 11513626624),
    "resnext50_32x4d": (25028904, 24994792, 4230479872),
    "resnext101_32x4d": (44177704, 44108776, 7969996800),
    "resnext101_32x8d": (88791336, 88689896, 16414015488),
    "resnext101_64x4d": (83455272, 83353832, 15460270080),
    "shufflenetv1_100_g3": (1864728, 1852488, 137460672),
    "shufflenetv1_100_g8": (2433768, 2414184, 138365952),
    "shufflenetv1_200_g3": (5447208, 5422728, 507637632),
    "shufflenetv2_050": (1366792, 1362816, 40476448),
    "shufflenetv2_100": (2278604, 2270514, 144907992),
    "shufflenetv2_150": (3503624, 3491904, 295759392),
    "shufflenetv2_200": (7393996, 7377138, 583253464),
    "vgg16": (138357544, 138357544, 15470264320),
    "vgg19": (143667240, 143667240, 19632062464),
    "vgg16_bn": (138365992, 138357544, 15470264320),
    "vgg19_bn": (143678248, 143667240, 19632062464),
    "xception": (22855952, 22828688, 8357403496),
}
SIZES = {"inception_resnet_v2": 299, "xception": 299, "nasnetalarge": 331, "pnasnet5large": 331}
SIZES |= IMAGE_SIZES
QUICK = ("mobilenetv2_100", "resnet18", "resnext50_32x4d", "vgg16_bn")
STAGES = {"depths": (1, 2), "widths": (16, 32), "strides": (1, 2)}
MODULES = {"modules": (((8,) * 6,),) * 2, "pools": (3, 2), "widths": (8, 8)}
NARROW_STAGES = {"depths": (1, 2), "widths": (16, 32), "width": 8}
NARROW = STAGES | {"widths": (8, 16), "stem": (3, 1, 1)}
CELLS = {"depths": (1, 1), "widths": (4, 8), "strides": (2, 1), "stem_width": 4}
# Small members of all families, and blocks in the places of 3x3 convolutions.
SMALL = {
    "densenet": ("densenet121", {"depths": (1, 2), "growth": 4, "width": 8}),
    "diracnet": ("diracnet18", NARROW),
    "efficientnet": ("tf_efficientnet_b0", STAGES | {"depths": (1, 1), "kernel_sizes": (5, 3)}),
    "googlenet": ("googlenet", MODULES),
    "googlenet_bn": ("googlenet_bn", MODULES),
    "inception-resnet": ("inception_resnet_v2", {"depths": (1, 1, 2)}),
    "mobilenet": ("mobilenetv1_025", STAGES),
    "mobilenet v2": ("mobilenetv2_050", STAGES),
    "nasnet": ("nasnetamobile", CELLS),
    "pnasnet": ("pnasnet5mobile", CELLS | {"depths": (2, 2)}),
    "amoebanet": ("amoebaneta_f190", CELLS | {"strides": (2, 2)}),
    "resnet": ("resnet18", NARROW),
    "regnet": ("regnety_400mf", STAGES | {"strides": (2, 2)}),
    "resnext": ("resnext50_32x4d", NARROW | {"groups": 2, "group_width": 16, "stem": (7, 2, 2)}),
    "shufflenet": ("shufflenetv1_100_g2", NARROW_STAGES | {"groups": 2}),
    "shufflenet v2": ("shufflenetv2_100", NARROW_STAGES | {"last": 16}),
    "vgg": ("vgg11", {"depths": (1, 2), "widths": (8, 16), "strides": (2, 2), "hidden": (4,)}),
    "vgg_bn": ("vgg11_bn", {"depths": (1, 1), "widths": (8, 8), "strides": (2, 2), "hidden": ()}),
    "acb in googlenet": ("googlenet", MODULES | {"block": "acb"}),
    "acb in resnet": ("resnet50_v1", NARROW | {"block": "acb"}),
    "xception": ("xception", STAGES | {"widths": (8, 16), "last": (16,)}),
}

# The code of another, and those that take long.
SLOW = ("mobilenet", "mobilenet v2", "resnext", "googlenet_bn", "acb in googlenet", "xception")
SLOW += ("inception-resnet", "googlenet", "amoebanet", "diracnet", "nasnet", "pnasnet")
SLOW += ("shufflenet", "shufflenet v2")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.medium if name in QUICK else pytest.mark.slow)
        for name in COUNTS
    ],
)
def test_counts_are_exact(name):
    net = rj.create(name)
    shapes = abstract(net)
    fused_net = net.clone(block="fused")
    fused = jax.eval_shape(lambda v: rj.fuse(net, v)[1], shapes)
    macs = count_macs(fused_net, fused, SIZES.get(name, 224))
    assert (count_parameters(shapes), count_parameters(fused), macs) == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        pytest.param(*case, id=kind, marks=pytest.mark.slow if kind in SLOW else pytest.mark.medium)
        for kind, case in SMALL.items()
    ],
)
def test_nets_fuse_and_have_gradients(name, overrides):
    net = rj.create(name, num_classes=5, **overrides)
    variables = random_variables(net, 3)
    side = 75 if name == "inception_resnet_v2" else 18
    x = random_images(2, side, side, 3)
    report = rj.verify(net, variables, x)
    assert set(report.blocks) == set(net.blocks())
    assert report.max_relative_error < 1e-5
    maps, _ = jit_once(net.features)(variables, x)
    for array, info in zip(maps, net.feature_info(), strict=True):
        assert array.shape[-1] == info.channels
        # Without padding in the first layers, a few pixels are missing.
        margin = 4 if name in ("inception_resnet_v2", "xception") else 1
        assert abs(array.shape[1] - side / info.stride) < margin

    def loss(params):
        given = variables | {"params": params}
        rngs = {"dropout": jax.random.key(0)}
        return net.apply(given, x, train=True, mutable=["batch_stats"], rngs=rngs)[0].var()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert jax.numpy.isfinite(leaf).all()
        assert path[-1].key != "kernel" or leaf.any(), path


def test_vgg_without_batch_norm_keeps_the_scale_of_its_features():
    net = rj.create("vgg16", widths=(8, 16, 32, 32, 32), hidden=())
    variables = rj.init(net, jax.random.key(0), image_size=32)
    maps, _ = jit_once(net.features)(variables, random_images(4, 32, 32, 3))
    assert all(array.std() > 0.05 for array in maps)


def test_local_response_norm_divides_by_the_squares_of_five_channels():
    x = 50 * np.asarray(random_images(2, 3, 3, 7))
    square = np.pad(x**2, [(0, 0)] * 3 + [(2, 2)])
    sums = sum(square[..., start : start + 7] for start in range(5))
    expected = x / (1 + 1e-4 / 5 * sums) ** 0.75
    np.testing.assert_allclose(local_response_norm(x), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "overrides", "smallest"),
    [
        ("densenet121", {"depths": (1, 1, 1)}, 13),
        ("googlenet", MODULES | {"auxiliary": True}, 7),
        ("nasnetamobile", CELLS, 3),
        ("vgg11", {"depths": (1,) * 4, "widths": (8,) * 4, "strides": (2,) * 4, "hidden": ()}, 16),
    ],
)
def test_the_smallest_images_are_named_if_these_are_smaller(name, overrides, smallest):
    net, key = rj.create(name, **overrides), jax.random.key(0)
    variables = jax.eval_shape(net.init, key, random_images(1, 24, smallest, 3))
    says = f"images of {smallest - 1}x24 pixels .* takes {smallest}x{smallest} or larger"
    for call, first in ((net.init, key), (net.apply, variables)):
        with pytest.raises(rj.UsageError, match=says):
            jax.eval_shape(call, first, random_images(1, smallest - 1, 24, 3))


def test_dropout_without_a_key_is_explained():
    net = rj.create("mobilenetv2_050", depths=(1,), widths=(8,), strides=(1,), num_classes=2)
    variables = random_variables(net, 0)
    x = random_images(2, 8, 8, 3)
    with pytest.raises(rj.UsageError, match=r'rngs=\{"dropout": key\}'):
        jax.eval_shape(partial(net.apply, train=True, mutable=["batch_stats"]), variables, x)
    rj.reestimate_batch_stats(net, variables, [x])  # which needs none


def test_densenet_keeps_the_norms_that_follow_a_concatenation():
    shapes = abstract(rj.create("densenet121"))
    fused = jax.eval_shape(lambda v: rj.fuse(rj.create("densenet121"), v)[1], shapes)
    # One before each layer and transition, and the last one.
    assert len(fused["batch_stats"]) == sum((6, 12, 24, 16)) + 3 + 1


def test_no_batch_norm_of_a_cell_is_left_after_fusion():
    net = rj.create("amoebaneta_f190", **CELLS)
    fused = jax.eval_shape(lambda v: rj.fuse(net, v)[1], abstract(net))
    assert set(fused) == {"params"}


def test_padding_same_leaves_no_place_for_branches():
    net = rj.create("tf_efficientnet_b0", block="acb")
    plain = [name for name, block in net.blocks().items() if type(block) is PlainBlock]
    assert plain == ["stem", *(f"stage{stage}_block0_depthwise" for stage in (1, 2, 3, 5))]
    assert not any(
        type(block) is PlainBlock
        for block in rj.create("efficientnet_b0", block="acb").blocks().values()
    )


@pytest.mark.medium
def test_nothing_is_dropped_where_statistics_are_estimated():
    net = rj.create("mobilenetv2_050", depths=(3,), widths=(8,), strides=(1,), drop_path=0.9)
    variables = random_variables(net, 0)
    x = random_images(2, 8, 8, 3)
    found = rj.reestimate_batch_stats(net, variables, [x])
    expected = rj.reestimate_batch_stats(net.clone(drop_path=0.0), variables, [x])
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_blocks_take_the_places_of_3x3_convolutions():
    net = rj.create("resnet50", block="repvgg")
    for name, block in net.blocks().items():
        assert (type(block) is PlainBlock) == (not name.endswith("conv1"))
    branches = abstract(net)["params"]["stage1_block1_conv1"]
    assert {"bn_kxk", "bn_1x1", "bn_identity"} < set(branches)


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("regnetx_400mf", {"widths": (24, 24, 24, 24)}, "24 of .* multiple of group_width=16"),
        ("resnet51", {}, "did you mean resnet50"),
        ("googlenet", {"widths": (64,)}, "those before the first module, two"),
        ("googlenet", {"modules": (((64, 96),),), "pools": (3,)}, "the six widths of a row"),
        ("googlenet", {"pools": (3, 3)}, "one entry per stage"),
        ("googlenet", {"modules": 5}, "must be a tuple of modules for each stage"),
        ("googlenet", {"bn_epsilon": 0.0}, "bn_epsilon=0.0: must be positive"),
        ("inception_resnet_v2", {"depths": (1, 1)}, "must have three entries"),
        ("xception", {"block": "acb"}, "leave model.block unset"),
        ("xception", {"frozen": ("stem0",)}, "cannot be frozen in part"),
        ("resnet18", {"widths": (8, 8)}, "one entry per stage"),
        ("resnet18", {"depths": 2}, "depths=2: must be a tuple"),
        ("resnet18", {"stem": (7, 0, 2)}, r"stem=\(7, 0, 2\)"),
        ("efficientnet_b0", {"kernel_sizes": (3, 5)}, "kernel_sizes .3, 5. must each have one"),
        ("efficientnet_b0", {"drop_path": 1}, "drop_path=1: must be at least 0 and less than 1"),
        ("shufflenetv1_100_g3", {"groups": 8}, "multiples of 32, four times the groups"),
        ("shufflenetv1_100_g3", {"widths": (240, 240, 480)}, "must increase"),
        ("shufflenetv2_100", {"widths": (11, 22, 44)}, "must be even"),
        ("deep_plain", {"block": "acb"}, "DeepPlain has no place for it; leave model.block unset"),
        ("densenet121", {"frozen": ("stem",)}, "cannot be frozen in part"),
        ("mobilenetv2_100", {"dropout": 1.5}, "dropout=1.5"),
        ("nasnetalarge", {"cells": "nasnet"}, "unknown cells .* did you mean nasnet_a"),
        ("nasnetalarge", {"block": "acb"}, "NASNet has no place for it"),
        ("nasnetamobile", CELLS | {"strides": (2, 4)}, "must be 1 or 2"),
        ("mobilenetv2_100", {"strides": (1, 2)}, "strides .1, 2. must each have one entry"),
        ("resnet18", {"stem": (7, 2)}, r"stem=\(7, 2\): must be three .*\(7, 2, 2\) is a 7x7"),
        ("resnet50", {"strided": 2}, "0 .v1. or 1 .v1.5."),
        ("resnext50_32x4d", {"widths": (8,) * 4}, "width 8 .* group_width=4"),
        ("densenet121", {"growth": 0}, "growth=0: must be a positive integer"),
        ("mobilenetv1_100", {"multiplier": 0.0}, "must be positive"),
        ("vgg16", {"dropout": 1.0}, "less than 1"),
        ("vgg16", {"strides": (2, 2, 2, 1, 1)}, "halves the map"),
    ],
)
def test_wrong_fields_are_named(name, overrides, says):
    with pytest.raises(rj.UsageError, match=says):
        rj.create(name, **overrides)


@pytest.mark.medium
def test_auxiliary_heads_of_googlenet_are_of_the_train_form_only():
    net = rj.create("googlenet_bn", auxiliary=True)
    shapes = abstract(net)
    assert count_parameters(shapes) == 13004888
    fused = jax.eval_shape(lambda v: rj.fuse(net, v)[1], shapes)
    assert count_parameters(fused) == COUNTS["googlenet_bn"][1]
    assert not rj.create("googlenet").auxiliary_heads()


@pytest.mark.slow
def test_inserted_batch_norms_leave_out_convolutions_without_one():
    net = rj.create("inception_resnet_v2", num_classes=3, depths=(1, 1, 1))
    x = random_images(2, 75, 75, 3)
    fused = rj.fuse(net, random_variables(net, 0))
    again, variables = rj.insert_bn(*fused, [x])
    assert again == net
    expected = fused[0].apply(fused[1], x)
    error = abs(again.apply(variables, x) - expected).max() / abs(expected).max()
    assert error < 1e-4
