"""A profiler trace of some steps of a run, for TensorBoard, XProf or Perfetto."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from lmjax.core.clock import Ledger
from lmjax.core.errors import UserError


def step_range(text: str) -> tuple[int, int] | None:
  """(first, last) of `FIRST:LAST`, None of nothing."""
  if not text:
    return None
  first, colon, last = text.partition(':')
  if not (colon and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
    raise UserError(f'profile_steps={text!r}: expected FIRST:LAST, two steps such as 10:15')
  return int(first), int(last)


class Profile:
  """Traces those of the steps of a range that this start of the run takes.

  Args:
    steps: (first, last) of the run, both traced; None for none.
    folder: where the trace goes.
    ledger: counts what the profiler itself takes as `other`.
  """

  def __init__(self, steps: tuple[int, int] | None, folder: Path, ledger: Ledger) -> None:
    self._steps, self._folder, self._ledger = steps, folder, ledger
    self._open = False

  def wrap(self, train_step: Callable, done: int) -> Callable:
    """`train_step`, whose first call takes step `done` + 1, with the tracing around it."""
    if self._steps is None or self._steps[1] <= done:
      return train_step
    first, last = self._steps
    step = done

    def traced(state: Any, batch: Any) -> Any:
      nonlocal step
      step += 1
      if step == max(first, done + 1):
        self._start()
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        out = train_step(state, batch)
      if step == last:
        jax.block_until_ready(out)
        self.close()
      return out

    return traced

  def close(self) -> None:
    """Writes the trace if one is open: the range is over, or the run stops within it."""
    if self._open:
      self._open = False
      with self._ledger.measure('other'):
        jax.profiler.stop_trace()
      print(f'profile of steps {self._steps} is in {self._folder}', flush=True)

  def _start(self) -> None:
    self._open = True
    with self._ledger.measure('other'):
      jax.profiler.start_trace(str(self._folder))
