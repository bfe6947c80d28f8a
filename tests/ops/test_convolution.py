"""oneDNN agrees with XLA and is used where it can be; BatchNorm's gradient."""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import repvgg_jax as rj
from configs import quickstart
from repvgg_jax.bench.counting import count_macs
from repvgg_jax.config.fields import to_json
from repvgg_jax.config.workdir import make_workdir
from repvgg_jax.ops import onednn
from repvgg_jax.ops.batch_norm import batch_norm
from repvgg_jax.ops.convolution import check_algorithm, convolve, engine
from repvgg_jax.runtime.devices import compiling_for
from tests.support.runs import train
from tests.support.variables import random_images, random_variables

# (cin, features, kernel size, strides, groups, dilation, padding)
GEOMETRIES = [
    (3, 16, 3, 1, 1, 1, "symmetric"),
    (8, 12, 3, 2, 1, 1, "symmetric"),
    (8, 8, 3, 1, 4, 2, "symmetric"),
    (12, 12, 5, 2, 12, 1, "symmetric"),
    (8, 16, 1, 2, 2, 1, "symmetric"),
    (8, 8, 3, 2, 1, 3, "VALID"),
    (8, 12, 3, 2, 1, 1, "SAME"),
]


@pytest.fixture
def fresh_search():
    """Clears the cached results of `onednn.unavailable` and `available`, before and afterwards."""

    def clear():
        onednn.unavailable.cache_clear()
        onednn.available.cache_clear()

    clear()
    yield
    clear()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_onednn_gives_xlas_values_and_gradients(geometry):
    if reason := onednn.unavailable():
        pytest.skip(reason)
    cin, features, size, strides, groups, dilation, padding = geometry
    x = random_images(3, 13, 11, cin, seed=1)
    kernel = random_images(size, size, cin // groups, features, seed=2)
    options = dict(strides=strides, groups=groups, dilation=dilation, padding=padding)

    def results(algorithm):
        y, pull = jax.vjp(lambda x, k: convolve(x, k, **options, algorithm=algorithm), x, kernel)
        return y, *pull(jnp.asarray(random_images(*y.shape, seed=3)))

    for ours, theirs in zip(results("onednn"), results("xla"), strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 2e-6 * np.abs(theirs).max()


def test_onednn_works_under_vmap_and_checkpoint():
    if reason := onednn.unavailable():
        pytest.skip(reason)
    x = jnp.asarray(random_images(2, 5, 5, 4))
    kernels = jnp.asarray(random_images(3, 3, 3, 4, 4, seed=1))

    def gradients(algorithm):
        def loss(kernel):
            return (convolve(x, kernel, algorithm=algorithm) ** 2).sum()

        return jax.jit(jax.vmap(jax.grad(jax.checkpoint(loss))))(kernels)

    np.testing.assert_allclose(gradients("onednn"), gradients("xla"), rtol=1e-4)


@pytest.mark.medium
def test_multiply_adds_do_not_depend_on_the_algorithm():
    if reason := onednn.unavailable():
        pytest.skip(reason)
    nets = [rj.create("repvgg_a0", conv_algorithm=name) for name in ("xla", "onednn")]
    counts = [count_macs(net, random_variables(net, 0), 64) for net in nets]
    assert counts[0] == counts[1]


def test_the_engine_is_named():
    one, several = jax.devices()[:1], jax.devices()
    with compiling_for(several):
        assert engine("auto", jnp.float32) == "XLA"
    with compiling_for(one):
        assert engine("auto", jnp.bfloat16) == engine("xla", jnp.float32) == "XLA"
        assert engine("winograd", jnp.float32) == "XLA, by Winograd's algorithm"
        fastest = "XLA" if onednn.unavailable() else f"oneDNN {onednn.version()}"
        assert engine("auto", jnp.float32) == fastest


def test_auto_uses_onednn_for_float32_on_one_cpu_only():
    if reason := onednn.unavailable():
        pytest.skip(reason)
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))

    def calls(dtype):
        program = jax.make_jaxpr(lambda x: convolve(x, kernel, dtype=dtype))(x)
        return "repvgg_jax.onednn" in str(program)

    assert not calls(jnp.float32)  # this process has four devices
    with compiling_for(jax.devices()[:1]):
        assert calls(jnp.float32)
        assert not calls(jnp.bfloat16)


class Quantized(np.ndarray):
    """A kernel of the right type that cannot be cast, as a quantizing tool's."""

    def astype(self, *_, **__):
        raise ValueError("a quantized kernel has no casts")


@pytest.mark.parametrize("algorithm", ["auto", "onednn", "winograd"])
def test_a_tool_that_replaces_xlas_convolution_gets_every_convolution(algorithm, monkeypatch):
    if algorithm == "onednn" and (reason := onednn.unavailable()):
        pytest.skip(reason)
    x = jnp.asarray(random_images(2, 16, 16, 64))
    kernel = np.asarray(random_images(3, 3, 64, 64, seed=1))
    found, convolve_by_xla = [], lax.conv_general_dilated

    def replaced(x, kernel, *arguments, **options):
        found.append((kernel, options["dimension_numbers"]))
        return convolve_by_xla(x, np.asarray(kernel), *arguments, **options)

    monkeypatch.setattr(lax, "conv_general_dilated", replaced)
    quantized = kernel.view(Quantized)
    with compiling_for(jax.devices()[:1]):
        y = convolve(x, quantized, algorithm=algorithm)
    [(seen, layouts)] = found
    assert seen is quantized
    assert isinstance(layouts, lax.ConvDimensionNumbers)
    monkeypatch.undo()
    np.testing.assert_allclose(y, convolve(x, kernel, algorithm="xla"), rtol=1e-6)


