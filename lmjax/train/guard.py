"""Stopping when asked: SIGTERM or Ctrl-C saves and exits 75, a second one exits at once."""

import os
import signal
import sys
import threading
from types import TracebackType

from lmjax.core.task import EXIT_AGAIN
from lmjax.parallel import hosts

EXIT_AT_ONCE = 1
_SAVED_SECONDS = 3600.0  # in which the slowest process has saved


class Guard:
  """While entered, turns the first signal into `stop_requested` and the second into an exit.

  Outside `defer` ... `release` there is nothing to save, and the first signal exits with 75 right
  away. A thread acts on signals, since Python's own handlers wait until the main thread is back
  from C: from a compilation or a long step, perhaps minutes after a second signal.
  """

  def __init__(self) -> None:
    self.stop_requested = False
    self._agreed = False
    self._deferred = False
    self._lock = threading.Lock()
    self._previous: dict[signal.Signals, object] = {}

  def __enter__(self) -> 'Guard':
    self._signals, self._woken = os.pipe()
    os.set_blocking(self._woken, False)
    self._before = signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, lambda number, frame: None)
    self._thread = threading.Thread(target=self._watch, name='guard', daemon=True)
    self._thread.start()
    return self

  def __exit__(
    self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
  ) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)  # type: ignore[arg-type]
    signal.set_wakeup_fd(self._before)
    os.close(self._woken)
    self._thread.join()
    os.close(self._signals)

  @property
  def stops(self) -> bool:
    """Whether to stop after this step: of several processes, whether all have agreed to."""
    return self.stop_requested if hosts.count() == 1 else self._agreed

  def agree(self, stop: bool) -> None:
    """Notes what all processes know: whether one of them had a signal."""
    self._agreed = self._agreed or stop

  def defer(self) -> None:
    """From here on there is something to save: the loop asks `stops` after every step."""
    self._deferred = True

  def release(self, saved: str) -> None:
    """All is saved: exits with 75 if a signal came, and from here on as soon as one comes.

    Of several processes all exit if one had a signal.

    Args:
      saved: what to say before this exit.
    """
    with self._lock:
      self._deferred = False
      stop = self.stop_requested
    if any(hosts.share('signals', 'stop' if stop else '', _SAVED_SECONDS)):
      if hosts.is_leader():
        _say(saved)
      sys.exit(EXIT_AGAIN)

  def _watch(self) -> None:
    while numbers := os.read(self._signals, 1):
      if numbers[0] in self._previous:
        with self._lock:
          self._act(signal.Signals(numbers[0]).name)

  def _act(self, name: str) -> None:
    if self.stop_requested:
      _say(f'{name} again: exiting at once, what was not saved is lost')
      hosts.end(EXIT_AT_ONCE, f'{name} twice')
    self.stop_requested = True
    if not self._deferred:
      _say(f'{name}: nothing to save here, exiting; run the same command to go on')
      hosts.end(EXIT_AGAIN, f'{name} with nothing to save')
    _say(f'{name}: saving after this step; once more exits at once')


def _say(sentence: str) -> None:
  # Straight to the file descriptor: the main thread may hold the lock of the buffered stream.
  os.write(2, f'\nlmjax: {sentence}\n'.encode())
