"""The mixture-of-experts feed-forward: a router, its balance, and the experts it chooses.

B batch, L length, D width, F mlp hidden, E experts, k experts a token.
"""

import functools
import math
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError
from lmjax.core.types import Mean
from lmjax.models.layers import Mlp, activation, bias, ungated, weight
from lmjax.ops import moe
from lmjax.ops.dot import dot
from lmjax.parallel.expert import run_on_experts
from lmjax.parallel.sharding import axis_sizes, gather_weight, on_shards, spec, vary


class MoE(Config):
  """Experts in place of one MLP; each token goes to the `top_k` its router scores best."""

  experts: int = leaf(8, 'Experts E a layer.', low=2)
  top_k: int = leaf(2, 'Experts a token is sent to.', low=1)
  shared: int = leaf(0, 'Experts that every token also goes through, as one wider MLP.', low=0)
  shared_gate: Literal['none', 'sigmoid'] = leaf(
    'none', 'Factor of what the shared experts add: 1, or one that a token gives itself (Qwen2).'
  )
  scores: Literal['softmax', 'sigmoid'] = leaf('softmax', 'What turns router logits into gates.')
  renormalise: bool = leaf(True, 'Scale the gates of the chosen experts to sum to 1.')
  balancing: Literal['loss', 'bias'] = leaf(
    'loss', 'Even out the load by an auxiliary loss, or by a bias on the choice (no loss).'
  )
  balance_loss: float = leaf(0.01, 'Weight of the load-balance loss (balancing=loss).', low=0.0)
  z_loss: float = leaf(1e-3, 'Weight of the squared logsumexp of router logits.', low=0.0)
  capacity_factor: float | None = leaf(
    None,
    'Tokens of a row an expert takes, as a multiple of an even share; none drops no token.',
    above=0.0,
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.top_k > self.experts:
      raise UserError(
        f'top_k={self.top_k} is more than experts={self.experts}: pass top_k of {self.experts} or less'
      )

  def capacity(self, length: int) -> int | None:
    """Places of one expert in a row of `length` tokens, or None when nothing is dropped."""
    if self.capacity_factor is None:
      return None
    return max(1, math.ceil(self.capacity_factor * length * self.top_k / self.experts))


class MoeMlp(nn.Module):
  """x -> sum of its chosen experts (+ the shared one), and the auxiliary means.

  Returns, beside y_BLD in f32: `balance_loss` and `router_z_loss` (terms of the loss, already
  weighed), `dropped` (share of choices dropped), `busiest_expert` (load of a row's busiest over an even share).
  """

  config: MoE
  width: int
  mlp: int
  activation: str
  dtype: str

  @nn.compact
  def __call__(self, x_BLD: jax.Array, weights_BL: jax.Array):
    c = self.config
    router_DE = weight(self, 'router', (self.width, c.experts), ('embed', 'choice'))
    logits_BLE = dot('BLD,DE->BLE', x_BLD, router_DE)
    scores_BLE = jax.nn.softmax(logits_BLE) if c.scores == 'softmax' else jax.nn.sigmoid(logits_BLE)
    bias_E = None
    if c.balancing == 'bias':
      bias_E = bias(self, 'router_bias', (c.experts,), ('choice',))
    ranked = (
      scores_BLE if bias_E is None else scores_BLE + jax.lax.stop_gradient(bias_E)[None, None]
    )
    experts_BLk = moe.choose(jax.lax.stop_gradient(ranked), c.top_k)
    gates_BLk = jnp.take_along_axis(scores_BLE, experts_BLk, axis=-1)
    if c.renormalise:
      gates_BLk = gates_BLk / (jnp.sum(gates_BLk, axis=-1, keepdims=True) + 1e-20)
    y_BLD, dropped = self._run(x_BLD, experts_BLk, gates_BLk, weights_BL)
    if c.shared:
      shape = (self.width, self.mlp * c.shared, self.activation, False)
      shared_BLD = Mlp(*shape, self.dtype, self.dtype, name='shared')(x_BLD)
      if c.shared_gate == 'sigmoid':
        gate_D = bias(self, 'shared_gate', (self.width,), ('embed',))
        shared_BLD *= jax.nn.sigmoid(dot('BLD,D->BL', x_BLD, gate_D))[..., None]
      y_BLD += shared_BLD
    aux = _auxiliary(c, logits_BLE, scores_BLE, experts_BLk, weights_BL, bias_E)
    return y_BLD, aux | {'dropped': dropped}

  def _run(self, x_BLD, experts_BLk, gates_BLk, weights_BL):
    E, D, F = self.config.experts, self.width, self.mlp
    gate = None
    if self.activation not in ungated:
      gate = weight(self, 'gate', (E, D, F), ('expert', 'embed', 'mlp'))
    up = weight(self, 'up', (E, D, F), ('expert', 'embed', 'mlp'))
    down = weight(self, 'down', (E, F, D), ('expert', 'mlp', 'embed'), output=True)
    experts = moe.Experts(gate, up, down)
    activate = activation(self.activation, self.dtype)
    choices = jnp.sum(weights_BL) * self.config.top_k
    capacity = self.config.capacity(x_BLD.shape[1])
    if capacity is None:
      y = _over_mesh(x_BLD, experts_BLk, gates_BLk, experts, activate, self.dtype)
      return y, Mean(jnp.zeros(()), choices)
    place_BLk = moe.slots(experts_BLk, weights_BL, E)
    lost_BLk = (place_BLk >= capacity) * weights_BL[:, :, None]
    y = moe.run_capacity(
      x_BLD, experts_BLk, gates_BLk, place_BLk, experts, activate, capacity, self.dtype
    )
    return y, Mean(jnp.sum(lost_BLk), choices)


def _over_mesh(x_BLD, experts_BLk, gates_BLk, experts, activation, dtype):
  """`run_dropless` on each device's own tokens: sorting the whole batch would gather it.

  Experts are gathered over fsdp, as any weight; over the expert axis each device has some of them,
  to which tokens travel; over tensor each has a slice of F, and the partial sums are added.
  """
  count = experts.up_EDF.shape[0]
  sizes = axis_sizes()
  if not sizes:
    run = functools.partial(moe.run_sorted, experts, activation, dtype)
    return moe.run_dropless(x_BLD, experts_BLk, gates_BLk, count, run)

  def local(x, chosen, gates, weights):
    x, chosen, gates = vary((x, chosen, gates), 'tensor')
    weights = vary(weights, 'data', 'context')
    weights = moe.Experts(
      None if weights.gate_EDF is None else gather_weight(weights.gate_EDF, 1, dtype),
      gather_weight(weights.up_EDF, 1, dtype),
      gather_weight(weights.down_EFD, 2, dtype),
    )
    run = functools.partial(moe.run_sorted, weights, activation, dtype)
    if sizes['expert'] > 1:
      run = functools.partial(run_on_experts, run)
    return jax.lax.psum(moe.run_dropless(x, chosen, gates, count, run), 'tensor')

  tokens = spec(('batch', 'length'))
  up, down = spec(('expert', 'embed', 'mlp')), spec(('expert', 'mlp', 'embed'))
  gate: Any = None if experts.gate_EDF is None else up
  in_specs = (tokens, tokens, tokens, moe.Experts(gate, *cast(Any, (up, down))))
  run = on_shards(local, in_specs=in_specs, out_specs=tokens)
  return run(x_BLD, experts_BLk, gates_BLk, experts)


def _auxiliary(c: MoE, logits_BLE, scores_BLE, experts_BLk, weights_BL, bias_E) -> dict[str, Mean]:
  """Balance and z terms, defined a row at a time so that they add over microbatches.

  balance: E * sum_e f_e p_e of each row (Switch Transformer, arXiv:2101.03961 eq. 4), f_e the share
  of choices and p_e the mean score, weighed by the row's tokens. bias: a term of value 0 whose
  gradient is the row's load minus an even share (DeepSeek-V3, arXiv:2412.19437 section 2.1.2).
  """
  tokens_B = jnp.sum(weights_BL, axis=1)
  total = jnp.sum(tokens_B)
  load_BE = moe.load(experts_BLk, weights_BL, c.experts)
  share_BE = load_BE / jnp.maximum(c.top_k * tokens_B, 1.0)[:, None]
  z_BL = jnp.square(jax.nn.logsumexp(logits_BLE, axis=-1))
  aux = {'router_z_loss': Mean(c.z_loss * jnp.sum(z_BL * weights_BL), total)}
  if bias_E is None:
    normal_BLE = scores_BLE / jnp.sum(scores_BLE, axis=-1, keepdims=True)
    mean_BE = (
      jnp.sum(normal_BLE * weights_BL[:, :, None], axis=1) / jnp.maximum(tokens_B, 1.0)[:, None]
    )
    balance_B = c.experts * jnp.sum(share_BE * mean_BE, axis=1)
    aux['balance_loss'] = Mean(c.balance_loss * jnp.sum(balance_B * tokens_B), total)
  else:
    excess_E = jnp.sum((share_BE - 1.0 / c.experts) * tokens_B[:, None], axis=0)
    value = jnp.sum(jax.lax.stop_gradient(excess_E) * (bias_E - jax.lax.stop_gradient(bias_E)))
    aux['balance_loss'] = Mean(value, total)
  busiest = jnp.sum(jnp.max(share_BE, axis=1) * tokens_B) * c.experts
  return aux | {'busiest_expert': Mean(jax.lax.stop_gradient(busiest), total)}
