"""Learning from rewards of the model's own answers: GRPO, and what Dr. GRPO and DAPO changed in it.

Knows nothing about text or rewards: advantages in. B answers, L length, P prompts, G answers a prompt.
"""

from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.core.config import Config, leaf
from lmjax.core.types import Batch, Mean, Params
from lmjax.ops.loss import logprobs


@flax.struct.dataclass
class Rollouts:
  """Answers drawn from the model, and how good each was.

  Attributes:
    batch: prompts and answers; weights are 1 where a target is of the answer.
    rewards_B: f32, how good each answer was, for the log.
    advantages_B: f32, how much better an answer was than the others to its prompt.
    drawn_BL: f32 log p of the targets under the weights that drew them, nats.
    reference_BL: f32 the same under the weights that the run began with.
  """

  batch: Batch
  rewards_B: jax.Array
  advantages_B: jax.Array
  drawn_BL: jax.Array
  reference_BL: jax.Array


class Policy(Config):
  """Group Relative Policy Optimization, Shao et al. 2024 (arXiv:2402.03300) eq. 3.

      loss = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl * (q - log q - 1)
      r = p(token) / p_drawn(token),  q = p_reference(token) / p(token)

  Its own settings are clip_high=0.2, average=answer, scale=std. Dr. GRPO (arXiv:2503.20783) is
  average=longest, scale=none, kl=0; DAPO (arXiv:2503.14476) is clip_high=0.28, average=token, kl=0.
  """

  clip_low: float = leaf(0.2, 'How far the ratio counts below 1.', above=0.0, high=1.0)
  clip_high: float = leaf(
    0.28, 'How far it counts above 1; more than clip_low: clip-higher.', above=0
  )
  average: Literal['token', 'answer', 'longest'] = leaf(
    'token', 'Each token counts the same; each answer; or a token as one of the longest answer.'
  )
  scale: Literal['none', 'std'] = leaf(
    'none', "An answer's reward less its group's mean; std: over the standard deviation too."
  )
  kl: float = leaf(0.01, 'Weight of the divergence from the reference.', low=0.0)
  chunk: int = leaf(32, 'Positions of a row whose logits exist at a time.', low=1, run=True)

  def advantages(self, rewards_PG: np.ndarray) -> np.ndarray:
    """f32 [P, G]: rewards less the mean of each group, by `scale` over its standard deviation."""
    centred_PG = rewards_PG - rewards_PG.mean(-1, keepdims=True)
    if self.scale == 'std':
      centred_PG = centred_PG / (rewards_PG.std(-1, keepdims=True) + 1e-6)
    return centred_PG.astype(np.float32)

  def __call__(
    self, model: Any, params: Params, rollouts: Rollouts, rng: jax.Array
  ) -> tuple[Mean, dict[str, Mean]]:
    """The loss and its weight (tokens, answers or places), and the means to log."""
    del rng
    batch = rollouts.batch
    output = model.apply(params, batch.tokens_BL, batch.segments_BL, batch.positions_BL)
    head = model.head_params(params)
    logprobs_BL, entropy_BL = logprobs(
      model.logits, head, output.hidden_BLD, batch.targets_BL, chunk=self.chunk
    )
    loss_BL, kl_BL, clipped_BL = self.token_loss(rollouts, logprobs_BL)
    weights_BL = batch.weights_BL
    mean = lambda x_BL: Mean(jnp.sum(weights_BL * x_BL), jnp.sum(weights_BL))
    loss = self._average(loss_BL, weights_BL)
    means = {'kl': mean(kl_BL), 'entropy': mean(entropy_BL), 'clipped': mean(clipped_BL)}
    answers = jnp.full((), rollouts.rewards_B.shape[0], jnp.float32)
    means['reward'] = Mean(jnp.sum(rollouts.rewards_B), answers)
    means['answer_tokens'] = Mean(jnp.sum(weights_BL), answers)
    means['tokens'] = Mean(jnp.sum(weights_BL), jnp.ones(()))
    return loss, {'loss': loss, **means}

  def token_loss(
    self, rollouts: Rollouts, logprobs_BL: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss, divergence from the reference and whether it was clipped, f32 [B, L] each."""
    advantages_B1 = rollouts.advantages_B[:, None]
    ratio_BL = jnp.exp(logprobs_BL - rollouts.drawn_BL)
    bounded_BL = jnp.clip(ratio_BL, 1 - self.clip_low, 1 + self.clip_high)
    free_BL, held_BL = ratio_BL * advantages_B1, bounded_BL * advantages_B1
    gap_BL = rollouts.reference_BL - logprobs_BL
    kl_BL = jnp.exp(gap_BL) - gap_BL - 1
    clipped_BL = (held_BL < free_BL).astype(jnp.float32)
    return -jnp.minimum(free_BL, held_BL) + self.kl * kl_BL, kl_BL, clipped_BL

  def _average(self, loss_BL: jax.Array, weights_BL: jax.Array) -> Mean:
    if self.average == 'token':
      return Mean(jnp.sum(weights_BL * loss_BL), jnp.sum(weights_BL))
    sums_B, sizes_B = jnp.sum(weights_BL * loss_BL, axis=1), jnp.sum(weights_BL, axis=1)
    answers = jnp.sum((sizes_B > 0).astype(jnp.float32))
    if self.average == 'answer':
      return Mean(jnp.sum(sums_B / jnp.maximum(sizes_B, 1)), answers)
    return Mean(jnp.sum(sums_B), answers * loss_BL.shape[1])
