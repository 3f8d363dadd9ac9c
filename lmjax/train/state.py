"""The state of a run: what a step reads and writes, how it starts, and where its arrays live."""

import functools
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from lmjax.core.errors import UserError
from lmjax.core.types import Params
from lmjax.parallel import sharding

Model = Any
"""A hashable configuration with `init` and `dims`: a model, or what is trained beside one."""

Memory = Literal['device', 'pinned_host']
"""Where arrays lie: the device's own memory, or its host's from which the device copies."""


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes.

  Attributes:
    step: i32[], steps taken.
    skipped: i32[], of them those whose update was not finite and was left out.
    params: nested dict of f32 arrays.
    opt_state: optax's.
    rng: key of the run; a step folds its number in.
    frozen: arrays that a step reads and does not change, or None; never saved.
  """

  step: jax.Array
  skipped: jax.Array
  params: Params
  opt_state: Any
  rng: jax.Array
  frozen: Any = None


def init_state(model: Model, tx: optax.GradientTransformation, seed: int) -> TrainState:
  """The state before the first step, a pure function of the seed."""
  return state_of(model.init(jax.random.fold_in(jax.random.key(seed), 0)), tx, seed)


def state_of(params: Params, tx: optax.GradientTransformation, seed: int) -> TrainState:
  """The state before the first step from given parameters."""
  zero = jnp.zeros((), jnp.int32)
  key = jax.random.key_data(jax.random.key(seed))
  return TrainState(zero, zero, params, tx.init(params), key)


@functools.lru_cache(8)
def _shapes(model: Model, tx: optax.GradientTransformation) -> TrainState:
  """Shapes and dtypes of the state; kept, since tracing takes 0.2 s and a start asks three times."""
  return jax.eval_shape(lambda: init_state(model, tx, 0))


def state_dims(model: Model, tx: optax.GradientTransformation) -> TrainState:
  """The dimension names of every array of the state: moments are laid out as their parameters."""
  dims = model.dims()
  state = _shapes(model, tx)
  moments = optax.tree.map_params(
    tx,
    _moment_dims,
    state.opt_state,
    dims,
    state.params,
    transform_non_params=lambda leaf: (None,) * leaf.ndim,
    is_leaf=lambda node: isinstance(node, optax.MaskedNode),
  )
  scalar: Any = ()
  key: Any = (None,)
  return TrainState(scalar, scalar, dims, moments, key)


def _moment_dims(moment: Any, names: sharding.Dims, param: jax.ShapeDtypeStruct) -> Any:
  """A moment is laid out as its parameter, a factored one (Adafactor) by the dimensions it kept.

  Replicated, those of one projection of posts_dense_70b would take 168 MB of every device.
  """
  if isinstance(moment, optax.MaskedNode):
    return moment
  if moment.shape == param.shape:
    return names
  for gone in range(param.ndim):
    if moment.shape == param.shape[:gone] + param.shape[gone + 1 :]:
      return names[:gone] + names[gone + 1 :]
  return (None,) * moment.ndim


def make_state(
  model: Model, tx: optax.GradientTransformation, seed: int, mesh: jax.sharding.Mesh
) -> TrainState:
  """`init_state` with every array born on its shards; run outside an active mesh context."""
  return jax.jit(
    lambda: init_state(model, tx, seed), out_shardings=state_shardings(model, tx, mesh)
  )()


def state_shardings(
  model: Model, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
  return sharding.shardings(mesh, state_dims(model, tx))


def with_moments_in(memory: Memory, state: TrainState) -> TrainState:
  """`state` with the arrays of its optimizer state moved to a kind of memory; scalars stay.

  Raises:
    UserError: the devices have no such memory.
  """
  kinds = [found.kind for found in jax.local_devices()[0].addressable_memories()]
  if memory not in kinds:
    raise UserError(
      f'optimizer.memory={memory}: these devices have {", ".join(kinds)} only: pass one of them'
    )

  def move(x: jax.Array) -> jax.Array:
    return jax.device_put(x, x.sharding.with_memory_kind(memory)) if x.ndim else x

  return state.replace(opt_state=jax.tree.map(move, state.opt_state))  # type: ignore[attr-defined]


def batch_sharding(
  mesh: jax.sharding.Mesh, dims: sharding.Dims = ('batch', 'length')
) -> NamedSharding:
  return NamedSharding(mesh, sharding.spec(dims))


def abstract_state(
  model: Model, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
  """Shapes, dtypes and shardings of the state, without any memory: what a restore fills."""
  shapes = _shapes(model, tx)
  place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  return jax.tree.map(place, shapes, state_shardings(model, tx, mesh))
