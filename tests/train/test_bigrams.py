"""A decoder that starts from bigrams: what it predicts, on any mesh, and what it refuses."""

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest

from lmjax.core.errors import UserError
from lmjax.models.layers import Norm
from lmjax.models.transformer import Decoder
from lmjax.parallel.mesh import Mesh
from lmjax.train import bigrams
from lmjax.train.pretrain import Pretrain
from lmjax.train.state import make_state

VOCAB, START, END, STATES = 64, 0, 1, 6
MODEL = Decoder(
  vocab=VOCAB,
  width=32,
  layers=2,
  heads=2,
  kv_heads=2,
  head_dim=16,
  mlp=64,
  embedding_norm=Norm(scale='none'),
  head='untied',
)


@pytest.fixture(scope='module')
def posts():
  """Posts of a chain whose transitions have few hidden states, and so a low rank."""
  rng = np.random.default_rng(0)
  kind = rng.integers(STATES, size=VOCAB)
  emit = rng.dirichlet(np.full(VOCAB - 2, 0.05), size=STATES)

  def post():
    tokens = [2 + rng.integers(VOCAB - 2)]
    for _ in range(20):
      tokens.append(2 + rng.choice(VOCAB - 2, p=emit[kind[tokens[-1]]]))
    return np.array(tokens)

  return [post() for _ in range(400)]


def started(posts, mesh, seed=0):
  state = make_state(MODEL, optax.sgd(0.1), seed, mesh.build())
  return bigrams.begin(state, posts, (START, END), MODEL, seed).params


def logits_after_each(params):
  """What follows each token alone, f32 [V, V]."""
  one = np.ones((VOCAB, 1), np.int32)
  output = MODEL.apply(params, np.arange(VOCAB)[:, None], one, one * 0)
  return np.asarray(MODEL.logits(params, output.hidden_BLD))[:, 0]


def nats(logits_VV, posts):
  """Mean of -log p of every token of the posts after the one before it."""
  logprob_VV = np.asarray(jax.nn.log_softmax(logits_VV))
  return -np.mean([logprob_VV[a, b] for post in posts for a, b in itertools.pairwise(post)])


def test_it_predicts_as_bigrams_do(posts):
  train, held_out = posts[:300], posts[300:]
  table_VV = np.full((VOCAB, VOCAB), 0.05)
  for post in train:
    for a, b in itertools.pairwise(post):
      table_VV[a, b] += 1
  bigrams_nats = nats(np.log(table_VV), held_out)
  unigram_nats = nats(np.broadcast_to(np.log(table_VV.sum(0)), table_VV.shape), held_out)
  found = nats(logits_after_each(started(train, Mesh())), held_out)
  assert found < bigrams_nats + 0.25 * (unigram_nats - bigrams_nats)


def test_the_seed_turns_the_directions_and_changes_no_prediction(posts):
  first, second = (started(posts, Mesh(), seed) for seed in (0, 1))
  assert not np.allclose(first['embed'], second['embed'], atol=0.1)
  np.testing.assert_allclose(logits_after_each(first), logits_after_each(second), atol=0.05)


def test_it_is_the_same_on_any_mesh(posts):
  one, sharded = started(posts, Mesh()), started(posts, Mesh(fsdp=4, tensor=2))
  for name in ('embed', 'head'):
    assert not sharded[name].is_fully_replicated
    np.testing.assert_array_equal(one[name], sharded[name])


def test_a_tied_head_is_refused():
  with pytest.raises(UserError, match='pass --model.head=untied or --start=random'):
    Pretrain(start='bigrams', model=dataclasses.replace(MODEL, head='tied'))
