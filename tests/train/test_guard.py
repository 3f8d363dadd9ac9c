"""Signals to a process of its own whose main thread is in C, as in a compilation or a long step."""

import signal
import subprocess
import sys

import pytest

_SCRIPT = """
import sys
import numpy as np
from lmjax.train.guard import Guard

with Guard() as guard:
  for word in sys.argv[1:]:
    guard.defer() if word == 'defer' else guard.release('saved')
  print('ready', flush=True)
  np.linalg.svd(np.ones((6000, 6000)))  # a minute, without a look at signals
"""


@pytest.fixture
def start():
  processes = []

  def start(*words):
    command = [sys.executable, '-c', _SCRIPT, *words]
    process = subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=0
    )
    processes.append(process)
    assert process.stdout.readline() == 'ready\n'
    return process

  yield start
  for process in processes:
    process.kill()
    process.communicate()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('words', [(), ('defer', 'release')], ids=['before', 'after'])
def test_with_nothing_to_save_a_signal_exits_with_75(start, words, number):
  process = start(*words)
  process.send_signal(number)
  assert process.wait(300) == 75
  assert f'{number.name}: nothing to save here' in process.stderr.read()


def test_a_second_signal_exits_with_1(start):
  process = start('defer')
  process.send_signal(signal.SIGTERM)
  said = [process.stderr.readline() for _ in range(2)]
  assert said == ['\n', 'lmjax: SIGTERM: saving after this step; once more exits at once\n']
  process.send_signal(signal.SIGINT)
  assert process.wait(300) == 1
  assert 'SIGINT again: exiting at once' in process.stderr.read()
