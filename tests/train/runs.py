"""A training run as processes of its own: start it, wait for a moment of it, kill it, look at it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TIMEOUT = 120.0
SPEED = ('tokens_per_second', 'mfu', 'seconds_left')

Moment = Callable[['Run'], bool]


class Run:
  """The workdir of a run of `small`, which each start of the same command goes on with.

  Attributes:
    log: what all starts have printed.
  """

  def __init__(self, workdir: Path, cache: Path, *flags: str) -> None:
    self.workdir, self.flags = workdir, flags
    self.log = workdir.with_name(f'{workdir.name}.log')
    self._cache = cache
    workdir.parent.mkdir(parents=True, exist_ok=True)

  def start(self, *flags: str, devices: int = 1) -> subprocess.Popen:
    """The command with `flags` beside those of the run, under way."""
    command = [sys.executable, '-m', 'lmjax.main', '--experiment=small:small']
    command += [f'--workdir={self.workdir}', *self.flags, *flags]
    environment = {
      **os.environ,
      'PYTHONPATH': str(HERE),
      'LMJAX_CACHE': str(self._cache),
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
      # Kept between test sessions: a cold cache costs every kind of run 10 s.
      'JAX_COMPILATION_CACHE_DIR': str(Path(tempfile.gettempdir()) / 'lmjax-test-xla-runs'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
    }
    with self.log.open('ab') as log:
      return subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, cwd=HERE.parents[1], env=environment
      )

  def finish(self, *flags: str, code: int = 0, devices: int = 1) -> str:
    """Starts the command and waits for its end with exit code `code`; what it printed."""
    with self.printed() as text:
      process = self.start(*flags, devices=devices)
      assert process.wait(TIMEOUT) == code, text()
      return text()

  def kill_at(self, moment: Moment, *flags: str, after: float = 0.0) -> None:
    """Starts the command and kills it `after` seconds from when `moment` first holds, while it does.

    The process is stopped while the moment is looked at again, so that it is not over at the kill.
    """
    process = self.start(*flags)
    with killed_at_last(process):
      wait_for(self, process, moment)
      time.sleep(after)
      while True:
        process.send_signal(signal.SIGSTOP)
        state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert state is not None
        assert state.si_code == os.CLD_STOPPED, self.log.read_text()
        if moment(self):
          break
        process.send_signal(signal.SIGCONT)
        wait_for(self, process, moment)
    assert process.returncode == -signal.SIGKILL

  def stop_at(self, moment: Moment, *signals: int, code: int = 75, flags: tuple = ()) -> float:
    """Starts the command, sends `signals` to it at `moment`; seconds from the last to its exit."""
    process = self.start(*flags)
    with killed_at_last(process):
      wait_for(self, process, moment)
      for number in signals[:-1]:
        process.send_signal(number)
        time.sleep(0.05)  # two pending signals of one kind would be one
      process.send_signal(signals[-1])
      sent = time.monotonic()
      assert process.wait(TIMEOUT) == code, self.log.read_text()
      return time.monotonic() - sent

  @contextlib.contextmanager
  def printed(self) -> Iterator[Callable[[], str]]:
    """A function that returns what was printed since the block began."""
    begin = self.log.stat().st_size if self.log.exists() else 0
    yield lambda: self.log.read_bytes()[begin:].decode()

  @property
  def report(self) -> dict[str, Any]:
    return json.loads((self.workdir / 'report.json').read_text())

  @property
  def metrics(self) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what depends on the speed of the machine."""
    path = self.workdir / 'metrics.jsonl'
    lines = path.read_bytes().split(b'\n')[:-1] if path.exists() else []
    return [
      {name: value for name, value in json.loads(line).items() if name not in SPEED}
      for line in lines
    ]

  @property
  def saved(self) -> list[int]:
    """Steps of the completed saves, oldest first; one may not have its final name yet."""
    found = self.checkpoints.glob('*/checksums.json')
    return sorted({int(path.parent.stem) for path in found if _is_json(path)})

  @property
  def checkpoints(self) -> Path:
    return self.workdir / 'checkpoints'

  def seconds(self) -> tuple[float, float]:
    """What the ledger counts now, and what it counted at the last completed save."""
    ledger = json.loads((self.workdir / 'ledger.json').read_text())['seconds']
    if not self.saved:
      return sum(ledger.values()), 0.0
    extra = self.checkpoints / str(self.saved[-1]) / 'extra.json'
    return sum(ledger.values()), sum(json.loads(extra.read_text())['seconds'].values())


def at_once(run: Run) -> bool:
  """As soon as the process is there."""
  del run
  return True


def at_step(step: int) -> Moment:
  """When the metrics of `step` have been written."""
  return lambda run: _lines(run.workdir / 'metrics.jsonl') >= step


def in_save(step: int) -> Moment:
  """While a save of `step` or a later one is open."""
  return lambda run: any(int(path.stem) >= step for path in run.checkpoints.glob('*.tmp'))


def at_text(text: str) -> Moment:
  """When `text` has been printed (by any start)."""
  return lambda run: text.encode() in run.log.read_bytes()


def wait_for(run: Run, process: subprocess.Popen, moment: Moment) -> None:
  deadline = time.monotonic() + TIMEOUT
  while not moment(run):
    assert process.poll() is None, run.log.read_text()
    assert time.monotonic() < deadline, run.log.read_text()
    time.sleep(0.001)


@contextlib.contextmanager
def killed_at_last(process: subprocess.Popen) -> Iterator[None]:
  """Leaves no process behind, whatever happens in the block."""
  try:
    yield
  finally:
    process.kill()
    process.wait()


def _lines(path: Path) -> int:
  return path.read_bytes().count(b'\n') if path.exists() else 0


def _is_json(path: Path) -> bool:
  try:
    json.loads(path.read_bytes())
  except ValueError:
    return False
  return True
