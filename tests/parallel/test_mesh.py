"""Meshes are refused in one sentence before anything is compiled, or have the six axes."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lmjax.core.errors import UserError
from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder
from lmjax.parallel.mesh import AXES, Mesh, by_machine
from lmjax.parallel.pipeline import Pipeline
from lmjax.parallel.sharding import check_divides, check_mesh

MODEL = Decoder(vocab=96, width=48, heads=8, kv_heads=4, head_dim=8, mlp=40)


def test_the_chattiest_axes_stay_inside_a_host():
  """Devices in order are those of one host after another: neighbours differ in tensor first."""
  ids = np.vectorize(lambda device: device.id)(Mesh(data=2, pipe=2, tensor=2).build().devices)
  assert ids.shape == (2, 1, 1, 1, 2, 2)
  np.testing.assert_array_equal(ids[0, 0, 0, 0, :, 0], [0, 1])
  np.testing.assert_array_equal(ids[0, 0, 0, 0, 0, :], [0, 2])
  np.testing.assert_array_equal(ids[:, 0, 0, 0, 0, 0], [0, 4])


def test_shards_stay_inside_a_host_and_replicas_go_across():
  """Hybrid sharding on two hosts of four, and one that splits experts and rows inside them."""
  ids = np.vectorize(lambda device: device.id)
  hybrid = ids(Mesh(data=2, fsdp=4).build().devices)
  np.testing.assert_array_equal(hybrid.reshape(2, 4), [[0, 1, 2, 3], [4, 5, 6, 7]])
  within = ids(Mesh(fsdp=2, expert=2, context=2).build().devices)
  np.testing.assert_array_equal(within[0, :, 0, 0, 0, 0], [0, 4])
  np.testing.assert_array_equal(within[0, 0, :, 0, 0, 0], [0, 2])
  np.testing.assert_array_equal(within[0, 0, 0, :, 0, 0], [0, 1])


def test_devices_of_a_machine_are_neighbours_in_whatever_order_its_processes_came():
  devices = [SimpleNamespace(id=2 * p + i, process_index=p) for p in range(4) for i in range(2)]
  order = lambda machines: [device.id for device in by_machine(devices, machines)]
  assert order([0, 0, 2, 2]) == [0, 1, 2, 3, 4, 5, 6, 7]
  assert order([0, 1, 0, 1]) == [0, 1, 4, 5, 2, 3, 6, 7]


def test_more_devices_than_there_are_is_refused_with_both_numbers():
  with pytest.raises(
    UserError, match=r'data=4 x fsdp=4 needs 16 devices, here are 8: .* 8 or less'
  ):
    Mesh(data=4, fsdp=4).build()


def test_a_mesh_has_the_axes_in_order_on_as_many_devices_as_it_needs():
  built = Mesh(data=2, tensor=2).build()
  assert dict(built.shape) == dict.fromkeys(AXES, 1) | {'data': 2, 'tensor': 2}
  assert tuple(built.shape) == AXES
  assert Mesh(data=2, tensor=2).abstract().shape == built.shape
  assert str(Mesh(data=2, tensor=2)) == 'data=2 x tensor=2'


def test_a_batch_that_does_not_divide_names_the_nearest_that_do():
  message = r'batch=100 does not divide over data=4 x fsdp=8 \(32 ways\): the nearest that do are 96 and 128; or split it 25 or 50 ways'
  with pytest.raises(UserError, match=message):
    check_mesh(Mesh(data=4, fsdp=8).sizes, MODEL, 100, 64)


def test_a_batch_smaller_than_the_mesh_names_the_least_that_does():
  with pytest.raises(UserError, match='the nearest is 8; or split it 3 ways$'):
    check_mesh(Mesh(data=8).sizes, MODEL, 3, 64)


def test_a_microbatch_that_does_not_divide_names_the_nearest_batches():
  message = (
    r'batch=24 does not divide over accumulate=2 x 8 devices: the nearest that do are 16 and 32$'
  )
  with pytest.raises(UserError, match=message):
    check_mesh(Mesh(data=8).sizes, MODEL, 12, 64, accumulate=2)


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ({'fsdp': 32}, r'model\.width=48 .* fsdp=32 \(32 ways\): the nearest that do are 32 and 64'),
    (
      {'tensor': 8},
      r'model\.kv_heads=4 .* tensor=8 \(8 ways\): the nearest is 8; or split it 4 ways',
    ),
    ({'tensor': 64}, r'model\.vocab=96 .* the nearest that do are 64 and 128'),
  ],
)
def test_a_dimension_that_does_not_divide_names_the_nearest_that_do(sizes, message):
  with pytest.raises(UserError, match=message):
    check_mesh(Mesh(**sizes).sizes, MODEL, 64, 64)


@pytest.mark.parametrize('axes', list(itertools.combinations(AXES, 2)))
def test_every_pair_of_axes_is_checked_together(axes):
  sizes = Mesh(**dict.fromkeys(axes, 5)).sizes
  with pytest.raises(UserError, match='does not divide'):
    check_mesh(sizes, MODEL, 64, 64)
  sizes = Mesh(**dict.fromkeys(axes, 2)).sizes
  check_mesh(sizes, MODEL, 64, 64)


@pytest.mark.parametrize(
  ('sizes', 'changes', 'message'),
  [
    (
      {'pipe': 3},
      {},
      r'layers=4 does not divide over 3 stages x 1 rounds x 1 windows: the nearest that do are 3 and 6, or mesh\.pipe=2 or 4$',
    ),
    ({'pipe': 2}, {'layout': 'list'}, 'pass --model.layout=scan'),
    (
      {'pipe': 2},
      {'pipeline': Pipeline(microbatches=5)},
      'microbatches=5 does not divide the 64 rows .* one of 1, 2, 4',
    ),
    ({'pipe': 4}, {'pipeline': Pipeline(microbatches=2, rounds=1)}, None),
    (
      {'pipe': 2},
      {'pipeline': Pipeline(microbatches=1, rounds=2)},
      'rounds=2 needs microbatches of 2 or more',
    ),
    ({'expert': 3}, {'moe': MoE(experts=4)}, r'batch=64 does not divide over expert=3'),
    (
      {'expert': 8},
      {'moe': MoE(experts=4)},
      r'model\.moe\.experts=4 does not divide over expert=8 .* or split it 4 ways',
    ),
  ],
)
def test_what_an_axis_wants_of_the_model(sizes, changes, message):
  model = dataclasses.replace(MODEL, **changes)
  if message is None:
    check_mesh(Mesh(**sizes).sizes, model, 64, 64)
    return
  with pytest.raises(UserError, match=message):
    check_mesh(Mesh(**sizes).sizes, model, 64, 64)


def test_a_row_is_cut_in_two_pieces_a_device_of_the_context_axis():
  message = (
    r'length=128 does not divide over mesh\.context=3, two .* 126 and 132, or mesh\.context=2 or 4'
  )
  with pytest.raises(UserError, match=message):
    check_mesh(Mesh(context=3).sizes, MODEL, 64, 128)


def test_a_row_that_is_not_cut_may_be_of_any_length():
  check_mesh(Mesh().sizes, MODEL, 64, 127)
  check_mesh(Mesh(data=2, tensor=2).sizes, MODEL, 64, 1)


def test_what_divides_passes():
  check_divides(Mesh(data=2, fsdp=4).sizes, 'batch', 24, 'batch')
  check_divides(Mesh(data=2).sizes, 'model.width', 7, 'embed')


def test_programs_for_several_cpu_devices_are_not_kept():
  Mesh(data=2).build()
  assert not jax.config.jax_enable_compilation_cache
