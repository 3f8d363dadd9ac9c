"""The doctor says what is wrong with the machines of a run, and only that."""

import copy
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ports import free_port

from experiments.cluster import doctor
from lmjax.core import config
from lmjax.main import main
from lmjax.plan import machine, together
from lmjax.plan.doctor import judge

TIMEOUT = 300.0
# The second process comes to the sum and takes no part in it.
HALF = """
import sys
from lmjax.parallel import hosts
from lmjax.plan import together
process, port = map(int, sys.argv[1:])
hosts.Hosts(coordinator=f'localhost:{port}', processes=2, process=process, timeout=60.0).connect()
if process == 0:
  print(together.all_reduce(1000, 2.0))
else:
  hosts.barrier('doctor all-reduce')
hosts.barrier('end')
hosts.leave()
together.exit_where_stuck()
"""
NAMES = [
  'devices',
  'per host',
  'accelerator',
  'host names',
  'versions',
  'clocks',
  'shared folder',
  'compilation cache',
  'file locks',
  'disk',
  'memory',
  '/dev/shm',
  'all-reduce',
]
GPU = {'platform': 'gpu', 'driver': '580.65.06', 'cuda': '12', 'nccl': '2.27.3', 'shm': 32 * 10**9}


def start(workdir, *flags):
  room = ['--disk_gb=0', '--memory_gb=0', '--megabytes=0.1']
  return main(['lmjax', '--experiment=doctor', f'--workdir={workdir}', *room, *flags])


def read(workdir):
  return json.loads((workdir / 'report.json').read_text())


def wrong(report):
  return {check['name'] for check in report['checks'] if not check['ok']}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path / 'cache'))


