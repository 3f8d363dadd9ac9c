"""`tools/launch/local.py`: several processes on one machine, started and ended as one."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TIMEOUT = 300.0

# A task that meets its like, as training does, without the seconds that JAX takes to start.
TASK = """
import os, signal, sys, time
from typing import Literal
from lmjax.core.config import leaf, part
from lmjax.core.task import Task
from lmjax.parallel import rollcall
from lmjax.parallel.hosts import Hosts, find

rolls = []


class Meet(Task):
  hosts: Hosts = part(Hosts(), 'The processes.', run=True)
  then: Literal['end', 'wait', 'die'] = leaf('end', 'What to do; process 1 dies.')

  def connect(self):
    place = find(self.hosts, {})
    rolls.append((rollcall.answer if place.process else rollcall.call)(place, 30.0, 60.0))
    return place.process

  def leave(self, error):
    rolls[0].leave() if isinstance(error, SystemExit | None) else rolls[0].fail(error)

  def run(self, workdir):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print(f'here is {self.hosts.process}, flags {os.environ["XLA_FLAGS"]}', flush=True)
    if (self.then, self.hosts.process) == ('die', 1):
      os.kill(os.getpid(), signal.SIGKILL)
    while self.then != 'end':
      time.sleep(0.05)  # a pause in this thread would miss what another thread is sent
    return {}


def meet():
  return Meet()
"""


@pytest.fixture
def start(tmp_path):
  """Starts local.py; it is ended after the test, and it ends its processes."""
  (tmp_path / 'meeting.py').write_text(TASK)
  environment = {
    **os.environ,
    'PYTHONPATH': str(tmp_path),
    'XLA_FLAGS': '--xla_cpu_multi_thread_eigen=true',
  }
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  with contextlib.ExitStack() as stack:

    def run(*words):
      command = [sys.executable, str(ROOT / 'tools' / 'launch' / 'local.py'), *words]
      process = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
      stack.callback(process.communicate)
      stack.callback(process.terminate)
      return process

    yield run


def ended(process):
  out, error = process.communicate(timeout=TIMEOUT)
  return process.returncode, out, error


def test_all_get_the_flags_and_lines_of_others_carry_their_number(start):
  words = ('--processes=3', '--devices=2', '--', '--experiment=meeting:meet', '--workdir=run')
  code, out, error = ended(start(*words))
  assert (code, error) == (0, '')
  flags = 'flags --xla_cpu_multi_thread_eigen=true --xla_force_host_platform_device_count=2'
  expected = [f'[1] here is 1, {flags}', f'[2] here is 2, {flags}', f'here is 0, {flags}']
  assert sorted(out.splitlines()) == expected


def test_when_one_dies_all_end_and_its_code_is_the_result(start):
  words = ('--processes=3', '--', '--experiment=meeting:meet', '--workdir=run', '--then=die')
  code, out, error = ended(start(*words))
  assert code == 128 + signal.SIGKILL
  assert 'lmjax: process 0: process 1 on ' in error
  assert '[2] lmjax: process 2: ' in out


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_goes_to_all(start, number):
  words = ('--processes=2', '--', '--experiment=meeting:meet', '--workdir=run', '--then=wait')
  process = start(*words)
  seen = sorted(process.stdout.readline()[:13] for _ in range(2))
  assert seen == ['[1] here is 1', 'here is 0, fl']
  process.send_signal(number)
  code, out, error = ended(process)
  if number == signal.SIGTERM:
    assert code == 75  # all have saved
  else:
    assert code == 1
    assert 'interrupted' in out + error


@pytest.mark.parametrize(
  ('words', 'sentence'),
  [
    ((), 'local.py: the following arguments are required: --processes'),
    (
      ('--processes=two', '--', '--x'),
      "argument --processes: invalid int value: 'two': see --help",
    ),
    (('--processes=0', '--', '--x'), '--processes=1 or more and --devices=0 (as they are) or more'),
    (('--processes=2',), 'required: -- --experiment=NAME'),
  ],
)
def test_a_mistake_is_one_sentence(start, words, sentence):
  code, out, error = ended(start(*words))
  assert (code, out, error.count('\n')) == (2, '', 1)
  assert sentence in error


def test_help_shows_a_command(start):
  code, out, _ = ended(start('--help'))
  assert code == 0
  assert 'local.py --processes=4 -- --experiment=posts_tiny --mesh.data=4' in out
