"""Exported nets and training steps load, and compute the same, where only JAX is installed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import repvgg_jax as rj
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.ops import onednn
from repvgg_jax.runtime.devices import compiling_for
from tests.support.commands import python
from tests.support.variables import random_images, random_variables

PLATFORMS = ["cpu", "cuda", "tpu"]
IMAGES = (4, 12, 12, 3)
NETS = {
    "default": dict(widths=(8, 16)),
    "winograd": dict(widths=(64, 64), conv_algorithm="winograd"),
}

LOAD = """
import pathlib, sys
import numpy as np
from jax import export

folder = pathlib.Path(sys.argv[1])
images = np.load(folder / "images.npy")
for path in sorted([*folder.glob("*.bin"), *folder.glob("*.stablehlo")]):
    exported = export.deserialize(bytearray(path.read_bytes()))
    np.save(path.with_suffix(".npy"), np.asarray(exported.call(images)))
assert not any(name.startswith(("repvgg_jax", "flax")) for name in sys.modules)
"""


def programs(options):
    """The train form, the fused net, and the gradients of a training step, of images each."""
    net = rj.create("repvgg_a0", num_classes=5, depths=(1, 2), strides=(2, 1), **options)
    variables = random_variables(net, 0)
    fused_net, fused = rj.fuse(net, variables)

    def loss(params, images):
        given = variables | {"params": params}
        logits, _ = net.apply(given, images, train=True, mutable=["batch_stats"])
        return jnp.square(jax.nn.log_softmax(logits)).mean()

    def gradients(images):
        found = jax.grad(loss)(variables["params"], images)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(found)])

    return {
        "train": jax.jit(partial(net.apply, variables)),
        "fused": jax.jit(partial(fused_net.apply, fused)),
        "step": jax.jit(gradients),
    }


def test_exported_programs_run_where_only_jax_is(tmp_path):
    images = random_images(*IMAGES)
    np.save(tmp_path / "images.npy", images)
    (batch,) = export.symbolic_shape("batch")
    expected = {}
    with compiling_for(jax.devices()[:1]):  # the tests have four, for which auto is XLA
        for net, options in NETS.items():
            for form, run in programs(options).items():
                result = run(images)
                if net == "default" and not onednn.unavailable():
                    assert "@repvgg_jax." in run.lower(images).as_text()
                for size in (IMAGES[0], batch):
                    shape = jax.ShapeDtypeStruct((size, *IMAGES[1:]), jnp.float32)
                    exported = export.export(run, platforms=PLATFORMS)(shape)
                    assert "@repvgg_jax." not in exported.mlir_module()
                    name = f"{net}_{form}_{size}"
                    (tmp_path / f"{name}.bin").write_bytes(exported.serialize())
                    expected[name] = np.asarray(result)
        net = rj.create("repvgg_a0", num_classes=5, depths=(1, 2), strides=(2, 1), widths=(8, 16))
        pair = rj.fuse(net, random_variables(net, 0))
        rj.export.stablehlo(*pair, tmp_path / "file.stablehlo", metadata=Metadata(image_size=12))
        expected["file"] = expected["default_fused_4"]
    python("-c", LOAD, tmp_path)
    for name, result in expected.items():
        found = np.load(tmp_path / f"{name}.npy")
        error = np.abs(found - result).max() / np.abs(result).max()
        assert error < (1e-4 if "winograd" in name else 1e-5), name


def test_operations_that_tracing_tools_see_are_jaxs_own():
    net = rj.create("repvgg_a0", num_classes=5, depths=(1, 2), widths=(8, 16), strides=(2, 1))
    fused_net, fused = rj.fuse(net.clone(conv_algorithm="xla"), random_variables(net, 0))
    program = jax.make_jaxpr(fused_net.apply)(fused, random_images(*IMAGES))
    found = [equation.primitive.name for equation in program.eqns]
    assert found.count("conv_general_dilated") == found.count("custom_jvp_call") == 3
    assert str(program).count("name=relu") >= 3
    hidden = {"custom_vjp_call", "convert_element_type", "optimization_barrier", "max"}
    assert not hidden & set(found)
