from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from lmjax.core.config import leaves
from lmjax.core.errors import UserError
from lmjax.optim.optimizer import Adafactor, AdamW, Lion, Muon, is_matrix, muon_partition
from lmjax.optim.schedule import Cosine

SIZES = {
  'layers': 3,
  'embed': 16,
  'heads': 4,
  'kv_heads': 2,
  'head_dim': 4,
  'mlp': 24,
  'expert': 5,
  'choice': 5,
  'vocab': 32,
}
BLOCK = {
  'attention': {
    'query': ('embed', 'heads', 'head_dim'),
    'key': ('embed', 'kv_heads', 'head_dim'),
    'output': ('heads', 'head_dim', 'embed'),
    'query_bias': ('heads', 'head_dim'),
  },
  'mlp': {'up': ('embed', 'mlp'), 'down': ('mlp', 'embed')},
  'moe': {
    'up': ('expert', 'embed', 'mlp'),
    'down': ('expert', 'mlp', 'embed'),
    'down_bias': ('expert', 'embed'),
    'router': ('embed', 'choice'),
    'router_bias': ('choice',),
  },
  'norm': ('embed',),
}
OUTSIDE = {'embedding': ('vocab', 'embed'), 'head': ('embed', 'vocab'), 'final_norm': ('embed',)}
HIDDEN_IN_A_BLOCK = 7
FLAT = Cosine(warmup_fraction=0.0, final_fraction=1.0)
OPTIMIZERS = [AdamW(), Lion(), Adafactor(), Adafactor(momentum=0.9), Muon()]


def is_dims(node):
  return isinstance(node, tuple)


def stacked_dims():
  block = jax.tree.map(lambda names: ('layers', *names), BLOCK, is_leaf=is_dims)
  return {**OUTSIDE, 'blocks': block}


def listed_dims():
  return {**OUTSIDE, **{f'block_{layer}': BLOCK for layer in range(SIZES['layers'])}}


def random_like(dims, seed):
  rng = np.random.default_rng(seed)
  draw = lambda names: jnp.asarray(rng.normal(size=[SIZES[name] for name in names]), jnp.float32)
  return jax.tree.map(draw, dims, is_leaf=is_dims)


def as_listed(stacked):
  """Parameters of scanned layers as those of a list of layers."""
  rest = {key: value for key, value in stacked.items() if key != 'blocks'}
  layer = lambda index: jax.tree.map(lambda leaf: leaf[index], stacked['blocks'])
  return {**rest, **{f'block_{index}': layer(index) for index in range(SIZES['layers'])}}


def one_update(optimizer, dims, params, grads, steps=10):
  tx = optimizer.build(dims, steps)
  updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
  return updates


def name_of(optimizer):
  return type(optimizer).__name__


@pytest.mark.parametrize('optimizer', OPTIMIZERS, ids=name_of)
def test_optimizer_fits_a_linear_map(optimizer):
  dims = {'up': ('embed', 'mlp'), 'bias': ('mlp',)}
  goal, params = (jax.tree.map(lambda leaf: 0.1 * leaf, random_like(dims, seed)) for seed in (0, 2))
  x = jnp.asarray(np.random.default_rng(1).normal(size=(64, SIZES['embed'])), jnp.float32)
  predict = lambda params: x @ params['up'] + params['bias'][None]
  loss = lambda params: jnp.mean((predict(params) - predict(goal)) ** 2)
  relative = isinstance(optimizer, Adafactor)  # its steps are shares of the parameters
  fast = replace(
    optimizer,
    peak_lr=0.3 if relative else 0.05,
    weight_decay=0.0,
    schedule=Cosine(warmup_fraction=0.05),
  )
  tx = fast.build(dims, 150)

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  first, state = float(loss(params)), tx.init(params)
  for _ in range(150):
    params, state = step(params, state)
  assert float(loss(params)) < 0.02 * first


@pytest.mark.parametrize('optimizer', OPTIMIZERS, ids=name_of)
def test_frozen_parameters_stay_bit_equal_and_the_rest_moves(optimizer):
  dims, frozen = stacked_dims(), ('embedding', 'blocks/attention/*')
  params, grads = random_like(dims, 0), random_like(dims, 1)
  updates = one_update(replace(optimizer, freeze=frozen, schedule=FLAT), dims, params, grads)
  after = optax.apply_updates(params, updates)
  for path, leaf in jax.tree.leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    new = after
    for key in path:
      new = new[key.key]
    still = name == 'embedding' or name.startswith('blocks/attention/')
    assert (np.asarray(new).tobytes() == np.asarray(leaf).tobytes()) == still, name


