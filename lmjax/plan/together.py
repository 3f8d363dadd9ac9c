"""What processes try together before a run: one folder, one time, one sum. Nothing waits for ever.

Every function is called by all processes, in the same order.
"""

import contextlib
import fcntl
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from lmjax.parallel import hosts
from lmjax.parallel.mesh import Mesh

_SEEN_SECONDS = 10.0  # a network file system may show a new file some seconds late
_ROUNDS = 5
_THREAD = 'doctor'


def gather(name: str, value: Any, deadline: float) -> list[Any]:
  """Every process's `value`, in process order."""
  return [json.loads(text) for text in hosts.share(f'doctor {name}', json.dumps(value), deadline)]


def visit(folder: Path, name: str, deadline: float) -> dict[str, str]:
  """Whether this process sees what the leader writes in its `folder`, and that it is locked.

  Returns:
    `path`; `seen`, which is 'seen' where all is well; and `lock`, which is 'held' where it is.
  """
  token = gather(f'{name} token', secrets.token_hex(8), deadline)[0]
  file = folder / f'.doctor-{token}'
  held, problem = _write(file, token) if hosts.is_leader() else (None, '')
  problem = gather(f'{name} written', problem, deadline)[0]
  seen = problem or _await(file, token, min(_SEEN_SECONDS, deadline / 3))
  lock = _try_lock(file) if seen == 'seen' else 'not tried'
  hosts.barrier(f'doctor {name} seen', deadline)
  if held:
    held.close()
    file.unlink(missing_ok=True)
  return {'path': str(folder), 'seen': seen, 'lock': lock}


def _write(file: Path, token: str) -> tuple[IO[str] | None, str]:
  """The locked file with `token` in it, or why there is none."""
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    opened = file.open('w')
    opened.write(token)
    opened.flush()
  except OSError as error:
    return None, f'cannot be written ({error.strerror})'
  with contextlib.suppress(OSError):  # the others then find it free, and say so
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
  return opened, ''


def _await(file: Path, token: str, seconds: float) -> str:
  """'seen' as soon as `file` holds `token`, or after `seconds` why it does not."""
  end = time.monotonic() + seconds
  while True:
    try:
      if file.read_text() == token:
        return 'seen'
      problem = 'not seen'
    except FileNotFoundError:
      problem = 'not seen'
    except OSError as error:
      problem = f'cannot be read ({error.strerror})'
    if time.monotonic() > end:
      return problem
    time.sleep(0.05)


def _try_lock(file: Path) -> str:
  """'held' where the lock that another open file has on `file` keeps this one out."""
  try:
    with file.open('r+') as opened:
      fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return 'held'
  except OSError as error:
    return f'not to be had ({error.strerror})'
  return 'not held'


def read_clock(deadline: float) -> dict[str, list[float]]:
  """This machine's time right after each of some barriers, and how long each barrier took."""
  after, took = [], []
  for number in range(_ROUNDS):
    start = time.monotonic()
    hosts.barrier(f'doctor clock {number}', deadline)
    after.append(time.time())
    took.append(time.monotonic() - start)
  return {'after': after, 'took': took}


def skew(first: Mapping[str, list[float]], other: Mapping[str, list[float]]) -> tuple[float, float]:
  """By how many seconds the clock of `other` is ahead of `first`, and how exact that is.

  All leave a barrier at one time, but for the round trip that the barrier takes at least.
  """
  rounds = list(zip(first['after'], other['after'], first['took'], other['took'], strict=True))
  here, there, *took = min(rounds, key=lambda each: max(each[2:]))
  return there - here, max(took)


def all_reduce(size: int, deadline: float) -> dict[str, Any]:
  """Times a sum over all devices of `size` bytes each.

  Returns:
    `latency` of a single number in seconds, and `bytes_per_second` that each device sends and
    receives: 2 (n - 1) / n of the size for n devices, as NCCL's own tests count; or `failed` with
    the reason.
  """
  hosts.barrier('doctor all-reduce', deadline)
  return within(deadline, lambda: _time_sums(size))


def within(seconds: float, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
  """What `work` returns, or `failed` with the reason where it raises or takes too long."""
  result: dict[str, Any] = {}

  def run() -> None:
    try:
      result.update(work())
    except Exception as error:
      result['failed'] = f'{type(error).__name__}: {error}'.split('\n')[0]

  thread = threading.Thread(target=run, name=_THREAD, daemon=True)
  thread.start()
  thread.join(seconds)
  return {'failed': f'stuck for {seconds:g} s'} if thread.is_alive() else result


def exit_where_stuck() -> None:
  """Ends this process with code 1 if work given to `within` still hangs.

  Python would take the thread's end upon itself, and the C++ below it abort.
  """
  import jax

  if any(thread.name == _THREAD for thread in threading.enumerate()):
    jax.distributed.shutdown()  # else the other processes take this one's end for a failure
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _time_sums(size: int) -> dict[str, Any]:
  import jax

  devices = jax.device_count()
  latency, rate = _time_sum(1), _time_sum(max(1, size // 4))
  moved = 2 * (devices - 1) / devices * size
  return {'latency': latency, 'bytes_per_second': moved / rate}


def _time_sum(length: int) -> float:
  """Seconds that all devices take to add up `length` f32 each: the best of some tries."""
  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec

  devices = jax.device_count()
  mesh = Mesh(data=devices).build()
  row, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('data',), ()))
  ones = jax.jit(lambda: jnp.ones((devices, length), jnp.float32), out_shardings=row)()
  add = jax.jit(lambda rows: rows.sum(0), out_shardings=whole)
  total = add(ones)
  if float(total.addressable_data(0)[0]) != devices:
    raise ArithmeticError(f'{devices} ones add up to {float(total.addressable_data(0)[0]):g}')
  tries = []
  for _ in range(_ROUNDS):
    start = time.perf_counter()
    jax.block_until_ready(add(ones))
    tries.append(time.perf_counter() - start)
  return min(tries)
