"""One table: which mesh axes split a tensor dimension of a given name.

Every parameter and every constrained activation is described by its dimension names; an unknown name,
or two dimensions on one axis, is an error here and not a silent replica.
"""

import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.core.errors import UserError

TABLE: dict[str | None, tuple[str, ...]] = {
  None: (),
  'batch': ('data', 'fsdp', 'expert'),
  'rows': ('data', 'fsdp'),  # the batch where experts are split instead
  'length': ('context',),
  'stream': ('context', 'tensor'),  # the length between blocks: norms work on a slice (2205.05198)
  'embed': ('fsdp',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'head_dim': (),
  'mlp': ('tensor',),
  'vocab': ('tensor',),
  'position': (),
  'expert': ('expert',),
  'rank': (),  # of a term beside a matrix (LoRA)
  'choice': (),  # of an expert, by the router
  'latent': (),  # of a vector that stands for a picture
  'layers': ('pipe',),
  'stage': ('pipe',),
  'part': ('data', 'fsdp', 'expert', 'context'),  # what each device has of a sum over rows
  'norm': (),
}

Dims = tuple[str | None, ...]


def spec(dims: Dims, without: Collection[str] = ()) -> PartitionSpec:
  """The PartitionSpec of an array with these dimension names, but for the axes `without`."""
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
    axes = tuple(axis for axis in TABLE[dim] if axis not in without)
    entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
  return PartitionSpec(*entries)


def constrain(x: jax.Array, *dims: str | None) -> jax.Array:
  """Asks for `x` to be laid out by its dimension names on the mesh in force; without one, `x`.

  A dimension that its axes do not divide, a prompt of one token say, stays whole. Axes that a
  `shard_map` around has taken are no longer the compiler's to lay out, and are left out.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.shape:
    return x
  taken = mesh.manual_axes
  names = []
  for dim, size in zip(dims, x.shape, strict=True):
    ways = math.prod(mesh.shape[axis] for axis in TABLE[dim] if axis not in taken)
    names.append(dim if size % ways == 0 else None)
  return jax.lax.with_sharding_constraint(x, spec(tuple(names), taken))


def by_platform(*operands: Any, cpu: Callable, **others: Callable) -> Any:
  """`jax.lax.platform_dependent`, but under a mesh of CPU devices `cpu` alone is traced.

  The branches for others cost a second of tracing and importing, of which nothing would be left.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None and device.platform == 'cpu':
    return cpu(*operands)
  return jax.lax.platform_dependent(*operands, cpu=cpu, **others)


def axis_sizes() -> dict[str, int]:
  """The size of each axis of the mesh in force; empty without one."""
  return dict(jax.sharding.get_abstract_mesh().shape)


def batch_ways(sizes: Mapping[str, int]) -> int:
  """How many ways a mesh of these axis sizes splits the rows of a batch."""
  return math.prod(sizes[axis] for axis in TABLE['batch'])


def on_shards(f: Callable, *, in_specs: Any, out_specs: Any) -> Callable:
  """`jax.shard_map` over the mesh in force.

  Under a pipeline's `vmap` its types of what varies over which axis do not know that of the stages,
  so they are not checked there; gradients then cost an all-reduce more.
  """
  check = axis_sizes()['pipe'] == 1
  return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=check)


def on_rows(f: Callable, *, whole: int, out_dims: Any) -> Callable:
  """`f` on each device's own part of the rows and their length; a `shard_map` over those axes alone.

  Args:
    f: (whole..., rows...) -> results. The first `whole` arguments are trees of arrays that all
      devices are given as they are, gathered once; the others are [B, L, ...].
    out_dims: a tree of dimension names as prefix of the results: ('batch', 'length') where a result
      is of rows, ('part',) where each device's has a first dimension of 1.
  """
  axes = (*TABLE['batch'], *TABLE['length'])

  def run(*arguments: Any) -> Any:
    shared = [jax.tree.map(lambda _: PartitionSpec(), tree) for tree in arguments[:whole]]
    rows = [spec(('batch', 'length'))] * (len(arguments) - whole)
    local = lambda *parts: f(*vary(parts[:whole], *axes), *parts[whole:])
    out_specs = jax.tree.map(spec, out_dims, is_leaf=is_dims)
    return jax.shard_map(
      local, in_specs=(*shared, *rows), out_specs=out_specs, axis_names=set(axes)
    )(*arguments)

  return run