def test_an_object_store_is_not_taken_for_a_folder(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert start(tmp_path / 'run', '--folder=s3://bucket/run') == 2
  assert '--folder=s3://bucket/run: only folders are checked' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_one_machine_is_well_and_gets_a_line_a_check(tmp_path, capsys):
  assert start(tmp_path / 'run', '--expected_devices=8', '--expected_per_host=8') == 0
  report = read(tmp_path / 'run')
  assert report['ok']
  assert [check['name'] for check in report['checks']] == NAMES
  assert all(check['fix'] == '' for check in report['checks'])
  _, *lines, last = capsys.readouterr().out.splitlines()
  assert [line[: len(name)] for line, name in zip(lines, NAMES, strict=True)] == NAMES
  assert last == 'all is well'
  assert list((tmp_path / 'run').glob('.doctor*')) == []


def test_what_is_wrong_is_printed_with_what_to_do_and_the_exit_code_is_1(tmp_path, capsys):
  flags = ['--expected_devices=9', '--expected_per_host=4', '--disk_gb=1e9', '--memory_gb=1e9']
  assert start(tmp_path / 'run', *flags, '--bandwidth_gb=1e6') == 1
  report = read(tmp_path / 'run')
  assert not report['ok']
  names = {'devices', 'per host', 'disk', 'memory', 'all-reduce'}
  assert wrong(report) == names
  lines = capsys.readouterr().out.splitlines()
  assert 'pass --expected_devices=8' in lines[1]
  assert lines[-1] == 'wrong: devices, per host, disk, memory, all-reduce'
  assert all(check['fix'] for check in report['checks'] if check['name'] in names)


def run_two(command, folder):
  """Runs `command(process, port)` as two processes, each in its own folder; their ends and output."""
  port = free_port()
  processes = []
  for number in range(2):
    home = folder / f'machine-{number}'
    home.mkdir()
    environment = os.environ | {'XLA_FLAGS': '', 'LMJAX_CACHE': str(home / 'cache')}
    environment['PYTHONPATH'] = str(Path(__file__).parents[2])
    processes.append(
      subprocess.Popen(
        [sys.executable, *command(number, port)],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  try:
    said = [process.communicate(timeout=TIMEOUT) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [process.returncode for process in processes], said


@pytest.mark.slow
def test_two_processes_that_share_no_folder_and_no_cache_are_told_so(tmp_path):
  flags = ['--experiment=doctor', '--deadline=6', '--disk_gb=0', '--memory_gb=0', '--megabytes=0.1']
  flags += [f'--workdir={tmp_path / "run"}', '--folder=here', '--hosts.processes=2']

  def command(process, port):
    return [
      '-m',
      'lmjax.main',
      *flags,
      f'--hosts.process={process}',
      f'--hosts.coordinator=localhost:{port}',
    ]

  ends, said = run_two(command, tmp_path)
  assert ends == [1, 1], said
  report = read(tmp_path / 'run')
  assert wrong(report) == {'shared folder', 'compilation cache', 'file locks'}
  told = {check['name']: check['found'] for check in report['checks']}
  assert told['shared folder'] == 'here: seen in process 0; not seen in process 1'
  assert told['devices'].startswith('2 x cpu')
  assert 'check' not in said[1][0]  # the first process speaks for all


def test_a_sum_that_one_process_never_joins_is_told_and_holds_nobody(tmp_path):
  ends, said = run_two(lambda process, port: ['-c', HALF, str(process), str(port)], tmp_path)
  assert ends == [1, 0], said
  assert said[0][0].splitlines()[-1] == str({'failed': 'stuck for 2 s'})


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """What a machine found, twice: as two machines of one kind would."""
  folder = tmp_path_factory.mktemp('folder')
  one = {
    **machine.look(folder),
    'folder': together.visit(folder, 'folder', 5.0),
    'cache': together.visit(folder, 'cache', 5.0),
    'clock': together.read_clock(5.0),
    'all_reduce': together.all_reduce(1000, TIMEOUT),
    **chip(),
  }
  return [one, {**copy.deepcopy(one), 'host': 'other', 'boot': 'another'}]


def chip(**changes):
  return {
    'chips': {'each': [{'flops': 8e14, 'bytes': 3e12, 'errors': {'attention': 0.004}} | changes]}
  }


def wrongs(found, changes=None, **flags):
  """Check -> what it found, of those that are wrong once the second machine has `changes`."""
  task = config.override(doctor(), {'disk_gb': 0, 'memory_gb': 0, **flags})
  seen = [found[0], {**found[1], **(changes or {})}]
  return {check.name: check.found for check in judge(task, seen) if not check.ok}


def test_two_machines_of_one_kind_are_well(found):
  assert wrongs(found) == {}
  assert wrongs([one | GPU for one in found]) == {}


@pytest.mark.parametrize(
  ('changes', 'name', 'told'),
  [
    ({'platform': 'gpu'} | GPU, 'accelerator', 'cpu in process 0; gpu in process 1'),
    ({'driver': '535.1'}, 'accelerator', 'cpu beside an NVIDIA driver in process 1'),
    ({'local_devices': 7}, 'per host', '7 on other'),
    ({'versions': {'python': '3.11.0'}}, 'versions', 'python '),
    ({'disk_free': 10**9}, 'disk', '1.0 GB free on other'),
    ({'memory_free': 10**9}, 'memory', '1.0 GB free on other'),
    ({'folder': {'path': 'f', 'seen': 'seen', 'lock': 'not held'}}, 'file locks', 'not held in'),
    ({'all_reduce': {'failed': 'stuck for 60 s'}}, 'all-reduce', 'stuck for 60 s in process 1'),
  ],
)
def test_a_machine_that_differs_is_named(found, changes, name, told):
  said = wrongs(found, changes, disk_gb=2, memory_gb=2)
  assert told in said[name]


@pytest.mark.parametrize(
  ('changes', 'name', 'told'),
  [
    ({'driver': '515.4'}, 'driver', '515.4 in process 1'),
    ({'cuda': '13', 'driver': '575.1'}, 'driver', '575.1 in process 1'),
    ({'nccl': '2.26.2'}, 'NCCL', '2.26.2 in process 1'),
    ({'shm': 64 * 2**20}, '/dev/shm', '0.07 GB'),
    (chip(flops=4e14), 'product', '600 TFLOP/s; 400 on device 0 of other'),
    (chip(bytes=1e12), 'memory read', '2 TB/s; 1 on device 0 of other'),
    (chip(errors={'attention': 0.5}), 'kernels', '0.5 off the reference at most, attention on'),
    (chip(errors={'attention': float('nan')}), 'kernels', 'nan off the reference'),
    (
      {'chips': {'failed': 'XlaRuntimeError: no'}},
      'arithmetic',
      'XlaRuntimeError: no in process 1',
    ),
  ],
)
def test_a_gpu_machine_that_differs_is_named(found, changes, name, told):
  said = wrongs([one | GPU for one in found], changes)
  assert list(said) == [name]
  assert told in said[name]


def test_two_machines_of_one_name_are_told_apart(found):
  said = wrongs(found, {'host': found[0]['host']})
  assert said == {'host names': f'{found[0]["host"]} on 2 machines'}


def test_a_clock_is_wrong_by_more_than_the_exchange_can_be(found):
  clock = found[0]['clock']
  late = {'clock': clock | {'after': [time + 5 for time in clock['after']]}}
  assert 'process 1 is 5.0' in wrongs(found, late)['clocks']
  assert wrongs(found, late, clock_seconds=6) == {}
  slow = {'clock': late['clock'] | {'took': [10.0] * len(clock['took'])}}
  assert wrongs(found, slow) == {}


def test_the_skew_of_clocks_comes_from_the_quickest_round():
  first = {'after': [10.0, 20.0, 30.0], 'took': [5.0, 0.2, 0.1]}
  other = {'after': [14.0, 21.0, 30.5], 'took': [0.1, 0.1, 0.3]}
  seconds, within = together.skew(first, other)
  assert (seconds, within) == (1.0, 0.2)


def test_a_sum_that_does_not_end_or_fails_is_told():
  never = threading.Event()
  assert together.within(0.1, lambda: {'waited': never.wait()}) == {'failed': 'stuck for 0.1 s'}
  never.set()
  assert together.within(TIMEOUT, lambda: 1 / 0) == {
    'failed': 'ZeroDivisionError: division by zero'
  }  # type: ignore
  assert together.within(TIMEOUT, lambda: {'done': 1}) == {'done': 1}


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
  (tmp_path / 'file').write_text('')
  found = together.visit(tmp_path / 'file' / 'folder', 'folder', 5.0)
  assert found['seen'] == 'cannot be written (Not a directory)'


@pytest.mark.parametrize(
  ('text', 'version'),
  [
    ('NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19', '535.104.05'),
    ('NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release', '575.57.08'),
    ('', None),
  ],
)
def test_the_driver_says_its_version(text, version):
  assert machine.driver(text) == version


def test_a_container_has_the_memory_that_its_group_leaves_it(tmp_path):
  for name, text in {
    'meminfo': 'MemTotal: 9 kB\nMemAvailable:    8 kB\n',
    'memory.max': 'max\n',
  }.items():
    (tmp_path / name).write_text(text)
  assert machine.memory_free(tmp_path, tmp_path) == 8192
  (tmp_path / 'memory.max').write_text('6000\n')
  (tmp_path / 'memory.current').write_text('5000\n')
  (tmp_path / 'memory.stat').write_text('anon 1000\ninactive_file 4000\n')
  assert machine.memory_free(tmp_path, tmp_path) == 5000
