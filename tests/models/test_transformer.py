"""Properties of the decoder, over configurations in which every branch differs from the default."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.core import tree
from lmjax.core.errors import UserError
from lmjax.core.types import Batch
from lmjax.models.layers import Norm
from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder, Rope
from lmjax.objectives.language import Language
from lmjax.ops.rope import RopeScaling

SMALL = {'vocab': 97, 'width': 32, 'layers': 2, 'heads': 4, 'head_dim': 8, 'mlp': 48}
MODELS = {
  'llama': Decoder(
    **SMALL, kv_heads=2, head='untied', rope=Rope(scaling=RopeScaling(kind='llama3'))
  ),
  'qwen': Decoder(**SMALL, kv_heads=2, biases='qkv', qk_norm=Norm(), layout='list'),
  'gemma': Decoder(
    **SMALL,
    kv_heads=1,
    activation='geglu',
    norm=Norm(scale='offset'),
    post_norm=Norm(scale='offset'),
    windows=(5, 0),
    rope=Rope(local_base=500.0),
    logit_softcap=30.0,
    attention_softcap=50.0,
    embedding_scale=32**0.5,
    attention_scale=0.2,
  ),
  'biased': Decoder(**SMALL, kv_heads=4, activation='gelu', biases='all', attention_block=7),
  'mixtral': Decoder(**SMALL, kv_heads=2, moe=MoE(experts=4, top_k=2), windows=(6,)),
  'grok': Decoder(
    **SMALL,
    kv_heads=2,
    activation='geglu',
    post_norm=Norm(),
    moe=MoE(experts=4, top_k=2, shared=1),
    embedding_scale=5.0,
    logit_scale=0.6,
    residual_scale=0.7,
    remat='full',
  ),
  'deepseek': Decoder(
    **SMALL,
    kv_heads=4,
    embedding_norm=Norm(scale='none'),
    activation='relu2',
    moe=MoE(experts=4, top_k=1, balancing='bias', scores='sigmoid'),
    remat='dots',
  ),
}
LENGTH = 24


def random_params(model: Decoder, seed: int = 0):
  """Parameters with nothing at zero: fresh ones make every block the identity."""
  params = init(model, jax.random.key(seed))
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  noise = [x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(structure, noise)


@functools.partial(jax.jit, static_argnums=0)
def init(model, key):
  return model.init(key)


@functools.partial(jax.jit, static_argnums=0)
def step(model, params, batch, cache):
  return model.apply(params, batch.tokens_BL, batch.segments_BL, batch.positions_BL, cache)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_grads(model, params, batch):
  loss = lambda params: Language(chunk=8)(model, params, batch, jax.random.key(0))[0]
  return loss(params), jax.grad(lambda params: loss(params).total)(params)


def posts(lengths, seed=0, vocab=97):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, vocab, n + 1).astype(np.int32) for n in lengths]


def pack(rows, length=LENGTH) -> Batch:
  """Each item of `rows` is a list of posts that share a row."""
  shape = (len(rows), length)
  tokens, targets, segments, positions = (np.zeros(shape, np.int32) for _ in range(4))
  for row, members in enumerate(rows):
    start = 0
    for number, post in enumerate(members, 1):
      stop = start + len(post) - 1
      tokens[row, start:stop], targets[row, start:stop] = post[:-1], post[1:]
      segments[row, start:stop], positions[row, start:stop] = number, np.arange(stop - start)
      start = stop
  weights = (segments > 0).astype(np.float32)
  return Batch(*map(jnp.asarray, (tokens, targets, weights, segments, positions)))


@functools.partial(jax.jit, static_argnums=0)
def hidden(model, params, batch):
  return model.apply(params, batch.tokens_BL, batch.segments_BL, batch.positions_BL).hidden_BLD


@pytest.fixture(params=MODELS, scope='module')
def model(request):
  return MODELS[request.param]


@pytest.fixture(scope='module')
def params(model):
  return random_params(model)


def test_causality_is_exact(model, params):
  batch = pack([[post] for post in posts([LENGTH] * 3)])
  changed = batch.replace(
    tokens_BL=batch.tokens_BL.at[:, 15].set((batch.tokens_BL[:, 15] + 1) % 97)
  )
  before, after = hidden(model, params, batch), hidden(model, params, changed)
  np.testing.assert_array_equal(before[:, :15], after[:, :15])
  assert not np.array_equal(before[:, 15], after[:, 15])


def test_packed_posts_equal_each_post_alone(model, params):
  members = posts([5, 9, 7])
  packed = hidden(model, params, pack([members]))[0]
  start = 0
  for post in members:
    alone = hidden(model, params, pack([[post]]))[0]
    length = len(post) - 1
    np.testing.assert_allclose(packed[start : start + length], alone[:length], atol=2e-5, rtol=1e-4)
    start += length


def test_padding_never_changes_a_loss(model, params):
  batch = pack([posts([5, 9]), posts([7], seed=1)])
  pad = batch.segments_BL == 0
  noisy = batch.replace(
    tokens_BL=jnp.where(pad, 13, batch.tokens_BL),
    targets_BL=jnp.where(pad, 31, batch.targets_BL),
    positions_BL=jnp.where(pad, 3, batch.positions_BL),
  )
  plain, other = (loss_and_grads(model, params, rows)[0] for rows in (batch, noisy))
  assert plain.total == other.total
  assert plain.weight == 21


def test_shuffling_the_batch_permutes_hidden_states(model, params):
  batch = pack([[post] for post in posts([20, 9, 7, 3])])
  order = jnp.array([2, 0, 3, 1])
  moved = jax.tree.map(lambda x: x[order], batch)
  np.testing.assert_allclose(
    hidden(model, params, batch)[order], hidden(model, params, moved), atol=2e-5, rtol=1e-4
  )


def test_cached_decode_equals_full_forward(model, params):
  lengths = [11, 6]
  batch = pack([[post] for post in posts(lengths)], length=12)
  full = hidden(model, params, batch)
  cache = model.init_cache(2, 16)
  prefill, rest = 4, 8
  first = jax.tree.map(lambda x: x[:, :prefill], batch)
  output = step(model, params, first, cache)
  np.testing.assert_allclose(output.hidden_BLD, full[:, :prefill], atol=2e-5, rtol=1e-4)
  for i in range(prefill, prefill + rest):
    one = jax.tree.map(lambda x, i=i: x[:, i : i + 1], batch)
    output = step(model, params, one, output.cache)
    live = np.array(lengths) > i
    np.testing.assert_allclose(output.hidden_BLD[live, 0], full[live, i], atol=2e-5, rtol=1e-4)


def test_scan_and_list_are_one_model_with_one_saved_layout(model, params):
  other = dataclasses.replace(model, layout='list' if model.layout == 'scan' else 'scan')
  stacked = tree.stack(params)
  moved = stacked if other.layout == 'scan' else tree.unstack(stacked)
  batch = pack([posts([5, 9]), posts([20], seed=1)])
  np.testing.assert_allclose(
    hidden(model, params, batch), hidden(other, moved, batch), atol=2e-5, rtol=1e-4
  )
  fresh = [tree.stack(init(m, jax.random.key(3))) for m in (model, other)]
  jax.tree.map(np.testing.assert_array_equal, *fresh)


def test_remat_changes_no_gradient(model, params):
  batch = pack([posts([5, 9])])
  grads = lambda name: loss_and_grads(dataclasses.replace(model, remat=name), params, batch)[1]
  plain, full = grads('none'), grads('full')
  check = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max() + 1e-12)
  jax.tree.map(check, plain, full)


def test_every_parameter_has_dimension_names_of_its_rank(model):
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  is_names = lambda x: isinstance(x, tuple)
  jax.tree.map(lambda names, x: check_rank(names, x), model.dims(), shapes, is_leaf=is_names)


def check_rank(names, x):
  assert len(names) == x.ndim, (names, x.shape)


def test_every_parameter_gets_a_gradient(model, params):
  grads = loss_and_grads(model, params, pack([posts([5, 9]), posts([20], seed=1)]))[1]
  silent = [path for path, grad in tree.paths(grads) if not np.any(np.asarray(grad))]
  assert not silent


def test_bfloat16_is_close_to_float32(model, params):
  low = dataclasses.replace(model, dtype='bfloat16')
  batch = pack([posts([20])])
  loss = lambda model: loss_and_grads(model, params, batch)[0].value
  assert abs(loss(model) - loss(low)) < 0.05 * loss(model)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'heads': 4, 'kv_heads': 3}, r'pass kv_heads one of \[1, 2, 4\]'),
    ({'head_dim': 7}, 'pass 8'),
    ({'windows': (4, 0), 'layers': 3}, 'pass layout=list'),
    ({'moe': MoE(), 'biases': 'all'}, 'biases=qkv or biases=none'),
    ({'width': 0}, r'width=0: expected an integer of 2 or more'),
    ({'windows': (-1,)}, 'of 0 or more'),
  ],
)
def test_impossible_models_are_refused(settings, message):
  with pytest.raises(UserError, match=message):
    Decoder(**settings)


def test_more_choices_than_experts_are_refused():
  with pytest.raises(UserError, match='pass top_k of 4 or less'):
    MoE(experts=4, top_k=5)
