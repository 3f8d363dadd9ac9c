import io
import json
import signal
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from lmjax.core.config import leaves
from lmjax.core.metrics import Jsonl, Tee, TensorBoard, Terminal, Writers, progress


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'metrics.jsonl'


def test_each_step_is_a_line_of_plain_numbers(path):
  with closing(Jsonl(path)) as writer:
    writer.write(1, {'loss': np.float32(2.5), 'tokens': 1024, 'mfu': float('nan')})
  assert path.read_text() == '{"step": 1, "loss": 2.5, "tokens": 1024, "mfu": null}\n'


@pytest.mark.parametrize('rest', ['', '{"step": 6, "lo', '{"step": 6, "loss": 1.0}', '\0\0\0\n'])
def test_rewind_leaves_each_step_once(path, rest):
  with closing(Jsonl(path)) as writer:
    for step in range(1, 6):
      writer.write(step, {'loss': step})
  with path.open('a') as file:
    file.write(rest)
  with closing(Jsonl(path)) as resumed:
    resumed.rewind(3)
    for step in range(4, 7):
      resumed.write(step, {'loss': -step})
  assert [line['step'] for line in read(path)] == [1, 2, 3, 4, 5, 6]
  assert [line['loss'] for line in read(path)] == [1, 2, 3, -4, -5, -6]


def test_rewind_to_the_last_step_drops_only_a_broken_line(path):
  path.write_text('{"step": 1}\n{"step": 2}\n{"st')
  with closing(Jsonl(path)) as writer:
    writer.rewind(2)
  assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_killed_process_loses_no_line(path):
  program = (
    'import os, sys, signal\n'
    'from pathlib import Path\n'
    'from lmjax.core.metrics import Jsonl\n'
    f'writer = Jsonl(Path({str(path)!r}))\n'
    'for step in range(1, 101): writer.write(step, {"loss": 1 / step})\n'
    'os.kill(os.getpid(), signal.SIGKILL)\n'
  )
  done = subprocess.run([sys.executable, '-c', program], check=False)
  assert done.returncode == -signal.SIGKILL
  assert [line['step'] for line in read(path)] == list(range(1, 101))


class Screen(io.StringIO):
  def __init__(self, is_terminal):
    super().__init__()
    self.is_terminal = is_terminal

  def isatty(self):
    return self.is_terminal


class FakeClock:
  now = 0.0

  def __call__(self):
    return self.now


METRICS = {'loss': 3.2145, 'tokens_per_second': 12400.4, 'mfu': 0.412, 'seconds_left': 100.0}
LINE = 'step 1,200/1,500  loss 3.215  12,400 tokens/s  MFU 41.2%  ETA 1m 40s'


def run_terminal(is_terminal, seconds_a_step, steps, last=None, **extra):
  """What a run of `steps` steps that stops after `last` leaves on the screen."""
  screen, clock = Screen(is_terminal), FakeClock()
  terminal = Terminal(steps, stream=screen, clock=clock)
  for step in range(1, (last or steps) + 1):
    terminal.write(step, {'loss': float(step), **extra.get(f'at_{step}', {})})
    clock.now += seconds_a_step
  terminal.close()
  return screen.getvalue()


def test_the_progress_line_shows_what_there_is(monkeypatch):
  monkeypatch.setenv('COLUMNS', '200')
  screen = Screen(True)
  terminal = Terminal(1500, stream=screen)
  terminal.write(1200, METRICS)
  assert screen.getvalue() == f'\r{LINE}\x1b[K'
  terminal.close()
  assert screen.getvalue() == f'\r{LINE}\x1b[K\n'


def test_a_narrow_terminal_never_wraps(monkeypatch):
  monkeypatch.setenv('COLUMNS', '30')
  screen = Screen(True)
  Terminal(1500, stream=screen).write(1200, METRICS)
  assert screen.getvalue() == f'\r{LINE[:29]}\x1b[K'


def test_a_terminal_is_rewritten_ten_times_a_second_at_most():
  written = run_terminal(True, 0.02, 100)
  assert written.count('\r') == 20 + 1
  assert written.count('\n') == 1
  assert 'step 100/100' in written


