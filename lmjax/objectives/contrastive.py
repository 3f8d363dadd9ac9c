"""Contrastive learning of vectors: a query's answer is nearer than others.

Q queries, N documents shared by them, K negatives of each query, D size of a vector, S texts, P pieces,
L tokens.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError
from lmjax.core.types import Mean, Params
from lmjax.models.encoder import Encoder, text_vectors

_NEVER = -1e9  # a logit of what is not to count


@flax.struct.dataclass
class Pairs:
  """Texts, two of each source, of which one is to find the other among all of the batch.

  Attributes:
    queries_QL, documents_QL: i32 tokens; query_lengths_Q, document_lengths_Q: i32 how many.
    sources_Q: i32 what a pair is of: two pairs of one are no negatives of each other.
  """

  queries_QL: jax.Array
  query_lengths_Q: jax.Array
  documents_QL: jax.Array
  document_lengths_Q: jax.Array
  sources_Q: jax.Array


class Contrastive(Config):
  """InfoNCE of whole vectors and, summed, of their beginnings.

  Matryoshka representation learning, Kusupati et al. 2022 (arXiv:2205.13147) eq. 1 with all weights 1; the
  whole vector is always one of its sizes. Rows are coupled: a batch is no sum of its parts.
  """

  temperature: float = leaf(0.05, 'Of InfoNCE: what cosines are divided by.', above=0.0)
  matryoshka: tuple[int, ...] = leaf(
    (), 'Numbers of a vector, the first so many, that are to do by themselves too: 64,128.', low=1
  )

  def check_width(self, width: int) -> None:
    """UserError where a size of `matryoshka` is not smaller than vectors are."""
    if any(size >= width for size in self.matryoshka):
      told = ','.join(map(str, self.matryoshka))
      raise UserError(
        f"matryoshka={told}: this encoder's vectors have {width} numbers, which are learnt anyway: "
        'pass smaller ones'
      )

  def of_vectors(
    self,
    queries_QD: jax.Array,
    documents_ND: jax.Array,
    excluded_QN: jax.Array,
    taught_QN: jax.Array | None = None,
  ) -> Mean:
    """The loss of vectors, of which document i answers query i.

    Args:
      queries_QD, documents_ND: f32 of length 1, N >= Q.
      excluded_QN: bool, documents that are left out for a query: its other answers.
      taught_QN: f32 a teacher's scores, for objectives that learn them, see `Distilled`.
    """
    total = jnp.zeros(())
    for size in (*self.matryoshka, queries_QD.shape[1]):
      queries, documents = _first(queries_QD, size), _first(documents_ND, size)
      total += self._total(queries, documents, excluded_QN, taught_QN)
    return Mean(total, jnp.asarray(len(queries_QD), jnp.float32))

  def _total(self, queries_QD, documents_ND, excluded_QN, taught_QN) -> jax.Array:
    """The sum over queries of the loss of vectors of one size."""
    del taught_QN
    count, size = queries_QD.shape
    answers_Q, own_QKD = jnp.arange(count), jnp.zeros((count, 0, size))
    given = (queries_QD, documents_ND, answers_Q, own_QKD, excluded_QN)
    return info_nce(*given, temperature=self.temperature).total


class InBatch(Contrastive):
  """An objective of batches of `Pairs`: each pair's other text is nearer than those of other pairs."""

  pieces: int = leaf(
    1, 'Parts of a batch whose activations are in memory one by one.', low=1, run=True
  )

  def __call__(
    self, model: Encoder, params: Params, batch: Any, rng: jax.Array
  ) -> tuple[Mean, dict[str, Mean]]:
    """`batch` is a `Pairs`; `first` is the share of queries whose answer is the nearest of the batch."""
    del rng
    encode = lambda texts: text_vectors(model, params, texts[0], texts[1], model.pooling)
    queries_QD = _in_pieces(encode, (batch.queries_QL, batch.query_lengths_Q), self.pieces)
    documents_QD = _in_pieces(encode, (batch.documents_QL, batch.document_lengths_Q), self.pieces)
    same_QQ = batch.sources_Q[:, None] == batch.sources_Q[None]
    excluded_QQ = same_QQ & ~jnp.eye(len(same_QQ), dtype=bool)
    loss = self.of_vectors(queries_QD, documents_QD, excluded_QQ)
    near_QQ = jnp.where(excluded_QQ, -1.0, queries_QD @ documents_QD.T)
    first_Q = jnp.argmax(near_QQ, axis=1) == jnp.arange(len(near_QQ))
    tokens = jnp.sum(batch.query_lengths_Q) + jnp.sum(batch.document_lengths_Q)
    return loss, {
      'loss': loss,
      'first': Mean(jnp.sum(first_Q.astype(jnp.float32)), loss.weight),
      'tokens': Mean(tokens.astype(jnp.float32), jnp.ones(())),
    }


