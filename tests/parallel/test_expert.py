"""Rows find the device of their expert and their way back: whole buffers, and ragged ones by NumPy.

XLA:CPU has no ragged all-to-all: what it is given is carried out here by NumPy instead.
P devices, T rows of each, E experts, D width.
"""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lmjax.parallel import expert
from lmjax.parallel.mesh import Mesh

P, T, E, D = 4, 6, 8, 3
# How many of its rows each device sends to each expert: an even load, and one that is not at all.
LOADS = {
  'even': np.array([[1, 1, 1, 1, 1, 1, 0, 0]] * P),
  'one': np.array([[0, 0, 0, 0, 0, 6, 0, 0]] * P),
  'mixed': np.array(
    [
      [3, 0, 0, 0, 0, 3, 0, 0],
      [0, 0, 0, 0, 0, 0, 0, 6],
      [1, 2, 0, 1, 0, 0, 2, 0],
      [0, 1, 5, 0, 0, 0, 0, 0],
    ]
  ),
}

each_load = pytest.mark.parametrize('load', LOADS)


def on_devices(f, *arrays):
  """`f` of each device's share of the arrays, and the results of all devices one after another."""
  where = PartitionSpec('expert')
  run = jax.shard_map(f, in_specs=where, out_specs=where, check_vma=False)
  with jax.set_mesh(Mesh(expert=P).build()):
    return jax.tree.map(np.asarray, jax.jit(run)(*arrays))


def make_rows():
  return np.random.default_rng(0).normal(size=(P * T, D)).astype(np.float32)


@each_load
def test_each_row_is_worked_on_by_its_expert_and_comes_back_to_its_place(load):
  factors = np.arange(1, E + 1, dtype=np.float32)

  def run(factors_e):
    return lambda x_RD, sizes_e: (
      x_RD
      * np.float32(1)
      * jax.numpy.repeat(factors_e, sizes_e, total_repeat_length=x_RD.shape[0])[:, None]
    )

  local = lambda x, sizes, factors: expert.run_on_experts(run(factors), x, sizes)
  x = make_rows()
  found = on_devices(local, x, LOADS[load].reshape(-1), factors)
  expected = x * np.concatenate([np.repeat(factors, sizes) for sizes in LOADS[load]])[:, None]
  np.testing.assert_array_equal(found, expected)


@each_load
def test_ragged_offsets_carry_the_rows_that_whole_buffers_do(load):
  def local(x, sizes):
    sizes_Pe = sizes.reshape(P, -1)
    arriving = jax.lax.all_to_all(sizes_Pe, 'expert', 0, 0, tiled=True)
    plan = expert.make_plan(sizes_Pe, arriving)
    there = expert.ragged_offsets(plan, jax.lax.axis_index('expert'), T)
    back = expert.ragged_return_offsets(plan, T)
    sent = expert._send_padded(x, plan)
    return sent, there, back, expert._return_padded(sent, plan)

  x = make_rows()
  sent, there, back, returned = on_devices(local, x, LOADS[load].reshape(-1))
  np.testing.assert_array_equal(returned, x)
  arrived = ragged_all_to_all(x.reshape(P, T, D), np.zeros((P, P * T, D), np.float32), there)
  filled = arrived != 0
  assert filled.sum() == x.size  # every row arrived, and once
  np.testing.assert_array_equal(arrived[filled], sent.reshape(P, P * T, D)[filled])
  at_home = ragged_all_to_all(arrived, np.zeros((P, T, D), np.float32), back)
  np.testing.assert_array_equal(at_home.reshape(P * T, D), x)


def ragged_all_to_all(operands, buffers, offsets):
  """What `jax.lax.ragged_all_to_all` says it does; the first dimension is the device."""
  starts, sends, places, receives = (array.reshape(P, P) for array in offsets)
  buffers = buffers.copy()
  for source in range(P):
    for target in range(P):
      size, place, start = sends[source, target], places[source, target], starts[source, target]
      assert size == receives[target, source]
      buffers[target, place : place + size] = operands[source, start : start + size]
  return buffers


def test_padding_is_all_that_is_sent_beyond_the_rows():
  sent = P * T * D * 4
  assert expert.padding_bytes(T, D, 4, P) == sent - T * D * 4
