"""LoRA: what is computed beside the matrices is what merging adds to them, and they never move."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import make_posts, pack, random_params

from lmjax.adapt.lora import Adapter, Lora
from lmjax.core import tree
from lmjax.core.errors import UserError
from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder
from lmjax.objectives.language import Language
from lmjax.ops.packed import Packed
from lmjax.optim.optimizer import AdamW, Muon
from lmjax.train.state import state_of
from lmjax.train.step import make_step

SIZES = {'vocab': 96, 'width': 32, 'layers': 2, 'heads': 4, 'kv_heads': 2, 'head_dim': 8, 'mlp': 64}
DENSE = Decoder(**SIZES, biases='all')
EVERY = ('layers/*', 'embed')


def make_batch():
  return pack([[post] for post in make_posts([20, 31, 5, 12], vocab=96)], 32)


def trained(adapter):
  """Terms as after some steps: none of them zero."""
  noise = lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)
  return jax.tree.map(noise, adapter.shapes())


@functools.partial(jax.jit, static_argnums=0)
def hidden(model, params):
  batch = make_batch()
  return model.apply(params, batch.tokens_BL, batch.segments_BL, batch.positions_BL).hidden_BLD


@pytest.mark.parametrize(
  ('model', 'paths'),
  [
    (DENSE, EVERY),
    (dataclasses.replace(DENSE, layout='list'), ('layers/*/query', 'layers/mlp/down')),
    (Decoder(**SIZES, moe=MoE(experts=2, top_k=1)), EVERY),
  ],
  ids=['scan', 'list', 'moe'],
)
def test_merged_is_unmerged(model, paths):
  adapter = Adapter(model, Lora(paths=paths, rank=3))
  params, terms = random_params(model), trained(adapter)
  beside = hidden(model, adapter.attach(params, terms))
  merged = hidden(model, adapter.merge(params, terms))
  base = hidden(model, params)
  assert float(jnp.max(jnp.abs(beside - merged))) <= 1e-5 * float(jnp.max(jnp.abs(merged)))
  assert float(jnp.max(jnp.abs(base - merged))) > 0.01


def test_the_first_step_begins_at_the_base_and_layouts_begin_alike():
  adapter = Adapter(DENSE, Lora(rank=3))
  params, terms = random_params(DENSE), adapter.init(jax.random.key(1))
  np.testing.assert_array_equal(hidden(DENSE, adapter.attach(params, terms)), hidden(DENSE, params))
  listed = dataclasses.replace(adapter, model=dataclasses.replace(DENSE, layout='list'))
  assert tree.sha256(tree.stack(listed.init(jax.random.key(1)))) == tree.sha256(terms)


@pytest.mark.parametrize('optimizer', [AdamW(), Muon()], ids=['adamw', 'muon'])
def test_steps_move_the_terms_alone_and_learn(optimizer):
  adapter = Adapter(DENSE, Lora(rank=4))
  optimizer = dataclasses.replace(optimizer, peak_lr=0.02)
  tx = optimizer.build(adapter.dims(), 20)
  state = jax.jit(lambda: state_of(adapter.init(jax.random.key(0)), tx, 0))()
  frozen = random_params(DENSE)
  before = tree.sha256(frozen)
  step = jax.jit(
    make_step(Language(), DENSE, tx, 1, lambda params, frozen: adapter.attach(frozen, params))
  )
  state = dataclasses.replace(state, frozen=frozen)
  losses = []
  for _ in range(20):
    state, metrics = step(state, make_batch())
    losses.append(float(metrics['loss']))
  assert losses[-1] < losses[0] - 0.5
  assert tree.sha256(state.frozen) == before


def test_a_base_in_int8_stays_near_and_merges_to_what_was_computed():
  adapter = Adapter(DENSE, Lora(rank=3))
  params, terms = random_params(DENSE), trained(adapter)
  small = adapter.to_int8(params)
  matrices = jax.tree.leaves(small, is_leaf=lambda node: isinstance(node, Packed))
  assert sum(isinstance(node, Packed) for node in matrices) == 7
  beside = hidden(DENSE, adapter.attach(small, terms))
  merged = hidden(DENSE, adapter.merge(small, terms))
  np.testing.assert_allclose(beside, merged, atol=1e-4)
  exact = hidden(DENSE, adapter.attach(params, terms))
  assert 0 < float(jnp.mean(jnp.abs(beside - exact))) < 0.05 * float(jnp.mean(jnp.abs(exact)))


def test_a_pattern_that_names_no_matrix_is_refused():
  with pytest.raises(UserError, match=r'lora.paths=layers/attn/\*: no matrix .* layers/mlp/up'):
    Adapter(DENSE, Lora(paths=('layers/attn/*',))).dims()
