"""What a user sees of a run of `python -m lmjax.main`: files, exit codes and one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TASKS = Path(__file__).parent / 'core'
NO_JAX = """
import sys, time
from lmjax.main import main
for words in (['--list'], ['--help'], ['--experiment=posts_tin'], ['--experiment=no.module:f'], []):
  main(['lmjax', *words])
heavy = {'jax', 'numpy', 'flax', 'optax', 'tensorboardX'} & set(sys.modules)
assert not heavy, heavy
assert not [name for name in sys.modules if name.startswith('experiments')]
assert time.process_time() < 1, time.process_time()
"""

HELP = """
import sys
from lmjax.main import main
main(['lmjax', '--experiment=posts_tiny', '--help'])
late = {'torch', 'boto3', 'tensorboardX', 'grain', 'orbax', 'pyarrow', 'jax.experimental.pallas'}
assert not late & set(sys.modules), late & set(sys.modules)
"""


@pytest.fixture
def start(tmp_path):
  """Starts `python -m lmjax.main` in a folder of its own."""

  def run(*args, command=('-m', 'lmjax.main')):
    env = os.environ | {'PYTHONPATH': f'{TASKS.parents[1]}{os.pathsep}{TASKS}'}
    return subprocess.run(
      [sys.executable, *command, *args], cwd=tmp_path, env=env, capture_output=True, text=True
    )

  return run


def read(path):
  return json.loads(path.read_text(encoding='utf-8'))


def assert_refused(done, *words):
  """Exit code 2 and one line on stderr with all of `words`."""
  assert done.returncode == 2, done.stderr
  assert done.stdout == ''
  assert done.stderr.startswith('lmjax: ')
  assert done.stderr.count('\n') == 1
  for word in words:
    assert word in done.stderr


def test_a_run_leaves_its_configuration_and_a_report_and_goes_on_in_its_workdir(start, tmp_path):
  folder = tmp_path / 'runs' / 'tiny'
  done = start('--experiment=tiny_tasks:tiny', '--width=3', '--present=none')
  assert (done.returncode, done.stderr) == (0, '')
  report = read(folder / 'report.json')
  assert (report['width'], report['experiment']) == (3, 'tiny_tasks:tiny')
  assert report['argv'][1:] == ['--experiment=tiny_tasks:tiny', '--width=3', '--present=none']
  assert (folder / 'ran').read_text() == '3'

  refused = start('--experiment=tiny_tasks:tiny', '--present=none')
  assert_refused(refused, 'runs/tiny', 'width was 3, now 8', 'pass the old values to continue it')

  saved = f'--config={folder / "config.json"}'
  assert start(saved, '--pace=7', '--exit=75').returncode == 75
  values = read(folder / 'config.json')['config']
  assert (values['width'], values['present'], values['pace']) == (3, 'none', 7)
  assert_refused(start(saved, '--width=4'), 'width was 3, now 4')
  assert_refused(start(saved, '--width=x'), '--width=x: expected an integer of 1 or more')


def test_a_task_that_does_not_resume_gets_a_new_folder(start, tmp_path):
  for _ in range(2):
    assert start('--experiment=tiny_tasks:once').returncode == 0
  reports = sorted((tmp_path / 'runs').glob('*/report.json'))
  assert [path.parent.name for path in reports] == ['once-0001', 'once-0002']


def test_a_mistake_ends_before_anything_is_written(start, tmp_path):
  assert_refused(start('--experiment=posts_tiny', '--model.heads=3'), '--model.heads=3', 'one of')
  assert_refused(start(), 'no experiment was named: pass --experiment=NAME')
  assert list(tmp_path.iterdir()) == []


def test_choosing_imports_no_jax_and_takes_well_under_a_second(start):
  done = start(command=('-c', NO_JAX))
  assert done.returncode == 0, done.stderr


def test_the_flags_of_a_run_are_shown_without_what_only_a_run_needs(start):
  done = start(command=('-c', HELP))
  assert done.returncode == 0, done.stderr


def test_a_folder_of_the_user_called_experiments_is_refused(start, tmp_path):
  (tmp_path / 'experiments').mkdir()
  (tmp_path / 'experiments' / '__init__.py').write_text('')
  told = (str(tmp_path / 'experiments'), 'run from another folder, or rename yours')
  assert_refused(start('--list'), *told)
  assert_refused(start('--experiment=posts_tiny'), *told)
  assert start('--experiment=tiny_tasks:once').returncode == 0


@pytest.mark.parametrize('flag', ['--list', '--help'])
def test_a_reader_that_has_seen_enough_hears_no_complaint(flag):
  reader, writer = os.pipe()
  os.close(reader)
  command = [sys.executable, '-m', 'lmjax.main', flag]
  done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
  os.close(writer)
  assert (done.returncode, done.stderr) == (0, '')


def test_an_interrupt_before_the_task_starts_leaves_no_traceback(start, tmp_path):
  done = start('--experiment=tiny_tasks:interrupted')
  assert (done.returncode, done.stderr) == (1, 'lmjax: interrupted\n')
  assert not (tmp_path / 'runs').exists()


def test_a_cuda_plugin_without_a_driver_is_quiet(tmp_path):
  """The test extra brings the plugin, to compile for GPUs that are not here."""
  environment = {name: value for name, value in os.environ.items() if name != 'JAX_PLATFORMS'}
  command = [
    sys.executable,
    '-m',
    'lmjax.main',
    '--experiment=posts_sample',
    '--checkpoint=nowhere',
  ]
  ended = subprocess.run(
    [*command, f'--workdir={tmp_path}'],
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert ended.returncode == 2
  assert ended.stderr.count('\n') == 1
