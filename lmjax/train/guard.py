"""Stopping when asked: SIGTERM or Ctrl-C saves and exits 75, a second one exits at once."""

import os
import signal
import sys
from types import FrameType, TracebackType

EXIT_SAVED = 75  # EX_TEMPFAIL: launch files start the job again on it
EXIT_AT_ONCE = 1


class Guard:
  """While entered, turns the first signal into `stop_requested` and the second into an exit.

  Until `defer` is called there is nothing to save, and the first signal exits with 75 right away.
  """

  def __init__(self) -> None:
    self.stop_requested = False
    self._deferred = False
    self._previous: dict[signal.Signals, object] = {}

  def __enter__(self) -> 'Guard':
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._on_signal)
    return self

  def __exit__(
    self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
  ) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)  # type: ignore[arg-type]

  def defer(self) -> None:
    """From here on there is something to save: the loop asks `stop_requested` after every step."""
    self._deferred = True

  def _on_signal(self, number: int, frame: FrameType | None) -> None:
    del frame
    name = signal.Signals(number).name
    if self.stop_requested:
      _say(f'{name} again: exiting at once, what was not saved is lost')
      os._exit(EXIT_AT_ONCE)
    self.stop_requested = True
    if not self._deferred:
      _say(f'{name}: nothing to save yet, exiting; run the same command to start again')
      sys.exit(EXIT_SAVED)
    _say(f'{name}: saving after this step; once more exits at once')


def _say(sentence: str) -> None:
  # Straight to the file descriptor: a signal may arrive inside a buffered write of the same stream.
  os.write(2, f'\nlmjax: {sentence}\n'.encode())
