"""The host's loop around the jitted step: batches in, metrics and checkpoints out.

Knows nothing of models, data or files: all that it does is given to it.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from lmjax.core.clock import Ledger, Pace
from lmjax.core.metrics import Tee
from lmjax.train.feed import STOP
from lmjax.train.guard import Guard
from lmjax.train.state import TrainState


class Loop(NamedTuple):
  """What a run does at each step and now and then.

  Attributes:
    train_step: (state, batch) -> (state, metrics), compiled; dispatches and returns.
    evaluate: state -> held-out results to log.
    save: (step, state), returns when the state may be donated.
    evaluate_every, save_every: steps between.
  """

  train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
  evaluate: Callable[[TrainState], dict[str, float]]
  save: Callable[[int, TrainState], None]
  evaluate_every: int
  save_every: int
  ledger: Ledger
  pace: Pace
  writers: Tee
  guard: Guard

  def run(
    self, state: TrainState, batches: Iterator[Any], first: int, last: int
  ) -> tuple[TrainState, int]:
    """Takes steps first + 1 .. last, or until a signal; returns the state and the last step taken.

    Metrics are read one step behind, batches fetched one ahead: the device has work while the host
    waits. Before a save all metrics are written, so a restored run finds each earlier step's.
    """
    unread: tuple[int, dict[str, jax.Array]] | None = None
    step, stopping = first, first >= last
    batch = self._fetch(batches, {})
    while not stopping:
      step += 1
      with self.ledger.measure('compute'):
        state, metrics = self.train_step(state, batch)
        if unread:
          self._write(*unread, {})
      unread = (step, metrics)
      batch = self._fetch(batches, metrics)
      stopping = step == last or self.guard.stops
      evaluates = step % self.evaluate_every == 0 and not stopping
      if evaluates or stopping or step % self.save_every == 0:
        stopping = self._settle(step, state, metrics, evaluates, stopping)
        unread = None
    return state, step

  def _fetch(self, batches: Iterator[Any], metrics: dict[str, jax.Array]) -> Any:
    """The next batch, None after the last, while the device computes the step of `metrics`.

    Counts as `data` if the device was done with the step before the batch was there, whole.
    """
    with self.ledger.measure('compute') as count_as:
      batch = next(batches, None)
      if all(value.is_ready() for value in metrics.values()):  # type: ignore[attr-defined]
        count_as('data')
    return batch

  def _settle(
    self, step: int, state: TrainState, metrics: dict[str, Any], evaluates: bool, stopping: bool
  ) -> bool:
    """Waits for `step`, writes all that is known of it, and saves where that is due.

    Returns whether to stop here: also for a signal that came meanwhile, after which it was saved.
    """
    with self.ledger.measure('compute'):
      jax.block_until_ready(metrics)
    with self.ledger.measure('evaluation'):
      results = self.evaluate(state) if evaluates else {}
    self._write(step, metrics, results)
    stopping = stopping or self.guard.stops
    if stopping or step % self.save_every == 0:
      with self.ledger.measure('checkpoint'):
        self.save(step, state)
    return stopping

  def _write(self, step: int, metrics: dict[str, jax.Array], results: dict[str, float]) -> None:
    numbers = {name: value.item() for name, value in jax.device_get(metrics).items()}
    if STOP in numbers:
      self.guard.agree(bool(numbers.pop(STOP)))
    self.ledger.finish_step(step)
    self.pace.finish_step(step, int(numbers['tokens']))
    self.writers.write(step, numbers | self.pace.metrics() | results)
