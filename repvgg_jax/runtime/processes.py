"""Several processes as one run, and what must be settled before JAX starts its backend."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from repvgg_jax.errors import RunError, UsageError, one_line
from repvgg_jax.runtime.compilation import keep_programs
from repvgg_jax.runtime.devices import devices_here, keep_freed_memory

# A process that went away is noticed within this many seconds, and ends the others.
HEARTBEAT_SECONDS = 20

_LAST_WORDS: ContextVar[Callable[[Exception], None] | None] = ContextVar("last_words", default=None)
_DETERMINISTIC = ("--xla_gpu_deterministic_ops=true", "--xla_gpu_autotune_level=0")


def prepare_process(deterministic: bool, keep_compiled: bool = True) -> None:
    """What a run settles before JAX starts its backend.

    Args:
      deterministic: as `make_deterministic`.
      keep_compiled: as `compilation.keep_programs`; not for what measures the compiler.
    """
    if deterministic:
        make_deterministic()
    if devices_here(os.environ)[0] == "cpu":
        keep_freed_memory()
    if keep_compiled:
        keep_programs()


def make_deterministic() -> None:
    """Have XLA choose only kernels that repeat bit for bit.

    On GPUs that forbids atomics and timing-based choices of kernels, and costs speed. On CPUs and
    TPUs every run repeats anyway.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([*flags, *(f for f in _DETERMINISTIC if f not in flags)])


def join_processes(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Make this process one of a run of several, with `jax.distributed`.

    On TPU pods and under SLURM or Open MPI everything is found in the environment; elsewhere the
    three arguments say it. A process that is alone does nothing.

    Args:
      coordinator: `host:port` of the process of index 0, which the others can reach.
      count, index: of the processes.

    Raises:
      UsageError: where only some of the three are given, or processes by them don't find each
        other.
      RunError: where those of a cluster don't.
    """
    given = {"--coordinator": coordinator, "--num_processes": count, "--process_index": index}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        if not _in_a_cluster():
            return
        arguments = {}
    elif missing:
        raise UsageError(f"{', '.join(missing)}: needed too, as each process must know all three")
    elif not re.fullmatch(r".+:\d+", coordinator):
        raise UsageError(f"--coordinator={coordinator}: host:port, such as 10.0.0.1:1234")
    elif count < 1 or not 0 <= index < count:
        raise UsageError(
            f"--process_index={index}: from 0 to one below --num_processes={count}, 1 or more"
        )
    else:
        arguments = dict(coordinator_address=coordinator, num_processes=count, process_id=index)
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        words = f"the processes did not find each other ({one_line(error)})"
        if not arguments:  # the cluster's affair, which may go well the next time
            raise RunError(f"{words}; each host must run one, and reach the first's") from error
        raise UsageError(
            f"{words}; --coordinator=HOST:PORT must be reachable from all of them, and each must "
            "have its own --process_index"
        ) from error


def _in_a_cluster() -> bool:
    """Whether the environment tells of several processes, in a way that JAX understands."""

    def number(name: str) -> int:
        value = os.environ.get(name, "")
        return int(value) if value.isdigit() else 1

    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    several = max(map(number, ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")))
    return several > 1 or len(hosts) > 1 or number("MEGASCALE_NUM_SLICES") > 1


@contextmanager
def leaving_at_once(last_words: Callable[[Exception], None] | None = None) -> Iterator[None]:
    """Within, where there are several processes, an error ends this one without any clean-up.

    Clean-up waits for the others, who wait for this one in the middle of a step: so this one says
    what is wrong and is gone, which the others notice.

    Args:
      last_words: called with an error that is this process's own before it goes, also from within
        another `leaving_at_once` inside this one.
    """
    token = _LAST_WORDS.set(last_words or _LAST_WORDS.get())
    try:
        yield
    except KeyboardInterrupt:
        if jax.process_count() == 1:
            raise
        os._exit(130)
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, RunError):
            said, code = str(error), error.exit_code
        else:
            reason = f"{type(error).__name__}: {one_line(error)}"
            said = reason
            if _is_anothers(error):
                said = f"another process ended, so that this one cannot go on either ({reason})"
            said += "; the same command goes on from the last checkpoint"
            code = RunError.exit_code
        print(f"error: process {jax.process_index()}: {said}", file=sys.stderr, flush=True)
        if (last_words := _LAST_WORDS.get()) and not _is_anothers(error):
            last_words(error)
        os._exit(code)
    finally:
        _LAST_WORDS.reset(token)


def _is_anothers(error: Exception) -> bool:
    """Whether it is how JAX says that another process is gone; not this one's lack of memory."""
    own = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
    return isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(own)


def primary() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def all_processes(fine: bool) -> bool:
    """Whether it is so on every process; all must ask."""
    if jax.process_count() == 1:
        return fine
    return bool(multihost_utils.process_allgather(np.array(fine)).all())


def sync_processes(name: str) -> None:
    """Waits until every process has come to the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
