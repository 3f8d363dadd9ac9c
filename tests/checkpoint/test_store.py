"""Checkpoints come back bit for bit, on any mesh, or not at all; and nothing good is ever lost."""

import contextlib
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.checkpoint.store import CheckpointError, Store, find_checkpoint, restore_params
from lmjax.core import tree

ADD_ONE = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
SHAPE = jax.ShapeDtypeStruct
FILES = {'config.json': '{"width": 8}', 'tokenizer.json': b'\xf0\x9f\xa6\x9c'}


def make_mesh(*shape: int) -> Mesh:
  devices = np.asarray(jax.devices()[: shape[0] * shape[1]])
  return Mesh(devices.reshape(shape), ('data', 'fsdp'))


def make_state(seed: int, mesh: Mesh | None = None, width: int = 16):
  """Parameters of three types, moments and a step: half of the arrays are sharded over `mesh`."""
  rng = np.random.default_rng(seed)
  params = {
    'embed': rng.standard_normal((24, width), np.float32),
    'layers': {'up': rng.standard_normal((2, width, 32)).astype(jnp.bfloat16)},
    'mask': rng.integers(0, 1 << 32, 8, np.uint32),
  }
  moments = optax.adam(1e-3).init(params)
  state = {'step': jnp.int32(seed), 'params': params, 'opt_state': moments}
  return jax.device_put(state, shardings(state, mesh or make_mesh(1, 1)))


def shardings(state, mesh: Mesh):
  spec = lambda x: (
    PartitionSpec(*(None,) * (x.ndim - 2), 'data', 'fsdp') if x.ndim > 1 else PartitionSpec()
  )
  return jax.tree.map(lambda x: NamedSharding(mesh, spec(x)), state)


def abstract(state, mesh: Mesh | None = None):
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    state,
    shardings(state, mesh or make_mesh(1, 1)),
  )


def addresses(state) -> list[int]:
  shards = [shard for x in jax.tree.leaves(state) for shard in x.addressable_shards]
  return [shard.data.unsafe_buffer_pointer() for shard in shards]


@pytest.fixture
def open_store(tmp_path):
  """Opens stores of one folder; they are closed at the end."""
  with contextlib.ExitStack() as opened:
    yield lambda *, keep_latest=2, keep_every=None, files=FILES: opened.enter_context(
      Store(tmp_path / 'checkpoints', keep_latest=keep_latest, keep_every=keep_every, files=files)
    )


def save(store: Store, *steps: int) -> None:
  for step in steps:
    store.save(step, make_state(step), {'seconds': float(step)})
  store.wait()


def newest(tmp_path: Path) -> Path:
  found = find_checkpoint(tmp_path / 'checkpoints')
  assert found is not None
  return found


def restored_step(store: Store) -> int | None:
  """Which step `restore` finds, checked to be the state that was saved under it."""
  found = store.restore(abstract(make_state(0)))
  if found is None:
    return None
  assert tree.sha256(found.state) == tree.sha256(make_state(found.step))
  return found.step


def test_a_state_comes_back_bit_for_bit_with_what_was_saved_beside_it(open_store, tmp_path, caplog):
  store, state = open_store(), make_state(7)
  store.save(7, state, {'seconds': 1.5, 'rows': [1, 2]})
  restored, extra, step = store.restore(abstract(state))
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  assert tree.sha256(restored) == tree.sha256(state)
  assert (extra, step) == ({'seconds': 1.5, 'rows': [1, 2]}, 7)
  for name, content in FILES.items():
    content = content.encode() if isinstance(content, str) else content
    assert (tmp_path / 'checkpoints/7' / name).read_bytes() == content
  assert not [record for record in caplog.records if record.levelname in ('WARNING', 'ERROR')]


def test_an_empty_folder_has_nothing_to_restore(open_store, tmp_path):
  store = open_store()
  assert store.restore(abstract(make_state(0))) is None
  assert store.latest() is None
  assert not (tmp_path / 'checkpoints').exists()


@pytest.mark.parametrize('before', [(1, 1), (2, 4), (8, 1)])
@pytest.mark.parametrize('after', [(1, 2), (4, 2), (1, 8)])
def test_a_state_moves_to_another_mesh_bit_for_bit(open_store, before, after):
  store, state, mesh = open_store(), make_state(1, make_mesh(*before)), make_mesh(*after)
  store.save(1, state, {})
  restored = store.restore(abstract(state, mesh)).state
  assert tree.sha256(restored) == tree.sha256(state)
  same = jax.tree.map(lambda x, where: x.sharding == where, restored, shardings(state, mesh))
  assert all(jax.tree.leaves(same))


