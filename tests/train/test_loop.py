import jax.numpy as jnp
import pytest

from lmjax.core.clock import Ledger, Pace
from lmjax.core.metrics import Tee
from lmjax.train.guard import Guard
from lmjax.train.loop import Loop


class Notes:
  """A loop over a counter that is evaluated every 4 steps and saved every 6, and all that it does.

  Attributes:
    events: ('write' | 'evaluate' | 'save', step), in order.
    stop_at: the event with which a signal comes.
  """

  def __init__(self, folder):
    self.events, self.stop_at, self.guard = [], None, Guard()
    clock = lambda: 0.0
    self.loop = Loop(
      train_step=lambda state, batch: (state + batch, {'tokens': batch, 'sum': state + batch}),
      evaluate=lambda state: self.note('evaluate', int(state)) or {'held_out/loss': 0.0},
      save=lambda step, state: self.note('save', step, int(state)),
      evaluate_every=4,
      save_every=6,
      ledger=Ledger(folder / 'ledger.json'),
      pace=Pace(20, peak_tokens_per_second=1.0, clock=clock),
      writers=Tee(self),
      guard=self.guard,
    )

  def run(self, first, last):
    batches = iter([jnp.ones((), jnp.int32)] * (last - first))
    state, step = self.loop.run(jnp.asarray(first), batches, first, last)
    assert state == step
    return step

  def write(self, step, metrics):
    self.note('write', step, metrics['sum'])

  def note(self, what, step, state=None):
    assert state in (None, step)
    self.events.append((what, step))
    self.guard.stop_requested |= self.events[-1] == self.stop_at

  def steps(self, what):
    return [step for event, step in self.events if event == what]


@pytest.fixture
def notes(tmp_path):
  return Notes(tmp_path)


def test_every_step_is_written_once_and_before_it_is_saved(notes):
  assert notes.run(2, 15) == 15
  assert notes.steps('write') == list(range(3, 16))
  assert notes.steps('evaluate') == [4, 8, 12]
  assert notes.steps('save') == [6, 12, 15]
  for step in notes.steps('save'):
    assert notes.events.index(('write', step)) < notes.events.index(('save', step))


class Pending:
  """The metric of a step that is done when `done` says so."""

  def __init__(self, done):
    self.is_ready = done


def test_only_what_the_device_waits_for_counts_as_data(notes):
  seconds = iter([1.0, 10.0, 100.0])
  now = 0.0

  def batches():
    nonlocal now
    for passed in seconds:
      now += passed
      yield None

  ledger = Ledger(None, clock=lambda: now, start=0.0)
  fetch, source = notes.loop._replace(ledger=ledger)._fetch, batches()
  fetch(source, {})  # nothing to compute yet
  fetch(source, {'loss': Pending(lambda: False)})
  assert ledger.spent('data') == 1
  assert ledger.spent('compute') == 10
  fetch(source, {'loss': Pending(lambda: now > 100)})  # done while the batch was read
  assert ledger.spent('data') == 101


def test_a_run_that_is_there_already_takes_no_step(notes):
  assert notes.run(15, 15) == 15
  assert notes.events == []


@pytest.mark.parametrize(
  ('signal', 'stop'),
  [
    (('write', 1), 2),  # metrics come one step behind
    (('evaluate', 4), 4),
    (('write', 6), 6),
    (('save', 6), 7),
    (('write', 14), 15),
    (('write', 15), 15),
  ],
)
def test_after_a_signal_the_last_step_taken_is_saved(notes, signal, stop):
  notes.stop_at = signal
  assert notes.run(0, 15) == stop
  assert notes.events[-2:] == [('write', stop), ('save', stop)]
  assert notes.steps('write') == list(range(1, stop + 1))
