"""The base classes suffice for blocks and architectures from outside the package."""

import inspect
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.affine import add
from repvgg_jax.blocks.base import Block, KernelBlock
from repvgg_jax.blocks.registry import BLOCKS
from repvgg_jax.layers.dense import dense
from repvgg_jax.layers.norm import BatchNorm
from repvgg_jax.nets import BlockSpec, FeatureInfo, Net, abstract
from repvgg_jax.runtime.compilation import jit_once
from tests.support.variables import random_images


class TwiceBlock(Block):
    """BN(conv_kxk(x)) + scale BN(conv_1x1(x))."""

    scale: float = 1.0

    @nn.compact
    def __call__(self, x, train=False):
        y = self.conv_bn(x, "kxk", self.kernel_size, train)
        return y + self.scale * self.conv_bn(x, "1x1", 1, train)

    def fuse(self, params, batch_stats):
        kernel, bias = self.fold_branch(params, batch_stats, "1x1")
        scaled = type(self.fold_branch(params, batch_stats, "kxk"))(
            self.scale * kernel, self.scale * bias
        )
        return add(self.fold_branch(params, batch_stats, "kxk"), scaled)


class SquareBlock(KernelBlock):
    """BN(conv(x, K |K|))."""

    def declare(self, cin):
        return {"conv_kxk": self.declare_kernel("kxk", self.kernel_shape(cin))}

    def kernel(self, params):
        kernel = params["conv_kxk"]["kernel"]
        return kernel * jnp.abs(kernel)


class TwoBranched(Net):
    """A stem, relu(conv(relu(conv(x))) + shortcut(x)), a BN outside blocks, the mean, a head."""

    width: int = 8

    def plan(self):
        self.check_fields()
        return (
            BlockSpec("stem", 0, 0, 3, self.width, strides=2),
            BlockSpec("left_in", 1, 0, self.width, 2 * self.width, kernel_size=1, role="left"),
            BlockSpec("left_out", 1, 0, 2 * self.width, 2 * self.width, strides=2, role="left"),
            BlockSpec(
                "right", 1, 0, self.width, 2 * self.width, strides=2, kernel_size=1, role="right"
            ),
        )

    def feature_info(self):
        return (FeatureInfo("stem_map", self.width, 2), FeatureInfo("merged", 2 * self.width, 4))

    @nn.compact
    def __call__(self, images, train=False):
        stem, left_in, left_out, right = self.plan()
        x = self.run_block_and_relu(stem, images, train)
        self.sow("intermediates", "stem_map", x)
        y = self.run_block(left_out, self.run_block_and_relu(left_in, x, train), train)
        x = nn.relu(y + self.run_block(right, x, train))
        self.sow("intermediates", "merged", x)
        x = BatchNorm(train, self.bn_group_size, self.dtype, name="last_norm")(x)
        return dense(self.num_classes, x.shape[-1], name="head")(x.mean((1, 2)))


@pytest.fixture
def own_blocks(monkeypatch):
    monkeypatch.setitem(BLOCKS, "twice", TwiceBlock)
    monkeypatch.setitem(BLOCKS, "square", SquareBlock)


@pytest.mark.medium
@pytest.mark.parametrize("options", [{"block": "twice", "scale": -2.0}, {"block": "square"}])
def test_registered_block__is_created_by_name_and_fuses(options, own_blocks):
    net = rj.create("repvgg_a0", depths=(1, 2), widths=(8, 8), strides=(2, 1), **options)
    variables = rj.randomize(abstract(net), jax.random.key(0))
    report = rj.verify(net, variables, random_images(4, 9, 8, 3))
    assert set(report.blocks) == {"stage0_block0", "stage1_block0", "stage1_block1"}
    assert report.max_relative_error < 1e-5