def test_only_matrices_decay_and_not_the_excluded_ones():
  dims = stacked_dims()
  params = random_like(dims, 0)
  zero = jax.tree.map(jnp.zeros_like, params)
  optimizer = AdamW(
    peak_lr=0.5, weight_decay=0.1, schedule=FLAT, decay_exclude=('embedding', '*/query')
  )
  updates = one_update(optimizer, dims, params, zero)
  decayed = jax.tree.map(is_matrix, dims, is_leaf=is_dims)
  decayed['embedding'] = decayed['blocks']['attention']['query'] = False
  expected = jax.tree.map(lambda leaf, on: -0.05 * leaf * on, params, decayed)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)
  assert sum(jax.tree.leaves(decayed)) == HIDDEN_IN_A_BLOCK + 3 - 2


@pytest.mark.parametrize('names', [('embed',), ('heads', 'head_dim'), ('expert', 'mlp'), ()])
def test_vectors_are_no_matrices(names):
  assert not is_matrix(names)
  assert not is_matrix(('layers', *names))


def test_clipping_is_by_the_norm_of_what_is_trained():
  dims = {'embedding': ('vocab', 'embed'), 'up': ('embed', 'mlp'), 'router_bias': ('choice',)}
  params, grads = random_like(dims, 0), random_like(dims, 1)
  grads['embedding'] = grads['embedding'] * 1e6  # frozen: must not drown the rest
  optimizer = Lion(clip_norm=0.5, freeze=('embedding',), weight_decay=0.0, schedule=FLAT)
  state = optimizer.build(dims, 10).init(params)
  _, state = optimizer.build(dims, 10).update(grads, state, params)
  momentum = optax.tree.get(state, 'mu')['up']
  assert float(optax.tree.norm(momentum)) == pytest.approx((1 - optimizer.b2) * 0.5, rel=1e-5)


def test_without_clip_norm_the_gradient_is_untouched():
  dims = {'up': ('embed', 'mlp')}
  params, grads = random_like(dims, 0), random_like(dims, 1)
  tx = Lion(clip_norm=None).build(dims, 200)
  _, state = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(optax.tree.get(state, 'mu')['up'], 0.01 * grads['up'], rtol=1e-4)


def test_router_bias_steps_against_the_sign_whatever_the_schedule():
  dims = stacked_dims()
  params, grads = random_like(dims, 0), random_like(dims, 1)
  optimizer = AdamW(router_bias_rate=0.01, schedule=Cosine(warmup_fraction=0.9), clip_norm=1e-9)
  updates = one_update(optimizer, dims, params, grads)
  load = grads['blocks']['moe']['router_bias']
  np.testing.assert_allclose(
    updates['blocks']['moe']['router_bias'], -0.01 * np.sign(load), rtol=1e-6
  )


def test_learning_rate_follows_the_schedule():
  dims = {'norm': ('embed',)}
  params = random_like(dims, 0)
  grads = jax.tree.map(jnp.ones_like, params)
  tx = AdamW(peak_lr=0.1, schedule=Cosine(warmup_fraction=0.34, final_fraction=0.0)).build(dims, 3)
  state, sizes = tx.init(params), []
  for _ in range(3):
    updates, state = tx.update(grads, state, params)
    sizes.append(-float(updates['norm'][0]))
  np.testing.assert_allclose(sizes, [0.05, 0.1, 0.05], rtol=1e-4)


def test_moments_are_kept_in_the_type_asked_for():
  dims = stacked_dims()
  params = random_like(dims, 0)
  for optimizer in (AdamW, Lion, Muon):
    state = optimizer(moment_dtype='bfloat16').build(dims, 200).init(params)
    moments = [leaf for path, leaf in optax.tree.get_all_with_path(state, 'mu')]
    assert {leaf.dtype for leaf in jax.tree.leaves(moments)} == {jnp.dtype('bfloat16')}


@pytest.mark.parametrize('dims', [stacked_dims(), listed_dims()], ids=['scanned', 'listed'])
def test_every_hidden_matrix_is_in_the_muon_partition(dims):
  numbers = jax.tree.leaves(
    muon_partition(dims), is_leaf=lambda node: isinstance(node, MuonDimensionNumbers)
  )
  blocks = 1 if 'blocks' in dims else SIZES['layers']
  assert len(numbers) == HIDDEN_IN_A_BLOCK * blocks
  params = jax.eval_shape(lambda: random_like(dims, 0))
  state = jax.eval_shape(Muon().build(dims, 200).init, params)
  by_muon = state[1].inner_states['muon'].inner_state[0][0].trace
  by_adam = state[1].inner_states['adam'].inner_state[0].mu
  assert len(jax.tree.leaves(by_muon)) == len(numbers)
  total = len(jax.tree.leaves(params))
  assert len(jax.tree.leaves(by_adam)) == total - len(numbers) - blocks  # router biases: neither


