"""Properties of the decoder, over configurations in which every branch differs from the default.

Compiling is what costs here: tests share one jitted function and one shape of batch where they can.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from small_models import QUICK, assert_close, make_posts, pack, random_params

from lmjax.core import tree
from lmjax.core.errors import UserError
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
  'gpt2': Decoder(
    **SMALL,
    kv_heads=4,
    activation='gelu',
    biases='all',
    norm=Norm(kind='layer'),
    positions=32,
    attention_block=7,
  ),
  'biased': Decoder(**SMALL, kv_heads=4, biases='all', head='untied'),
  'mixtral': Decoder(**SMALL, kv_heads=2, moe=MoE(experts=4, top_k=2), windows=(6,)),
  'grok': Decoder(
    **SMALL,
    kv_heads=2,
    activation='geglu',
    post_norm=Norm(),
    moe=MoE(experts=4, top_k=2, shared=1, shared_gate='sigmoid'),
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
VOCAB = SMALL['vocab']
posts = functools.partial(make_posts, vocab=VOCAB)
rows_of = functools.partial(pack, length=LENGTH)


@pytest.fixture(params=MODELS, scope='module')
def model(request):
  return MODELS[request.param]


@pytest.fixture(scope='module')
def params(model):
  return random_params(model)


# Among them are both layouts, a remat of each kind and experts with either balance; the others are slow.
few_models = pytest.mark.parametrize(
  'model',
  [
    pytest.param(
      model, id=name, marks=[] if name in ('qwen', 'grok', 'deepseek') else [pytest.mark.slow]
    )
    for name, model in MODELS.items()
  ],
  scope='module',
)


def apply(model, params, batch, cache=None):
  return model.apply(params, batch.tokens_BL, batch.segments_BL, batch.positions_BL, cache)


@functools.partial(jax.jit, static_argnums=0)
def hidden(model, params, batch):
  return apply(model, params, batch).hidden_BLD


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def cached(model, params, batch, cache):
  output = apply(model, params, batch, cache)
  return output.hidden_BLD, output.cache


def loss_of(model, params, batch):
  return Language(chunk=8)(model, params, batch, jax.random.key(0))[0]


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def loss_and_grads(model, params, batch):
  def total(params):
    loss = loss_of(model, params, batch)
    return loss.total, loss

  grads, loss = jax.grad(total, has_aux=True)(params)
  return loss, grads


def test_causality_is_exact(model, params):
  batch = rows_of([[post] for post in posts([LENGTH] * 4)])
  tokens = batch.tokens_BL.copy()
  tokens[:, 15] = (tokens[:, 15] + 1) % VOCAB
  before, after = (
    hidden(model, params, batch),
    hidden(model, params, batch.replace(tokens_BL=tokens)),
  )
  np.testing.assert_array_equal(before[:, :15], after[:, :15])
  assert not np.array_equal(before[:, 15], after[:, 15])


def test_packed_posts_equal_each_post_alone(model, params):
  members = posts([5, 9, 7])
  found = hidden(model, params, rows_of([members, *([post] for post in members)]))
  start = 0
  for row, post in enumerate(members, 1):
    length = len(post) - 1
    np.testing.assert_allclose(
      found[0, start : start + length], found[row, :length], atol=2e-5, rtol=1e-4
    )
    start += length


def test_padding_never_changes_a_loss(model, params):
  batch = rows_of([posts([5, 9]), posts([7], seed=1), [], []])
  pad = batch.segments_BL == 0
  noisy = batch.replace(
    tokens_BL=np.where(pad, 13, batch.tokens_BL),
    targets_BL=np.where(pad, 31, batch.targets_BL),
    positions_BL=np.where(pad, 3, batch.positions_BL),
  )
  plain, other = (loss_and_grads(model, params, rows)[0] for rows in (batch, noisy))
  assert plain.total == other.total
  assert plain.weight == 21


def test_shuffling_the_batch_permutes_hidden_states(model, params):
  batch = rows_of([[post] for post in posts([20, 9, 7, 3])])
  order = np.array([2, 0, 3, 1])
  moved = jax.tree.map(lambda x: x[order], batch)
  np.testing.assert_allclose(
    hidden(model, params, batch)[order], hidden(model, params, moved), atol=2e-5, rtol=1e-4
  )


def test_cached_decode_equals_full_forward(model, params):
  lengths = np.array([11, 6, 12, 3])
  batch = rows_of([[post] for post in posts(lengths.tolist())])
  full = hidden(model, params, batch)
  prefill = 4
  first = jax.tree.map(lambda x: x[:, :prefill], batch)
  found, cache = cached(model, params, first, model.init_cache(4, 16))
  real = first.segments_BL > 0
  np.testing.assert_allclose(found[real], full[:, :prefill][real], atol=2e-5, rtol=1e-4)
  for i in range(prefill, 12):
    one = jax.tree.map(lambda x, i=i: x[:, i : i + 1], batch)
    found, cache = cached(model, params, one, cache)
    live = lengths > i
    np.testing.assert_allclose(found[live, 0], full[live, i], atol=2e-5, rtol=1e-4)


def test_scan_and_list_are_one_model(model, params):
  other = dataclasses.replace(model, layout='list' if model.layout == 'scan' else 'scan')
  batch = rows_of([posts([5, 9]), posts([20], seed=1), [], []])
  np.testing.assert_allclose(
    hidden(model, params, batch), hidden(other, random_params(other), batch), atol=2e-5, rtol=1e-4
  )


@few_models
def test_both_layouts_start_with_the_same_parameters(model):
  layouts = [dataclasses.replace(model, layout=layout) for layout in ('scan', 'list')]
  init = lambda key: [tree.stack(model.init(key)) for model in layouts]
  scanned, listed = jax.jit(init, compiler_options=QUICK)(jax.random.key(3))
  jax.tree.map(np.testing.assert_array_equal, scanned, listed)


@few_models
def test_remat_changes_no_gradient(model):
  other = dataclasses.replace(model, remat='full' if model.remat == 'none' else 'none')
  params, batch = random_params(model), rows_of([posts([5, 9]), posts([20], seed=1), [], []])
  grads = [loss_and_grads(model, params, batch)[1] for model in (model, other)]
  if model.positions is not None:
    # A bias of all keys moves all scores of a query alike: its gradient is zero, and rounding here.
    for each in grads:
      assert np.abs(each['layers']['attention'].pop('key_bias')).max() < 1e-5
  assert_close(*grads)


def test_every_parameter_has_dimension_names_of_its_rank(model):
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  is_names = lambda x: isinstance(x, tuple)
  jax.tree.map(lambda names, x: check_rank(names, x), model.dims(), shapes, is_leaf=is_names)


def check_rank(names, x):
  assert len(names) == x.ndim, (names, x.shape)


def test_every_parameter_gets_a_gradient(model, params):
  batch = rows_of([posts([5, 9]), posts([20], seed=1), [], []])
  grads = loss_and_grads(model, params, batch)[1]
  silent = [path for path, grad in tree.paths(grads) if not np.any(np.asarray(grad))]
  assert not silent


@few_models
def test_bfloat16_is_close_to_float32(model):
  low = dataclasses.replace(model, dtype='bfloat16')
  params, batch = random_params(model), rows_of([posts([20]), posts([24], seed=1), [], []])
  loss = jax.jit(functools.partial(loss_of, low), compiler_options=QUICK)(params, batch)
  exact, rounded = loss_and_grads(model, params, batch)[0].value, loss.value
  assert exact != rounded
  assert abs(exact - rounded) < 0.05 * exact


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'heads': 4, 'kv_heads': 3}, r'pass kv_heads one of \[1, 2, 4\]'),
    ({'head_dim': 7}, 'pass 8'),
    ({'windows': (4, 0), 'layers': 3}, 'pass layout=list'),
    ({'moe': MoE(), 'biases': 'all'}, 'biases=attention, qkv or none'),
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