class Distilled(Contrastive):
  """The same, mixed with what a teacher says of the same queries and documents, where there is one.

  loss = (1 - teacher_weight) info_nce + teacher_weight distillation, at every size
  """

  distillation: Literal['kl', 'margin'] = leaf(
    'kl', "What is learnt of a teacher's scores: softmaxes, or how far answers are ahead."
  )
  teacher_weight: float = leaf(
    0.5, "Share of the loss that a teacher's scores have, where there is one.", low=0.0, high=1.0
  )
  teacher_temperature: float = leaf(0.05, "What a teacher's scores are divided by.", above=0.0)

  def _total(self, queries_QD, documents_ND, excluded_QN, taught_QN) -> jax.Array:
    found = super()._total(queries_QD, documents_ND, excluded_QN, taught_QN)
    if taught_QN is None:
      return found
    distil = distil_scores if self.distillation == 'kl' else distil_margins
    logits_QN = queries_QD @ documents_ND.T / self.temperature
    taught = distil(logits_QN, taught_QN / self.teacher_temperature).total
    return (1 - self.teacher_weight) * found + self.teacher_weight * taught


def distil_scores(logits_QN: jax.Array, taught_QN: jax.Array) -> Mean:
  """KL divergence of the documents that a query's logits make likely from those a teacher's do.

    loss = sum over n of p_T(n) (log p_T(n) - log p_S(n)),  both softmaxes over what the teacher scored

  Args:
    taught_QN: f32 the teacher's logits, NaN where it has none.
  """
  there_QN = ~jnp.isnan(taught_QN)
  spread = lambda x_QN: jax.nn.log_softmax(jnp.where(there_QN, x_QN, _NEVER), axis=1)
  teacher_QN, student_QN = spread(taught_QN), spread(logits_QN)
  kl_QN = jnp.where(there_QN, jnp.exp(teacher_QN) * (teacher_QN - student_QN), 0.0)
  return Mean(jnp.sum(kl_QN), jnp.asarray(len(logits_QN), jnp.float32))


def distil_margins(logits_QN: jax.Array, taught_QN: jax.Array) -> Mean:
  """Margin-MSE, Hofstaetter et al. 2020 (arXiv:2010.02666) eq. 4; document i answers query i.

    loss = mean over n of ((s(q, answer) - s(q, n)) - (t(q, answer) - t(q, n)))^2

  Args:
    taught_QN: f32 the teacher's logits, NaN where it has none, which are left out.
  """
  ahead = lambda x_QN: jnp.diagonal(x_QN)[:, None] - x_QN
  counted_QN = ~jnp.isnan(taught_QN) & ~jnp.eye(*taught_QN.shape, dtype=bool)
  missed_QN = jnp.where(counted_QN, ahead(logits_QN) - ahead(taught_QN), 0.0)
  mean_Q = jnp.sum(missed_QN**2, axis=1) / jnp.maximum(jnp.sum(counted_QN, axis=1), 1)
  return Mean(jnp.sum(mean_Q), jnp.asarray(len(logits_QN), jnp.float32))


def _in_pieces(encode: Callable[[Any], jax.Array], texts: Any, pieces: int) -> jax.Array:
  """`encode` of texts [S, ...], f32 [S, D], a piece after another.

  What a piece computes is computed again for its gradient: `cached_value_and_grad`'s saving by autodiff.
  Piece p holds texts p, p + pieces, ...: strided, so that a batch sharded in runs of rows stays where it is.
  """
  if pieces == 1:
    return encode(texts)
  cut = lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1)
  vectors_PSD = jax.lax.map(jax.checkpoint(encode), jax.tree.map(cut, texts))
  return vectors_PSD.swapaxes(0, 1).reshape(-1, vectors_PSD.shape[-1])


def _first(vectors_SD: jax.Array, size: int) -> jax.Array:
  """The first `size` numbers of vectors, of length 1 again."""
  some = vectors_SD[:, :size]
  return some / jnp.maximum(jnp.linalg.norm(some, axis=1, keepdims=True), 1e-12)


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
