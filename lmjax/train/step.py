"""One training step: a pure function of state and batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmjax.core.types import Batch, Mean, Params
from lmjax.objectives.language import Language
from lmjax.train.state import TrainState

Metrics = dict[str, jax.Array]
Gradients = Callable[[Params, Batch, jax.Array], tuple[Params, Mean, dict[str, Mean]]]


def make_step(
  objective: Language, model: Any, tx: optax.GradientTransformation, accumulate: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """objective -> gradients -> optax -> state. A non-finite update is counted and left out.

  An optimizer state that lies in the host's memory is copied to the device for the update.
  """
  gradients = make_gradients(objective, model, accumulate)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    grads, loss, means = gradients(state.params, batch, rng)
    grads = jax.tree.map(lambda grad: grad / jnp.maximum(loss.weight, 1.0), grads)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss.total) & jnp.isfinite(norm)
    before = jax.tree.map(_on_device, state.opt_state)
    updates, opt_state = tx.update(grads, before, state.params)
    params = optax.apply_updates(state.params, updates)
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      skipped=state.skipped + jnp.where(finite, 0, 1),
      params=keep(params, state.params),
      opt_state=keep(opt_state, before),
    )
    metrics = {name: mean.value for name, mean in means.items()}
    return state, metrics | {'gradient_norm': norm, 'tokens': loss.weight, 'skipped': state.skipped}

  return train_step


def _on_device(x: jax.Array) -> jax.Array:
  is_here = jax.typeof(x).memory_space != jax.memory.Space.Host
  return x if is_here else jax.device_put(x, jax.memory.Space.Device)


def make_gradients(objective: Language, model: Any, accumulate: int) -> Gradients:
  """Gradients of the summed loss (`Mean.total`), over `accumulate` microbatches."""

  def total(params, batch, rng):
    loss, means = objective(model, params, batch, rng)
    return loss.total, (loss, means)

  def one(params, batch, rng):
    grads, (loss, means) = jax.grad(total, has_aux=True)(params, batch, rng)
    return grads, loss, means

  return one if accumulate == 1 else _accumulated(one, accumulate)


def _accumulated(one: Gradients, accumulate: int) -> Gradients:
  """The sums of `one` over microbatches, one after another.

  Microbatch a holds rows a, a + accumulate, ...: strided, so that a batch sharded in runs of rows
  stays where it is. Sums add, so n microbatches equal the whole batch up to f32 rounding.
  """

  def many(params, batch, rng):
    cut = lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)
    micros = (jax.tree.map(cut, batch), jax.random.split(rng, accumulate))
    add = lambda sums, micro: (jax.tree.map(jnp.add, sums, one(params, *micro)), None)
    shapes = jax.eval_shape(one, params, jax.tree.map(lambda x: x[0], micros[0]), rng)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, micros)[0]

  return many