@pytest.mark.medium
@pytest.mark.parametrize("block", ["repvgg", "plain", "twice"])
def test_net_that_is_not_a_chain__fuses_and_is_a_backbone(block, own_blocks):
    net = TwoBranched(num_classes=5, block=block, frozen=("stem",))
    net.check()
    variables = rj.randomize(abstract(net), jax.random.key(1))
    images = random_images(4, 16, 12, 3)
    assert rj.verify(net, variables, images).max_relative_error < 1e-5
    fused_net, fused_variables = rj.fuse(net, variables)
    assert fused_net == net.clone(block="fused")
    assert fused_net.is_fused
    # Fusion keeps a BatchNorm outside the plan's blocks, with its statistics.
    assert set(fused_variables["batch_stats"]) == {"last_norm"}
    assert jax.tree.map(jnp.shape, abstract(fused_net)) == jax.tree.map(jnp.shape, fused_variables)
    maps, _ = jit_once(net.features)(variables, images)
    assert [m.shape for m in maps] == [(4, 8, 6, 8), (4, 4, 3, 16)]
    train = jit_once(partial(net.apply, train=True, mutable=["batch_stats"]))
    _, moved = train(variables, images)
    before, after = variables["batch_stats"], moved["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, before["stem"], after["stem"])
    assert not np.allclose(before["last_norm"]["mean"], after["last_norm"]["mean"])


def test_clone__of_another_block_drops_the_options_of_the_last_one():
    net = rj.create("repvgg_a0", branches=("kxk", "1x1"))
    assert net.clone(num_classes=3).block_options == net.block_options
    assert net.clone(block="repvgg") == net
    assert net.clone(block="fused").block_options == ()
    assert hash(net) == hash(rj.create("repvgg_a0", branches=["kxk", "1x1"]))
    with pytest.raises(rj.UsageError, match="did you mean plain"):
        net.clone(block="plan").blocks()


def test_fusable__tells_before_fusing():
    assert rj.create("repvgg_a0").fusable
    assert not rj.create("repvgg_a0", block="relu_in_branch").fusable
    assert rj.create("deep_plain").is_fused


def test_randomize__draws_what_training_would_leave():
    net = rj.create("repvgg_a0", depths=(1, 1), widths=(8, 16), strides=(2, 2), num_classes=3)
    drawn = rj.randomize(abstract(net), jax.random.key(0))
    block, stats = drawn["params"]["stage1_block0"], drawn["batch_stats"]["stage1_block0"]
    scales = np.asarray(block["bn_kxk"]["scale"])
    assert (scales < 0).any()
    assert (scales > 0).any()
    assert (np.abs(scales) >= 0.5).all()
    assert (np.asarray(stats["bn_kxk"]["var"]) > 0).all()
    assert np.asarray(stats["bn_kxk"]["mean"]).std() > 0.1
    assert not np.isclose(block["bn_kxk"]["bias"], block["bn_1x1"]["bias"]).any()
    again = rj.randomize(rj.init(net, jax.random.key(5), 8), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, drawn, again)
    other = rj.randomize(abstract(net), jax.random.key(1))
    assert not np.isclose(drawn["params"]["head"]["bias"], other["params"]["head"]["bias"]).any()


SMALL = rj.create("repvgg_a0", depths=(1, 1), widths=(8, 8), strides=(2, 2), num_classes=3)
GUIDE = "see docs/guides/coming_from_pytorch.md"


def abstract_images(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (
            abstract_images(8, 3, 32, 40),
            "images have shape (8, 3, 32, 40), which looks like NCHW; this library takes NHWC: "
            f"images.transpose(0, 2, 3, 1); {GUIDE}",
        ),
        (abstract_images(8, 1, 32, 40), "(8, 1, 32, 40), which looks like NCHW"),
        (abstract_images(8, 32, 40, 1), "3 for RGB); jnp.repeat(images, 3, axis=-1)"),
        (abstract_images(8, 32, 40, 4), "3 for RGB); images[..., :3] drops"),
        (abstract_images(8, 32, 40, 5), "rj.init(net, key, channels=5) makes variables for 5"),
        (abstract_images(32, 40, 3), "images[None] adds the batch axis"),
        (abstract_images(8, 32, 40, 3, dtype=jnp.uint8), "images are uint8; a net takes normal"),
    ],
    ids=str,
)
@pytest.mark.parametrize("net", [SMALL, rj.create("deep_plain", depth=2, num_classes=3)])
def test_images_that_do_not_fit_are_explained(net, images, expected):
    with pytest.raises(rj.UsageError) as caught:
        jax.eval_shape(net.apply, abstract(net), images)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_errors_of_a_call_are_explained():
    images, variables = abstract_images(2, 32, 32, 3), abstract(SMALL)
    fused = SMALL.clone(block="fused")

    def refused(function, *arguments):
        with pytest.raises(rj.UsageError) as caught:
            jax.eval_shape(function, *arguments)
        return str(caught.value)

    training = partial(SMALL.apply, train=True)
    assert 'train=True, mutable=["batch_stats"]); ' + GUIDE in refused(training, variables, images)
    without = {"params": variables["params"]}
    assert "have no batch_stats; pass both" in refused(SMALL.apply, without, images)
    assert "whose block is 'repvgg'" in refused(SMALL.apply, abstract(fused), images)
    wider = SMALL.clone(num_classes=SMALL.num_classes + 1)
    fits = f'"/head", .*; num_classes={SMALL.num_classes} fits them'
    assert re.search(fits, refused(wider.apply, variables, images))
    wider = SMALL.clone(widths=[2 * width for width in SMALL.widths])
    assert "variables are not those of this net: For" in refused(wider.apply, variables, images)
    for wrong in (0, None, jax.random.split(jax.random.key(0))):
        for function in (partial(rj.init, SMALL), partial(rj.randomize, variables)):
            with pytest.raises(rj.UsageError, match=r"pass jax\.random\.key\(0\)"):
                function(wrong)
    key = jax.random.key(0)
    assert "looks like NCHW" in refused(SMALL.init, key, abstract_images(2, 3, 32, 32))
    assert "images[None]" not in refused(SMALL.init, key, key)
    gray = jax.eval_shape(partial(rj.init, SMALL, channels=1), key)
    logits = jax.eval_shape(SMALL.apply, gray, abstract_images(2, 32, 32, 1))
    assert logits.shape == (2, 3)


