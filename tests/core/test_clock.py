import json
import subprocess
import sys
import time

import jax
import pytest

from lmjax.core import clock
from lmjax.core.clock import KINDS, Ledger, Pace, duration_text, peak_flops, process_start
from lmjax.core.errors import UserError


class FakeClock:
  """Seconds that pass when told to."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now

  def sleep(self, seconds):
    self.now += seconds


@pytest.fixture
def fake():
  return FakeClock()


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'ledger.json'


def session(path, fake, *, startup=0.0):
  """A ledger as a process opens it, `startup` seconds after its start."""
  start = fake.now
  fake.sleep(startup)
  return Ledger(path, clock=fake, start=start)


def train(ledger, fake, steps, seconds=1.0):
  for step in steps:
    with ledger.measure('compute'):
      fake.sleep(seconds)
    ledger.finish_step(step)


def nonzero(ledger):
  return {kind: value for kind, value in ledger.seconds().items() if value}


def test_inner_seconds_are_not_counted_outside(path, fake):
  ledger = session(path, fake, startup=3)
  with ledger.measure('evaluation'):
    fake.sleep(10)
    with ledger.measure('compile'):
      fake.sleep(5)
    fake.sleep(1)
  fake.sleep(2)
  assert nonzero(ledger) == {'other': 5, 'evaluation': 11, 'compile': 5}
  assert ledger.spent('evaluation', 'compile') == 16
  assert ledger.summary()['wall'] == 21


def test_a_block_may_say_at_its_end_what_it_was(path, fake):
  ledger = session(path, fake)
  with ledger.measure('compute') as count_as:
    fake.sleep(2)
    count_as('data')
  with ledger.measure('compute'):
    fake.sleep(1)
  assert nonzero(ledger) == {'data': 2, 'compute': 1}


def test_without_a_path_nothing_is_written(path, fake):
  ledger = Ledger(None, clock=fake, start=fake.now)
  train(ledger, fake, [1, 2])
  ledger.rewind(1, {'compute': 5.0})
  ledger.save()
  assert nonzero(ledger) == {'compute': 2 + 5}
  assert not path.exists()


def test_a_raised_error_gives_the_outer_kind_back(path, fake):
  ledger = session(path, fake)

  @ledger.measure('data')
  def fail():
    fake.sleep(1)
    raise RuntimeError

  with pytest.raises(RuntimeError):
    fail()
  fake.sleep(2)
  assert nonzero(ledger) == {'data': 1, 'other': 2}


def test_kinds_sum_to_the_wall_clock(path):
  start = time.monotonic()
  ledger = Ledger(path, start=start)
  for step in range(1, 21):
    with ledger.measure('data'):
      time.sleep(0.002)
    with ledger.measure('compute'):
      time.sleep(0.01)
    ledger.finish_step(step)
  before = time.monotonic() - start
  summary = ledger.summary()
  after = time.monotonic() - start
  assert set(summary) == {*KINDS, 'wall'}
  assert before - 1e-6 < summary['wall'] < after + 1e-6
  assert summary['compute'] > 0.2
  assert summary['data'] > 0.04


def test_a_session_begins_with_its_process(path, tmp_path):
  program = (
    'import time; time.sleep(0.3)\n'
    'from pathlib import Path\n'
    'from lmjax.core.clock import Ledger\n'
    f'print(Ledger(Path({str(path)!r})).seconds()["other"])\n'
  )
  before = time.monotonic()
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, check=True)
  assert 0.3 <= float(done.stdout) <= time.monotonic() - before + 0.02
  assert process_start() <= time.monotonic()


def test_the_clock_does_not_import_jax():
  program = 'import sys, lmjax.core.clock, lmjax.core.metrics; sys.exit("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', program], check=False).returncode == 0


def test_the_file_is_about_a_second_behind_and_not_rewritten_more_often(path, fake):
  ledger = session(path, fake)
  contents = set()
  for step in range(1, 41):
    train(ledger, fake, [step], seconds=0.25)
    if path.exists():
      contents.add(path.read_text())
      saved = json.loads(path.read_text())
      assert step - saved['step'] <= 5
      assert fake.now - 100 - sum(saved['seconds'].values()) <= 1
  assert 9 <= len(contents) <= 10
  fake.sleep(0.5)
  ledger.save()
  assert json.loads(path.read_text()) == {'step': 40, 'seconds': ledger.seconds()}


def test_times_add_up_over_sessions(path, fake):
  first = session(path, fake, startup=2)
  train(first, fake, range(1, 6))
  checkpoint = first.seconds()
  first.save()
  fake.sleep(1000)  # between two sessions nothing runs
  second = session(path, fake, startup=3)
  second.rewind(5, checkpoint)
  train(second, fake, range(6, 9))
  assert nonzero(second) == {'other': 5, 'compute': 8}


def test_what_came_after_the_restored_checkpoint_is_lost_work(path, fake):
  first = session(path, fake, startup=2)
  train(first, fake, range(1, 6))
  checkpoint = first.seconds()
  train(first, fake, range(6, 10))
  with first.measure('evaluation'):
    fake.sleep(3)
  first.save()
  second = session(path, fake, startup=4)
  second.rewind(5, checkpoint)
  assert nonzero(second) == {'other': 6, 'compute': 5, 'lost_work': 7}


def test_repeated_kills_lose_each_session_once(path, fake):
  first = session(path, fake, startup=1)
  train(first, fake, range(1, 4))
  checkpoint = first.seconds()
  train(first, fake, range(4, 6))
  first.save()
  for _ in range(2):  # each gets one step beyond the checkpoint and dies
    later = session(path, fake, startup=1)
    later.rewind(3, checkpoint)
    train(later, fake, [4])
    later.save()
  last = session(path, fake, startup=1)
  last.rewind(3, checkpoint)
  # 1 + 3 seconds stand, 2 + (1 + 1) + (1 + 1) are lost, and this session's start-up is its own
  assert nonzero(last) == {'other': 2, 'compute': 3, 'lost_work': 6}


def test_a_kill_before_the_first_checkpoint_loses_all(path, fake):
  first = session(path, fake, startup=1)
  train(first, fake, range(1, 4))
  first.save()
  second = session(path, fake, startup=1)
  second.rewind(0, {})
  assert nonzero(second) == {'other': 1, 'lost_work': 4}


def test_a_checkpoint_newer_than_the_file_counts_as_it_says(path, fake):
  first = session(path, fake)
  train(first, fake, range(1, 4))
  first.save()
  train(first, fake, [4], seconds=0.5)  # not a second later: the file still says step 3
  checkpoint = first.seconds()
  second = session(path, fake)
  second.rewind(4, checkpoint)
  assert nonzero(second) == {'compute': 3.5}


def test_a_broken_ledger_is_refused_with_what_to_do(path):
  path.write_text('{"step": 3}')
  with pytest.raises(UserError, match='is not a ledger of seconds: delete it'):
    Ledger(path)


def test_pace_counts_the_last_steps_only(fake):
  pace = Pace(100, peak_tokens_per_second=4000, window=4, clock=fake)
  assert pace.metrics() == {}
  pace.finish_step(1, 500)
  assert pace.metrics() == {}
  fake.sleep(60)  # a slow step that leaves the window
  for step in range(2, 7):
    pace.finish_step(step, 500)
    fake.sleep(0.5)
  assert pace.metrics() == {'tokens_per_second': 1000, 'mfu': 0.25, 'seconds_left': 47}


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0.2, '0s'), (59.7, '1m 00s'), (125, '2m 05s'), (11239, '3h 07m'), (360000, '4d 04h')],
)
def test_durations_are_short(seconds, text):
  assert duration_text(seconds) == text


class FakeDevice:
  platform = 'gpu'

  def __init__(self, kind):
    self.device_kind = kind


@pytest.mark.parametrize(
  ('kind', 'flops'),
  [
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA H200', 989e12),
    ('NVIDIA B200', 2250e12),
    ('NVIDIA GB200', 2500e12),
  ],
)
def test_known_gpus_are_looked_up(monkeypatch, kind, flops):
  monkeypatch.setattr(jax, 'devices', lambda: [FakeDevice(kind)])
  monkeypatch.setattr(jax, 'device_count', lambda: 8)
  found, source = peak_flops.__wrapped__()
  assert found == 8 * flops
  assert 'data sheet' in source


def test_the_peak_of_a_cpu_is_measured_once():
  flops, source = peak_flops()
  assert 1e9 < flops < 1e14
  assert source == 'float32 matrix product of 1024^3, measured here'
  assert clock.peak_flops() is peak_flops()