def test_muon_gives_scanned_and_listed_layers_the_same_update(monkeypatch):
  # In f32: a sum in another order may round to another neighbour in bf16.
  monkeypatch.setattr('lmjax.core.processor.multiplies_bf16', lambda: False)
  keep = lambda tree: {'blocks': {key: tree['blocks'][key] for key in ('attention', 'norm')}}
  dims = keep(stacked_dims())
  params, grads = random_like(dims, 0), random_like(dims, 1)
  listed = {key: {name: BLOCK[name] for name in dims['blocks']} for key in as_listed(params)}
  together = one_update(Muon(), dims, params, grads, 200)
  apart = one_update(Muon(), listed, as_listed(params), as_listed(grads), 200)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
  jax.tree.map(close, as_listed(together), apart)


@pytest.mark.parametrize('preconditioning', ['frobenius', 'aol', 'schatten'])
def test_muon_orthogonalises_each_matrix_from_input_to_output(preconditioning):
  dims = {'output': ('layers', 'heads', 'head_dim', 'embed'), 'up': ('expert', 'embed', 'mlp')}
  params, grads = random_like(dims, 0), random_like(dims, 1)
  optimizer = Muon(
    matrix_lr=1.0, weight_decay=0.0, schedule=FLAT, ns_steps=8, preconditioning=preconditioning
  )
  updates = one_update(optimizer, dims, params, grads)
  wide = np.sqrt(SIZES['mlp'] / SIZES['embed'])
  for matrix in np.asarray(updates['output']).reshape(3, 16, 16):
    values = np.linalg.svd(matrix, compute_uv=False)
    assert 0.3 < values.min() <= values.max() < 1.3
  for matrix in np.asarray(updates['up']):
    values = np.linalg.svd(matrix, compute_uv=False) / wide
    assert 0.3 < values.min() <= values.max() < 1.3


def test_consistent_rms_gives_every_shape_the_same_size():
  dims = {'up': ('embed', 'mlp'), 'query': ('embed', 'heads', 'head_dim')}
  params, grads = random_like(dims, 0), random_like(dims, 1)
  optimizer = Muon(matrix_lr=1.0, weight_decay=0.0, schedule=FLAT, consistent_rms=0.2)
  for update in jax.tree.leaves(one_update(optimizer, dims, params, grads)):
    assert float(jnp.sqrt(jnp.mean(update**2))) == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize('optimizer', OPTIMIZERS, ids=name_of)
def test_abstract_state_maps_to_the_parameters_it_belongs_to(optimizer):
  """What shardings of the optimizer state are derived by."""
  dims = stacked_dims()
  params = jax.eval_shape(lambda: random_like(dims, 0))
  tx = optimizer.build(dims, 200)
  state = jax.eval_shape(tx.init, params)
  is_masked = lambda node: isinstance(node, optax.MaskedNode)
  paths = jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path), params)
  mapped = optax.tree.map_params(
    tx,
    lambda leaf, path: leaf if is_masked(leaf) else path,
    state,
    paths,
    transform_non_params=lambda leaf: 'not a parameter',
    is_leaf=is_masked,
  )
  found = set(jax.tree.leaves(mapped))
  trained = set(jax.tree.leaves(paths)) - {"['blocks']['moe']['router_bias']"}
  assert found == trained | {'not a parameter'}


@pytest.mark.parametrize('option', ['freeze', 'decay_exclude'])
def test_pattern_without_a_match_names_the_nearest_path(option):
  optimizer = AdamW(**{option: ('blocks/atention/query',)})
  said = f"{option}='blocks/atention/query' matches no parameter"
  with pytest.raises(UserError, match=f"{said}: the nearest is 'blocks/attention/query'"):
    optimizer.build(stacked_dims(), 200)


@pytest.mark.parametrize('optimizer', [AdamW(), Muon()], ids=name_of)
def test_matrix_of_an_unknown_kind_is_refused(optimizer):
  with pytest.raises(ValueError, match=r"unknown kind of matrix \('mlp', 'vocab'\)"):
    optimizer.build({'odd': ('layers', 'mlp', 'vocab')}, 200)


@pytest.mark.parametrize('optimizer', OPTIMIZERS, ids=name_of)
def test_every_leaf_is_documented_and_all_but_where_moments_lie_is_identity(optimizer):
  assert all(leaf.metadata['doc'] for leaf in leaves(optimizer))
  assert {leaf.name for leaf in leaves(optimizer) if leaf.run} == {'memory'}