def test_without_a_terminal_there_is_a_line_every_ten_seconds_and_at_the_end():
  lines = run_terminal(False, 1.0, 35).splitlines()
  assert lines == [
    'step 1/35  loss 1.000',
    'step 11/35  loss 11.000',
    'step 21/35  loss 21.000',
    'step 31/35  loss 31.000',
    'step 35/35  loss 35.000',
  ]


def test_a_run_that_stops_early_shows_its_last_step():
  assert run_terminal(False, 1.0, 35, last=5).splitlines()[-1] == 'step 5/35  loss 5.000'


@pytest.mark.parametrize('is_terminal', [True, False])
def test_evaluations_keep_a_line_of_their_own(is_terminal):
  results = {'held_out/bits_per_byte': 2.01239, 'held_out/loss': 3.5}
  written = run_terminal(is_terminal, 0.01, 10, at_4=results)
  line = 'step 4  held out: bits per byte 2.0124, loss 3.5000'
  assert (f'\r{line}\x1b[K\n' if is_terminal else f'\n{line}\n') in written


def test_nothing_written_shows_nothing():
  screen = Screen(True)
  Terminal(10, stream=screen).close()
  assert screen.getvalue() == ''


def events(folder):
  """(step, scalars) of every event, file by file."""
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      event = Event.FromString(data[12 : 12 + size])
      yield event, {value.tag: value.simple_value for value in event.summary.value}
      data = data[16 + size :]


def test_tensorboard_hides_what_a_resumed_run_repeats(tmp_path):
  first = TensorBoard(tmp_path)
  for step in (1, 2, 3):
    first.write(step, {'loss': float(step)})
  first.close()
  resumed = TensorBoard(tmp_path)
  resumed.rewind(2)
  resumed.write(3, {'loss': -3.0, 'held_out/loss': 1.0})
  resumed.close()
  found = list(events(tmp_path))
  assert [(event.step, scalars) for event, scalars in found if scalars] == [
    (1, {'loss': 1.0}),
    (2, {'loss': 2.0}),
    (3, {'loss': 3.0}),
    (3, {'loss': -3.0}),
    (3, {'held_out/loss': 1.0}),
  ]
  starts = [event.step for event, _ in found if event.HasField('session_log')]
  assert starts == [3]


def test_scalars_for_tensorboard_import_neither_torch_nor_boto3_and_leave_them_to_others(tmp_path):
  program = (
    'import sys\n'
    'from pathlib import Path\n'
    'from lmjax.core.metrics import TensorBoard\n'
    f'writer = TensorBoard(Path({str(tmp_path)!r}))\n'
    'writer.write(1, {"loss": 0.5})\n'
    'writer.close()\n'
    'assert not {"torch", "boto3"} & set(sys.modules)\n'
    'import boto3\n'
  )
  subprocess.run([sys.executable, '-c', program], check=True)
  assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('tensorboard', [True, False])
def test_the_configuration_chooses_the_writers(tmp_path, tensorboard, capsys):
  with Writers(tensorboard=tensorboard).build(tmp_path, 2) as writers:
    writers.rewind(0)
    writers.write(1, {'loss': 2.0})
    writers.write(2, {'loss': 1.0})
  assert (tmp_path / 'tensorboard').exists() == tensorboard
  assert [line['loss'] for line in read(tmp_path / 'metrics.jsonl')] == [2.0, 1.0]
  assert capsys.readouterr().out.splitlines()[-1] == 'step 2/2  loss 1.000'


def test_a_tee_of_none_writes_nowhere(capsys):
  with Tee() as writers:
    writers.rewind(0)
    writers.write(1, {'loss': 2.0})
  assert capsys.readouterr().out == ''


def test_writers_may_change_between_starts():
  assert all(leaf.run for leaf in leaves(Writers()))


def test_progress_is_told_at_each_tenth_with_the_time_left():
  told = []
  show = progress('pairs', told.append)
  for _ in range(40):
    show(1, 40)
  assert [line.split(',')[0] for line in told] == [f'{4 * n} of 40 pairs' for n in range(1, 11)]
  assert all(', ETA ' in line for line in told[:-1])
  assert told[-1] == '40 of 40 pairs'
