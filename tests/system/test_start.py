"""Tests of the start and end of a process: compilation cache, imports, allocator, threads."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from repvgg_jax.ops import onednn
from repvgg_jax.runtime import compilation

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
from repvgg_jax.nets import abstract
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
shapes = abstract(net)
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
    """Runs a script in a new process with one CPU device; returns its stdout and stderr."""
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
    """The program includes oneDNN's calls, registered by name, if oneDNN is available."""
    settings = {"XDG_CACHE_HOME": str(tmp_path / "home")}
    if not onednn.unavailable():
        (tmp_path / "home/repvgg_jax").mkdir(parents=True)
        for built in compilation.cache_folder().glob("onednn-*.so"):
            (tmp_path / "home/repvgg_jax" / built.name).symlink_to(built)
    (first, _), (second, errors) = [start(GRADIENT, **settings) for _ in range(2)]
    first, second = json.loads(first), json.loads(second)
    assert list((tmp_path / "home/repvgg_jax/xla").iterdir())
    assert (first["hits"], first["misses"]) == (0, 1)
    assert (second["hits"], second["misses"]) == (1, 0)
    assert first["sum"] == second["sum"] > 0
    assert first["onednn"] == second["onednn"] == (onednn.unavailable() is None)
    assert not errors


def test_the_cache_is_switched_off_by_jax_and_by_an_unwritable_folder(tmp_path):
    """An unwritable folder gives a one-line warning."""
    code = (
        "import jax; from repvgg_jax.runtime.compilation import keep_programs; keep_programs(); "
        "print(jax.jit(lambda x: x + 1)(1.0))"
    )
    home, file = tmp_path / "home", tmp_path / "file"
    settings = {"XDG_CACHE_HOME": str(home), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    out, errors = start(code, **settings, JAX_ENABLE_COMPILATION_CACHE="false")
    assert (out, errors) == ("2.0\n", "")
    assert not home.exists()
    file.write_text("")
    out, errors = start(code, **settings | {"XDG_CACHE_HOME": str(file)})
    assert out == "2.0\n"
    assert errors.count("\n") == 1
    assert "compiled programs are not cached" in errors
    out, errors = start(code, **settings, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))
    assert (out, errors) == ("2.0\n", "")
    assert list((tmp_path / "mine").iterdir())
    assert not home.exists()


def test_importing_brings_nothing_heavy():
    """Also prints the duration; a bound on it would fail on a busy machine."""
    code = (
        "import sys, time; began = time.perf_counter(); import repvgg_jax; "
        "print(time.perf_counter() - began, *sorted(name for name in sys.modules "
        "if '.' not in name)); assert 'load' in dir(repvgg_jax); repvgg_jax.load"
    )
    seconds, *names = start(code)[0].split()
    print(f"import repvgg_jax: {float(seconds):.2f} s")
    heavy = {"orbax", "optax", "ml_collections", "grain", "tensorflow_datasets", "PIL", "sklearn"}
    heavy |= {"matplotlib", "tensorboardX", "tensorstore", "scipy", "torch", "tensorflow"}
    assert not (heavy | {"jax", "flax"}) & set(names)


def test_writing_scalars_does_not_import_pytorch(tmp_path):
    code = (
        "import sys, pathlib; from repvgg_jax.training.scalars import open_scalars; "
        f"open_scalars(pathlib.Path({str(tmp_path)!r}), 0).add_scalar('loss', 1.0, 1); "
        "assert 'torch' not in sys.modules  # not even as None"
    )
    start(code)
    assert list((tmp_path / "tensorboard").iterdir())


def test_batches_that_are_left_at_exit_print_nothing():
    code = (
        "from repvgg_jax.data.augment.transforms import Transform; "
        "from repvgg_jax.data.pipeline import train_batches; "
        "from repvgg_jax.data.sources.digits import load_digits; "
        "batches = train_batches(load_digits('test'), Transform('none', 8), 4, seed=0); "
        "next(batches)"
    )
    assert start(code) == ("", "")


FREED = """
import ctypes, json, resource, threading
from repvgg_jax.runtime.devices import keep_freed_memory
from repvgg_jax.nets import abstract

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
    output = json.loads(start(FREED)[0])
    first, *later = output["faults"]
    assert output["kept"]
    assert first > 40  # pages of 2 MB at the most
    assert max(later) < first / 10
