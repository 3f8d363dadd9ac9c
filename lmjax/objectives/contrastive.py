"""Contrastive learning of vectors: a query's answer is nearer than others.

Q queries, N documents shared by them, K negatives of each query, D size of a vector.
"""

import jax
import jax.numpy as jnp

from lmjax.core.types import Mean


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
