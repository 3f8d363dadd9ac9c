"""Checkpoints on s3://, against a local server: written there by every process, and read from there."""

import fsspec
import jax
import member
import pytest
from members import restored_step, started
from object_store import in_bucket, s3_server, write

from lmjax.checkpoint.store import Store, find_checkpoint, restore_params
from lmjax.core import storage, tree


@pytest.fixture(scope='module', autouse=True)
def server():
  with s3_server():
    yield


def save(store: Store, *steps: int) -> None:
  for step in steps:
    store.save(step, member.place(step, 2), {'step': step})
  store.wait()


def test_a_store_on_s3_keeps_restores_and_replaces_as_one_on_a_disk():
  folder = storage.at('s3://bucket/one')
  with Store(folder, keep_latest=2, keep_every=None, files={'config.json': '{}'}) as store:
    assert store.restore(member.abstract(2)) is None
    save(store, 1, 2, 3, 3)
    assert store.steps() == [2, 3]
  assert {name.partition('/')[0] for name in in_bucket('one')} == {'2', '3'}
  assert not any('tmp' in name or name.endswith('/') for name in in_bucket('one'))
  assert restored_step(folder) == 3
  found = find_checkpoint(folder)
  assert found is not None
  params = member.make_host_state(3)['params']
  wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
  assert tree.sha256(restore_params(found, wanted)) == tree.sha256(params)


@pytest.mark.parametrize('damage', ['flip', 'remove', 'unmark'])
def test_a_checkpoint_on_s3_that_is_not_as_written_is_passed_over(damage):
  folder = storage.at(f's3://bucket/{damage}')
  with Store(folder, keep_latest=2, keep_every=None, files={}) as store:
    save(store, 1, 2)
  names = in_bucket(damage)
  marker, data = '2/checksums.json', next(name for name in names if name.startswith('2/state/oc'))
  system = fsspec.filesystem('s3')
  if damage == 'flip':
    content = system.cat_file(f'bucket/{damage}/{data}')
    write(f'{damage}/{data}', content[:-1] + bytes([content[-1] ^ 0xFF]))
  else:
    system.rm_file(f'bucket/{damage}/{data if damage == "remove" else marker}')
  assert restored_step(folder) == 1


@pytest.mark.slow
def test_processes_write_their_shares_to_s3_and_others_restore_them(tmp_path):
  address = 's3://bucket/many'
  with started(tmp_path, [address] * 2, 'save:1', 'save:2', 'restore:2') as members:
    assert members.codes() == [0, 0], members.text(0) + members.text(1)
  whole = sum(array.nbytes for array in jax.tree.leaves(member.make_host_state(2)))
  system = fsspec.filesystem('s3')
  shares = [system.du(f'bucket/many/2/state/ocdbt.process_{process}') for process in range(2)]
  assert [share / whole for share in shares] == pytest.approx([0.5, 0.5], abs=0.01)
  assert restored_step(storage.at(address)) == 2
