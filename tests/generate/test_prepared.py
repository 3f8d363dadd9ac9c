"""A prepared model is the same model: its logits, its tokens, whatever the dtype and the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import QUICK, random_params
from test_engine import DRAW, GREEDY, MODELS, SIZES, generate, make_prompts

from lmjax.generate import engine
from lmjax.generate.prepare import is_prepared, prepare
from lmjax.models.layers import Norm
from lmjax.models.transformer import Decoder

VARIED = Decoder(
  **SIZES,
  kv_heads=2,
  windows=(6, 0),
  biases='all',
  qk_norm=Norm(),
  post_norm=Norm(),
  activation='gelu',
  attention_softcap=3.0,
  logit_softcap=5.0,
)
EACH = {**MODELS, 'varied': VARIED}

each_model = pytest.mark.parametrize('model', EACH.values(), ids=EACH)


def decoded(model, params, lengths=(3, 9), width=12):
  """Logits f32 [steps, B, V] of fixed tokens, one at a time after ragged prompts padded to `width`."""
  tokens = np.random.default_rng(5).integers(0, 20, (4, len(lengths))).astype(np.int32)
  lengths_B = np.array(lengths, np.int32)
  prompts = np.random.default_rng(6).integers(0, 20, (len(lengths), width)).astype(np.int32)

  @jax.jit
  def run(params):
    logits, cache = engine.prefill(model, params, prompts, lengths_B, width + 8)
    all_logits = [logits]
    for i, token_B in enumerate(tokens):
      logits, cache = engine.decode(model, params, token_B, lengths_B + i, cache)
      all_logits.append(logits)
    return jnp.stack(all_logits)

  return np.asarray(run.lower(params).compile(compiler_options=QUICK)(params))


def assert_close(found, expected, tolerance=2e-5):
  assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@each_model
def test_a_prepared_model_has_the_same_logits(model):
  params = random_params(model)
  assert_close(decoded(*prepare(model, params)), decoded(model, params))


def test_a_prepared_model_in_bf16_is_one_in_f32_with_rounded_matrices():
  params = random_params(VARIED)
  model, narrow = prepare(dataclasses.replace(VARIED, dtype='bfloat16'), params)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
  query = narrow['layers']['1']['attention']['query'].values.astype(jnp.float32)
  rounded = params['layers']['attention']['query'][1].astype(jnp.bfloat16).astype(np.float32)
  np.testing.assert_array_equal(query, rounded.transpose(1, 2, 0))
  assert_close(decoded(model, narrow), decoded(model, wide))
  assert_close(decoded(model, narrow), decoded(VARIED, params), 0.03)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 2e-5), ('bfloat16', 0.03)])
def test_long_prompts_too_are_read_alike(dtype, tolerance):
  params, model = random_params(VARIED), dataclasses.replace(VARIED, dtype=dtype)
  long = {'lengths': (40, 290), 'width': 300}  # whole blocks of queries, and a part of one
  found, expected = decoded(*prepare(model, params), **long), decoded(VARIED, params, **long)
  assert_close(found, expected, tolerance)


def test_prepared_models_draw_the_same_tokens():
  model, params = MODELS['scan'], random_params(MODELS['scan'])
  ready, prepared = prepare(model, params)
  for sampler in (GREEDY, DRAW):
    expected = generate(model, make_prompts(), sampler)
    assert generate(ready, make_prompts(), sampler, prepared) == expected


def test_prepared_ones_and_those_on_several_devices_stay_as_they_are():
  model, params = MODELS['scan'], random_params(MODELS['scan'])
  ready, prepared = prepare(model, params)
  assert is_prepared(prepared)
  assert prepare(ready, prepared) == (ready, prepared)
  mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
  assert prepare(model, split) == (model, split)
