"""The training state, created sharded on a mesh from fresh or given weights."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import Array
from jax.sharding import Mesh

from repvgg_jax.config.build import Experiment
from repvgg_jax.nets import as_average, init
from repvgg_jax.runtime.compilation import few_optimizations, random_bits_by_kernel
from repvgg_jax.runtime.mesh import FSDP_MIN_SIZE, parameter_shardings, place


class TrainState(struct.PyTreeNode):
    """All values updated by a training step; the net and the optimizer are static fields.

    Attributes:
      step: number of steps taken.
      ema: averaged `{"params", "batch_stats"}`, or None.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any
    net: nn.Module = struct.field(pytree_node=False)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The variables to evaluate, fuse and load: the EMA if there is one."""
        return self.ema or self.train_variables

    @property
    def train_variables(self) -> dict[str, Any]:
        """The variables that training updates."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def optimizer_state(self) -> dict[str, Any]:
        """The rest of the state, saved in checkpoints alongside `eval_variables`."""
        state = {"step": self.step, "opt_state": self.opt_state}
        return state | ({"trained": self.train_variables} if self.ema else {})

    def restored(self, variables: Any, optimizer_state: Mapping[str, Any]) -> Self:
        """Returns the state with the saved `eval_variables` and `optimizer_state`."""
        trained = {"batch_stats": {}} | optimizer_state.get("trained", variables)
        return self.replace(
            **trained,
            step=optimizer_state["step"],
            opt_state=optimizer_state["opt_state"],
            ema=as_average(variables) if self.ema else None,
        )

    def starting_from(self, variables: Mapping[str, Any]) -> Self:
        """Returns the state with other variables, also as its EMA; the shardings do not change."""
        trained = {"batch_stats": {}} | variables
        trained = jax.tree.map(
            lambda leaf, own: place(leaf, own.sharding), trained, self.train_variables
        )
        return self.replace(**trained, ema=as_average(trained) if self.ema else None)


def fresh_state(experiment: Experiment) -> TrainState:
    """Returns the initial state of an experiment."""
    return begin_initialization(experiment).state()


def abstract_state(experiment: Experiment) -> TrainState:
    """Returns the shapes, types and shardings of the initial state without computing it."""
    create = _creation(experiment.net, experiment.optimizer, experiment.step_options.ema_decay > 0)
    return _abstract(create, experiment.mesh, experiment.fsdp_min_size)


def init_state(
    net: nn.Module,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    key: Array,
    ema: bool = False,
    min_size: int = FSDP_MIN_SIZE,
) -> TrainState:
    """Returns a fresh state, created on the mesh so that no host ever holds all of it.

    With `ema` it includes an average of the variables. Arrays of fewer than `min_size` elements are
    replicated rather than split over `fsdp`.
    """
    return Initialization(_creation(net, tx, ema), mesh, key, min_size).state()


def begin_initialization(experiment: Experiment) -> "Initialization":
    """Returns the initialization of an experiment, which is being compiled."""
    create = _creation(experiment.net, experiment.optimizer, experiment.step_options.ema_decay > 0)
    key = jax.random.key(experiment.seed)
    return Initialization(create, experiment.mesh, key, experiment.fsdp_min_size)


class Initialization:
    """The creation of an initial state, by a program that a thread compiles.

    It takes about as long to compile as the training step, which can be compiled meanwhile.

    Attributes:
      shapes: shapes, types and shardings of the state.
    """

    def __init__(self, create: jax.stages.Wrapped, mesh: Mesh, key: Array, min_size: int):
        with random_bits_by_kernel():
            self.shapes = _abstract(create, mesh, min_size)
            shardings = jax.tree.map(lambda leaf: leaf.sharding, self.shapes)
            options = few_optimizations() or None
            program = jax.jit(create, out_shardings=shardings, compiler_options=options).lower(key)
        self._key = key
        thread = ThreadPoolExecutor(1, "initialization")
        self._compiled = thread.submit(program.compile)
        thread.shutdown(wait=False)

    def state(self) -> TrainState:
        """Returns the state, once the program is compiled."""
        return self._compiled.result()(self._key)


def _creation(net: nn.Module, tx: optax.GradientTransformation, ema: bool) -> jax.stages.Wrapped:
    """Returns a function from a key to a fresh state, which is traced once for several uses."""
    return jax.jit(partial(_create_state, net, tx, ema))


def _create_state(
    net: nn.Module, tx: optax.GradientTransformation, ema: bool, key: Array
) -> TrainState:
    variables = {"batch_stats": {}} | init(net, key)
    return TrainState(
        step=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        ema=as_average(variables) if ema else None,
        net=net,
        tx=tx,
    )


def _abstract(create: jax.stages.Wrapped, mesh: Mesh, min_size: int) -> TrainState:
    shapes = jax.eval_shape(create, jax.random.key(0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        parameter_shardings(shapes, mesh, min_size),
    )