def test_without_the_library_one_line_names_what_to_install(monkeypatch, fresh_search, caplog):
    def no_files(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "files", no_files)
    monkeypatch.setattr(onednn, "has_build", lambda: True)
    with pytest.raises(rj.UsageError, match=r"make setup or pip install -e \. installs it"):
        check_algorithm("onednn")
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    assert convolve(x, kernel).shape == (1, 4, 4, 2)  # on four devices, which oneDNN cannot use
    assert not caplog.messages
    with compiling_for(jax.devices()[:1]):
        for _ in range(2):
            assert convolve(x, kernel).shape == (1, 4, 4, 2)
    (warning,) = caplog.messages
    assert warning.startswith("training takes up to twice as long without oneDNN: onednn-cpu-gomp")


def test_a_platform_without_builds_is_no_reason_to_warn(monkeypatch, fresh_search, caplog):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "x86-64 Linux, not aarch64" in onednn.unavailable()
    assert not onednn.available()
    assert not caplog.messages


@pytest.mark.system
def test_a_compiler_that_fails_is_named(monkeypatch, fresh_search, tmp_path):
    if onednn.unavailable():
        pytest.skip("oneDNN is not installed")
    onednn.unavailable.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    assert "cannot be compiled and loaded" in onednn.unavailable()
    assert not list((tmp_path / "repvgg_jax").iterdir())


@pytest.mark.parametrize("compiler", ["/nowhere/g++", "nowhere --fast"])
def test_a_missing_compiler_is_named(compiler, monkeypatch, fresh_search, tmp_path):
    if onednn.unavailable():
        pytest.skip("oneDNN is not installed")
    onednn.unavailable.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    assert f"no C++ compiler ({compiler}) was found; install one" in onednn.unavailable()


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, fresh_search, tmp_path):
    if onednn.unavailable():
        pytest.skip("oneDNN is not installed")
    onednn.unavailable.cache_clear()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "set XDG_CACHE_HOME to another folder" in onednn.unavailable()


@pytest.mark.system
def test_calls_that_cannot_be_loaded_are_compiled_again(monkeypatch, tmp_path):
    if reason := onednn.unavailable():
        pytest.skip(reason)
    library, header = (onednn._file(*names) for names in onednn._PARTS.items())
    whole = onednn._compiled(library, header.parents[2])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = tmp_path / "repvgg_jax" / whole.name
    built.parent.mkdir()
    built.write_bytes(whole.read_bytes()[:100])
    assert onednn._loaded(library, header).repvgg_jax_convolution
    assert built.stat().st_size > 100


def test_shapes_are_checked_as_xla_does():
    if reason := onednn.unavailable():
        pytest.skip(reason)
    x, kernel = jnp.ones((2, 4, 4, 8)), jnp.ones((3, 3, 4, 6))
    for algorithm in ("onednn", "xla"):
        with pytest.raises((TypeError, ValueError), match="feature"):
            convolve(x, kernel, algorithm=algorithm)
        small = convolve(x[:, :1], jnp.ones((3, 3, 8, 6)), padding="VALID", algorithm=algorithm)
        assert small.shape == (2, 0, 2, 6)


@pytest.mark.medium
def test_a_run_by_onednn_loads_where_onednn_is_missing(monkeypatch, tmp_path):
    if reason := onednn.unavailable():
        pytest.skip(reason)
    config = quickstart.get_config()
    config.train.steps, config.optim.warmup_epochs = 1, 0.0
    config.model.depths, config.model.widths, config.model.strides = (1,), (8,), (2,)
    train(config, tmp_path)
    config.model.conv_algorithm = "onednn"
    make_workdir(to_json(config), tmp_path)
    monkeypatch.setattr(onednn, "unavailable", lambda: "not here")
    assert rj.load(tmp_path)[0].conv_algorithm == "auto"


def test_training_by_onednn_on_several_devices_is_refused(tmp_path):
    config = quickstart.get_config()
    config.model.conv_algorithm = "onednn"
    with pytest.raises(rj.UsageError, match="a single device but the mesh has 4"):
        train(config, tmp_path)


@pytest.mark.medium
@pytest.mark.parametrize("constant", [False, True], ids=["random", "a constant channel"])
def test_batch_norms_gradient_is_the_derived_one(constant):
    with jax.enable_x64(True):
        x = jnp.asarray(random_images(3, 2, 4, 5, 6, dtype="float64") + 0.5)
        x = x.at[..., 0].set(2.0) if constant else x
        gamma, beta = jnp.asarray(random_images(2, 6, seed=1, dtype="float64"))
        dy = jnp.asarray(random_images(*x.shape, seed=2, dtype="float64"))

        def derived(x, gamma, beta):
            mean, var = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
            gamma, beta = gamma[(None,) * 4], beta[(None,) * 4]
            return gamma * (x - mean) / jnp.sqrt(var + 1e-2) + beta

        def written(*arrays):
            return batch_norm(*arrays, jnp.float64, 1e-2)[0]

        results = []
        for function in (derived, written):
            y, pull = jax.vjp(function, x, gamma, beta)
            results.append((y, *pull(dy)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)
