"""Stages of layers on devices of their own, with microbatches going around through them.

Layers are dealt in runs to the S stages of the `pipe` axis, in each of R rounds (Megatron's
interleaving, arXiv:2104.04473 section 2.2). At tick t stage s works on item t - s, and hands it to
the next stage at the end; an item is a microbatch in a round, and the last stage hands it back to
the first. One program runs everywhere: `vmap` over the stages, and a roll to the neighbour. The
backward pass is what autodiff makes of it, all forward ticks and then all backward ones, so it is
no 1F1B: every item's input is alive at its stage in between.

S stages, M microbatches, R rounds, K layers a stage and round, b rows of a microbatch, L length,
D width.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError
from lmjax.core.types import Mean
from lmjax.parallel.sharding import constrain, spec

Stage = Callable[..., tuple[jax.Array, dict[str, Mean]]]
"""(parameters of K layers, x_bLD, *rows) -> (x_bLD, means of these layers)."""

# So many microbatches a stage leave at most a fifth of the ticks idle.
_PER_STAGE = 4


class Plan(NamedTuple):
  """What a pipeline of this shape does."""

  stages: int
  microbatches: int
  rounds: int

  @property
  def ticks(self) -> int:
    return self.microbatches * self.rounds + self.stages - 1

  @property
  def bubble_fraction(self) -> float:
    """Share of the ticks in which a stage has nothing to do."""
    return (self.stages - 1) / self.ticks

  @property
  def live_items(self) -> int:
    """Inputs that a stage holds when the backward pass begins, bubbles included."""
    return self.ticks


class Pipeline(Config):
  """How a batch goes through the stages of `mesh.pipe`."""

  microbatches: int | None = leaf(
    None, 'Parts of a batch, one after another; none: up to 4 a stage.', low=1, run=True
  )
  rounds: int = leaf(
    1, 'Times that a part goes around; more leave less idle and move weights.', low=1, run=True
  )

  def plan(self, stages: int, rows: int) -> Plan:
    """The plan for `rows` rows of each device.

    Raises:
      UserError: the rows do not divide, or are too few for the rounds.
    """
    divisors = [n for n in range(1, rows + 1) if rows % n == 0]
    microbatches = self.microbatches
    if microbatches is None:
      microbatches = max(n for n in divisors if n <= _PER_STAGE * stages)
    if rows % microbatches:
      raise UserError(
        f'microbatches={microbatches} does not divide the {rows} rows of a device: '
        f'pass one of {", ".join(map(str, divisors))}'
      )
    if self.rounds > 1 and microbatches < stages:
      raise UserError(
        f'rounds={self.rounds} needs microbatches of {stages} or more, one a stage, '
        f'here are {microbatches}: pass rounds=1, or a larger batch'
      )
    return Plan(stages, microbatches, self.rounds)


def run_stages(
  stage: Stage, params: Any, x_BLD: jax.Array, rows: tuple[jax.Array, ...], plan: Plan
) -> tuple[jax.Array, dict[str, Mean]]:
  """What all layers in turn make of a batch, and the sums of their means.

  Args:
    stage: runs K layers; called under `vmap`, with a mesh in force.
    params: of all layers, stacked [N, ...], N = S x R x K.
    rows: what each row of the batch has besides, [B, L]: segments, positions.
    plan: from `Pipeline.plan`; microbatch m holds rows m, m + M, ..., which stay where they are.
  """
  S, M = plan.stages, plan.microbatches
  layers = jax.tree.map(functools.partial(_deal, plan), params)
  rows_M = [_cut(x, M) for x in rows]
  # Only the first stage's copy matters: the items that wait for it, and at the end what came out.
  waiting = jnp.broadcast_to(_cut(x_BLD, M)[None], (S, M, x_BLD.shape[0] // M, *x_BLD.shape[1:]))
  waiting = constrain(waiting, 'stage', None, 'batch', 'stream', None)
  moving = jnp.zeros_like(waiting[:, 0])
  run = jax.vmap(functools.partial(_run_item, stage, plan), spmd_axis_name='pipe')

  def tick(carry, t):
    moving, waiting = carry
    is_first = (jnp.arange(S) == 0)[:, None, None, None]
    x = jnp.where(is_first, waiting[:, t % M], moving)
    item_S = t - jnp.arange(S)
    mine = [x_M[jnp.clip(item_S, 0) % M] for x_M in rows_M]
    x, aux_S = run(layers, item_S, x, *mine)
    moving = constrain(jnp.roll(x, 1, axis=0), 'stage', 'batch', 'stream', None)
    done = t - (S - 1)
    place = jnp.clip(done, 0) % M
    waiting = waiting.at[:, place].set(jnp.where(done >= 0, moving, waiting[:, place]))
    return (moving, waiting), jax.tree.map(lambda x: jnp.sum(x, axis=0), aux_S)

  (_, waiting), aux_T = jax.lax.scan(tick, (moving, waiting), jnp.arange(plan.ticks))
  y_BLD = waiting[0].swapaxes(0, 1).reshape(x_BLD.shape)
  aux = jax.tree.map(lambda x: jnp.sum(x, axis=0), aux_T)
  return constrain(y_BLD, 'batch', 'stream', None), aux


def _run_item(stage: Stage, plan: Plan, layers_R: Any, item, x_bLD, *rows):
  """One stage's part of one item; means of a tick without an item are zero."""
  busy = (item >= 0) & (item < plan.microbatches * plan.rounds)
  turn = jnp.clip(item // plan.microbatches, 0, plan.rounds - 1)
  layers = jax.tree.map(lambda x: x[0] if plan.rounds == 1 else x[turn], layers_R)
  x_bLD, aux = stage(layers, x_bLD, *rows)
  return x_bLD, jax.tree.map(lambda x: jnp.where(busy, x, 0.0), aux)


def _deal(plan: Plan, x: jax.Array) -> jax.Array:
  """[N, ...] -> [S, R, K, ...]: with one round the runs of layers that the stages hold already."""
  x = x.reshape(plan.rounds, plan.stages, -1, *x.shape[1:]).swapaxes(0, 1)
  free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec(('stage',)), *free))


def _cut(x: jax.Array, microbatches: int) -> jax.Array:
  """[B, ...] -> [M, b, ...], strided, so that rows stay on their device."""
  return x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
