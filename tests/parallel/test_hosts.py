"""How processes find each other, what they are told when it goes wrong, and that no wait is endless."""

import ast
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

from lmjax.core.errors import UserError
from lmjax.parallel.hosts import (
  Hosts,
  allotted,
  devices_sentence,
  find,
  first_node,
  local_device_ids,
)
from lmjax.parallel.rollcall import Place

LIBRARY = Path(__file__).parents[2] / 'lmjax'
TIMEOUT = 300.0

# A process that takes part in a roll of call and then does as it is told; loads no JAX.
ROLL = """
import json, os, signal, sys
from lmjax.core.errors import UserError
from lmjax.parallel.rollcall import Place, answer, call

port, processes, process, seconds, then = sys.argv[1:]
place = Place('127.0.0.1', int(port), int(processes), int(process))
try:
  roll = (answer if place.process else call)(place, float(seconds), float(os.environ.get('SILENCE', 60)))
except UserError as error:
  print(error)
  sys.exit(2)
print(f'all {len(roll.hosts)} are here', flush=True)
if then == 'die':
  os.kill(os.getpid(), signal.SIGKILL)
if then == 'freeze':
  os.kill(os.getpid(), signal.SIGSTOP)
if then == 'fail':
  roll.fail(UserError('the disk is full'))
if then == 'save':
  roll.end(75, 'SIGTERM')
roll.leave()
"""

SHARE = """
import sys
from lmjax.core.errors import UserError
from lmjax.parallel import hosts
from lmjax.parallel.hosts import Hosts

here = Hosts(coordinator=f'127.0.0.1:{sys.argv[1]}', processes=2, process=int(sys.argv[2]))
number = here.connect({'seed': 1, 'hosts.process': here.process})
for word in 'abc':
  print(hosts.share('words', f'{word}{number}'), flush=True)
hosts.barrier('all')
try:
  if number == 0:
    hosts.barrier('lonely', 0.5)
except UserError as error:
  print(error)
try:
  hosts.check_equal('the posts', str(number), 'give all the same')
except UserError as error:
  print(error)
print(hosts.count(), hosts.index(), hosts.is_leader(), hosts.share('end', str(number)))
hosts.leave()
"""


@pytest.fixture
def port():
  return free_port()


