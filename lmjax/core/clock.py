"""Where the seconds of a run went, how fast it goes, and how fast the machine could go.

`Ledger` attributes every second, `Pace` gives tokens/s and the time left, `peak_flops` is what MFU
is a share of. Knows nothing of what is computed; JAX is imported only when the peak is asked for.
"""

import contextlib
import functools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from lmjax.core.errors import UserError
from lmjax.core.task import write_json

Kind = Literal['compute', 'compile', 'data', 'checkpoint', 'evaluation', 'lost_work', 'other']
KINDS: tuple[Kind, ...] = get_args(Kind)
SAVE_SECONDS = 1.0

_IMPORTED = time.monotonic()

# Dense bf16 FLOP/s of one GPU, from NVIDIA's data sheets (half of the figures "with sparsity"). The
# first name that is part of JAX's device_kind counts.
PEAKS: tuple[tuple[str, float], ...] = (
  ('A100', 312e12),  # A100 data sheet, SXM and PCIe
  ('H100 PCIe', 756e12),  # H100 data sheet, PCIe
  ('H100 NVL', 835e12),  # H100 data sheet, NVL
  ('H100', 989e12),  # H100 data sheet, SXM
  ('H200', 989e12),  # H200 data sheet, SXM
  ('GB200', 2500e12),  # GB200 NVL72 data sheet, a seventy-second
  ('B200', 2250e12),  # DGX B200 data sheet, an eighth
)


class Ledger:
  """Every second of a run under exactly one kind, over all the sessions (processes) that ran it.

  One kind is current at any time, `other` from the start of the process on, so the kinds sum to the
  wall-clock by construction. For one thread: what others do behind its back takes no time.

    with ledger.measure('evaluation'):
      with ledger.measure('compile'):  # not counted as evaluation
  """

  def __init__(
    self,
    path: Path | None,
    *,
    clock: Callable[[], float] = time.monotonic,
    start: float | None = None,
  ):
    """Continues the ledger at `path`, or begins it there.

    Args:
      path: the JSON file, rewritten atomically when more than a second old; None for no file.
      clock: seconds that never go back.
      start: when the session began, by `clock`; None for the start of this process.
    """
    self._path, self._clock = path, clock
    self._before, self._step = _read(path)
    self._session = dict.fromkeys(KINDS, 0.0)
    self._kind: Kind = 'other'
    self._since = process_start() if start is None else start
    self._saved = self._since

  @contextlib.contextmanager
  def measure(self, kind: Kind) -> Iterator[Callable[[Kind], None]]:
    """Counts the seconds of the block as `kind`, less those of blocks inside it.

    What the block is given, called at its end with another kind, has them counted as that.
    """
    outer = self._switch(kind)
    try:
      yield self._rename
    finally:
      self._switch(outer)

  def finish_step(self, step: int) -> None:
    """Notes that `step` updates are done: what a kill from here on may cost."""
    self._step = step
    self._switch(self._kind)

  def rewind(self, step: int, at_checkpoint: Mapping[str, float]) -> None:
    """Moves what earlier sessions spent after the checkpoint that this one resumes to `lost_work`.

    Called once a session, before its first step; the seconds of this session stay as they are.
    Nothing was lost if the last finished step is the restored one.

    Args:
      step: the restored step; 0 where there was no checkpoint to resume.
      at_checkpoint: `seconds()` when it was saved; {} where there was none.
    """
    if step != self._step:
      spent = sum(self._before.values())
      self._before = {kind: at_checkpoint.get(kind, 0.0) for kind in KINDS}
      # A checkpoint may know up to a second more than the ledger of a killed session.
      self._before['lost_work'] += max(0.0, spent - sum(self._before.values()))
      self._step = step
    self.save()

  def seconds(self) -> dict[str, float]:
    """Seconds by kind until now, all sessions together; a checkpoint keeps them for `rewind`."""
    self._settle()
    return {kind: self._before[kind] + self._session[kind] for kind in KINDS}

  def spent(self, *kinds: Kind) -> float:
    """Seconds under `kinds` until now, all sessions together."""
    seconds = self.seconds()
    return sum(seconds[kind] for kind in kinds)

  def summary(self) -> dict[str, float]:
    """`seconds()` and their sum, the wall-clock of all sessions, as `wall`."""
    seconds = self.seconds()
    return {**seconds, 'wall': sum(seconds.values())}

  def save(self) -> None:
    if self._path:
      write_json(self._path, {'step': self._step, 'seconds': self.seconds()})
    self._saved = self._since

  def _rename(self, kind: Kind) -> None:
    self._kind = kind

  def _switch(self, kind: Kind) -> Kind:
    """Makes `kind` the current one and returns the one that was."""
    self._settle()
    outer, self._kind = self._kind, kind
    if self._since - self._saved >= SAVE_SECONDS:
      self.save()
    return outer

  def _settle(self) -> None:
    now = self._clock()
    self._session[self._kind] += now - self._since
    self._since = now


