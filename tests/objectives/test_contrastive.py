"""InfoNCE beside NumPy, and over a mesh. Q queries, N documents, K negatives, D size of a vector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.core.errors import UserError
from lmjax.objectives.contrastive import (
  Contrastive,
  Distilled,
  cached_value_and_grad,
  distil_margins,
  distil_scores,
  info_nce,
)
from lmjax.parallel.mesh import Mesh

Q, N, K, D = 8, 8, 3, 6


def unit(rng, *shape):
  x = rng.normal(size=shape).astype(np.float32)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def batch():
  rng = np.random.default_rng(0)
  excluded_QN = np.zeros((Q, N), bool)
  excluded_QN[0, 3] = True
  return unit(rng, Q, D), unit(rng, N, D), np.arange(Q) % N, unit(rng, Q, K, D), excluded_QN


def loss(*args):
  return info_nce(*args, temperature=0.1).value


def test_it_is_the_formula_and_leaves_out_other_answers():
  queries, documents, answers, negatives, excluded = batch()
  total = 0.0
  for q in range(Q):
    kept = [n for n in range(N) if not excluded[q, n]]
    near = np.concatenate([documents[kept] @ queries[q], negatives[q] @ queries[q]]) / 0.1
    total += np.log(np.exp(near).sum()) - queries[q] @ documents[answers[q]] / 0.1
  np.testing.assert_allclose(loss(*batch()), total / Q, rtol=1e-5)


def test_over_a_mesh_it_is_the_same_with_the_same_gradients():
  expected, slopes = jax.jit(jax.value_and_grad(loss))(*batch())
  mesh = Mesh(data=4).build()
  rows = NamedSharding(mesh, PartitionSpec('data'))
  with jax.set_mesh(mesh):
    found, there = jax.jit(jax.value_and_grad(loss))(*jax.device_put(batch(), rows))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  np.testing.assert_allclose(there, slopes, atol=1e-5 * np.abs(slopes).max())


def test_in_pieces_value_and_gradient_are_those_of_one_batch():
  rng = np.random.default_rng(1)
  params = {'w': rng.normal(size=(5, D)).astype(np.float32), 'b': np.zeros(D, np.float32)}
  texts = rng.normal(size=(Q + N, 5)).astype(np.float32)
  excluded = np.zeros((Q, N), bool)

  def encode(params, texts):
    made = jnp.tanh(texts @ params['w'] + params['b'][None])
    return made / jnp.linalg.norm(made, axis=1, keepdims=True)

  def of_vectors(vectors):
    return loss(vectors[:Q], vectors[Q:], np.arange(Q), np.zeros((Q, 0, D), np.float32), excluded)

  expected, slopes = jax.value_and_grad(lambda p: of_vectors(encode(p, texts)))(params)
  for pieces in (1, 4):
    found, mine = cached_value_and_grad(encode, of_vectors, params, texts, pieces=pieces)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for name, slope in slopes.items():
      np.testing.assert_allclose(mine[name], slope, atol=1e-6 * float(np.abs(slope).max()) * 10)


def logits(seed):
  return np.random.default_rng(seed).normal(size=(3, 5)).astype(np.float32)


def test_shorter_vectors_are_learnt_as_well_as_the_whole():
  queries, documents, _, _, excluded = batch()
  found = Contrastive(temperature=0.1, matryoshka=(2, 4)).of_vectors(queries, documents, excluded)
  total = 0.0
  for size in (2, 4, D):
    short = [
      x[:, :size] / np.linalg.norm(x[:, :size], axis=1)[:, None] for x in (queries, documents)
    ]
    own = np.zeros((Q, 0, size), np.float32)
    total += info_nce(*short, np.arange(Q), own, excluded, temperature=0.1).total
  np.testing.assert_allclose(found.total, total, rtol=1e-5)
  assert found.weight == Q
  with pytest.raises(UserError, match='matryoshka=4,6: .* have 6 numbers, .*: pass smaller ones'):
    Contrastive(matryoshka=(4, 6)).check_width(D)


def test_a_teachers_scores_are_learnt_where_it_was_asked():
  ours, theirs = logits(0), logits(1)
  theirs[0, 3:] = theirs[2, 1] = np.nan
  kl = margins = 0.0
  for q in range(3):
    asked = np.flatnonzero(~np.isnan(theirs[q]))
    p, s = (np.exp(x[q, asked]) / np.exp(x[q, asked]).sum() for x in (theirs, ours))
    kl += np.sum(p * np.log(p / s))
    rest = asked[asked != q]
    ahead = [x[q, q] - x[q, rest] for x in (ours, theirs)]
    margins += np.mean((ahead[0] - ahead[1]) ** 2)
  np.testing.assert_allclose(distil_scores(ours, theirs).total, kl, rtol=1e-5)
  np.testing.assert_allclose(distil_margins(ours, theirs).total, margins, rtol=1e-5)
  for one in (distil_scores, distil_margins):  # equal but for a constant is as good as equal
    np.testing.assert_allclose(one(theirs + 2.0, theirs).total, 0.0, atol=1e-6)
    assert np.isfinite(jax.grad(lambda x, one=one: one(x, theirs).total)(ours)).all()


def test_a_teacher_weighs_as_much_as_it_is_to():
  queries, documents, _, _, excluded = batch()
  taught = np.random.default_rng(2).normal(size=(Q, N)).astype(np.float32)
  of = lambda weight, *more: float(
    Distilled(teacher_weight=weight, distillation='margin')
    .of_vectors(queries, documents, excluded, *more)
    .total
  )
  plain, alone = of(0.5), of(1.0, taught)
  np.testing.assert_allclose(of(0.0, taught), plain, rtol=1e-6)
  np.testing.assert_allclose(of(0.25, taught), 0.75 * plain + 0.25 * alone, rtol=1e-5)
