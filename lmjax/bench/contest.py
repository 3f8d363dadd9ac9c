"""Programs that do the same work, each a process of its own, take turns on a quiet machine.

All are made ready first (imported, compiled, warm), then every round gives each one turn, so what
slows the machine down for a while slows all of them. A turn during which others used the processor
is taken again. Knows nothing of what is measured.
"""

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple, Self

from lmjax.core import processor
from lmjax.core.errors import UserError

PEERS = Path(__file__).parents[2] / 'tools' / 'bench' / 'peers'
_SECONDS = (
  1800.0  # a side may be silent: torch.compile's first compilation of a large model takes minutes
)
_OTHERS = 0.05  # of all cores; more and a turn is taken again
_AGAIN = 3
_TICKS = os.sysconf('SC_CLK_TCK')


class Side(NamedTuple):
  """A contestant: `command` speaks as lmjax/bench/side.py says."""

  name: str
  command: Sequence[str]
  environment: Mapping[str, str] = MappingProxyType({})


class Turn(NamedTuple):
  """What a side said of its turn, and the share of all cores that others used meanwhile."""

  figures: dict[str, Any]
  others: float


class Figure(NamedTuple):
  """A number measured in every round."""

  median: float
  low: float
  high: float

  @classmethod
  def of(cls, values: Sequence[float]) -> 'Figure':
    return cls(statistics.median(values), min(values), max(values))

  def __str__(self) -> str:
    return f'{self.median:.3g} ({self.low:.3g} to {self.high:.3g})'


class Contest(NamedTuple):
  """The turns of every side, by its name, round by round."""

  turns: dict[str, list[Turn]]

  def figure(self, side: str, name: str) -> Figure:
    return Figure.of(self._values(side, name))

  def ratio(self, above: str, below: str, name: str) -> Figure:
    """`name` of one side over that of another, round by round."""
    pairs = zip(self._values(above, name), self._values(below, name), strict=True)
    return Figure.of([a / b for a, b in pairs])

  @property
  def disturbed(self) -> int:
    """Turns that others disturbed each time they were taken."""
    return sum(turn.others > _OTHERS for turns in self.turns.values() for turn in turns)

  def _values(self, side: str, name: str) -> list[float]:
    return [turn.figures[name] for turn in self.turns[side]]


def ours(name: str, function: str, settings: Mapping[str, Any], **environment: str) -> Side:
  """A side of lmjax: `function` is module:function as lmjax/bench/side.py takes it."""
  command = [sys.executable, '-m', 'lmjax.bench.side', function, json.dumps(dict(settings))]
  # All sides are there at once, so on a GPU none may take its memory beforehand.
  return Side(name, command, {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', **environment})


def peer(name: str, script: str, settings: Mapping[str, Any], **environment: str) -> Side:
  """A script of tools/bench/peers, which is part of a checkout only and needs torch.

  Raises:
    UserError: there is no such script, or no torch.
  """
  path = PEERS / script
  if not path.exists():
    raise UserError(f'{path} does not exist: run benchmarks from a checkout of lmjax')
  if not has_torch():
    raise UserError("the peers need torch: pip install 'lmjax[bench]', or pass --peers=false")
  return Side(name, [sys.executable, str(path), json.dumps(dict(settings))], environment)


def has_torch() -> bool:
  return importlib.util.find_spec('torch') is not None


def resident_bytes(pid: int) -> int:
  """What a process has in memory; Linux alone."""
  return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def compete(sides: Sequence[Side], rounds: int, log: Path) -> Contest:
  """Lets `sides` take a turn each, `rounds` times over.

  Args:
    log: a file for what they print to standard error.

  Raises:
    UserError: a side ended early, or was silent for half an hour.
  """
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(log.open('a'))
    processes = {}
    for side in sides:  # one after another: compiling is work too
      print(f'  {side.name}: getting ready', flush=True)
      processes[side.name] = stack.enter_context(_started(side, file))
    turns: dict[str, list[Turn]] = {side.name: [] for side in sides}
    for number in range(rounds):
      for side in sides:
        turn = _take_turn(side, processes[side.name], log)
        turns[side.name].append(turn)
        print(f'  round {number + 1} of {rounds}, {side.name}: {_shown(turn)}', flush=True)
  return Contest(turns)


class Watch:
  """Times what runs inside a `with`, and the share of all cores that others used meanwhile.

  Processes that were started inside must have ended, and been waited for, when `others` is read.
  """

  def __enter__(self) -> Self:
    self._start, self._before = time.monotonic(), _busy() - _children()
    return self

  def __exit__(self, *_: object) -> None:
    seconds = self.seconds
    self.others = max(0.0, _busy() - _children() - self._before) / (processor.cores() * seconds)

  @property
  def seconds(self) -> float:
    """So far."""
    return time.monotonic() - self._start


@contextlib.contextmanager
def _started(side: Side, log: IO[str]) -> Iterator[subprocess.Popen[str]]:
  """The process of `side`, ready."""
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': log, 'text': True}
  with subprocess.Popen(side.command, env={**os.environ, **side.environment}, **pipes) as process:
    try:
      _read(side, process, Path(log.name))
      yield process
    finally:
      process.kill()


def _take_turn(side: Side, process: subprocess.Popen[str], log: Path) -> Turn:
  assert process.stdin is not None
  for _ in range(_AGAIN):
    _wait_for_quiet()
    before = _busy(), _own(process.pid), time.monotonic()
    process.stdin.write('go\n')
    process.stdin.flush()
    figures = _read(side, process, log)
    busy, own, seconds = _busy() - before[0], _own(process.pid) - before[1], time.monotonic()
    cores = processor.cores()
    turn = Turn(figures, max(0.0, busy - own) / (cores * (seconds - before[2])))
    if turn.others <= _OTHERS:
      break
  return turn


def _read(side: Side, process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
  """The next line of JSON that a side says, within `_SECONDS`; other lines are its libraries' talk."""
  assert process.stdout is not None
  late, end = threading.Timer(_SECONDS, process.kill), time.monotonic() + _SECONDS
  late.start()
  try:
    for line in process.stdout:
      if line.startswith('{'):
        return json.loads(line)
  finally:
    late.cancel()
  if time.monotonic() >= end:
    raise UserError(f'{side.name} said nothing for {_SECONDS:g} s and was ended: see {log}')
  raise UserError(f'{side.name} ended early with exit code {process.wait()}: see {log}')


def _wait_for_quiet(share: float = 0.05, seconds: float = 20.0) -> None:
  """Returns when the cores have been all but idle for a fifth of a second, or `seconds` later."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    before, start = _busy(), time.monotonic()
    time.sleep(0.2)
    cores = processor.cores()
    if _busy() - before <= share * cores * (time.monotonic() - start):
      return


def _busy() -> float:
  """Seconds that all cores have worked since the machine started, or were kept from it."""
  fields = [int(x) for x in Path('/proc/stat').read_text().partition('\n')[0].split()[1:9]]
  user, nice, system, _, _, irq, soft, steal = fields
  return (user + nice + system + irq + soft + steal) / _TICKS


def _children() -> float:
  """Seconds of the processor that this process and its ended children have used."""
  used = os.times()
  return used.user + used.system + used.children_user + used.children_system


def _own(pid: int) -> float:
  """Seconds of the processor that a process and its ended children have used."""
  fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  return sum(map(int, fields[11:15])) / _TICKS


def _shown(turn: Turn) -> str:
  figures = ', '.join(
    f'{key} {value:.4g}' for key, value in turn.figures.items() if isinstance(value, float)
  )
  return f'{figures}; others {turn.others:.0%}'
