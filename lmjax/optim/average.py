"""An average of a model's recent parameters, which generates better than the last ones.

Kept in the optimizer's state, so that it is saved, restored and laid out as the moments are.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.core.config import leaf
from lmjax.core.types import Params
from lmjax.optim.optimizer import AdamW


class AverageState(NamedTuple):
  """`average` is an exponential moving average of the parameters after each update."""

  count: jax.Array
  average: Params


def average_params(decay: float) -> optax.GradientTransformation:
  """Leaves updates as they are; a tenth of the updates so far bounds how far back it remembers.

  average <- d average + (1 - d) params, with d = min(decay, n / (10 + n)) at update n from 0.
  """

  def init(params: Any) -> AverageState:
    return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AverageState]:
    n = state.count.astype(jnp.float32)
    d = jnp.minimum(decay, n / (10.0 + n))
    moved = optax.apply_updates(params, updates)
    mix = lambda old, new: d * old + (1.0 - d) * new
    return updates, AverageState(state.count + 1, jax.tree.map(mix, state.average, moved))

  return optax.GradientTransformation(init, update)


def find_average(opt_state: Any) -> Params:
  """The averaged parameters in the state of an optimizer that keeps them."""
  is_average = lambda node: isinstance(node, AverageState)
  found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_average) if is_average(node)]
  (state,) = found
  return state.average


class AveragedAdamW(AdamW):
  """AdamW that also keeps an average of the parameters."""

  average: float = leaf(0.998, 'Decay of the average of parameters, an update.', low=0.0, high=1.0)

  def build(self, dims: Any, steps: int) -> optax.GradientTransformation:
    return optax.chain(super().build(dims, steps), average_params(self.average))