VARIABLES, KEY, IMAGES = abstract(SMALL), jax.random.key(0), np.zeros((2, 8, 8, 3), np.float32)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (rj.fuse, (VARIABLES, SMALL), "rj.fuse(net, variables): the net is a dict; rj.create and"),
        (rj.fuse, (SMALL, None), "the variables are None; rj.init and rj.load return variables"),
        (rj.fuse, (SMALL, VARIABLES["params"]), 'no "params"; pass {"params": ..., "batch_stats"'),
        (rj.verify, (VARIABLES, SMALL, IMAGES), "rj.verify(net, variables, images): the net is a"),
        (rj.verify, (SMALL, VARIABLES, IMAGES.tolist()), "jnp.asarray(images) makes one"),
        (rj.verify, (SMALL, VARIABLES, IMAGES, VARIABLES), "fused is a dict; pass the pair from"),
        (rj.predict, (SMALL, IMAGES, VARIABLES), "variables are an array of shape (2, 8, 8, 3);"),
        (rj.predict, (SMALL, VARIABLES, {"image": IMAGES}), "images are a dict; a net takes an ar"),
        (rj.init, (KEY, SMALL), "rj.init(net, key): the net is an array of shape ();"),
        (rj.init, ("repvgg_a0", KEY), "rj.init(net, key): the net is 'repvgg_a0'; rj.create and"),
        (rj.init, (SMALL, VARIABLES), "the key is a dict; pass jax.random.key(0)"),
        (rj.init, (SMALL, KEY, IMAGES.shape), "image_size is (2, 8, 8, 3); give the side in pixe"),
        (rj.randomize, (SMALL, KEY), "rj.randomize(variables, key): the variables are a RepVGG;"),
        (rj.insert_bn, (VARIABLES, SMALL, []), "rj.insert_bn(net, variables, batches): the net"),
        (rj.reestimate_batch_stats, (VARIABLES, SMALL, []), "variables, batches): the net is a d"),
        (SMALL.apply, (IMAGES, VARIABLES), "net.apply(variables, images): the variables are an a"),
        (SMALL.apply, (VARIABLES, [IMAGES]), "images are a list; a net takes an array"),
        (rj.create, (SMALL,), "unknown model a RepVGG: choose from amoebaneta_f190, "),
        (rj.load, (SMALL,), "the path is a RepVGG; pass a string or a Path"),
    ],
)
def test_exchanged_arguments_and_others_of_a_wrong_type_are_one_line(function, arguments, expected):
    if not inspect.ismethod(function):
        function = inspect.unwrap(function)  # without the checks of types that only tests have
    with pytest.raises(rj.UsageError) as caught:
        function(*arguments)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
