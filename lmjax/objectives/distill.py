"""A student that predicts what a teacher predicts: forward KL on the teacher's next-token probabilities.

    loss = temperature^2 * sum_v p_T(v) (log p_T(v) - log p_S(v)),  logits over `temperature`

Hinton et al. 2015 (arXiv:1503.02531). The teacher computes within the step, or its likeliest k tokens
were kept; what those leave of the probability is then one more outcome, so that it stays a divergence.
B batch, L length, V vocab, K kept tokens.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.core.config import Config, leaf
from lmjax.core.types import Batch, Mean, Params
from lmjax.ops.loss import chunked, target_logits

_LEAST = 1e-9  # of the probability of what was not kept


@flax.struct.dataclass
class Taught:
  """Rows and what the teacher predicts in each place.

  Attributes:
    ids_BLK: i32 its likeliest tokens.
    logprobs_BLK: f32 their log p at the objective's temperature, nats.
  """

  batch: Batch
  ids_BLK: jax.Array
  logprobs_BLK: jax.Array


class Distillation(Config):
  """Forward KL from a teacher, mixed with the text's own next tokens."""

  temperature: float = leaf(1.0, 'Divides the logits of both.', above=0.0)
  text_weight: float = leaf(
    0.0, "Share of the loss that the text's own tokens have.", low=0, high=1
  )
  chunk: int = leaf(32, 'Positions of a row whose logits exist at a time.', low=1, run=True)

  def live(
    self, model: Any, params: Params, teacher: Any, teacher_params: Params, batch: Batch
  ) -> tuple[Mean, dict[str, Mean]]:
    """Against all of the teacher's probabilities, computed here; no gradient flows to them."""
    rows = batch.tokens_BL, batch.segments_BL, batch.positions_BL
    known_BLD = jax.lax.stop_gradient(teacher.apply(teacher_params, *rows).hidden_BLD)
    known_head = jax.lax.stop_gradient(teacher.head_params(teacher_params))

    def some(heads, hidden_BLD, known_BLD, targets_BL):
      logits_BLV = model.logits(heads[0], hidden_BLD)
      known_BLV = teacher.logits(heads[1], known_BLD) / self.temperature
      teacher_BLV = jax.nn.log_softmax(known_BLV[..., : logits_BLV.shape[-1]])
      student_BLV = jax.nn.log_softmax(logits_BLV / self.temperature)
      kl_BL = jnp.sum(jnp.exp(teacher_BLV) * (teacher_BLV - student_BLV), axis=-1)
      return kl_BL, _negative_logprob(logits_BLV, targets_BL)

    hidden_BLD = model.apply(params, *rows).hidden_BLD
    heads = model.head_params(params), known_head
    given = (hidden_BLD, known_BLD, batch.targets_BL)
    kl_BL, text_BL = chunked(some, heads, given, self.chunk)
    return self._loss(kl_BL, text_BL, batch.weights_BL)

  def cached(self, model: Any, params: Params, taught: Taught) -> tuple[Mean, dict[str, Mean]]:
    """Against the tokens that were kept, and all others as one."""
    batch = taught.batch
    rows = batch.tokens_BL, batch.segments_BL, batch.positions_BL
    hidden_BLD = model.apply(params, *rows).hidden_BLD

    def some(head, hidden_BLD, ids_BLK, known_BLK, targets_BL):
      logits_BLV = model.logits(head, hidden_BLD)
      student_BLV = jax.nn.log_softmax(logits_BLV / self.temperature)
      student_BLK = jnp.take_along_axis(student_BLV, ids_BLK, axis=-1)
      kl_BL = jnp.sum(jnp.exp(known_BLK) * (known_BLK - student_BLK), axis=-1)
      rest = lambda logprobs_BLK: jnp.maximum(1 - jnp.sum(jnp.exp(logprobs_BLK), axis=-1), _LEAST)
      left_BL = rest(known_BLK)
      kl_BL += left_BL * (jnp.log(left_BL) - jnp.log(rest(student_BLK)))
      return kl_BL, _negative_logprob(logits_BLV, targets_BL)

    given = (hidden_BLD, taught.ids_BLK, taught.logprobs_BLK, batch.targets_BL)
    kl_BL, text_BL = chunked(some, model.head_params(params), given, self.chunk)
    return self._loss(kl_BL, text_BL, batch.weights_BL)

  def keep(self, teacher: Any, params: Params, batch: Batch, k: int) -> Taught:
    """What `cached` needs of a teacher."""
    rows = batch.tokens_BL, batch.segments_BL, batch.positions_BL
    hidden_BLD = teacher.apply(params, *rows).hidden_BLD

    def some(head, hidden_BLD):
      logprobs_BLV = jax.nn.log_softmax(teacher.logits(head, hidden_BLD) / self.temperature)
      return jax.lax.top_k(logprobs_BLV, k)

    logprobs, ids = chunked(some, teacher.head_params(params), (hidden_BLD,), self.chunk)
    return Taught(batch=batch, ids_BLK=ids.astype(jnp.int32), logprobs_BLK=logprobs)  # type: ignore[arg-type]

  def _loss(self, kl_BL, text_BL, weights_BL) -> tuple[Mean, dict[str, Mean]]:
    weight = jnp.sum(weights_BL)
    kl = Mean(jnp.sum(weights_BL * kl_BL), weight)
    text = Mean(jnp.sum(weights_BL * text_BL), weight)
    share = self.text_weight
    total = (1 - share) * self.temperature**2 * kl.total + share * text.total
    return Mean(total, weight), {'loss': text, 'kl': kl}


def _negative_logprob(logits_BLV: jax.Array, targets_BL: jax.Array) -> jax.Array:
  return jax.nn.logsumexp(logits_BLV, axis=-1) - target_logits(logits_BLV, targets_BL)
