"""One run as several processes: the numbers of one process, and an end together whatever happens."""

import signal

import pytest
from runs import TIMEOUT, Run, at_step, at_text

KEYS = ('loss', 'gradient_norm')


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture
def new_run(cache, tmp_path):
  return lambda *flags: Run(tmp_path / 'run', cache, *flags)


@pytest.fixture(scope='module')
def one_process(tmp_path_factory, cache):
  """A run of one process with one device, whose programs the compilation cache has."""
  run = Run(tmp_path_factory.mktemp('one') / 'run', cache)
  run.finish('--stop_at=12')
  return run


def check_close(run, expected):
  """The metrics of the same steps, up to the order of sums."""
  assert [line['step'] for line in run.metrics] == [line['step'] for line in expected]
  for found, wanted in zip(run.metrics, expected, strict=True):
    assert found['tokens'] == wanted['tokens']
    for key in KEYS:
      assert found[key] == pytest.approx(wanted[key], rel=1e-5), key


def ended(processes):
  return [process.wait(TIMEOUT) for process in processes]


def last_line(run, process):
  return run.log_of(process).read_text().rstrip().split('\n')[-1]


def test_two_processes_compute_what_one_does(new_run, one_process):
  run = new_run()
  run.finish_together(2, '--mesh.data=2', '--stop_at=12')
  check_close(run, one_process.metrics)
  report, expected = run.report, one_process.report
  assert report['bits_per_byte'] == pytest.approx(expected['bits_per_byte'], rel=1e-5)
  assert report['steps'] == report['checkpoint']['step'] == 12
  for key in ('tokens', 'data', 'rows', 'params', 'baseline_bits_per_byte'):
    assert report[key] == expected[key], key
  assert 'step' not in run.log_of(1).read_text()  # the first alone prints


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(new_run):
  run = new_run('--mesh.data=2')
  with run.together(2) as processes:
    run.wait(processes[0], at_step(8))
    processes[1].send_signal(signal.SIGTERM)
    assert ended(processes) == [75, 75]
  assert 8 <= run.metrics[-1]['step'] == run.saved < 60
  assert f'saved at step {run.saved}' in run.log.read_text()


@pytest.mark.parametrize('killed', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_others_with_a_line(new_run, killed):
  run = new_run('--mesh.data=2', '--steps=5000', '--checkpoint.every_steps=5000')
  with run.together(2) as processes:
    run.wait(processes[0], at_step(3))
    processes[killed].kill()
    assert processes[1 - killed].wait(TIMEOUT) not in (0, 2, 75)
  said = run.log_of(1 - killed).read_text()
  assert f'lmjax: process {1 - killed}: process {killed} on ' in said
  assert 'ended without a word' in said


def test_a_process_with_other_flags_is_refused_by_name(new_run):
  run = new_run('--mesh.data=2')
  with run.together(2, own={1: '--seed=7'}) as processes:
    assert ended(processes) == [2, 2]
  for process in range(2):
    assert 'process 1 was started otherwise than process 0 (seed is 7, not 0)' in last_line(
      run, process
    )
  assert not (run.workdir / 'config.json').exists()


def test_what_the_first_process_refuses_ends_all(one_process):
  with one_process.together(2, '--mesh.data=2', '--seed=7') as processes:
    assert ended(processes) == [2, 2]
  assert last_line(one_process, 0).startswith('lmjax: process 0: ')
  for process in range(2):
    assert 'seed was 0, now 7' in last_line(one_process, process)


@pytest.mark.slow
def test_a_mesh_that_leaves_devices_out_is_refused(new_run):
  run = new_run('--mesh.data=2')
  with run.together(2, devices=2) as processes:
    assert ended(processes) == [2, 2]
  assert 'of this run have 4: pass mesh sizes whose product is 4' in last_line(run, 0)


@pytest.mark.slow
def test_processes_that_share_out_the_parameters_compute_what_one_does(new_run, cache, tmp_path):
  flags = ('--mesh.fsdp=2', '--mesh.tensor=2', '--stop_at=12', '--samples=2')
  one = Run(tmp_path / 'one', cache, *flags)
  one.finish(devices=4)
  run = new_run(*flags)
  run.finish_together(2, devices=2)
  check_close(run, one.metrics)
  assert run.report['samples'] == one.report['samples']


@pytest.mark.slow
def test_a_signal_before_the_first_step_ends_all(new_run, tmp_path):
  run = Run(tmp_path / 'run', tmp_path, '--mesh.data=2')  # an empty cache
  with run.together(2) as processes:
    run.wait(processes[0], at_text('every setting is in'))  # the step is compiled next
    processes[1].send_signal(signal.SIGTERM)
    assert ended(processes) == [75, 75], run.log_of(0).read_text() + run.log_of(1).read_text()
