"""Where the metrics of a run go: a JSON line a step, TensorBoard, and a line in the terminal.

Every writer takes one dict of numbers a step. Names with a `/` are grouped by what stands before
it; the group `held_out` holds the results of an evaluation. Knows nothing of what the numbers mean
but for those the terminal shows: loss, tokens_per_second, mfu (a share) and seconds_left.
"""

import functools
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from lmjax.core.clock import duration_text
from lmjax.core.config import Config, leaf

if TYPE_CHECKING:
  import tensorboardX

EVALUATION = 'held_out/'
LIVE_SECONDS = 0.1

Metrics = Mapping[str, float]


class Writer(Protocol):
  """Takes the metrics of each step, in order."""

  def write(self, step: int, metrics: Metrics) -> None: ...

  def rewind(self, step: int) -> None:
    """Forgets all after `step`, from which the run goes on."""
    ...

  def close(self) -> None: ...


class Writers(Config):
  """Which writers a run has. `metrics.jsonl` and the terminal are always among them."""

  tensorboard: bool = leaf(True, 'Also write TensorBoard event files.', run=True)
  terminal_seconds: float = leaf(
    10.0, 'Seconds between progress lines where the output is no terminal.', above=0, run=True
  )

  def build(self, workdir: Path, steps: int, *more: 'Writer') -> 'Tee':
    """The writers of a run of `steps` steps in `workdir`, and `more`."""
    writers: list[Writer] = [Jsonl(workdir / 'metrics.jsonl'), *more]
    if self.tensorboard:
      writers.append(TensorBoard(workdir / 'tensorboard'))
    return Tee(*writers, Terminal(steps, plain_seconds=self.terminal_seconds))


class Tee:
  """Several writers as one, closed at the end of a `with`. Of none, it writes nowhere."""

  def __init__(self, *writers: Writer):
    self._writers = writers

  def write(self, step: int, metrics: Metrics) -> None:
    for writer in self._writers:
      writer.write(step, metrics)

  def rewind(self, step: int) -> None:
    for writer in self._writers:
      writer.rewind(step)

  def close(self) -> None:
    for writer in self._writers:
      writer.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


