"""Meshes are refused in one sentence before anything is compiled, or have the six axes."""

import itertools

import pytest

from lmjax.core.errors import UserError
from lmjax.models.transformer import Decoder
from lmjax.parallel.mesh import AXES, Mesh
from lmjax.parallel.sharding import check_divides, check_mesh

MODEL = Decoder(vocab=96, width=48, heads=8, kv_heads=4, head_dim=8, mlp=40)


@pytest.mark.parametrize('axis', ['expert', 'context', 'pipe'])
def test_axes_that_are_not_built_are_refused(axis):
  with pytest.raises(UserError, match=rf'mesh\.{axis}=2: .* use data, fsdp, tensor'):
    Mesh(**{axis: 2})


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
  message = r'batch=100 does not divide over data=4 x fsdp=8 \(32 ways\): the nearest that do are 96 and 128'
  with pytest.raises(UserError, match=message):
    check_mesh(Mesh(data=4, fsdp=8).sizes, MODEL, 100)


def test_a_batch_smaller_than_the_mesh_names_the_least_that_does():
  with pytest.raises(UserError, match='the nearest that do are 8$'):
    check_mesh(Mesh(data=8).sizes, MODEL, 3)


def test_a_microbatch_that_does_not_divide_names_the_unit_of_the_batch():
  message = r'batch=24 does not divide over accumulate=2 x 8 devices: pass a multiple of 16'
  with pytest.raises(UserError, match=message):
    check_mesh(Mesh(data=8).sizes, MODEL, 12, accumulate=2)


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ({'fsdp': 32}, r'model\.width=48 .* fsdp=32 \(32 ways\): the nearest that do are 32 and 64'),
    ({'tensor': 8}, r'model\.kv_heads=4 .* tensor=8 \(8 ways\): the nearest that do are 8$'),
    ({'tensor': 64}, r'model\.vocab=96 .* the nearest that do are 64 and 128'),
  ],
)
def test_a_dimension_that_does_not_divide_names_the_nearest_that_do(sizes, message):
  with pytest.raises(UserError, match=message):
    check_mesh(Mesh(**sizes).sizes, MODEL, 64)


@pytest.mark.parametrize('axes', list(itertools.combinations(('data', 'fsdp', 'tensor'), 2)))
def test_every_pair_of_axes_is_checked_together(axes):
  sizes = Mesh(**dict.fromkeys(axes, 5)).sizes
  with pytest.raises(UserError, match='does not divide over'):
    check_mesh(sizes, MODEL, 64)
  check_mesh(Mesh(**dict.fromkeys(axes, 2)).sizes, MODEL, 64)


def test_what_divides_passes():
  check_divides(Mesh(data=2, fsdp=4).sizes, 'batch', 24, 'batch')
  check_divides(Mesh(data=2).sizes, 'model.width', 7, 'embed')
