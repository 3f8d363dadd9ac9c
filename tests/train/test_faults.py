"""Whatever stops a run, the same command goes on with it and ends where an unbroken one does.

Real processes, killed and signalled at moments drawn over the whole run. Its 60 steps take a few
seconds, most of them in saves, as every fifth step is saved.
"""

import random
import shutil
import signal
from pathlib import Path

import pytest
from runs import TIMEOUT, Run, at_ledger, at_once, at_step, at_text, in_save, resumed_at
from small import POSTS

from lmjax.main import main

STEPS, EVERY = 60, 5
HEADER = at_text('workdir')  # its end; the step is compiled next
EVALUATING = at_text('evaluating on all held-out posts')


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def posts(cache):
  return Path(shutil.copy(POSTS, cache))


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory, cache, posts):
  """A run that nothing stopped."""
  run = Run(tmp_path_factory.mktemp('unbroken') / 'run', cache, f'--posts={posts}')
  run.finish()
  return run


@pytest.fixture(scope='module')
def halfway(tmp_path_factory, cache, posts):
  """A run that stopped after step 40 as it was told to."""
  run = Run(tmp_path_factory.mktemp('halfway') / 'run', cache, f'--posts={posts}')
  run.finish('--stop_at=40', '--checkpoint.keep_latest=3', '--profile_steps=10:15')
  return run


@pytest.fixture
def new_run(cache, posts, tmp_path):
  """A run that is still to begin, with `flags` in each start."""
  return lambda *flags: Run(tmp_path / 'run', cache, f'--posts={posts}', *flags)


@pytest.fixture
def copy(halfway, new_run, tmp_path):
  """A copy of `halfway` to go on with."""
  shutil.copytree(halfway.workdir, tmp_path / 'run')
  return new_run()


@pytest.fixture
def refuse(cache, monkeypatch, capsys):
  """Starts the command in this process and returns the sentence with which it is refused."""
  monkeypatch.setenv('LMJAX_CACHE', str(cache))

  def start(run, *flags):
    argv = ['main', '--experiment=small:small', f'--workdir={run.workdir}', *run.flags, *flags]
    assert main(argv) == 2
    return capsys.readouterr().err

  return start


def check_same(run, unbroken):
  """The run has ended as the unbroken one did, and each step is in its metrics once."""
  assert [line['step'] for line in run.metrics] == list(range(1, STEPS + 1))
  assert run.metrics == unbroken.metrics
  for key in ('parameters_sha256', 'steps', 'tokens', 'loss', 'bits_per_byte'):
    assert run.report[key] == unbroken.report[key], key
  check_ledger(run)


def check_ledger(run):
  seconds = dict(run.report['ledger'])
  wall = seconds.pop('wall')
  assert min(seconds.values()) >= 0
  assert sum(seconds.values()) == pytest.approx(wall, rel=0.01)


def kill(run, moment, after):
  """Kills a start of the run; the step from which it went on, and the last one saved now."""
  began = resumed_at(run.kill_at(moment, after=after))
  assert len(run.metrics) - run.saved <= 2 * EVERY  # one save is under way at most
  return began, run.saved


def test_an_unbroken_run_accounts_for_every_second(unbroken):
  check_ledger(unbroken)
  assert unbroken.report['ledger']['lost_work'] == 0
  assert unbroken.report['seconds'] == unbroken.report['ledger']['wall']


def check_kills(run, unbroken, moments):
  """Kills a new run at each of the moments in turn, and then has it end."""
  saved = 0
  for moment, after in moments:
    began, now = kill(run, moment, after)
    assert began == saved
    saved = now
  assert resumed_at(run.finish()) == saved
  check_same(run, unbroken)


def test_kills_of_one_run_change_nothing(unbroken, new_run):
  rng = random.Random(0)
  moments = (
    (at_step(1), 0.0),  # before the first save
    (in_save(rng.randint(6, 20)), rng.uniform(0.0, 0.1)),
    (at_step(rng.randint(36, 44)), rng.uniform(0.0, 0.1)),
  )
  check_kills(new_run(), unbroken, moments)


def draw_moments(seed):
  """Five moments over the whole life of a run: starting, twice saving, stepping, evaluating."""
  rng = random.Random(seed)
  return (
    (at_once, rng.uniform(0.0, 2.5)),
    (in_save(rng.randint(1, 12)), rng.uniform(0.0, 0.1)),
    (at_step(rng.randint(28, 34)), rng.uniform(0.0, 0.1)),
    (in_save(rng.randint(46, 55)), rng.uniform(0.0, 0.1)),
    (EVALUATING, rng.uniform(0.0, 0.3)),
  )


@pytest.mark.slow
@pytest.mark.parametrize('moments', [draw_moments(seed) for seed in range(1, 5)], ids=range(1, 5))
def test_a_kill_at_any_moment_changes_nothing(moments, unbroken, new_run):
  check_kills(new_run(), unbroken, moments)


