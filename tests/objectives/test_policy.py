"""GRPO and its variants against the formulas, and on an answer that is to become likely."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import random_params

from lmjax.core.types import Batch
from lmjax.models.transformer import Decoder
from lmjax.objectives.policy import Policy, Rollouts
from lmjax.objectives.rewards import exact_match, last_number
from lmjax.ops.loss import logprobs

MODEL = Decoder(vocab=16, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=16)


def make_rollouts(sizes, advantages, drawn=0.0, reference=0.0):
  """Rows of `sizes` answer tokens each, after a prompt of one."""
  B, L = len(sizes), 8
  tokens = np.arange(B * L, dtype=np.int32).reshape(B, L) % 16
  weights = (np.arange(L)[None] < np.array(sizes)[:, None]).astype(np.float32)
  batch = Batch(
    tokens_BL=tokens,
    targets_BL=(tokens * 5 + 3) % 16,
    weights_BL=weights,
    segments_BL=np.ones((B, L), np.int32),
    positions_BL=np.broadcast_to(np.arange(L, dtype=np.int32), (B, L)),
  )  # type: ignore[arg-type]
  whole = lambda value: jnp.full((B, L), value, jnp.float32)
  return Rollouts(
    batch=batch,
    rewards_B=jnp.zeros(B),
    advantages_B=jnp.array(advantages, jnp.float32),
    drawn_BL=whole(drawn),
    reference_BL=whole(reference),
  )  # type: ignore[arg-type]


def test_advantages_are_rewards_less_their_groups_mean():
  rewards = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
  plain = Policy().advantages(rewards)
  np.testing.assert_allclose(plain, [[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0]])
  scaled = Policy(scale='std').advantages(rewards)
  np.testing.assert_allclose(scaled[0], plain[0] / rewards[0].std(), rtol=1e-4)
  np.testing.assert_array_equal(scaled[1], 0)


@pytest.mark.parametrize(
  ('ratio', 'advantage', 'clip_high', 'slope'),
  [
    (1.0, 2.0, 0.2, -2.0),
    (1.25, 2.0, 0.2, 0.0),  # a likely token that was good: no further than 1.2
    (1.25, 2.0, 0.28, -2.5),  # clip-higher leaves it room
    (0.7, -2.0, 0.2, 0.0),
    (0.7, 2.0, 0.2, -1.4),  # what is bad for a good answer is always mended
    (1.5, -2.0, 0.2, 3.0),
  ],
)
def test_ratios_beyond_the_clip_have_no_gradient(ratio, advantage, clip_high, slope):
  policy = Policy(clip_high=clip_high, kl=0.0)
  rollouts = make_rollouts([8], [advantage], drawn=-1.0)
  loss = lambda logprob: policy.token_loss(rollouts, jnp.full((1, 8), logprob))[0][0, 0]
  found = jax.grad(loss)(jnp.log(ratio) - 1.0)
  np.testing.assert_allclose(found, slope, rtol=1e-5, atol=1e-6)


def test_the_divergence_is_none_from_itself_and_positive_else():
  rollouts = make_rollouts([8], [0.0], reference=-1.0)
  kl = lambda logprob: float(Policy().token_loss(rollouts, jnp.full((1, 8), logprob))[1][0, 0])
  assert kl(-1.0) == 0.0
  np.testing.assert_allclose(kl(-2.0), np.e - 1 - 1, rtol=1e-5)
  assert kl(-0.5) > 0


def test_averages_weigh_answers_of_other_lengths_as_they_say():
  rollouts = make_rollouts([1, 3], [1.0, -1.0])
  params, key = random_params(MODEL), jax.random.key(0)
  found = {}
  for average in ('token', 'answer', 'longest'):
    policy = Policy(average=average, kl=0.0, clip_low=1.0, clip_high=1e9)
    loss, means = policy(MODEL, params, rollouts, key)
    found[average] = float(loss.total), float(loss.weight)
    assert float(means['answer_tokens'].value) == 2.0
  ratio = np.exp(
    np.asarray(
      logprobs(
        MODEL.logits,
        MODEL.head_params(params),
        MODEL.apply(
          params, *[getattr(rollouts.batch, f'{n}_BL') for n in ('tokens', 'segments', 'positions')]
        ).hidden_BLD,
        rollouts.batch.targets_BL,
        chunk=0,
      )[0]
    )
  )
  first, second = -ratio[0, 0], ratio[1, :3].sum()
  np.testing.assert_allclose(found['token'], (first + second, 4), rtol=1e-4)
  np.testing.assert_allclose(found['answer'], (first + second / 3, 2), rtol=1e-4)
  np.testing.assert_allclose(found['longest'], (first + second, 16), rtol=1e-4)


def test_rewarded_answers_become_likely_and_punished_ones_unlikely():
  params, key = random_params(MODEL), jax.random.key(0)
  policy = Policy(kl=0.0, clip_low=1.0, clip_high=1e9)
  rollouts = make_rollouts([4, 4], [1.0, -0.5])

  def answers(params):
    batch = rollouts.batch
    hidden = MODEL.apply(params, batch.tokens_BL, batch.segments_BL, batch.positions_BL).hidden_BLD
    found = logprobs(MODEL.logits, MODEL.head_params(params), hidden, batch.targets_BL, chunk=4)
    return found[0]

  @jax.jit
  def step(params):
    now = rollouts.replace(drawn_BL=answers(params), reference_BL=answers(params))
    grads = jax.grad(lambda p: policy(MODEL, p, now, key)[0].total)(params)
    return jax.tree.map(lambda p, g: p - 0.002 * g, params, grads)

  before = np.asarray(answers(params))[:, :4].sum(1)
  for _ in range(20):
    params = step(params)
  after = np.asarray(answers(params))[:, :4].sum(1)
  assert after[0] > before[0] + 0.5
  assert after[1] < before[1] - 0.5


def test_logprobs_and_entropy_are_those_of_a_softmax_in_any_chunks():
  rng = np.random.default_rng(0)
  hidden, head = rng.normal(size=(2, 6, 5)), rng.normal(size=(5, 7))
  targets = rng.integers(0, 7, (2, 6)).astype(np.int32)
  logits = hidden @ head
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  for chunk in (0, 3, 4):
    of = lambda head, hidden: hidden @ head['w']
    found = logprobs(of, {'w': jnp.asarray(head)}, jnp.asarray(hidden), targets, chunk=chunk)
    picked = np.take_along_axis(logp, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(found[0], picked, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], -(np.exp(logp) * logp).sum(-1), rtol=1e-4)


def test_rewards_take_the_right_answer_alone():
  assert exact_match(' 27 ', '27') == 1
  assert exact_match('it is 27', '27') == 0
  assert last_number('23 + 4 makes 27.', '27') == 1
  assert last_number('27 or 28', '27') == 0
  assert last_number('no idea', '27') == 0
