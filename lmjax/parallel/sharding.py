"""One table: which mesh axes split a tensor dimension of a given name.

Every parameter and every constrained activation is described by its dimension names; an unknown name,
or two dimensions on one axis, is an error here and not a silent replica.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.core.errors import UserError

TABLE: dict[str | None, tuple[str, ...]] = {
  None: (),
  'batch': ('data', 'fsdp'),
  'length': ('context',),
  'embed': ('fsdp',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'head_dim': (),
  'mlp': ('tensor',),
  'vocab': ('tensor',),
  'expert': ('expert',),
  'layers': ('pipe',),
  'norm': (),
}

Dims = tuple[str | None, ...]


def spec(dims: Dims) -> PartitionSpec:
  """The PartitionSpec of an array with these dimension names."""
  taken: dict[str, str | None] = {}
  entries = []
  for dim in dims:
    if dim not in TABLE:
      raise ValueError(f'unknown dimension {dim!r}: add it to the table in parallel/sharding.py')
    for axis in TABLE[dim]:
      if axis in taken:
        raise ValueError(
          f'dimensions {taken[axis]!r} and {dim!r} of {dims} both want axis {axis!r}'
        )
      taken[axis] = dim
    axes = TABLE[dim]
    entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
  return PartitionSpec(*entries)


def constrain(x: jax.Array, *dims: str | None) -> jax.Array:
  """Asks for `x` to be laid out by its dimension names on the mesh in force; without one, `x`."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(dims))


def shardings(mesh: jax.sharding.Mesh, dims: Any) -> Any:
  """A tree of NamedShardings for a tree of dimension names."""
  return jax.tree.map(lambda names: NamedSharding(mesh, spec(names)), dims, is_leaf=is_dims)


def is_dims(x: Any) -> bool:
  return type(x) is tuple and all(name is None or isinstance(name, str) for name in x)


def check_mesh(sizes: Mapping[str, int], model: Any, rows: int, accumulate: int = 1) -> None:
  """UserError when a batch or a dimension of the model does not split evenly over the mesh.

  Args:
    sizes: of each mesh axis.
    model: has `dimension_sizes`, setting -> (value, dimension name).
    rows: of one of `accumulate` microbatches.
  """
  try:
    check_divides(sizes, 'batch', rows, 'batch')
  except UserError:
    if accumulate == 1:
      raise
    ways = math.prod(sizes[axis] for axis in TABLE['batch'])
    unit = ways * accumulate
    raise UserError(
      f'batch={rows * accumulate} does not divide over accumulate={accumulate} x {ways} devices: '
      f'pass a multiple of {unit}'
    ) from None
  for name, (value, dim) in model.dimension_sizes.items():
    check_divides(sizes, f'model.{name}', value, dim)


def check_divides(sizes: Mapping[str, int], name: str, value: int, dim: str) -> None:
  """UserError when `value` (the setting `name`) does not split over the axes of dimension `dim`."""
  axes = [axis for axis in TABLE[dim] if sizes[axis] > 1]
  ways = math.prod(sizes[axis] for axis in axes)
  if value % ways:
    split = ' x '.join(f'{axis}={sizes[axis]}' for axis in axes)
    below, above = value // ways * ways, -(-value // ways) * ways
    near = f'{below} and {above}' if below else f'{above}'
    raise UserError(
      f'{name}={value} does not divide over {split} ({ways} ways): the nearest that do are {near}'
    )