@pytest.mark.slow
def test_what_a_kill_lost_is_counted_as_lost_work(new_run):
  run = new_run('--steps=2000', '--checkpoint.every_steps=1000')
  run.kill_at(at_ledger(1))
  assert resumed_at(run.finish('--stop_at=3')) == 0
  check_ledger(run)
  ledger = run.report['ledger']
  assert ledger['lost_work'] > 2  # all that the killed process did
  assert [line['step'] for line in run.metrics] == [1, 2, 3]


def test_signals_stop_a_run_where_it_is_and_change_nothing(unbroken, new_run):
  run = new_run()
  for number, step in ((signal.SIGTERM, 23), (signal.SIGINT, 45)):
    run.signal_at(at_step(step), number, code=75)
    assert step <= run.metrics[-1]['step'] == run.saved < STEPS
  assert run.signal_at(EVALUATING, signal.SIGTERM, code=75) < 2
  assert run.saved == STEPS
  run.finish()
  check_same(run, unbroken)


def test_a_signal_before_the_first_step_exits_at_once(tmp_path):
  run = Run(tmp_path / 'run', tmp_path)  # an empty cache
  assert run.signal_at(at_text('reading posts'), signal.SIGTERM, code=75) < 2
  assert run.signal_at(HEADER, signal.SIGINT, code=75) < 2
  assert run.saved == 0


def test_a_second_signal_does_not_wait_for_the_save(new_run):
  run = new_run()
  with run.start() as process:
    run.wait(process, in_save(20))
    process.send_signal(signal.SIGTERM)
    run.wait(process, at_text('once more exits at once'))
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT) == 1
  assert 'saved at step' not in run.log.read_text()


def test_a_run_stops_where_it_is_told_on_the_way_of_an_unbroken_one(halfway, unbroken):
  assert halfway.report['steps'] == halfway.report['checkpoint']['step'] == 40
  assert halfway.metrics == unbroken.metrics[:40]


def test_damaged_checkpoints_are_passed_over_with_a_warning(copy, unbroken):
  largest = max(copy.checkpoints.glob('40/state/**/*'), key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  (copy.checkpoints / '35' / 'checksums.json').unlink()
  text = copy.finish()
  for step in (40, 35):
    assert f'passing over checkpoint {copy.checkpoints / str(step)}: ' in text
  assert resumed_at(text) == 30
  check_same(copy, unbroken)


def test_the_steps_to_profile_leave_a_trace(halfway):
  assert len(list((halfway.workdir / 'profile').glob('**/*.xplane.pb'))) == 1


def test_run_leaves_may_change_between_starts(copy, unbroken):
  flags = ('--checkpoint.every_steps=9', '--mesh.data=2', '--model.layout=list', '--stop_at=46')
  assert resumed_at(copy.finish(*flags, devices=2)) == 40
  assert (copy.checkpoints / '45').exists()
  found, expected = (run.metrics[40:46] for run in (copy, unbroken))
  assert [line['tokens'] for line in found] == [line['tokens'] for line in expected]
  for one, other in zip(found, expected, strict=True):
    assert one['loss'] == pytest.approx(other['loss'], rel=1e-5)


def test_a_finished_run_says_so_and_stays_as_it_is(unbroken, capsys):
  names = ('report.json', 'metrics.jsonl', 'ledger.json', 'checkpoints')
  times = lambda: [(unbroken.workdir / name).stat().st_mtime_ns for name in names]
  before = times()
  argv = ['main', '--experiment=small:small', f'--workdir={unbroken.workdir}', *unbroken.flags]
  assert main(argv) == 0
  shown = capsys.readouterr().out
  assert 'This run is finished, at step 60.' in shown
  assert f'{unbroken.report["bits_per_byte"]:.3f}' in shown
  assert times() == before


def test_a_changed_identity_leaf_is_refused_by_name(unbroken, refuse):
  said = refuse(unbroken, '--model.width=64', '--seed=1')
  assert 'seed was 0, now 1; model.width was 32, now 64' in said
  assert 'pass the old values to continue it, or another --workdir' in said


def test_changed_posts_are_refused(copy, refuse, posts):
  tokenizer = (copy.workdir / 'tokenizer.json').read_bytes()
  before = posts.read_text()
  posts.write_text(before.replace('coffee', 'kaffee'))
  try:
    assert 'the posts have changed since' in refuse(copy)
  finally:
    posts.write_text(before)
  assert (copy.workdir / 'tokenizer.json').read_bytes() == tokenizer


def test_a_second_process_in_one_workdir_is_refused(new_run, refuse):
  run = new_run()
  with run.start() as process:
    run.wait(process, HEADER)
    said = refuse(run)
    assert f'{run.workdir} is in use by another process (process {process.pid} of' in said
    assert process.poll() is None