def test_a_state_may_be_donated_while_it_is_being_saved(open_store):
  store, state = open_store(), make_state(3)
  before = tree.sha256(state)
  store.save(3, state, {})
  for _ in range(20):
    state = ADD_ONE(state)
  jax.block_until_ready(state)
  assert tree.sha256(store.restore(abstract(state)).state) == before


def test_a_restored_state_may_be_donated(open_store):
  store, mesh = open_store(), make_mesh(2, 2)
  state = make_state(3, mesh, width=512)
  store.save(3, state, {})
  restored = store.restore(abstract(state, mesh)).state
  # XLA writes into a donated buffer that is its own, and copies one that another library lent it.
  before = addresses(restored)
  restored = ADD_ONE(restored)
  assert addresses(restored) == before
  assert tree.sha256(restored) == tree.sha256(ADD_ONE(state))


def test_parameters_alone_are_restored_without_knowing_the_optimizer(open_store, tmp_path):
  store, state = open_store(), make_state(4, make_mesh(2, 4))
  store.save(4, state, {})
  store.wait()
  wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state['params'])
  params = restore_params(newest(tmp_path), wanted)
  assert tree.sha256(params) == tree.sha256(state['params'])
  assert params['embed'].devices() == {jax.devices()[0]}


def _flip(file: Path) -> None:
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 0xFF
  file.write_bytes(content)


def _truncate(file: Path) -> None:
  file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
  'damage', [_flip, _truncate, Path.unlink], ids=['flip', 'truncate', 'remove']
)
def test_damage_to_any_one_file_makes_the_older_checkpoint_be_used(
  open_store, tmp_path, caplog, damage
):
  save(open_store(), 1, 2)
  damaged = tmp_path / 'checkpoints/2'
  names = [
    file.relative_to(damaged)
    for file in damaged.rglob('*')
    if file.stat().st_size and file.is_file()
  ]
  assert len(names) > 8
  whole = shutil.copytree(damaged, tmp_path / 'whole')
  for name in names:
    caplog.clear()
    damage(damaged / name)
    assert restored_step(open_store()) == 1
    assert f'passing over checkpoint {damaged}' in caplog.text
    assert name.name in caplog.text
    shutil.rmtree(damaged)
    shutil.copytree(whole, damaged)
  assert restored_step(open_store()) == 2


def test_without_any_good_checkpoint_nothing_is_restored(open_store, tmp_path):
  save(open_store(), 1)
  _flip(tmp_path / 'checkpoints/1/config.json')
  assert restored_step(open_store()) is None


def test_a_step_may_be_asked_for(open_store):
  store = open_store()
  save(store, 1, 2)
  assert store.restore(abstract(make_state(0)), step=1).step == 1


@pytest.mark.parametrize('step', [1, 5])
def test_a_step_asked_for_that_is_not_there_whole_is_an_error(open_store, tmp_path, step):
  store = open_store()
  save(store, 1, 2)
  _flip(tmp_path / 'checkpoints/1/extra.json')
  with pytest.raises(CheckpointError, match=rf'step {step} in .* cannot be restored.*choose.* 2'):
    store.restore(abstract(make_state(0)), step=step)


@pytest.mark.parametrize(
  ('name', 'now', 'message'),
  [
    (
      'embed',
      SHAPE((9,), 'float32'),
      r'with params/embed of shape \(24, 16\), the model has \(9,\)',
    ),
    ('embed', SHAPE((24, 16), 'int32'), 'with params/embed in float32, the model has int32'),
    ('head', SHAPE((2,), 'float32'), 'without params/head, which the model has'),
    ('mask', None, 'with params/mask, which the model does not have'),
  ],
  ids=['shape', 'dtype', 'missing', 'extra'],
)
def test_a_checkpoint_of_another_model_is_refused_in_one_sentence(
  open_store, tmp_path, name, now, message
):
  store, wanted = open_store(), abstract(make_state(1))
  save(store, 1)
  wanted['params'][name] = now  # None is no leaf
  sentence = (
    rf'step 1 in {tmp_path}/checkpoints was saved {message}: pass the settings it was saved with'
  )
  with pytest.raises(CheckpointError, match=sentence):
    store.restore(wanted)
  with pytest.raises(CheckpointError, match=message):
    restore_params(tmp_path / 'checkpoints/1', wanted['params'])


