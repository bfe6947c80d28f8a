"""What a start costs: kept programs, the step's compilation, the clock, the import."""

import json
import os
import platform
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.ops import onednn
from repvgg_jax.runtime import compilation
from repvgg_jax.runtime.compilation import drop_oldest, jit
from repvgg_jax.training.evaluation import compiled_step

ROOT = Path(__file__).parents[2]
JAX_SETTINGS = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT",
    "JAX_ENABLE_COMPILATION",
    "XLA_FLAGS",
)

GRADIENT = """
import json
import jax, jax.numpy as jnp
import repvgg_jax as rj
from repvgg_jax.runtime.compilation import keep_programs

keep_programs()
counts = {"hits": 0, "misses": 0}

def count(event, **_):
    if event.startswith("/jax/compilation_cache/cache_"):
        counts[event.rpartition("_")[2]] += 1

def loss(variables, images):
    return (net.apply(variables, images, True, mutable=["batch_stats"])[0] ** 2).mean()

net = rj.create("repvgg_a0", num_classes=10, depths=(1, 1), widths=(4, 8), strides=(2, 1))
images = jnp.ones((64, 8, 8, 3))
shapes = jax.eval_shape(lambda key: rj.init(net, key, 8), jax.random.key(0))
variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes)
lowered = jax.jit(jax.grad(loss)).lower(variables, images)
jax.monitoring.register_event_listener(count)
compiled = lowered.compile()
jax.monitoring.clear_event_listeners()
found = sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(compiled(variables, images)))
calls = "repvgg_jax.convolution" in lowered.as_text()
print(json.dumps(counts | {"sum": found, "onednn": calls}))
"""


def start(code, **settings):
    """A process of its own with one CPU device: what it prints, and what it says on stderr."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(JAX_SETTINGS)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"JAX_PLATFORMS": "cpu"} | settings,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_second_process_compiles_nothing_and_computes_the_same(tmp_path):
    """With oneDNN's calls in the program where they are there; they are registered by name."""
    settings = {"XDG_CACHE_HOME": str(tmp_path / "home")}
    if not onednn.unavailable():
        (tmp_path / "home/repvgg_jax").mkdir(parents=True)
        for built in compilation.cache_folder().glob("onednn-*.so"):
            (tmp_path / "home/repvgg_jax" / built.name).symlink_to(built)
    (first, _), (second, said) = [start(GRADIENT, **settings) for _ in range(2)]
    first, second = json.loads(first), json.loads(second)
    assert list((tmp_path / "home/repvgg_jax/xla").iterdir())
    assert (first["hits"], first["misses"]) == (0, 1)
    assert (second["hits"], second["misses"]) == (1, 0)
    assert first["sum"] == second["sum"] > 0
    assert first["onednn"] == second["onednn"] == (onednn.unavailable() is None)
    assert not said


def test_the_cache_is_switched_off_by_jax_and_by_an_unwritable_folder(tmp_path):
    """The latter in one line."""
    code = (
        "import jax; from repvgg_jax.runtime.compilation import keep_programs; keep_programs(); "
        "print(jax.jit(lambda x: x + 1)(1.0))"
    )
    home, file = tmp_path / "home", tmp_path / "file"
    settings = {"XDG_CACHE_HOME": str(home), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    out, said = start(code, **settings, JAX_ENABLE_COMPILATION_CACHE="false")
    assert (out, said) == ("2.0\n", "")
    assert not home.exists()
    file.write_text("")
    out, said = start(code, **settings | {"XDG_CACHE_HOME": str(file)})
    assert out == "2.0\n"
    assert said.count("\n") == 1
    assert "compiled programs are not cached" in said
    out, said = start(code, **settings, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))
    assert (out, said) == ("2.0\n", "")
    assert list((tmp_path / "mine").iterdir())
    assert not home.exists()


def test_the_longest_unused_programs_go_first(tmp_path):
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    drop_oldest(tmp_path, 250)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_importing_brings_nothing_heavy():
    """And says how long it took; a bound on that would fail on a busy machine."""
    code = (
        "import sys, time; began = time.perf_counter(); import repvgg_jax; "
        "print(time.perf_counter() - began, *sorted(name for name in sys.modules "
        "if '.' not in name)); assert 'load' in dir(repvgg_jax); repvgg_jax.load"
    )
    seconds, *names = start(code)[0].split()
    print(f"import repvgg_jax: {float(seconds):.2f} s")
    heavy = {"orbax", "optax", "ml_collections", "grain", "tensorflow_datasets", "PIL", "sklearn"}
    heavy |= {"matplotlib", "tensorboardX", "tensorstore", "scipy", "torch", "tensorflow"}
    assert not heavy & set(names)
    assert {"jax", "flax"} <= set(names)


