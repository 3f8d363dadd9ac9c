"""Bits per byte against the definition, a post at a time."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data import tokenizer as tokenizers
from lmjax.data.split import strip_urls
from lmjax.models.transformer import Decoder
from lmjax.parallel.mesh import Mesh
from lmjax.train.evaluate import Evaluator

TEXTS = [
  'New study: coffee http://x.co/ab12',
  'é',
  'http://only.a/link',
  'a much longer post ' * 9 + 'http://x.co/zz',
  'coffee, coffee, coffee',
]


@pytest.fixture(scope='module')
def setting():
  tokenizer = tokenizers.train(TEXTS * 3, 280)
  model = Decoder(width=32, layers=2, heads=2, kv_heads=2, head_dim=16, mlp=32).with_vocab(
    tokenizer.vocab
  )
  params = jax.jit(model.init)(jax.random.key(0))
  params = jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), params)
  return tokenizer, model, params


@pytest.fixture(scope='module')
def naive(setting):
  """Bits per byte of texts, by the definition."""
  tokenizer, model, params = setting
  forward = jax.jit(model.apply)

  @functools.cache
  def bits(text):
    tokens = tokenizer.encode(text)
    inputs = np.concatenate([[tokenizer.start], tokens])[None].astype(np.int32)
    targets = np.concatenate([tokens, [tokenizer.end]])
    positions = np.arange(inputs.shape[1], dtype=np.int32)[None]
    hidden = forward(params, inputs, np.ones_like(inputs), positions).hidden_BLD
    logprobs = jax.nn.log_softmax(model.logits(params, hidden)[0])
    return -float(logprobs[np.arange(len(targets)), targets].sum()) / math.log(2)

  return lambda texts: sum(map(bits, texts)) / sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize('mesh', [Mesh(), Mesh(data=2)])
def test_packed_evaluation_is_the_definition_with_no_post_cut(setting, naive, mesh):
  tokenizer, model, params = setting
  posts = tokenizer.encode_batch(TEXTS)
  assert max(map(len, posts)) > 32  # longer than a row
  evaluator = Evaluator(model, tokenizer, mesh.build(), batch=2, length=32)
  assert evaluator.bits_per_byte(params, posts) == pytest.approx(naive(TEXTS), rel=1e-5)


def test_without_urls_is_the_same_of_the_stripped_texts(setting, naive):
  tokenizer, model, params = setting
  evaluator = Evaluator(model, tokenizer, Mesh().build(), batch=2, length=32)
  found = evaluator.bits_per_byte_without_urls(params, tokenizer.encode_batch(TEXTS))
  stripped = [strip_urls(text) for text in TEXTS if strip_urls(text)]
  assert len(stripped) == 4
  assert found == pytest.approx(naive(stripped), rel=1e-5)