@pytest.mark.parametrize(
  ('keep_latest', 'keep_every', 'left'),
  [(1, None, [7]), (2, None, [6, 7]), (1, 3, [3, 6, 7]), (9, 2, [1, 2, 3, 4, 5, 6, 7])],
)
def test_the_latest_and_every_so_many_are_kept(open_store, tmp_path, keep_latest, keep_every, left):
  store = open_store(keep_latest=keep_latest, keep_every=keep_every)
  save(store, *range(1, 8))
  assert store.steps() == left
  assert sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir()) == left
  assert store.latest() == 7


def test_the_last_good_checkpoint_outlives_any_number_of_bad_ones(open_store, tmp_path):
  save(open_store(keep_latest=3), 1, 2, 3)
  for step in (2, 3):
    _flip(tmp_path / f'checkpoints/{step}/extra.json')
  store = open_store(keep_latest=2)
  assert restored_step(store) == 1
  assert (store.latest(), store.steps()) == (1, [1])
  save(store, 2)
  assert store.steps() == [1, 2]
  assert not (tmp_path / 'checkpoints/3').exists()
  assert restored_step(open_store()) == 2


def test_an_unfinished_newer_checkpoint_does_not_count_among_those_kept(open_store, tmp_path):
  save(open_store(), 1, 5)
  (tmp_path / 'checkpoints/5/checksums.json').unlink()
  store = open_store(keep_latest=1)
  assert store.latest() == 1
  save(store, 2)
  assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['2']


def test_a_save_that_goes_on_from_an_older_step_is_kept(open_store):
  store = open_store(keep_latest=1)
  save(store, 9)
  save(store, 4)
  assert store.steps() == [4, 9]


def test_a_checkpoint_of_the_same_step_is_replaced(open_store):
  store = open_store()
  store.save(1, make_state(5), {})
  save(store, 1)
  assert restored_step(store) == 1


def test_leftovers_of_a_killed_save_are_cleared_at_the_next_start(open_store, tmp_path, caplog):
  save(open_store(), 1, 2)
  folder = tmp_path / 'checkpoints'
  (folder / '2').rename(folder / '2.tmp')
  (folder / '2.tmp/checksums.json').unlink()
  (folder / 'notes.tmp').mkdir()
  store = open_store()
  assert '2.tmp: its save was not completed' in caplog.text
  assert sorted(path.name for path in folder.iterdir()) == ['1', 'notes.tmp']
  assert restored_step(store) == 1


def test_a_save_killed_after_its_last_file_was_written_counts(open_store, tmp_path):
  save(open_store(), 1, 2)
  folder = tmp_path / 'checkpoints'
  (folder / '2').rename(folder / '2.tmp')
  (folder / '2').mkdir()  # half of the older checkpoint of this step, whose deletion was cut short
  assert restored_step(open_store()) == 2


def test_restoring_writes_nothing(open_store, tmp_path):
  save(open_store(), 1, 2)
  look = lambda: sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob('*'))
  before = look()
  assert restored_step(open_store()) == 2
  wanted = abstract(make_state(0))['params']
  restore_params(newest(tmp_path), wanted)
  assert look() == before


@pytest.mark.parametrize('surface', [Store.wait, Store.close, lambda store: save(store, 2)])
def test_what_goes_wrong_in_the_background_is_raised_once(open_store, surface):
  store = open_store(files={'no/such/folder': 'x'})
  store.save(1, make_state(1), {})
  with pytest.raises(FileNotFoundError, match='no/such/folder'):
    surface(store)
  store.wait()
  assert store.latest() is None


# orbax closes its event loop on the writes still under way when one of them fails.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_disk_that_refuses_the_arrays_costs_that_checkpoint_alone(open_store, tmp_path):
  store = open_store()
  save(store, 1)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
  try:
    store.save(2, make_state(2, width=1 << 14), {})
    with pytest.raises(ValueError, match='File too large'):
      store.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert restored_step(store) == 1
  save(store, 3)
  assert restored_step(store) == 3
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['1', '3']