def vary(tree: Any, *axes: str) -> Any:
  """In a `shard_map`: `tree` typed as different on every device of `axes`.

  Gradients of what was the same are then summed over them.
  """
  return jax.tree.map(lambda x: jax.lax.pcast(x, axes, to='varying'), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather_weight(w: jax.Array, dim: int, dtype: str) -> jax.Array:
  """In a `shard_map`: a weight whole over fsdp, from the shards of dimension `dim` on its devices.

  It travels in `dtype`, and is rounded to it; its gradients are added up over fsdp in f32, each device
  getting those of its shard.
  """
  return jax.lax.all_gather(w.astype(dtype), 'fsdp', axis=dim, tiled=True).astype(w.dtype)


def _gather_forward(w: jax.Array, dim: int, dtype: str):
  return gather_weight(w, dim, dtype), None


def _gather_backward(dim: int, dtype: str, _: None, dw: jax.Array):
  return (jax.lax.psum_scatter(dw, 'fsdp', scatter_dimension=dim, tiled=True),)


gather_weight.defvjp(_gather_forward, _gather_backward)


def shardings(mesh: jax.sharding.Mesh, dims: Any) -> Any:
  """A tree of NamedShardings for a tree of dimension names."""
  return jax.tree.map(lambda names: NamedSharding(mesh, spec(names)), dims, is_leaf=is_dims)


def is_dims(x: Any) -> bool:
  return type(x) is tuple and all(name is None or isinstance(name, str) for name in x)


def check_mesh(
  sizes: Mapping[str, int], model: Any, rows: int, length: int, accumulate: int = 1
) -> None:
  """UserError when a batch or a dimension of the model does not split evenly over the mesh.

  Args:
    sizes: of each mesh axis.
    model: has `dimension_sizes`, setting -> (value, dimension name), and `check_stages`.
    rows, length: of one of `accumulate` microbatches.
  """
  try:
    check_divides(sizes, 'batch', rows, 'batch')
  except UserError:
    if accumulate == 1:
      raise
    ways = batch_ways(sizes)
    raise UserError(
      f'batch={rows * accumulate} does not divide over accumulate={accumulate} x {ways} devices: '
      f'{nearest_multiples(rows * accumulate, ways * accumulate)}'
    ) from None
  for name, (value, dim) in model.dimension_sizes.items():
    check_divides(sizes, f'model.{name}', value, dim)
  _check_length(sizes, length)
  if sizes['pipe'] > 1:
    model.check_stages(sizes['pipe'], rows // batch_ways(sizes))


def _check_length(sizes: Mapping[str, int], length: int) -> None:
  """UserError when a row does not split into the two pieces that ring attention gives a device."""
  ways = sizes['context']
  if ways == 1 or length % (2 * ways) == 0:
    return
  fewer = [n for n in range(1, length + 1) if length % (2 * n) == 0]
  closest = sorted(sorted(fewer, key=lambda n: abs(n - ways))[:2])
  also = f', or mesh.context={" or ".join(map(str, closest))}' if closest else ''
  raise UserError(
    f'length={length} does not divide over mesh.context={ways}, two pieces a device: '
    f'{nearest_multiples(length, 2 * ways)}{also}'
  )


def nearest_multiples(value: int, unit: int) -> str:
  """Says which multiples of `unit` are next to `value`, which is none."""
  below, above = value // unit * unit, -(-value // unit) * unit
  return f'the nearest that do are {below} and {above}' if below else f'the nearest is {above}'


def check_divides(sizes: Mapping[str, int], name: str, value: int, dim: str) -> None:
  """UserError when `value` (the setting `name`) does not split over the axes of dimension `dim`."""
  axes = [axis for axis in TABLE[dim] if sizes[axis] > 1]
  ways = math.prod(sizes[axis] for axis in axes)
  if value % ways:
    split = ' x '.join(f'{axis}={sizes[axis]}' for axis in axes)
    divisors = [n for n in range(1, value + 1) if value % n == 0]
    fewer, more = max(n for n in divisors if n < ways), [n for n in divisors if n > ways][:1]
    instead = ' or '.join(map(str, [*([fewer] if fewer > 1 else []), *more]))
    also = f'split it {instead} ways' if instead else 'leave it whole'
    raise UserError(
      f'{name}={value} does not divide over {split} ({ways} ways): '
      f'{nearest_multiples(value, ways)}; '
      f'or {also}'
    )
