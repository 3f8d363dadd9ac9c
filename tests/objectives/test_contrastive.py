"""InfoNCE beside NumPy, and over a mesh. Q queries, N documents, K negatives, D size of a vector."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.objectives.contrastive import cached_value_and_grad, info_nce
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