def deep_net(depth, **fields):
    """A net whose last stage has so many identities, its variables, and images."""
    net = rj.create(
        "repvgg_a0", num_classes=4, depths=(1, depth), widths=(4, 8), strides=(1, 1), **fields
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: rj.init(net, key, 8), jax.random.key(0))
    variables = jax.tree.map(lambda leaf: 1 + 0.1 * rng.normal(size=leaf.shape), shapes)
    variables = jax.tree.map(jnp.float32, variables)
    return net, variables, jax.random.normal(jax.random.key(1), (8, 8, 8, 3))


def deep(depth, **fields):
    """The loss of such a net, with parameters and images to take it on."""
    net, variables, images = deep_net(depth, **fields)

    def loss(params, images):
        logits, _ = net.apply(variables | {"params": params}, images, True, mutable=["batch_stats"])
        return (logits**2).mean()

    return loss, variables["params"], images


def largest_fusion(compiled):
    """Lines of the longest of a program's fused computations."""
    bodies = re.findall(r"^%?fused_computation\S* .*?^\}", compiled.as_text(), re.M | re.S)
    return max(body.count("\n") for body in bodies)


def test_a_fusion_does_not_grow_with_the_depth():
    """Without barriers each block's gradient recomputes those of all blocks after it."""
    sizes = []
    for depth in (3, 6):
        loss, params, images = deep(depth, branch_statistics="batch")
        sizes.append(largest_fusion(jit(jax.grad(loss)).lower(params, images).compile()))
    assert sizes[1] <= sizes[0] + 5, sizes


def test_an_evaluations_fusion_does_not_grow_with_the_depth_either():
    sizes = []
    for depth in (3, 6):
        net, variables, images = deep_net(depth)
        batch = {"image": images, "label": jnp.zeros(8, jnp.int32), "mask": jnp.ones(8)}
        mean = (0.0, 0.0, 0.0)
        step = compiled_step(jax.default_backend())
        lowered = step.lower(net, variables, batch, mean=mean, std=(1.0, 1.0, 1.0))
        sizes.append(largest_fusion(lowered.compile()))
    assert sizes[1] <= sizes[0] + 5, sizes


def test_a_residual_nets_fusion_does_not_grow_when_it_is_fused():
    sizes = []
    for pairs in (3, 6):
        fields = dict(depths=(1, pairs, 1), widths=(4, 4, 8), strides=(1, 1, 1), num_classes=4)
        net = rj.create("residual_reorg_b0", **fields)
        plain, fused = rj.fuse(net, rj.init(net, jax.random.key(0), 8))
        forward = jit(partial(plain.apply, train=False))
        compiled = forward.lower(fused, jnp.zeros((8, 8, 8, 3))).compile()
        sizes.append(largest_fusion(compiled))
    assert sizes[1] <= sizes[0] + 5, sizes


def test_a_fused_net_has_no_barriers():
    net, variables, images = deep_net(3)
    for module, tree in ((net, variables), rj.fuse(net, variables)):
        program = jit(partial(module.apply, train=False)).lower(tree, images).as_text()
        assert ("optimization_barrier" in program) == (module is net)


def test_barriers_change_no_gradient():
    loss, params, images = deep(3)
    with_barriers = jit(jax.grad(loss))
    without = jax.jit(jax.grad(loss))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6 + 1e-4 * abs(b).max()),
        *jax.device_get((with_barriers(params, images), without(params, images))),
    )


FREED = """
import ctypes, json, resource, threading
from repvgg_jax.runtime.devices import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
kept, found = keep_freed_memory(), []

def allocate():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = libc.malloc(100_000_000)
        libc.memset(block, 1, 100_000_000)
        libc.free(block)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=allocate)  # as XLA does
thread.start()
thread.join()
print(json.dumps({"kept": kept, "faults": found}))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these switches")
def test_freed_memory_is_kept_in_threads_too():
    said = json.loads(start(FREED)[0])
    first, *later = said["faults"]
    assert said["kept"]
    assert first > 40  # pages of 2 MB at the most
    assert max(later) < first / 10
