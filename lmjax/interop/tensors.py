"""Between the tensors of a published checkpoint and our parameters, one tensor at a time.

A matrix of theirs is [outputs, inputs] (or [inputs, outputs]) with heads flattened; ours stand in
einsum's shape, layers and experts stacked. What is called what stands in `names`. Knows no format
of files: a `Source` gives tensors by name.

D width, H heads, K head dim, F mlp hidden, V vocab, N layers, E experts.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from lmjax.core import tree
from lmjax.core.errors import UserError
from lmjax.core.types import Params
from lmjax.models.encoder import Encoder
from lmjax.models.transformer import Decoder
from lmjax.parallel import sharding

# How many dimensions of a matrix, from the left, it sums over; the last word of its path decides.
_INPUTS = {
  'query': 1,
  'key': 1,
  'value': 1,
  'out': 2,
  'gate': 1,
  'up': 1,
  'down': 1,
  'router': 1,
  'shared_gate': 1,
  'head': 1,
}
_TABLES = ('embed', 'positions', 'types')  # these stand as they are

Order = Literal['outputs first', 'inputs first']


class Source(NamedTuple):
  """A checkpoint's tensors.

  Attributes:
    where: the file or folder, for messages.
    shapes: of every tensor, by name.
    read: name -> the tensor, of any float dtype.
  """

  where: str
  shapes: Mapping[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]


class Piece(NamedTuple):
  """What one tensor of theirs holds of one parameter.

  Attributes:
    path: of the parameter.
    index: of what it holds: layer, or layer and expert, or () for all of the parameter.
    shape: of the parameter there, without the dimensions of `index`.
    name: of their tensor, of which this is part `part` of `parts`, cut along the outputs.
    inputs: dimensions of `shape` that are summed over; None: no matrix.
    batch: leading dimensions of `shape` that both have, 1 for stacked experts.
    order: of their matrices.
  """

  path: str
  index: tuple[int, ...]
  shape: tuple[int, ...]
  name: str
  part: int
  parts: int
  inputs: int | None
  batch: int
  order: Order

  @property
  def their_shape(self) -> tuple[int, ...]:
    """Shape of the whole tensor `name`."""
    outputs, inputs = self._outputs * self.parts, self._input_size
    if self.path in _TABLES:
      return self.shape
    if self.inputs is None:
      return (outputs,)
    both = (outputs, inputs) if self.order == 'outputs first' else (inputs, outputs)
    return self.shape[: self.batch] + both

  @property
  def _input_size(self) -> int:
    return math.prod(self.shape[self.batch :][: self.inputs or 0])

  @property
  def _outputs(self) -> int:
    return math.prod(self.shape[self.batch :][self.inputs or 0 :])

  @property
  def axis(self) -> int:
    """The dimension of their tensor along which parts stand side by side."""
    return -2 if self.inputs is not None and self.order == 'outputs first' else -1

  def take(self, tensor: np.ndarray) -> np.ndarray:
    """Ours, f32, of their whole tensor."""
    if self.parts > 1:
      tensor = np.split(tensor, self.parts, self.axis)[self.part]
    if self.inputs is not None and self.order == 'outputs first':
      tensor = tensor.swapaxes(-1, -2)
    return np.ascontiguousarray(tensor.reshape(self.shape), np.float32)

  def give(self, ours: np.ndarray) -> np.ndarray:
    """Their tensor, or part of it, of ours."""
    if self.path in _TABLES or self.inputs is None:
      return ours.reshape(self.shape if self.path in _TABLES else -1)
    matrix = ours.reshape(*self.shape[: self.batch], self._input_size, self._outputs)
    return matrix.swapaxes(-1, -2) if self.order == 'outputs first' else matrix


def pieces(model: Decoder | Encoder, names: Mapping[str, str], order: Order) -> list[Piece]:
  """Every tensor that a checkpoint of `model` holds, layer by layer, parts of one side by side.

  Args:
    names: a table of `names`, which has a row for every parameter of the model.
    order: of the tensors' matrices.
  """
  stacked = dataclasses.replace(model, layout='scan')
  shapes = stacked.shapes()
  dims = jax.tree.leaves_with_path(stacked.dims(), is_leaf=sharding.is_dims)
  found = []
  for (keys, names_of_dims), leaf in zip(dims, jax.tree.leaves(shapes), strict=True):
    path = jax.tree_util.keystr(keys, simple=True, separator='/')
    found += _pieces(path, leaf.shape, names_of_dims, names[path], order)
  return sorted(found, key=lambda piece: (piece.index[:1], piece.name, piece.part))


def _pieces(
  path: str, shape: tuple[int, ...], dims: sharding.Dims, row: str, order: Order
) -> Iterator[Piece]:
  """The pieces of one parameter; `row` is its row of the table."""
  name, _, place = row.partition(' ')
  part, parts = map(int, place.split('/')) if place else (0, 1)
  leading = int(dims[0] == 'layers') + int('{expert}' in name)
  batch = int(dims[leading : leading + 1] == ('expert',))
  inputs = _INPUTS.get(path.rpartition('/')[2])
  order = 'outputs first' if path == 'head' else order  # GPT-2's too
  for index in np.ndindex(*shape[:leading]):
    tensor = name.format(**dict(zip(('layer', 'expert'), index, strict=False)))
    yield Piece(path, index, shape[leading:], tensor, part, parts, inputs, batch, order)


def check(source: Source, wanted: Sequence[Piece], ignored: Callable[[str], bool]) -> None:
  """UserError about the first tensor that is missing, of another shape or not the model's.

  Args:
    ignored: whether a tensor of that name may be there though the model has no use for it.
  """
  for piece in wanted:
    expected, found = piece.their_shape, source.shapes.get(piece.name)
    if found is None:
      raise UserError(
        f'{source.where} has no tensor {piece.name}, expected is one of shape {expected}: '
        'it does not match its configuration'
      )
    if found != expected:
      raise UserError(
        f'{source.where}: tensor {piece.name}: expected shape {expected}, found {found}: '
        'it does not match its configuration'
      )
  known = {piece.name for piece in wanted}
  for name, shape in source.shapes.items():
    if name not in known and not ignored(name):
      raise UserError(
        f'{source.where} has a tensor {name} of shape {shape}, expected is none of that name: '
        'it does not match its configuration'
      )


def fill(
  model: Decoder | Encoder,
  wanted: Iterable[Piece],
  source: Source,
  mesh: jax.sharding.Mesh | None = None,
) -> Params:
  """The model's parameters, layers stacked, on their shards of `mesh` or on the first device.

  Every tensor is read once and written into its place of the stacked array, whose buffer is
  donated: at most the model and one tensor are in memory.
  """
  stacked = dataclasses.replace(model, layout='scan')
  shapes = stacked.shapes()
  if mesh is None:
    here = SingleDeviceSharding(jax.local_devices()[0])
    where = jax.tree.map(lambda _: here, shapes)
  else:
    where = sharding.shardings(mesh, stacked.dims())
  layout, sizes = dict(tree.paths(where)), dict(tree.paths(shapes))
  arrays: dict[str, jax.Array] = {}
  for name, group in itertools.groupby(wanted, lambda piece: piece.name):
    tensor = source.read(name)
    for piece in group:
      ours = _place(piece.take(tensor), layout[piece.path], len(piece.index))
      if piece.index:
        if piece.path not in arrays:
          arrays[piece.path] = _empty(sizes[piece.path].shape, layout[piece.path])
        ours = _write(layout[piece.path])(arrays[piece.path], ours, piece.index)
      arrays[piece.path] = ours
  return tree.map_with_path(lambda path, _: arrays[path], shapes)


def give(params: Params, wanted: Iterable[Piece]) -> Iterator[tuple[str, np.ndarray]]:
  """(name, tensor) of each of their tensors, f32, one after another, of parameters in either layout."""
  arrays = dict(tree.paths(params))
  for name, group in itertools.groupby(wanted, lambda piece: piece.name):
    parts = list(group)
    given = [piece.give(tree.gather(_pick(arrays, piece))) for piece in parts]
    tensor = given[0] if len(given) == 1 else np.concatenate(given, parts[0].axis)
    yield name, np.ascontiguousarray(tensor, np.float32)


def _pick(arrays: Mapping[str, Any], piece: Piece) -> Any:
  if piece.path in arrays:
    return arrays[piece.path][piece.index] if piece.index else arrays[piece.path]
  first, _, rest = piece.path.partition('/')
  layer, *expert = piece.index
  listed = arrays[f'{first}/{layer}/{rest}']
  return listed[tuple(expert)] if expert else listed


def _empty(shape: tuple[int, ...], where: Any) -> jax.Array:
  return jax.jit(lambda: jnp.zeros(shape, jnp.float32), out_shardings=where)()


def _place(ours: np.ndarray, where: Any, leading: int) -> jax.Array:
  """`ours` on the shards of `where`, which is that of an array with `leading` dimensions before it."""
  if isinstance(where, NamedSharding):
    where = NamedSharding(where.mesh, PartitionSpec(*where.spec[leading:]))
  array = jax.make_array_from_callback(ours.shape, where, lambda index: ours[index])
  # On CPU it may share NumPy's buffer, which would not do for a parameter that a step is donated.
  return array if leading else array.copy()


@functools.cache
def _write(where: Any) -> Callable[[jax.Array, jax.Array, tuple[int, ...]], jax.Array]:
  """(whole, part, index) -> whole with its part at the leading `index` replaced, in its buffer."""

  def write(whole, part, index):
    start = (*index, *[0] * part.ndim)
    return jax.lax.dynamic_update_slice(whole, part.reshape((1,) * len(index) + part.shape), start)

  return jax.jit(write, donate_argnums=0, out_shardings=where)
