"""The host's loop around the jitted step: batches in, metrics and checkpoints out.

Knows nothing of models, data or files: all that it does is given to it.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from lmjax.core.clock import Ledger, Pace
from lmjax.core.metrics import Tee
from lmjax.core.types import Batch
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

  train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
  evaluate: Callable[[TrainState], dict[str, float]]
  save: Callable[[int, TrainState], None]
  evaluate_every: int
  save_every: int
  ledger: Ledger
  pace: Pace
  writers: Tee
  guard: Guard

  def run(
    self, state: TrainState, batches: Iterator[Batch], first: int, last: int
  ) -> tuple[TrainState, int]:
    """Takes steps first + 1 .. last, or until a signal; returns the state and the last step taken.

    Metrics are read one step behind, so the device has the next step before the host waits. Before
    a save all of them are written: a restored run finds each earlier step's in place.
    """
    unread: tuple[int, dict[str, jax.Array]] | None = None
    step, stopping = first, first >= last
    while not stopping:
      step += 1
      with self.ledger.measure('data'):
        batch = next(batches)
      with self.ledger.measure('compute'):
        state, metrics = self.train_step(state, batch)
        if unread:
          self._write(*unread, {})
      unread = (step, metrics)
      stopping = step == last or self.guard.stop_requested
      evaluates = step % self.evaluate_every == 0 and not stopping
      if evaluates or stopping or step % self.save_every == 0:
        stopping = self._settle(step, state, metrics, evaluates, stopping)
        unread = None
    return state, step

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
    stopping = stopping or self.guard.stop_requested
    if stopping or step % self.save_every == 0:
      with self.ledger.measure('checkpoint'):
        self.save(step, state)
    return stopping

  def _write(self, step: int, metrics: dict[str, jax.Array], results: dict[str, float]) -> None:
    numbers = {name: value.item() for name, value in jax.device_get(metrics).items()}
    self.ledger.finish_step(step)
    self.pace.finish_step(step, int(numbers['tokens']))
    self.writers.write(step, numbers | self.pace.metrics() | results)
