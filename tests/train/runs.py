"""A training run as processes of its own: start it, wait for a moment of it, kill it, look at it."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ports import free_port

HERE = Path(__file__).parent
TIMEOUT = 300.0
SPEED = ('tokens_per_second', 'mfu', 'seconds_left')

Moment = Callable[['Run'], bool]


class Run:
  """The workdir of a run of `small`, which each start of the same command goes on with.

  Attributes:
    log: the file of what all starts have printed.
  """

  def __init__(self, workdir: Path, cache: Path, *flags: str) -> None:
    self.workdir, self.flags = workdir, flags
    self.log = workdir.with_name(f'{workdir.name}.log')
    self._cache = cache
    self.log.touch()

  @contextlib.contextmanager
  def start(
    self, *flags: str, devices: int = 1, log: Path | None = None
  ) -> Iterator[subprocess.Popen]:
    """The command with `flags` beside those of the run, under way; killed at the end of the block.

    What it prints is added to `log`, by default that of the run.
    """
    command = [sys.executable, '-m', 'lmjax.main', '--experiment=small:small']
    command += [f'--workdir={self.workdir}', *self.flags, *flags]
    environment = {
      **os.environ,
      'PYTHONPATH': str(HERE),
      'LMJAX_CACHE': str(self._cache),
      # The last that is given counts.
      'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}',
      # Kept between test sessions: with a cold cache a run takes 10 s more.
      'JAX_COMPILATION_CACHE_DIR': str(Path(tempfile.gettempdir()) / 'lmjax-test-xla-runs'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
    }
    with (log or self.log).open('ab') as opened:
      process = subprocess.Popen(
        command, stdout=opened, stderr=subprocess.STDOUT, cwd=HERE.parents[1], env=environment
      )
    try:
      yield process
    finally:
      process.kill()
      process.wait()

  @contextlib.contextmanager
  def together(
    self, count: int, *flags: str, devices: int = 1, own: Mapping[int, str] = MappingProxyType({})
  ) -> Iterator[list[subprocess.Popen]]:
    """As `start`, by `count` processes with as many `devices` each; `own` is a flag of one alone."""
    with contextlib.ExitStack() as stack:
      where = f'--hosts.coordinator=127.0.0.1:{free_port()}'
      processes = []
      for number in range(count):
        place = (where, f'--hosts.processes={count}', f'--hosts.process={number}')
        mine = [own[number]] if number in own else []
        log = self.log_of(number)
        started = self.start(*flags, *place, *mine, devices=devices, log=log)
        processes.append(stack.enter_context(started))
      yield processes

  def finish_together(self, count: int, *flags: str, code: int = 0, devices: int = 1) -> None:
    """Starts the command as `count` processes, each of which ends with exit code `code`."""
    with self.together(count, *flags, devices=devices) as processes:
      assert [process.wait(TIMEOUT) for process in processes] == [code] * count, (
        self.log.read_text()
      )

  def log_of(self, process: int) -> Path:
    """The file of what a process has printed, of process 0 that of the run."""
    return self.log.with_suffix(f'.{process}.log') if process else self.log

  def finish(self, *flags: str, code: int = 0, devices: int = 1) -> str:
    """Starts the command and waits for its end with exit code `code`; what it printed."""
    before = self.log.stat().st_size
    with self.start(*flags, devices=devices) as process:
      ended = process.wait(TIMEOUT)
    assert ended == code, self.log.read_text()
    return self.log.read_bytes()[before:].decode()

  def kill_at(self, moment: Moment, *, after: float = 0.0) -> str:
    """Starts the command and kills it at `moment`, or `after` seconds later; what it printed.

    The process is stopped while the moment is looked at again, so that it is not over at the kill.
    """
    before = self.log.stat().st_size
    with self.start() as process:
      self.wait(process, moment)
      time.sleep(after)
      while not self._is_stopped_at(process, moment):
        process.send_signal(signal.SIGCONT)
        self.wait(process, moment)
    assert process.returncode == -signal.SIGKILL
    return self.log.read_bytes()[before:].decode()

  def signal_at(self, moment: Moment, number: int, *, code: int) -> float:
    """Starts the command, signals it at `moment`; it ends with exit code `code`.

    Returns the CPU seconds that it took until then: others may have the processor meanwhile.
    """
    before = _children_seconds()
    with self.start() as process:
      self.wait(process, moment)
      process.send_signal(number)
      spent = _cpu_seconds(process.pid)
      ended = process.wait(TIMEOUT)
    assert ended == code, self.log.read_text()
    return _children_seconds() - before - spent

  def wait(self, process: subprocess.Popen, moment: Moment) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not moment(self):
      assert process.poll() is None, self.log.read_text()
      assert time.monotonic() < deadline, self.log.read_text()
      time.sleep(0.001)

  def _is_stopped_at(self, process: subprocess.Popen, moment: Moment) -> bool:
    process.send_signal(signal.SIGSTOP)
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert state is not None
    assert state.si_code == os.CLD_STOPPED, self.log.read_text()
    return moment(self)

  @property
  def report(self) -> dict[str, Any]:
    return json.loads((self.workdir / 'report.json').read_text())

  @property
  def metrics(self) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what depends on the speed of the machine."""
    lines = _lines(self.workdir / 'metrics.jsonl')
    return [
      {name: value for name, value in json.loads(line).items() if name not in SPEED}
      for line in lines
    ]

  @property
  def checkpoints(self) -> Path:
    return self.workdir / 'checkpoints'

  @property
  def saved(self) -> int:
    """Step of the last completed save, 0 for none; it may not have its final name yet."""
    found = self.checkpoints.glob('*/checksums.json')
    return max((int(path.parent.stem) for path in found if _is_json(path)), default=0)


def at_once(run: Run) -> bool:
  """As soon as the process is there."""
  del run
  return True


def at_step(step: int) -> Moment:
  """When the metrics of `step` have been written."""
  return lambda run: len(_lines(run.workdir / 'metrics.jsonl')) >= step


def in_save(step: int) -> Moment:
  """While a save of `step` or a later one is open."""
  return lambda run: any(int(path.stem) >= step for path in run.checkpoints.glob('*.tmp'))


def at_ledger(step: int) -> Moment:
  """When the ledger on disk, rewritten every second, knows of `step`."""

  def reached(run: Run) -> bool:
    path = run.workdir / 'ledger.json'
    return path.exists() and json.loads(path.read_text())['step'] >= step

  return reached


def at_text(text: str, times: int = 1) -> Moment:
  """When `text` has been printed, by this start of the command and earlier ones."""
  return lambda run: run.log.read_bytes().count(text.encode()) >= times


def resumed_at(text: str) -> int:
  """The step from which a start that printed `text` went on, perhaps the last; 0 for none."""
  found = re.search(
    r'^resuming +at step (\d+) of|^This run is finished, at step (\d+)\.', text, re.M
  )
  return int(found[1] or found[2]) if found else 0


def _cpu_seconds(pid: int) -> float:
  """That a process has taken so far."""
  fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def _children_seconds() -> float:
  """CPU seconds of the processes that were started here and have ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def _lines(path: Path) -> list[bytes]:
  """The whole lines of a file that may not be there yet."""
  return path.read_bytes().split(b'\n')[:-1] if path.exists() else []


def _is_json(path: Path) -> bool:
  try:
    json.loads(path.read_bytes())
  except ValueError:
    return False
  return True