class Jsonl:
  """One JSON object a line and step; null for a number that is not finite.

  Each line goes to the operating system at once, so a killed process loses none.
  """

  def __init__(self, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    self._path = path
    self._file = path.open('ab', buffering=0)

  def write(self, step: int, metrics: Metrics) -> None:
    line = {'step': step, **{name: _json_number(value) for name, value in metrics.items()}}
    self._file.write(json.dumps(line).encode() + b'\n')

  def rewind(self, step: int) -> None:
    """Cuts the file at the first line that is after `step` or that a kill left unfinished."""
    kept = 0
    with self._path.open('rb') as lines:
      for line in lines:
        if _step_of(line) > step:
          break
        kept += len(line)
    os.truncate(self._path, kept)

  def close(self) -> None:
    self._file.close()


def _json_number(value: float) -> float | None:
  if isinstance(value, int):
    return value
  number = float(value)  # also of NumPy's and JAX's scalars
  return number if math.isfinite(number) else None


def _step_of(line: bytes) -> float:
  """The step of a whole line, infinity for a broken one."""
  if not line.endswith(b'\n'):
    return math.inf
  try:
    return json.loads(line)['step']
  except ValueError:
    return math.inf


class TensorBoard:
  """Scalars in TensorBoard's event files, one more of them each time the run goes on."""

  def __init__(self, folder: Path):
    self._folder = folder
    self._writer: tensorboardX.SummaryWriter | None = None

  def write(self, step: int, metrics: Metrics) -> None:
    writer = self._writer = self._writer or _event_writer(str(self._folder))
    for name, value in metrics.items():
      writer.add_scalar(name, value, step)

  def rewind(self, step: int) -> None:
    """Begins an event file that has TensorBoard hide what older ones hold after `step`."""
    self.close()
    self._writer = _event_writer(
      str(self._folder),
      purge_step=step + 1,
      filename_suffix=f'.{step}',  # file names count in seconds: a quick restart would overwrite
    )

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()
      self._writer = None


def _event_writer(*args: Any, **options: Any) -> 'tensorboardX.SummaryWriter':
  """tensorboardX's writer, without torch and boto3: it imports them where they are, for 2 s."""
  absent = {'torch', 'boto3'} - sys.modules.keys()
  sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
  try:
    import tensorboardX
  finally:
    for name in absent:
      del sys.modules[name]
  return tensorboardX.SummaryWriter(*args, **options)


class Terminal:
  """A progress line: rewritten in place on a terminal, else a plain one every few seconds."""

  def __init__(
    self,
    steps: int,
    *,
    stream: TextIO | None = None,
    plain_seconds: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._steps, self._stream, self._clock = steps, stream or sys.stdout, clock
    self._live = self._stream.isatty()
    self._every = LIVE_SECONDS if self._live else plain_seconds
    self._shown_at = -math.inf
    self._unshown = ''

  def write(self, step: int, metrics: Metrics) -> None:
    self._unshown = progress_text(step, self._steps, metrics)
    if any(name.startswith(EVALUATION) for name in metrics):
      self._print(evaluation_text(step, metrics))
    if self._clock() - self._shown_at >= self._every or step == self._steps:
      self._show()

  def rewind(self, step: int) -> None:
    """What was printed stays printed."""

  def close(self) -> None:
    """Shows the last step if it was not, and leaves the cursor on a line of its own."""
    if self._unshown:
      self._show()
    if self._live and self._shown_at > -math.inf:
      self._stream.write('\n')
      self._stream.flush()

  def _show(self) -> None:
    if self._live:
      columns = shutil.get_terminal_size().columns
      self._stream.write(f'\r{self._unshown[: columns - 1]}\x1b[K')
      self._stream.flush()
    else:
      self._print(self._unshown)
    self._unshown, self._shown_at = '', self._clock()

  def _print(self, text: str) -> None:
    self._stream.write(f'\r{text}\x1b[K\n' if self._live else f'{text}\n')
    self._stream.flush()


def progress_text(step: int, steps: int, metrics: Metrics) -> str:
  """`step 120/1,500  loss 3.214  12,400 tokens/s  MFU 41.2%  ETA 1m 40s`, of what is there."""
  show = {
    'loss': lambda value: f'loss {value:.3f}',
    'tokens_per_second': lambda value: f'{value:,.0f} tokens/s',
    'mfu': lambda value: f'MFU {value:.1%}',
    'seconds_left': lambda value: f'ETA {duration_text(value)}',
  }
  parts = [text(metrics[name]) for name, text in show.items() if name in metrics]
  return '  '.join([f'step {step:,}/{steps:,}', *parts])


def evaluation_text(step: int, metrics: Metrics) -> str:
  """`step 500  held out: bits per byte 2.0124, loss 3.2110`."""
  results = ', '.join(
    f'{name.removeprefix(EVALUATION).replace("_", " ")} {value:.4f}'
    for name, value in metrics.items()
    if name.startswith(EVALUATION)
  )
  return f'step {step:,}  held out: {results}'


def progress(what: str, say: Callable[[str], None] | None = None) -> Callable[[int, int], None]:
  """(how many more, of how many) -> says `600 of 6,000 posts read, ETA 40s` at each tenth."""
  begun, done = time.monotonic(), 0
  tell = say or functools.partial(print, flush=True)

  def show(more: int, total: int) -> None:
    nonlocal done
    before, done = 10 * done // total, done + more
    if 10 * done // total > before:
      left = (time.monotonic() - begun) * (total - done) / done
      tell(
        f'{done:,} of {total:,} {what}' + (f', ETA {duration_text(left)}' if done < total else '')
      )

  return show
