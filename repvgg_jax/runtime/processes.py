"""Multi-process runs, and process settings that must be applied before JAX's backend starts."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import numpy as np
from absl import logging
from jax._src.xla_bridge import backends_are_initialized  # no public module has it
from jax.experimental import multihost_utils

from repvgg_jax.errors import RunError, UsageError, one_line
from repvgg_jax.runtime.compilation import keep_programs
from repvgg_jax.runtime.devices import devices_here, keep_freed_memory
from repvgg_jax.runtime.messages import inform

# The other processes detect within this time that a process has died, and then exit.
HEARTBEAT_SECONDS = 20

_ON_ERROR: ContextVar[Callable[[Exception], None] | None] = ContextVar("on_error", default=None)
_DETERMINISTIC = ("--xla_gpu_deterministic_ops=true", "--xla_gpu_autotune_level=0")


def prepare_process(deterministic: bool, keep_compiled: bool = True) -> None:
    """Applies the settings of a run that must be applied before JAX's backend starts.

    `deterministic` enables `make_deterministic`; `keep_compiled` enables `keep_programs`.
    """
    if deterministic:
        make_deterministic()
    if devices_here(os.environ)[0] == "cpu":
        keep_freed_memory()
    if keep_compiled:
        keep_programs()


def make_deterministic() -> None:
    """Makes XLA use deterministic kernels only, so that runs are bitwise reproducible.

    On GPUs, this disables atomics and autotuning, and costs speed. CPUs and TPUs are always
    deterministic. If the process has already used its GPUs, this has no effect, and logs a warning.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    missing = [flag for flag in _DETERMINISTIC if flag not in flags]
    if not missing:
        return
    if backends_are_initialized() and jax.devices()[0].platform == "gpu":
        logging.warning(
            "train.deterministic has no effect, since JAX has started its devices in this process; "
            "restart it (in a notebook, the kernel), and train before anything else runs"
        )
        return
    os.environ["XLA_FLAGS"] = " ".join([*flags, *missing])


def join_processes(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Connects this process to the other processes of its run with `jax.distributed`.

    TPU pods, SLURM and Open MPI are detected from the environment. Elsewhere, a multi-process run
    needs all three arguments: the `host:port` of process 0, the number of processes, and the index
    of this process. Without arguments or a detected cluster, the process runs alone.

    Raises:
      UsageError: if some arguments are missing or invalid, or the processes cannot be connected.
      RunError: if the processes of a cluster cannot be connected.
    """
    given = {"--coordinator": coordinator, "--num_processes": count, "--process_index": index}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        if not _in_a_cluster():
            return
        arguments = {}
    elif missing:
        raise UsageError(f"{', '.join(missing)} missing: each process needs all three")
    elif not re.fullmatch(r".+:\d+", coordinator):
        raise UsageError(f"--coordinator={coordinator}: must be host:port, such as 10.0.0.1:1234")
    elif count < 1 or not 0 <= index < count:
        raise UsageError(
            f"--process_index={index}: must be from 0 to --num_processes - 1 = {count - 1}"
        )
    else:
        arguments = dict(coordinator_address=coordinator, num_processes=count, process_id=index)
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        message = f"could not connect the processes ({one_line(error)})"
        if not arguments:  # a cluster failure, which may be temporary
            raise RunError(
                f"{message}; every host must run one process and be able to reach the first host"
            ) from error
        raise UsageError(
            f"{message}; every process must be able to reach --coordinator=HOST:PORT, and must "
            "have its own --process_index"
        ) from error


def _in_a_cluster() -> bool:
    """Returns True if the environment describes a multi-process cluster that JAX supports."""

    def number(name: str) -> int:
        value = os.environ.get(name, "")
        return int(value) if value.isdigit() else 1

    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    several = max(map(number, ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")))
    return several > 1 or len(hosts) > 1 or number("MEGASCALE_NUM_SLICES") > 1


@contextmanager
def exiting_on_error(on_error: Callable[[Exception], None] | None = None) -> Iterator[None]:
    """Makes errors end this process without cleanup in a multi-process run.

    Cleanup would wait for the other processes, which wait for this process in the middle of a step.
    Instead, this process prints the error and exits; the other processes detect the exit. If the
    error originates in this process, it first calls `on_error`, or else that of the nearest
    enclosing context that has one.
    """
    token = _ON_ERROR.set(on_error or _ON_ERROR.get())
    try:
        yield
    except KeyboardInterrupt:
        if jax.process_count() == 1:
            raise
        os._exit(130)
    except Exception as error:
        if jax.process_count() == 1:
            raise
        message = str(error)
        from_another = _is_from_another_process(error)
        if not isinstance(error, RunError):
            message = f"{type(error).__name__}: {one_line(error)}"
            if from_another:
                message = f"another process exited, so this process cannot continue ({message})"
            message += "; rerun the same command to resume from the last checkpoint, if any"
        print(f"error: process {jax.process_index()}: {message}", file=sys.stderr, flush=True)
        if (on_error := _ON_ERROR.get()) and not from_another:
            on_error(error)
        os._exit(getattr(error, "exit_code", RunError.exit_code))
    finally:
        _ON_ERROR.reset(token)


def _is_from_another_process(error: Exception) -> bool:
    """Returns True if JAX raised the error because another process exited."""
    own = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
    return isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(own)


def primary() -> bool:
    """Returns True in process 0, which does all logging and writing. Initializes the devices."""
    return jax.process_index() == 0


def print_once(text: str) -> None:
    """Prints `text` in process 0 only."""
    if speaks():
        print(text)


def inform_once(message: str) -> None:
    """Logs information, which needs no action, in process 0 only."""
    if speaks():
        inform(message)


def warn_once(message: str, *values: object) -> None:
    """Logs a warning in process 0 only."""
    if speaks():
        logging.warning(message, *values)


def speaks() -> bool:
    """Returns True in the process that prints; does not initialize the devices of a single one."""
    return not jax.distributed.is_initialized() or primary()


def all_processes(fine: bool) -> bool:
    """Returns the logical AND of `fine` over all processes (a collective call)."""
    alone = not jax.distributed.is_initialized() and not backends_are_initialized()
    if alone or jax.process_count() == 1:  # the latter starts devices
        return fine
    return bool(multihost_utils.process_allgather(np.array(fine)).all())


def sync_processes(name: str) -> None:
    """Waits until all processes have called this function with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
