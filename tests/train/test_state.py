"""A run's state: moments lie where their parameters lie, and move to another mesh unchanged."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_models import QUICK, assert_close

from lmjax.checkpoint.store import Store
from lmjax.core import tree
from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder
from lmjax.optim.optimizer import Adafactor, AdamW, Lion, Muon
from lmjax.parallel import sharding
from lmjax.parallel.mesh import Mesh
from lmjax.train.state import abstract_state, init_state, make_state, state_dims, state_shardings

SIZES = {'vocab': 96, 'width': 32, 'layers': 2, 'heads': 8, 'kv_heads': 4, 'head_dim': 8, 'mlp': 48}
SCANNED = Decoder(**SIZES, moe=MoE(experts=4, balancing='bias'))
LISTED = Decoder(**SIZES, layout='list', biases='qkv')
OPTIMIZERS = {
  'adamw': AdamW(),
  'adafactor': Adafactor(factor_from=8, momentum=0.9),
  'lion': Lion(),
  'muon': Muon(),
}
MESH = Mesh(fsdp=4, tensor=2)
# The numbers of the least matrix that both axes split; norms, biases and routers are smaller.
LARGE = 32 * 4 * 8

each_optimizer = pytest.mark.parametrize('optimizer', OPTIMIZERS.values(), ids=OPTIMIZERS)
each_model = pytest.mark.parametrize('model', [SCANNED, LISTED], ids=['scan', 'list'])


def shapes_and_specs(model, optimizer):
  """path in the optimizer's state -> (shape, PartitionSpec), and the same of the parameters."""
  tx = optimizer.build(model.dims(), 10)
  state = abstract_state(model, tx, MESH.build())
  describe = lambda part: {path: (x.shape, x.sharding.spec) for path, x in tree.paths(part)}
  return describe(state.opt_state), describe(state.params)


@each_model
@each_optimizer
def test_moments_of_a_parameters_shape_are_laid_out_like_it(model, optimizer):
  moments, params = shapes_and_specs(model, optimizer)
  followed = set()
  for path, (shape, spec) in moments.items():
    for name, (param_shape, param_spec) in params.items():
      if path.endswith(f'/{name}') and shape == param_shape:
        assert spec == param_spec, path
        followed.add(name)
  matrices = {name for name, (shape, _) in params.items() if len(shape) > 1}
  assert followed >= matrices - {name for name in matrices if name.endswith('router_bias')}


@each_model
@each_optimizer
def test_nothing_large_is_replicated(model, optimizer):
  moments, params = shapes_and_specs(model, optimizer)
  large = {
    path: spec for path, (shape, spec) in (moments | params).items() if np.prod(shape) >= LARGE
  }
  assert len(large) > len(params) / 2
  assert not {path for path, spec in large.items() if all(axis is None for axis in spec)}


def test_factored_moments_are_laid_out_by_the_dimensions_they_kept():
  moments, _ = shapes_and_specs(SCANNED, Adafactor(factor_from=8))
  found = {'/'.join(path.split('/')[-4:]): x for path, x in moments.items() if 'mlp/up' in path}
  rows, columns = found['v_row/layers/mlp/up'], found['v_col/layers/mlp/up']
  assert rows == ((2, 4, 32), PartitionSpec('pipe', 'expert', 'fsdp'))
  assert columns == ((2, 4, 48), PartitionSpec('pipe', 'expert', 'tensor'))


def test_a_state_born_on_its_shards_is_the_one_of_one_device():
  tx = AdamW().build(LISTED.dims(), 10)
  mesh = MESH.build()
  born = make_state(LISTED, tx, 5, mesh)
  alone = jax.jit(lambda: init_state(LISTED, tx, 5), compiler_options=QUICK)()
  assert_close(born.params, alone.params, 1e-6)
  jax.tree.map(np.testing.assert_array_equal, (born.rng, born.step), (alone.rng, alone.step))
  layout = state_shardings(LISTED, tx, mesh)
  jax.tree.map(lambda x, where: check_layout(x, where), born, layout)


def check_layout(x: jax.Array, where: NamedSharding) -> None:
  assert x.sharding.is_equivalent_to(where, x.ndim)
  assert x.addressable_shards[0].data.shape == where.shard_shape(x.shape)


def test_every_array_of_the_state_has_names_that_the_table_knows():
  for optimizer in OPTIMIZERS.values():
    dims = state_dims(SCANNED, optimizer.build(SCANNED.dims(), 10))
    jax.tree.map(sharding.spec, dims, is_leaf=sharding.is_dims)


@each_optimizer
@pytest.mark.parametrize('after', [Mesh(data=2, fsdp=2, tensor=2), Mesh()], ids=str)
def test_a_saved_state_comes_back_on_another_mesh(tmp_path, optimizer, after):
  tx = optimizer.build(LISTED.dims(), 10)
  before = abstract_state(LISTED, tx, MESH.build())
  rng = np.random.default_rng(0)
  fill = lambda x: jax.device_put(rng.integers(0, 100, x.shape).astype(x.dtype), x.sharding)
  saved = tree.stack(jax.tree.map(fill, before))
  with Store(tmp_path, keep_latest=1, keep_every=None, files={}) as store:
    store.save(3, saved, {})
    store.close()
    wanted = tree.stack(abstract_state(LISTED, tx, after.build()))
    restored = store.restore(wanted)
  assert restored is not None
  jax.tree.map(np.testing.assert_array_equal, restored.state, saved)
  jax.tree.map(lambda x, want: check_layout(x, want.sharding), restored.state, wanted)
