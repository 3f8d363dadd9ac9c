"""Contrastive learning of vectors: a query's answer is nearer than others.

Q queries, N documents shared by them, K negatives of each query, D size of a vector, S texts, P pieces.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.core.types import Mean, Params


def info_nce(
  queries_QD: jax.Array,
  documents_ND: jax.Array,
  answers_Q: jax.Array,
  negatives_QKD: jax.Array,
  excluded_QN: jax.Array,
  *,
  temperature: float,
) -> Mean:
  """InfoNCE, van den Oord et al. 2018 (arXiv:1807.03748) eq. 4, with mined negatives.

  loss = -log softmax([q . documents, q . own negatives] / temperature)[answer]

  Under a mesh the documents of all devices count for every query, as on one device.

  Args:
    queries_QD, documents_ND, negatives_QKD: f32 vectors of length 1.
    answers_Q: i32 index in documents of each query's answer.
    excluded_QN: bool, documents that are left out for a query: its other answers.
    temperature: > 0; 0.05 is usual.
  """
  shared_QN = jnp.where(excluded_QN, -jnp.inf, queries_QD @ documents_ND.T)
  own_QK = jnp.einsum('QD,QKD->QK', queries_QD, negatives_QKD)
  logits = jnp.concatenate([shared_QN, own_QK], axis=1) / temperature
  right_Q = jnp.take_along_axis(logits, answers_Q[:, None], axis=1)[:, 0]
  losses_Q = jax.nn.logsumexp(logits, axis=1) - right_Q
  return Mean(jnp.sum(losses_Q), jnp.asarray(losses_Q.size, jnp.float32))


def cached_value_and_grad(
  encode: Callable[[Params, Any], jax.Array],
  loss: Callable[[jax.Array], jax.Array],
  params: Params,
  texts: Any,
  *,
  pieces: int,
) -> tuple[jax.Array, Params]:
  """A loss over the vectors of all texts, and its gradient, holding the activations of one piece.

  GradCache, Gao et al. 2021 (arXiv:2101.06983): vectors without a gradient, the loss's gradient by
  vectors, then each piece again, which carries that to the parameters. The numbers are those of a plain
  gradient, for one more forward pass.

  Args:
    encode: (params, some texts) to vectors f32 [some, D], each text by itself.
    loss: of vectors f32 [S, D], a scalar.
    texts: any tree of arrays with S first, a multiple of `pieces`.
  """
  cut = lambda x: x.reshape(pieces, x.shape[0] // pieces, *x.shape[1:])
  texts_P = jax.tree.map(cut, texts)
  vectors_PSD = jax.lax.map(lambda piece: encode(params, piece), texts_P)
  size = vectors_PSD.shape[-1]
  value, slopes_SD = jax.value_and_grad(loss)(vectors_PSD.reshape(-1, size))

  def add(total, piece_and_slopes):
    piece, slopes = piece_and_slopes
    _, pull = jax.vjp(lambda p: encode(p, piece), params)
    return jax.tree.map(jnp.add, total, pull(slopes)[0]), None

  start = jax.tree.map(jnp.zeros_like, params)
  return value, jax.lax.scan(add, start, (texts_P, cut(slopes_SD)))[0]
