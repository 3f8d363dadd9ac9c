"""Paths, hashes and the two layouts of layers, on parameters and on real optimizer states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.core import tree

OPTIMIZERS = {
  'adamw': optax.adamw(1e-3, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
  'muon': optax.contrib.muon(1e-3),
  'adafactor': optax.adafactor(1e-3),
  'lion': optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-3)),
}


def make_params(layers: int) -> dict:
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
  layer = lambda: {
    'mlp': {'up': normal(128, 256), 'bias': normal(256)},
    'norm': {'scale': normal(128)},
  }
  return {'embed': normal(130, 128), 'layers': {str(i): layer() for i in range(layers)}}


def make_state(tx: optax.GradientTransformation, params: dict):
  """The optimizer's state after one step, so that its moments are not all zero."""

  @jax.jit
  def step(params):
    return tx.update(params, tx.init(params), params)[1]

  return step(params)


def assert_same(one, other) -> None:
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def shapes(some) -> list[tuple[str, tuple[int, ...]]]:
  return [(path, leaf.shape) for path, leaf in tree.paths(some)]


def test_paths_come_in_order_of_name_and_number():
  params = {'layers': {str(i): {'up': i} for i in (10, 2, 0, 11, 1)}, 'embed': -1}
  assert tree.paths(params) == [
    ('embed', -1),
    ('layers/0/up', 0),
    ('layers/1/up', 1),
    ('layers/2/up', 2),
    ('layers/10/up', 10),
    ('layers/11/up', 11),
  ]


def test_paths_name_the_fields_of_an_optimizer_state():
  state = optax.adam(1e-3).init({'up': jnp.ones(2)})
  assert [path for path, _ in tree.paths(state)] == ['0/count', '0/mu/up', '0/nu/up']


def test_map_with_path_keeps_the_structure():
  assert tree.map_with_path(lambda path, leaf: (path, leaf), {'a': {'b': 1}, 'c': [2]}) == {
    'a': {'b': ('a/b', 1)},
    'c': [('c/0', 2)],
  }


def test_count_sums_sizes():
  assert tree.count({'a': jnp.ones((3, 4)), 'b': {'c': jnp.ones(()), 'd': jnp.ones(5)}}) == 18


def test_sha256_does_not_depend_on_sharding():
  params = {'up': jnp.arange(64.0).reshape(8, 8), 'scale': jnp.ones((8,), jnp.bfloat16)}
  mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ('x', 'y'))
  sharded = jax.device_put(params, NamedSharding(mesh, PartitionSpec('x')))
  assert tree.sha256(sharded) == tree.sha256(params) == tree.sha256(jax.device_get(params))


@pytest.mark.parametrize(
  'other',
  [
    {'a': jnp.zeros((2, 3)), 'b': jnp.zeros(2).at[1].set(1e-30)},
    {'a': jnp.zeros((3, 2)), 'b': jnp.zeros(2)},
    {'a': jnp.zeros((2, 3), jnp.int32), 'b': jnp.zeros(2)},
    {'a': jnp.zeros((2, 3)), 'c': jnp.zeros(2)},
  ],
  ids=['value', 'shape', 'dtype', 'path'],
)
def test_sha256_tells_apart(other):
  assert tree.sha256(other) != tree.sha256({'a': jnp.zeros((2, 3)), 'b': jnp.zeros(2)})


def test_layers_are_stacked_by_number():
  listed = {'layers': {str(i): {'up': jnp.full((2,), i)} for i in range(12)}}
  stacked = tree.stack(listed)
  np.testing.assert_array_equal(stacked['layers']['up'][:, 0], np.arange(12))
  assert_same(tree.unstack(stacked), listed)


def test_each_layout_is_left_as_it_is_by_its_own_function():
  listed = make_params(2)
  assert_same(tree.unstack(listed), listed)
  assert_same(tree.stack(tree.stack(listed)), tree.stack(listed))


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('layers', [1, 3])
def test_an_optimizer_state_survives_both_round_trips(name, layers):
  listed = make_state(OPTIMIZERS[name], make_params(layers))
  assert_same(tree.unstack(tree.stack(listed)), listed)
  stacked = make_state(OPTIMIZERS[name], tree.stack(make_params(layers)))
  assert_same(tree.stack(tree.unstack(stacked)), stacked)


@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'lion'])
def test_a_stacked_state_has_the_shapes_of_one_that_was_born_stacked(name):
  params, tx = make_params(3), OPTIMIZERS[name]
  assert shapes(tree.stack(tx.init(params))) == shapes(tx.init(tree.stack(params)))


def test_a_muon_state_born_stacked_is_the_stacked_list_when_its_matrices_are_told():
  last_two = optax.contrib.MuonDimensionNumbers(-2, -1)
  numbers = lambda params: tree.map_with_path(
    lambda path, _: last_two if path.endswith('up') else None, params
  )
  tx = optax.contrib.muon(1e-3, muon_weight_dimension_numbers=numbers)
  params = make_params(3)
  assert shapes(tree.stack(tx.init(params))) == shapes(tx.init(tree.stack(params)))


def test_a_part_whose_layers_are_all_masked_is_as_deep_as_the_rest():
  params = make_params(2)
  masked = jax.tree.map(lambda _: optax.MaskedNode(), params)
  whole = optax.masked(optax.lion(1e-3), {'embed': True, 'layers': False}).init(params)
  listed = {'params': params, 'masked': masked, 'masked_whole': whole}
  assert_same(tree.unstack(tree.stack(listed)), listed)


def test_stacks_of_different_depths_are_refused():
  with pytest.raises(ValueError, match='different depths'):
    tree.unstack({'layers': {'up': jnp.ones((2, 3)), 'down': jnp.ones((3, 3))}})


def test_unstacked_stand_ins_are_buffers_of_their_own():
  state = tree.unstack(make_state(OPTIMIZERS['adafactor'], tree.stack(make_params(3))))
  stepped = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(state)
  assert int(stepped[0].count) == 2


def test_shapes_convert_as_arrays_do_and_keep_their_shardings():
  mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ('x', 'y'))
  where = NamedSharding(mesh, PartitionSpec('x', 'y'))
  leaf = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16, sharding=where)
  listed = {'layers': {str(i): {'up': leaf} for i in range(3)}}
  stacked = tree.stack(listed)
  up = stacked['layers']['up']
  assert (up.shape, up.dtype) == ((3, 8, 4), jnp.bfloat16)
  assert up.sharding == NamedSharding(mesh, PartitionSpec(None, 'x', 'y'))
  assert tree.unstack(stacked) == listed


def test_layers_are_stacked_under_jit():
  params = make_params(2)
  assert_same(jax.jit(tree.stack)(params), tree.stack(params))
  assert_same(jax.jit(tree.unstack)(tree.stack(params)), params)
