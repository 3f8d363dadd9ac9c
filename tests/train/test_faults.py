"""Whatever stops a run, the same command goes on with it and ends where an unbroken one does.

Real processes, killed and signalled at moments drawn over the whole run. The 80 steps take seconds,
most of them in saves, as every fifth step is saved.
"""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from runs import Run, at_step, at_text, in_save, killed_at_last, wait_for
from small import POSTS

from lmjax.main import main

STEPS, EVERY = 80, 5
EVALUATING = at_text('evaluating on all held-out posts')


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory, cache):
  """A run that nothing stopped."""
  run = Run(tmp_path_factory.mktemp('unbroken') / 'run', cache)
  run.finish()
  return run


@pytest.fixture(scope='module')
def halfway(tmp_path_factory, cache):
  """A run that was told to stop after step 40; tests go on with copies of it."""
  run = Run(tmp_path_factory.mktemp('halfway') / 'run', cache)
  run.finish('--stop_at=40', '--profile_steps=10:15')
  return run


@pytest.fixture
def copy(halfway, cache, tmp_path):
  shutil.copytree(halfway.workdir, tmp_path / 'run')
  return Run(tmp_path / 'run', cache)


@pytest.fixture
def in_process(unbroken, cache, monkeypatch, capsys):
  """Runs the command here; its exit code and what it printed."""
  monkeypatch.setenv('LMJAX_CACHE', str(cache))

  def start(run, *flags):
    argv = ['main', '--experiment=small:small', f'--workdir={run.workdir}', *flags]
    code = main(argv)
    return code, ' '.join(capsys.readouterr())

  return start


def check_same(run: Run, unbroken: Run) -> None:
  """The run has ended as the unbroken one did, and each step is in its metrics exactly once."""
  assert [line['step'] for line in run.metrics] == list(range(1, STEPS + 1))
  assert run.metrics == unbroken.metrics
  for key in ('parameters_sha256', 'steps', 'tokens', 'loss', 'bits_per_byte', 'samples'):
    assert run.report[key] == unbroken.report[key], key
  check_ledger(run)


def check_ledger(run: Run) -> None:
  ledger = dict(run.report['ledger'])
  wall = ledger.pop('wall')
  assert sum(ledger.values()) == pytest.approx(wall, rel=0.01)
  assert all(seconds >= 0 for seconds in ledger.values())


def kill_and_look(run: Run, moment, after: float) -> tuple[int, float]:
  """Kills the run at `moment`; the last step it had saved, and the seconds to count as lost."""
  run.kill_at(moment, after=after)
  first = run.saved[-1] if run.saved else 0
  done = run.metrics[-1]['step'] if run.metrics else 0
  assert done - first < 2 * EVERY  # at most one save is under way
  return first, run.lost(first)


def resumed_at(text: str) -> int:
  """The step at which a start that printed `text` went on; 0 for none."""
  found = [line for line in text.splitlines() if line.startswith('resuming')]
  return int(found[0].split()[3]) if found else 0


def test_an_unbroken_run_accounts_for_every_second(unbroken):
  ledger = unbroken.report['ledger']
  assert ledger['lost_work'] == 0
  assert unbroken.report['seconds'] == ledger['wall']
  check_ledger(unbroken)


def test_five_kills_of_one_run_change_nothing(unbroken, cache, tmp_path):
  rng = random.Random(0)
  run = Run(tmp_path / 'run', cache)
  moments = [
    (at_step(rng.randint(1, EVERY - 1)), 0.0),  # before the first save
    (in_save(rng.randint(6, 20)), rng.uniform(0.0, 0.1)),
    (at_step(rng.randint(26, 50)), 0.0),
    (in_save(rng.randint(56, 75)), rng.uniform(0.0, 0.1)),
    (EVALUATING, rng.uniform(0.0, 0.3)),
  ]
  lost = 0.0
  for moment, after in moments:
    ...