@pytest.fixture
def start(port):
  """Starts a process that runs `source` with the port and `words`; it is killed after the test."""
  with contextlib.ExitStack() as stack:

    def run(source, *words):
      command = [sys.executable, '-c', source, str(port), *map(str, words)]
      environment = {**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
      pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
      process = subprocess.Popen(command, env=environment, **pipes)
      stack.callback(process.communicate)
      stack.callback(process.kill)
      return process

    yield run


def ended(process):
  """Its exit code, and what it printed."""
  out, error = process.communicate(timeout=TIMEOUT)
  return process.returncode, out + error


SLURM = {
  'SLURM_JOB_ID': '5000',
  'SLURM_NTASKS': '16',
  'SLURM_PROCID': '3',
  'SLURM_STEP_NODELIST': 'gpu[007-008,12]',
  'SLURM_STEP_NUM_NODES': '2',
}
OPEN_MPI = {
  'OMPI_COMM_WORLD_SIZE': '4',
  'OMPI_COMM_WORLD_RANK': '2',
  'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911',
}
KUBERNETES = {
  'LMJAX_COORDINATOR': 'run-0.run:1234',
  'LMJAX_PROCESSES': '8',
  'JOB_COMPLETION_INDEX': '7',
}


@pytest.mark.parametrize(
  ('environment', 'place'),
  [
    ({}, None),
    (SLURM, Place('gpu007', 61440 + 5000 - 4096, 16, 3)),
    ({**SLURM, 'SLURM_NTASKS': '1'}, None),
    (OPEN_MPI, Place('10.96.0.1', 61440 + (1531576320 >> 12) % 4096, 4, 2)),
    (KUBERNETES, Place('run-0.run', 1234, 8, 7)),
    ({**KUBERNETES, 'LMJAX_PROCESSES': '1'}, None),
  ],
  ids=['alone', 'slurm', 'slurm of one', 'open mpi', 'kubernetes', 'kubernetes of one'],
)
def test_processes_are_found_in_the_environment(environment, place):
  assert find(Hosts(), environment) == place


def test_flags_win_over_the_environment():
  assert find(Hosts(coordinator='a:1', process=0), SLURM) == Place('a', 1, 16, 0)
  assert find(Hosts(processes=1), SLURM) is None
  assert find(Hosts(coordinator='[::1]:5', processes=2, process=1), {}) == Place('[::1]', 5, 2, 1)


@pytest.mark.parametrize(
  ('nodes', 'first'),
  [('a', 'a'), ('a,b', 'a'), ('n[001-015],x', 'n001'), ('n[7,9]', 'n7'), ('a-b[3]', 'a-b3')],
)
def test_the_first_node_of_a_list_is_the_coordinator(nodes, first):
  assert first_node(nodes) == first


@pytest.mark.parametrize(
  ('flags', 'environment', 'sentence'),
  [
    ({'processes': 4}, {}, 'processes=4 is known, from flags: pass --hosts.coordinator and --h'),
    ({'coordinator': 'a:1'}, {}, 'pass --hosts.processes and --hosts.process too, or none'),
    ({}, {**OPEN_MPI, 'OMPI_MCA_orte_hnp_uri': ''}, 'Open MPI: pass --hosts.coordinator too'),
    ({}, {**KUBERNETES, 'JOB_COMPLETION_INDEX': '8'}, 'process 8 is not one of 8 processes'),
    ({}, {**KUBERNETES, 'JOB_COMPLETION_INDEX': ''}, 'JOB_COMPLETION_INDEX=: expected a whole num'),
    ({}, {**KUBERNETES, 'LMJAX_PROCESSES': 'two'}, 'LMJAX_PROCESSES=two: expected a whole number'),
    ({}, {**KUBERNETES, 'LMJAX_COORDINATOR': 'a'}, 'LMJAX_COORDINATOR=a: expected HOST:PORT'),
    ({}, {**KUBERNETES, 'LMJAX_COORDINATOR': 'a:65536'}, 'a:65536: expected .* a port up to 65535'),
    (
      {'coordinator': 'localhost:1'},
      SLURM,
      r"run on 2 nodes: pass the name .* of process 0's host",
    ),
  ],
)
def test_what_contradicts_or_does_not_suffice_is_refused(flags, environment, sentence):
  with pytest.raises(UserError, match=sentence):
    find(Hosts(**flags), environment)


@pytest.mark.parametrize(
  ('flags', 'sentence'),
  [
    ({'process': 4, 'processes': 4}, 'process=4 is not one of processes=4, .*: pass 0 to 3'),
    ({'coordinator': 'node7'}, 'coordinator=node7: expected HOST:PORT, such as node7:1234'),
    ({'coordinator': 'node7:99999'}, 'coordinator=node7:99999: .* with a port up to 65535'),
    ({'coordinator': 'node7:0'}, 'coordinator=node7:0: expected HOST:PORT'),
  ],
)
def test_flags_are_checked_at_construction(flags, sentence):
  with pytest.raises(UserError, match=sentence):
    Hosts(**flags)


@pytest.mark.parametrize(
  ('environment', 'each', 'ids'),
  [
    ({}, None, None),
    ({'SLURM_LOCALID': '0', 'SLURM_STEP_TASKS_PER_NODE': '1(x2)'}, 8, None),
    ({'SLURM_LOCALID': '3', 'SLURM_STEP_TASKS_PER_NODE': '8(x2)'}, None, [3]),
    ({'SLURM_LOCALID': '1', 'SLURM_STEP_TASKS_PER_NODE': '2(x2)'}, 4, [4, 5, 6, 7]),
    (
      {
        'SLURM_LOCALID': '1',
        'SLURM_STEP_TASKS_PER_NODE': '2(x2)',
        'CUDA_VISIBLE_DEVICES': '5',
      },
      None,
      None,
    ),
    ({'OMPI_COMM_WORLD_LOCAL_RANK': '1', 'OMPI_COMM_WORLD_LOCAL_SIZE': '2'}, None, [1]),
  ],
)
def test_processes_of_a_node_share_out_the_gpus_that_all_see(environment, each, ids):
  assert local_device_ids(environment, each) == ids


@pytest.mark.parametrize(
  ('environment', 'each'),
  [
    ({}, None),
    ({'SLURM_GPUS_ON_NODE': '8', 'SLURM_NODEID': '1', 'SLURM_STEP_TASKS_PER_NODE': '1(x2)'}, 8),
    ({'SLURM_GPUS_ON_NODE': '8', 'SLURM_NODEID': '2', 'SLURM_STEP_TASKS_PER_NODE': '8(x2),4'}, 2),
    ({'SLURM_GPUS_ON_NODE': '4', 'SLURM_NODEID': '0', 'SLURM_STEP_TASKS_PER_NODE': '8'}, None),
    ({'SLURM_GPUS_ON_NODE': '8', 'SLURM_NODEID': '0'}, None),
  ],
)
def test_slurm_says_how_many_gpus_a_process_has(environment, each):
  assert allotted(environment) == each


@pytest.mark.parametrize(
  ('seen', 'wanted', 'given', 'sentence'),
  [
    (8, None, None, None),
    (8, 8, 4, None),
    (8, None, 4, None),
    (1, 8, None, 'process 3 sees 1 device, --hosts.local_devices=8 are expected: ask the launcher'),
    (1, None, 8, 'process 3 sees 1 device of the 8 GPUs that Slurm gave it: ask for what it shall'),
    (1, 1, 8, None),
  ],
)
def test_a_process_that_sees_one_gpu_of_its_node_is_told_so(seen, wanted, given, sentence):
  said = devices_sentence(Place('a', 1, 4, 3), seen, wanted, given)
  assert said is None if sentence is None else said.startswith(sentence)


def test_who_does_not_come_is_named_to_those_who_did(start):
  processes = [start(ROLL, 5, number, 3, '') for number in (0, 1, 3)]
  for code, said in map(ended, processes):
    assert code == 2
    assert 'of 5 processes 3 came within 3 s, without processes 2 and 4' in said


def test_two_processes_of_one_number_are_refused(start):
  processes = [start(ROLL, 3, number, 30, '') for number in (0, 1, 1)]
  for code, said in map(ended, processes):
    assert code == 2
    assert 'two processes are number 1, on ' in said
    assert 'give each its own --hosts.process from 0 to 2' in said


def test_processes_that_disagree_on_their_count_are_refused(start):
  processes = [start(ROLL, 3, 0, 30, ''), start(ROLL, 2, 1, 30, '')]
  for code, said in map(ended, processes):
    assert code == 2
    assert 'expects 2 processes and process 0 3: pass the same --hosts.processes to all' in said


def test_a_coordinator_that_is_not_reached_is_named_with_what_to_check(start, port):
  code, said = ended(start(ROLL, 2, 1, 0.5, ''))
  assert code == 2
  assert f'did not reach the coordinator 127.0.0.1:{port} within 0.5 s (Connection refused)' in said
  assert 'check that process 0 was started there and that it runs on this machine' in said


def test_a_port_in_use_is_refused(start, port):
  with socket.create_server(('', port)):
    code, said = ended(start(ROLL, 2, 0, 30, ''))
  assert code == 2
  assert f'process 0 cannot listen on port {port} (Address already in use)' in said


def test_a_loopback_coordinator_of_several_hosts_is_refused(start, port):
  process = start(ROLL, 2, 0, 30, '')
  with connect(port) as stranger:
    hello = {'process': 1, 'processes': 2, 'host': 'another-host'}
    stranger.sendall(json.dumps(hello).encode() + b'\n')
    assert b'is the loop-back address' in stranger.recv(4096)
  code, said = ended(process)
  assert code == 2
  assert "and another-host: pass the name or address of process 0's host" in said


def test_a_stranger_is_not_taken_for_a_process(start, port):
  first = start(ROLL, 2, 0, 30, '')
  with connect(port) as stranger:
    stranger.sendall(b'GET / HTTP/1.1\n')
    assert stranger.recv(4096) == b''
  second = start(ROLL, 2, 1, 30, '')
  assert [ended(process) for process in (first, second)] == [(0, 'all 2 are here\n')] * 2


def connect(port):
  """A connection to process 0, which may not listen yet."""
  while True:
    with contextlib.suppress(ConnectionRefusedError):
      return socket.create_connection(('127.0.0.1', port), TIMEOUT)


@pytest.mark.parametrize('dying', [0, 2])
def test_a_process_that_is_killed_ends_the_others(start, dying):
  processes = [start(ROLL, 3, number, 30, 'die' if number == dying else '') for number in range(3)]
  ends = [ended(process) for process in processes]
  assert ends[dying][0] == -signal.SIGKILL
  for number in {0, 1, 2} - {dying}:
    code, said = ends[number]
    assert code == 1
    assert f'lmjax: process {number}: process {dying} on ' in said
    assert 'ended without a word: its own output may say why' in said


@pytest.mark.parametrize('frozen', [0, 1])
def test_a_process_that_is_stopped_is_named_and_ends_the_others(start, monkeypatch, frozen):
  monkeypatch.setenv('SILENCE', '4')
  processes = [
    start(ROLL, 3, number, 30, 'freeze' if number == frozen else '') for number in range(3)
  ]
  others = [process for number, process in enumerate(processes) if number != frozen]
  for code, said in map(ended, others):
    assert code == 1
    assert f'process {frozen} on ' in said
    assert 'was silent for 4 s: it is stopped or stuck' in said
  processes[frozen].kill()


@pytest.mark.parametrize(
  ('then', 'code', 'sentence'), [('fail', 2, 'the disk is full'), ('save', 75, 'SIGTERM')]
)
def test_a_process_that_gives_up_ends_the_others_with_its_code(start, then, code, sentence):
  processes = [start(ROLL, 3, number, 30, then if number == 1 else '') for number in range(3)]
  for number, (its, said) in enumerate(map(ended, processes)):
    assert its == code
    if number != 1:
      assert f'lmjax: process {number}: ended because process 1 did: {sentence}\n' in said


def test_values_are_shared_in_order_and_the_missing_are_named(start):
  processes = [start(SHARE, number) for number in range(2)]
  outs = [ended(process) for process in processes]
  assert [code for code, _ in outs] == [0, 0], outs
  words = ''.join(f"['{word}0', '{word}1']\n" for word in 'abc')
  for number, (_, said) in enumerate(outs):
    assert words in said
    assert f"2 {number} {number == 0} ['0', '1']\n" in said
    assert 'process 1 and process 0 differ in the posts: give all the same\n' in said
  assert "process 1 did not come to 'lonely' within 0.5 s: look at what they say" in outs[0][1]


def test_fewer_devices_than_expected_are_refused_on_all(start):
  source = SHARE.replace(
    'processes=2,', 'processes=2, local_devices=8 if sys.argv[2] == "1" else None,'
  )
  ends = [ended(process) for process in [start(source, number) for number in range(2)]]
  assert [code for code, _ in ends] == [2, 2], ends
  assert 'process 1 sees 1 device, --hosts.local_devices=8 are expected: ask' in ends[1][1]
  assert 'process 0: ended because process 1 did: process 1 sees 1 device' in ends[0][1]


# What waits for other processes, and the arguments that bound it; others may not be called at all.
WAITS = {
  'wait_at_barrier': {'timeout_in_ms'},
  'initialize': {
    'initialization_timeout',
    'heartbeat_timeout_seconds',
    'shutdown_timeout_seconds',
  },
}
ENDLESS = (
  'blocking_key_value_get',
  'blocking_key_value_get_bytes',
  'sync_global_devices',
  'sync_global_processes',
  'process_allgather',
  'broadcast_one_to_all',
  'assert_equal',
  'reached_preemption_sync_point',
)


def waits(source):
  """(what is called, the bounds that it lacks; None where there are none) of waits in a file."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Call):
      name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
      if name in ENDLESS:
        yield name, None
      if name in WAITS:
        yield name, WAITS[name] - {keyword.arg for keyword in node.keywords}


def test_no_wait_for_other_processes_is_without_a_deadline():
  found = []
  for folder in ('lmjax', 'experiments', 'tools'):
    for path in sorted((LIBRARY.parent / folder).rglob('*.py')):
      for name, missing in waits(path.read_text(encoding='utf-8')):
        assert missing == set(), f'{path}: {name} has no deadline: use hosts.barrier or hosts.share'
        found.append((path.name, name))
  assert sorted(found) == [('hosts.py', 'initialize'), ('hosts.py', 'wait_at_barrier')]


@pytest.mark.parametrize(
  ('source', 'missing'),
  [
    ('client.wait_at_barrier("end")', {'timeout_in_ms'}),
    ('client.wait_at_barrier("end", timeout_in_ms=1)', set()),
    ('multihost_utils.sync_global_devices("end")', None),
    ('sync_global_devices("end")', None),
  ],
)
def test_the_scan_sees_a_wait_without_a_deadline(source, missing):
  assert [found for _, found in waits(source)] == [missing]
