"""One training step: a pure function of state and batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmjax.core.types import Mean, Params
from lmjax.train.state import TrainState

Metrics = dict[str, jax.Array]
Objective = Callable[[Any, Any, Any, jax.Array], tuple[Mean, dict[str, Mean]]]
Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
Transform = optax.GradientTransformation
Assemble = Callable[[Params, Any], Any]
"""(trained, frozen) parameters -> what the objective takes as its parameters."""
Gradients = Callable[[Params, Any, jax.Array], tuple[Params, Mean, dict[str, Mean]]]


def _params(params: Params, frozen: Any) -> Params:
  del frozen
  return params


def make_step(
  objective: Objective, model: Any, tx: Transform, accumulate: int, assemble: Assemble = _params
) -> Step:
  """objective -> gradients -> optax -> state. A non-finite update is counted and left out.

  An optimizer state that lies in the host's memory is copied to the device for the update.
  """

  def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    whole = lambda model, params, *rest: objective(model, assemble(params, state.frozen), *rest)
    grads, loss, means = make_gradients(whole, model, accumulate)(state.params, batch, rng)
    grads = jax.tree.map(lambda grad: grad / jnp.maximum(loss.weight, 1.0), grads)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss.total) & jnp.isfinite(norm)
    before = jax.tree.map(_on_device, state.opt_state)
    updates, opt_state = tx.update(grads, before, state.params)
    params = optax.apply_updates(state.params, updates)
    keep = lambda new, old: jnp.where(finite, new, old)
    params, opt_state = jax.tree.map(keep, (params, opt_state), (state.params, before))
    counts = {'step': state.step + 1, 'skipped': state.skipped + jnp.where(finite, 0, 1)}
    state = dataclasses.replace(state, params=params, opt_state=opt_state, **counts)
    tokens = means.pop('tokens').total if 'tokens' in means else loss.weight
    metrics = {name: mean.value for name, mean in means.items()}
    return state, metrics | {'gradient_norm': norm, 'tokens': tokens, 'skipped': state.skipped}

  return train_step


def split_frozen(train_step: Callable) -> Callable:
  """`train_step` that takes the state's frozen arrays by themselves, so that they are not donated."""

  def step(state: TrainState, frozen: Any, *rest: Any) -> tuple[TrainState, Metrics]:
    state, metrics = train_step(dataclasses.replace(state, frozen=frozen), *rest)
    return dataclasses.replace(state, frozen=None), metrics

  return step


def join_frozen(split_step: Callable, complete: Callable[[TrainState, Any], Any]) -> Step:
  """What `split_frozen` took apart, compiled meanwhile, as a step of the whole state again.

  Args:
    complete: (state, batch) -> the batch that the step takes.
  """

  def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
    batch, frozen = complete(state, batch), state.frozen
    state, metrics = split_step(dataclasses.replace(state, frozen=None), frozen, batch)
    return dataclasses.replace(state, frozen=frozen), metrics

  return step


def _on_device(x: jax.Array) -> jax.Array:
  is_here = jax.typeof(x).memory_space != jax.memory.Space.Host
  return x if is_here else jax.device_put(x, jax.memory.Space.Device)


def make_gradients(objective: Objective, model: Any, accumulate: int) -> Gradients:
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
