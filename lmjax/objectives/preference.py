"""Learning from pairs: of two answers to a prompt, the preferred one is to become the likelier.

B pairs, L positions, D width. A row is a pair: its segment 1 the preferred conversation, 2 the other.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from lmjax.core.config import Config, leaf
from lmjax.core.types import Mean, Params
from lmjax.data.preference import PairBatch
from lmjax.models.transformer import Decoder
from lmjax.ops.loss import logprobs

Means = dict[str, Mean]


class Preference(Config):
  """DPO, IPO, KTO or ORPO, of the log-probabilities of both answers.

  With c and r the summed log p of the preferred and the other answer, less those of the reference:

    dpo   -log sigmoid(beta (c - r))                       Rafailov et al. 2023, arXiv:2305.18290 eq. 7
    ipo   (c - r - 1 / (2 beta))^2                         Azar et al. 2023, arXiv:2310.12036 eq. 17
    kto   the mean of 1 - sigmoid(beta (c - z_r)) and 1 - sigmoid(beta (z_c - r)), z_c and z_r the batch's
          means of c and r, at least 0                     Ethayarajh et al. 2024, arXiv:2402.01306 eq. 7
    orpo  NLL a token + beta (-log sigmoid(log odds ratio))  Hong et al. 2024, arXiv:2403.07691 eq. 6-7

  KTO's z here are of the batch's own answers, not of mismatched ones, and couple its rows; ORPO takes
  means a token and needs no reference.
  """

  kind: Literal['dpo', 'ipo', 'kto', 'orpo'] = leaf('dpo', 'Which loss.')
  beta: float = leaf(0.1, 'Strength of the pull to the reference; of ORPO, weight.', above=0.0)
  chunk: int = leaf(32, 'Positions of a row whose logits exist at a time.', low=1, run=True)

  @property
  def additive(self) -> bool:
    """Whether the losses of parts of a batch add up to its own."""
    return self.kind != 'kto'

  def __call__(
    self, model: Decoder, params: Params, batch: PairBatch, rng: jax.Array
  ) -> tuple[Mean, Means]:
    """The loss, weighed by pairs; accuracy counts pairs whose preferred answer gained more, ties half."""
    del rng
    logprob_B2, count_B2 = answer_logprobs(model, params, batch, self.chunk)
    loss, means = self.compare(logprob_B2, count_B2, batch.reference_B2)
    tokens = Mean(jnp.sum((batch.rows.segments_BL > 0).astype(jnp.float32)), jnp.ones(()))
    return loss, means | {'tokens': tokens}

  def compare(
    self, logprob_B2: jax.Array, count_B2: jax.Array, reference_B2: jax.Array
  ) -> tuple[Mean, Means]:
    """The same of the log p of both answers, in nats, and the tokens in each; of none, it is no pair."""
    real_B = jnp.all(count_B2 > 0, axis=1).astype(jnp.float32)
    if self.kind == 'orpo':
      c_B, r_B = (logprob_B2 / jnp.maximum(count_B2, 1.0)).T
    else:
      c_B, r_B = (logprob_B2 - reference_B2).T
    gap_B = c_B - r_B
    weighed = lambda x_B: Mean(jnp.sum(x_B * real_B), jnp.sum(real_B))
    loss = weighed(self._losses(c_B, r_B, real_B))
    right_B = (jnp.sign(gap_B) + 1.0) / 2.0
    return loss, {'loss': loss, 'accuracy': weighed(right_B), 'margin': weighed(gap_B)}

  def _losses(self, c_B: jax.Array, r_B: jax.Array, real_B: jax.Array) -> jax.Array:
    gap_B, beta = c_B - r_B, self.beta
    if self.kind == 'dpo':
      return -jax.nn.log_sigmoid(beta * gap_B)
    if self.kind == 'ipo':
      return jnp.square(gap_B - 1.0 / (2.0 * beta))
    if self.kind == 'orpo':
      odds = lambda x_B: x_B - jnp.log1p(-jnp.exp(jnp.minimum(x_B, -1e-6)))
      return -c_B - beta * jax.nn.log_sigmoid(odds(c_B) - odds(r_B))
    mean = lambda x_B: jnp.sum(x_B * real_B) / jnp.maximum(jnp.sum(real_B), 1.0)
    z_c, z_r = (jax.lax.stop_gradient(jnp.maximum(mean(x_B), 0.0)) for x_B in (c_B, r_B))
    kept, left = jax.nn.sigmoid(beta * (c_B - z_r)), jax.nn.sigmoid(beta * (z_c - r_B))
    return (2.0 - kept - left) / 2.0


class BradleyTerry(Config):
  """A reward for each conversation, of which the preferred one's is to be the larger.

    -log sigmoid(reward of the preferred - reward of the other)

  Bradley & Terry 1952, as by Ouyang et al. 2022 (arXiv:2203.02155 eq. 1). The reward is the product of
  a learnt vector with the hidden state of the last token.
  """

  def __call__(
    self, model: Decoder, params: Params, batch: PairBatch, rng: jax.Array
  ) -> tuple[Mean, Means]:
    """`params` are the decoder's, under `model`, and `reward_D`."""
    del rng
    c_B, r_B = rewards(model, params, batch).T
    real_B = jnp.any(batch.rows.segments_BL == 2, axis=1).astype(jnp.float32)
    weighed = lambda x_B: Mean(jnp.sum(x_B * real_B), jnp.sum(real_B))
    loss = weighed(-jax.nn.log_sigmoid(c_B - r_B))
    tokens = Mean(jnp.sum((batch.rows.segments_BL > 0).astype(jnp.float32)), jnp.ones(()))
    right_B = (jnp.sign(c_B - r_B) + 1.0) / 2.0
    means = {'loss': loss, 'accuracy': weighed(right_B), 'margin': weighed(c_B - r_B)}
    return loss, means | {'tokens': tokens}


def answer_logprobs(
  model: Decoder, params: Params, batch: PairBatch, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """Summed log p of the preferred and the other answer of each pair, f32 nats [B, 2], and their tokens."""
  rows = batch.rows
  output = model.apply(params, rows.tokens_BL, rows.segments_BL, rows.positions_BL)
  logprob_BL, _ = logprobs(
    model.logits, model.head_params(params), output.hidden_BLD, rows.targets_BL, chunk=chunk
  )
  of = lambda segment: rows.weights_BL * (rows.segments_BL == segment)
  sums = [(jnp.sum(logprob_BL * of(s), axis=1), jnp.sum(of(s), axis=1)) for s in (1, 2)]
  logprob_B2, count_B2 = (jnp.stack(both, axis=1) for both in zip(*sums, strict=True))
  return logprob_B2, count_B2


def rewards(model: Decoder, params: Any, batch: PairBatch) -> jax.Array:
  """The reward of the preferred and of the other conversation of each pair, f32 [B, 2]."""
  rows = batch.rows
  output = model.apply(params['model'], rows.tokens_BL, rows.segments_BL, rows.positions_BL)
  reward_BL = jnp.einsum('BLD,D->BL', output.hidden_BLD.astype(jnp.float32), params['reward_D'])

  def last(segment: int) -> jax.Array:
    inside_BL = (rows.segments_BL == segment).astype(jnp.int32)
    place_BL = jnp.arange(inside_BL.shape[1])[None, :] * inside_BL
    return jnp.take_along_axis(reward_BL, jnp.max(place_BL, axis=1)[:, None], axis=1)[:, 0]

  return jnp.stack([last(1), last(2)], axis=1)
