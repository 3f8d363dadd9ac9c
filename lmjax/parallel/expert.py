"""Experts on devices of their own: rows go to the device of their expert and come back.

Dropless: a device may be sent every row there is, so buffers have room for the worst case, T rows
from each of P devices. What travels differs: XLA:CPU has no ragged all-to-all, so there the whole
buffers do; elsewhere only rows that somebody sent do. Both leave device p's rows from p x T on.

T rows of a device, sorted by expert, P devices on the axis, R = P x T, E experts in all, e = E / P
here, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.parallel.sharding import by_platform

_AXIS = 'expert'


class Plan(NamedTuple):
  """Where rows come from and go to, i32; [p] is about the p-th device of the axis.

  Attributes:
    sent_P, received_P: rows that this device sends to p, and gets from it.
    first_P: the first row that goes to p.
    first_there_P: the first of p's rows that comes here, as p counts.
  """

  sent_P: jax.Array
  received_P: jax.Array
  first_P: jax.Array
  first_there_P: jax.Array


def run_on_experts(
  run: Callable[[jax.Array, jax.Array], jax.Array], x_TD: jax.Array, sizes_E: jax.Array
) -> jax.Array:
  """`run` of every row on the device of its expert; in a `shard_map` over the expert axis.

  Args:
    run: (rows sorted by expert, their number for each of the e experts here) -> as many rows;
      rows beyond the sum of the numbers may be anything.
    x_TD: rows sorted by expert.
    sizes_E: i32, rows of each of all experts, T in all.

  Returns:
    One row for each of x_TD, in their order.
  """
  P, T = jax.lax.axis_size(_AXIS), x_TD.shape[0]
  sizes_Pe = sizes_E.reshape(P, -1)
  arriving_Pe = jax.lax.all_to_all(sizes_Pe, _AXIS, 0, 0, tiled=True)
  plan = make_plan(sizes_Pe, arriving_Pe)
  x_RD = by_platform(x_TD, plan, cpu=_send_padded, default=_send_ragged)
  order_R = jnp.argsort(_experts_of(arriving_Pe, T), stable=True)
  y_RD = run(x_RD[order_R], jnp.sum(arriving_Pe, axis=0))[jnp.argsort(order_R)]
  return by_platform(y_RD, plan, cpu=_return_padded, default=_return_ragged)


def padding_bytes(rows: int, width: int, itemsize: int, devices: int) -> int:
  """Bytes of one exchange's padding that a device sends where whole buffers travel.

  A device sends `rows` rows in `devices` buffers of `rows` each.
  """
  return (devices - 1) * rows * width * itemsize


def make_plan(sizes_Pe: jax.Array, arriving_Pe: jax.Array) -> Plan:
  """The plan of a device that sends sizes_Pe rows to the experts of each device and gets arriving_Pe."""
  sent_P, received_P = (
    jnp.sum(sizes, axis=1, dtype=jnp.int32) for sizes in (sizes_Pe, arriving_Pe)
  )
  first_P = jnp.cumsum(sent_P) - sent_P
  first_there_P = jax.lax.all_to_all(first_P, _AXIS, 0, 0, tiled=True)
  return Plan(sent_P, received_P, first_P, first_there_P)


def ragged_offsets(plan: Plan, device: jax.Array | int, rows: int) -> tuple[jax.Array, ...]:
  """What `ragged_all_to_all` takes to send: input offsets, send sizes, output offsets, receive sizes.

  Output offsets count in the buffer of the device that receives: from `device` x T on.
  """
  there_P = 0 * plan.first_P + rows * device  # batched where the plan is: under `vmap` all must be
  return plan.first_P, plan.sent_P, there_P, plan.received_P


def ragged_return_offsets(plan: Plan, rows: int) -> tuple[jax.Array, ...]:
  """The same for the way back."""
  here_P = 0 * plan.first_P + rows * jnp.arange(plan.first_P.shape[0], dtype=jnp.int32)
  return here_P, plan.received_P, plan.first_there_P, plan.sent_P


def _send_padded(x_TD: jax.Array, plan: Plan) -> jax.Array:
  T, D = x_TD.shape
  row_PT = plan.first_P[:, None] + jnp.arange(T)[None]
  x_PTD = x_TD[jnp.minimum(row_PT, T - 1)]
  return jax.lax.all_to_all(x_PTD, _AXIS, 0, 0, tiled=True).reshape(-1, D)


def _return_padded(y_RD: jax.Array, plan: Plan) -> jax.Array:
  P = plan.first_P.shape[0]
  y_PTD = y_RD.reshape(P, -1, y_RD.shape[-1])
  T = y_PTD.shape[1]
  y_PTD = jax.lax.all_to_all(y_PTD, _AXIS, 0, 0, tiled=True)
  row_T = jnp.arange(T)
  device_T = jnp.searchsorted(jnp.cumsum(plan.sent_P), row_T, side='right')
  return y_PTD[device_T, row_T - plan.first_P[device_T]]


def _send_ragged(x_TD: jax.Array, plan: Plan) -> jax.Array:
  T, D = x_TD.shape
  buffer = jnp.zeros_like(x_TD, shape=(plan.first_P.shape[0] * T, D))
  offsets = ragged_offsets(plan, jax.lax.axis_index(_AXIS), T)
  return jax.lax.ragged_all_to_all(x_TD, buffer, *offsets, axis_name=_AXIS)


def _return_ragged(y_RD: jax.Array, plan: Plan) -> jax.Array:
  T = y_RD.shape[0] // plan.first_P.shape[0]
  buffer = jnp.zeros_like(y_RD, shape=(T, y_RD.shape[1]))
  offsets = ragged_return_offsets(plan, T)
  return jax.lax.ragged_all_to_all(y_RD, buffer, *offsets, axis_name=_AXIS)


def _experts_of(arriving_Pe: jax.Array, rows: int) -> jax.Array:
  """The expert here of each row of the buffers i32 [R], e for those that nobody sent."""
  ends_Pe = jnp.cumsum(arriving_Pe, axis=1)
  find = lambda ends_e: jnp.searchsorted(ends_e, jnp.arange(rows), side='right')
  return jax.vmap(find)(ends_Pe).reshape(-1)