def _read(path: Path | None) -> tuple[dict[str, float], int]:
  """Seconds by kind and the last finished step of earlier sessions."""
  if path is None or not path.exists():
    return dict.fromkeys(KINDS, 0.0), 0
  try:
    saved: dict[str, Any] = json.loads(path.read_text())
    return {kind: float(saved['seconds'][kind]) for kind in KINDS}, int(saved['step'])
  except (ValueError, KeyError, TypeError):
    raise UserError(
      f'{path} is not a ledger of seconds: delete it to count this run anew'
    ) from None


def process_start() -> float:
  """When this process began, by `time.monotonic`; without /proc, when this module was imported."""
  try:
    after_name = Path('/proc/self/stat').read_text().rpartition(')')[2].split()
    since_boot = int(after_name[19]) / os.sysconf('SC_CLK_TCK')  # field 22, starttime: proc(5)
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot
  except (OSError, AttributeError, ValueError, IndexError):
    return _IMPORTED
  return min(time.monotonic() - age, _IMPORTED)


class Pace:
  """Tokens per second over the last steps, MFU, and the seconds left to the last step."""

  def __init__(
    self,
    steps: int,
    *,
    peak_tokens_per_second: float,
    window: int = 50,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Begins with no step done.

    Args:
      steps: steps of the whole run.
      peak_tokens_per_second: `peak_flops()` over the model's FLOPs a token: MFU is a share of it.
      window: how many of the last steps count.
      clock: seconds that never go back. With `lambda: ledger.spent('compute', 'data')` evaluations
        and checkpoints slow nothing down.
    """
    self._steps, self._peak, self._clock = steps, peak_tokens_per_second, clock
    self._marks: deque[tuple[float, int, int]] = deque(maxlen=window + 1)

  def finish_step(self, step: int, tokens: int) -> None:
    """Notes that `step` updates are done, the last of them over `tokens` tokens."""
    total = self._marks[-1][2] if self._marks else 0
    self._marks.append((self._clock(), step, total + tokens))

  def metrics(self) -> dict[str, float]:
    """`tokens_per_second`, `mfu` and `seconds_left`; nothing until two steps are done."""
    if len(self._marks) < 2:
      return {}
    (begin, first, before), (end, last, total) = self._marks[0], self._marks[-1]
    seconds = max(end - begin, 1e-9)
    speed = (total - before) / seconds
    left = (self._steps - last) * seconds / (last - first)
    return {'tokens_per_second': speed, 'mfu': speed / self._peak, 'seconds_left': left}


def duration_text(seconds: float) -> str:
  """`8s`, `2m 05s`, `3h 07m`, `4d 02h`."""
  whole = round(seconds)
  for size, unit, part, part_unit in (
    (86400, 'd', 3600, 'h'),
    (3600, 'h', 60, 'm'),
    (60, 'm', 1, 's'),
  ):
    if whole >= size:
      return f'{whole // size}{unit} {whole % size // part:02d}{part_unit}'
  return f'{whole}s'


@functools.cache
def peak_flops(dtype: str = 'float32') -> tuple[float, str]:
  """FLOP/s that all devices of the run could do together, and where the figure is from.

  The data sheet's dense bf16 figure for a GPU in `PEAKS`; elsewhere the best of three large matrix
  products, in `dtype` on a CPU, whose devices share its cores, in bf16 on another accelerator.
  """
  import jax

  device, count = jax.devices()[0], jax.device_count()
  for name, flops in PEAKS:
    if name in device.device_kind:
      source = f'{count} x {flops / 1e12:,.0f} TFLOP/s, bf16 dense, data sheet of {name}'
      return flops * count, source
  if device.platform == 'cpu':
    flops = _measure_matmul(1024, dtype)  # of 2048 it is the same to 5%, and takes 8 times as long
    return flops * jax.process_count(), f'{dtype} matrix product of 1024^3, measured here'
  flops = _measure_matmul(8192, 'bfloat16')
  return flops * count, f'{count} x a bf16 matrix product of 8192^3, measured here'


def _measure_matmul(size: int, dtype: str) -> float:
  import jax
  import jax.numpy as jnp

  square = jnp.ones((size, size), dtype)
  # An f32 result, as every product of ours has: on a CPU bf16 is fast only so.
  product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
  matmul = jax.jit(product).lower(square, square).compile()

  def seconds() -> float:
    start = time.perf_counter()
    matmul(square, square).block_until_ready()
    return time.perf_counter() - start

  return 2 * size**3 / min(seconds() for _ in range(4))  # the first warms up
