"""Several processes save and restore one checkpoint, in real processes connected to each other."""

import re
import signal
import time
from pathlib import Path

import jax
import member
import pytest
from members import TIMEOUT, Members, restored_step, started

from lmjax.checkpoint.store import find_checkpoint, restore_params
from lmjax.core import tree


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> tuple[Path, Members]:
  """The checkpoints 2 and 4 of two processes, after a save of 3 that failed on the second."""
  logs = tmp_path_factory.mktemp('saved')
  actions = ('save:1', 'save:2', 'full:3', 'save:4', 'restore:4')
  with started(logs, logs / 'checkpoints', *actions) as members:
    assert members.codes() == [0, 0], members.text(0) + members.text(1)
  return logs / 'checkpoints', members


def test_what_two_processes_saved_one_restores_bit_for_bit(saved):
  folder, _ = saved
  assert restored_step(folder) == 4
  found = find_checkpoint(folder)
  assert found is not None
  assert found == folder / '4'
  params = member.make_host_state(4)['params']
  wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
  assert tree.sha256(restore_params(found, wanted)) == tree.sha256(params)


def test_each_process_writes_its_share_of_the_bytes_and_none_twice(saved):
  folder, _ = saved
  whole = sum(array.nbytes for array in jax.tree.leaves(member.make_host_state(4)))
  shares = []
  for process in range(2):
    files = (folder / f'4/state/ocdbt.process_{process}').rglob('*')
    shares.append(sum(file.stat().st_size for file in files if file.is_file()) / whole)
  assert shares == pytest.approx([0.5, 0.5], abs=0.01)


def test_a_save_that_fails_on_one_process_fails_on_all_and_leaves_nothing(saved):
  folder, members = saved
  assert [members.said('refused', process) for process in range(2)] == [[3], [3]]
  assert 'step 3 was not saved because of process 1: ValueError' in members.text(0)
  assert members.said('saved', 0) == members.said('saved', 1) == [1, 2, 4]
  assert sorted(path.name for path in folder.iterdir()) == ['2', '4']


def test_three_processes_go_on_with_what_two_saved(saved, tmp_path):
  folder, _ = saved
  actions = ('restore:4', 'save:5', 'restore:5')
  with started(tmp_path, folder, *actions, processes=3, devices=1) as members:
    assert members.codes() == [0, 0, 0], members.text(0)
  assert members.said('restored', 2) == [4, 5]
  assert restored_step(folder) == 5


@pytest.mark.parametrize('victim', [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_kill_of_one_process_in_a_save_ends_all_and_loses_no_completed_one(tmp_path, victim):
  folder = tmp_path / 'checkpoints'
  with started(tmp_path, folder, 'keep_saving:1') as members:
    deadline = time.monotonic() + TIMEOUT
    while len(members.said('began', victim)) < 3:
      assert time.monotonic() < deadline, members.text(victim)
      time.sleep(0.002)
    members.processes[victim].kill()
    codes = members.codes()
  assert codes[victim] == -signal.SIGKILL
  assert codes[1 - victim] == 1
  assert f'process {victim} on ' in members.text(1 - victim)
  saved = max(step for process in range(2) for step in members.said('saved', process))
  assert restored_step(folder) >= saved >= 2


def test_a_folder_that_is_not_shared_is_said_before_a_byte_is_saved(tmp_path):
  folders = [tmp_path / 'of 0', tmp_path / 'of 1']
  with started(tmp_path, folders, 'save:1', devices=1) as members:
    assert members.codes() == [2, 2]
  sentence = rf'process 1 does not see {folders[1]}/1\.tmp, which process 0 has made: put --workdir on storage'
  assert all(re.search(sentence, members.text(process)) for process in range(2))
  assert not any(path.name == '1' for folder in folders for path in folder.rglob('1'))


@pytest.mark.slow
def test_a_run_is_not_begun_anew_where_one_process_sees_no_checkpoints(saved, tmp_path):
  folders = [tmp_path / 'other', saved[0]]
  with started(tmp_path, folders, 'restore:4', devices=1) as members:
    assert members.codes() == [2, 2]
  assert 'process 1 does not see the checkpoints in /' in members.text(1)
