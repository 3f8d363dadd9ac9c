"""Which collectives a compiled program runs: read from the text of its optimised, scheduled module.

Knows nothing of machines and links: what goes from one to another is for who knows the devices.
"""

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lmjax.parallel import hlo

# What one device sends, as a multiple of its bytes, where n of them take part: by rings.
_WIRE = {
  'all-gather': lambda n: (n - 1) / n,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'collective-broadcast': lambda n: 1.0,
  'collective-permute': lambda n: 1.0,
  'ragged-all-to-all': lambda n: (n - 1) / n,
  'reduce-scatter': lambda n: (n - 1) / n,
}

_SHOWN = 400  # characters of a text in an error
_IOTA = r'\[[\d,]+\](?:T\([\d,]+\))?'
_FORMS = (
  r'\{(?P<lists>(?:\{[\d,]*\},?)*)\}'
  rf'|\[(?P<shape>\d+,\d+)\]<=(?P<iota>{_IOTA})'
  rf'|mesh\[(?P<mesh>[^\]]+)\](?:, device_ids=\((?P<ids>{_IOTA}|[\d,]+)\))? ?\{{(?P<axes>[^}}]+)\}}'
)
_PARTNERS = re.compile(rf'(?P<what>replica_groups|source_target_pairs)=(?P<form>{_FORMS})?')
# An axis of such a mesh, or a part of one: `'a':(2)4` is the 4 in 2 x 4 x what is left.
_AXIS = re.compile(r"'?([^',:]+)'?(?::\((\d+)\)(\d+))?(?:,|$)")


class Collective(NamedTuple):
  """One collective instruction; a pair of start and done is one.

  Attributes:
    kind: 'all-gather', 'all-reduce', 'all-to-all', 'collective-broadcast', 'collective-permute',
      'ragged-all-to-all' or 'reduce-scatter'.
    axes: of the mesh, in its order, along which those that talk differ; `tensor:2` for groups of
      2 along an axis that is longer.
    bytes: of one device in one execution: results of an all-gather, operands of the others; of a
      ragged all-to-all the rows that are sent, its own included.
    times: executions in one run of the program; of a conditional, every branch counts.
    dtype: in XLA's words; where several arrays go together all of theirs, with commas.
  """

  kind: str
  axes: tuple[str, ...]
  bytes: int
  times: int
  dtype: str


class Talk(NamedTuple):
  """Who takes part in a collective.

  Attributes:
    axes: as of `Collective`.
    size: devices of a group; 2 where there are sources and targets.
    places: in the mesh, a row for each group, or for each source and target.
  """

  axes: tuple[str, ...]
  size: int
  places: np.ndarray


def read(
  hlo_text: str, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | Mapping[str, int]
) -> list[Collective]:
  """The collectives of a program compiled for a mesh, but for those of a device with itself.

  Args:
    hlo_text: `compiled.as_text()`.
    mesh: its names and sizes count and its devices do not: XLA's partition i is the i-th device
      of the mesh, whatever that one's id.

  Raises:
    ValueError: for a program of another mesh, and for what cannot be read with certainty.
  """
  sizes = dict(mesh if isinstance(mesh, Mapping) else mesh.shape)
  module = hlo.parse(hlo_text)
  check_partitions(module, sizes)

  @functools.cache
  def inside(computation: str) -> tuple[Collective, ...]:
    instructions = module.computations[computation]
    types = {instruction.name: instruction.type for instruction in instructions}
    found = []
    for instruction in instructions:
      if instruction.opcode.endswith(('-done', '-update')):
        continue
      if is_collective(instruction):
        talk = partners(instruction, sizes)
        found += [collective(instruction, types, talk)] if talk.axes else []
      else:
        below = [each for called in instruction.called for each in inside(called)]
        times = _times(module, instruction, computation) if below else 1
        found += [each._replace(times=times * each.times) for each in below]
    return tuple(found)

  return list(inside(module.entry))


def check_partitions(module: hlo.Module, sizes: Mapping[str, int]) -> None:
  """ValueError where a program is not of a mesh of these axis sizes."""
  if module.partitions != math.prod(sizes.values()):
    raise ValueError(
      f'the program has {module.partitions} partitions: it is not of the mesh {dict(sizes)}'
    )


def is_collective(instruction: hlo.Instruction) -> bool:
  """Whether devices talk in it, or begin to."""
  return bool(_PARTNERS.search(instruction.rest))


def _times(module: hlo.Module, instruction: hlo.Instruction, computation: str) -> int:
  """How often an instruction runs computations that have collectives."""
  if instruction.opcode != 'while':
    return 1
  rounds = module.rounds(instruction, computation)
  if rounds is None:
    raise ValueError(f'collectives in a loop of unknown length: {instruction}')
  return rounds


def summary(collectives: Iterable[Collective]) -> list[dict[str, Any]]:
  """Collectives that are alike as one row of `kind axes dtype bytes count`, sorted, for JSON.

  `count` is executions in one run; `axes` are joined by commas.
  """
  counts: Counter[tuple[str, str, str, int]] = Counter()
  for each in collectives:
    counts[each.kind, ','.join(each.axes), each.dtype, each.bytes] += each.times
  names = ('kind', 'axes', 'dtype', 'bytes', 'count')
  return [dict(zip(names, (*key, count), strict=True)) for key, count in sorted(counts.items())]


def wire_bytes(collective: Collective, group_size: int) -> float:
  """Bytes that one device sends in one execution, by the algorithm of rings."""
  return collective.bytes * _WIRE[collective.kind](group_size)


def partners(instruction: hlo.Instruction, sizes: Mapping[str, int]) -> Talk:
  """Who takes part in a collective on a mesh of these axis sizes; no axes: each device alone."""
  found = _PARTNERS.search(instruction.rest)
  if not found or not found['form']:
    raise ValueError(f'cannot read who takes part in {instruction}')
  return _partners(found[0], tuple(sizes.items()))


def collective(instruction: hlo.Instruction, types: Mapping[str, str], talk: Talk) -> Collective:
  """What an instruction sends once.

  Args:
    types: of all instructions of its computation, by name.
  """
  kind = instruction.opcode.removesuffix('-start')
  if kind not in _WIRE:
    raise ValueError(f'unknown collective: {instruction}')
  arrays = [array for name in instruction.operands for array in hlo.arrays(types[name])]
  if kind == 'ragged-all-to-all':  # of the buffers to and fro one has room for the worst case
    arrays = [min(arrays[:2], key=lambda array: array.bytes)]
  total = sum(array.bytes for array in arrays)
  # The type of a start holds results beside operands in several ways: operands tell both.
  total *= talk.size if kind == 'all-gather' else 1
  dtypes = ','.join(sorted({array.dtype for array in arrays}))
  return Collective(kind, talk.axes, total, 1, dtypes)


@functools.lru_cache(512)
def _partners(text: str, mesh: tuple[tuple[str, int], ...]) -> Talk:
  """The axes along which devices that talk differ, and how many there are in a group."""
  sizes = dict(mesh)
  talk, devices = _PARTNERS.fullmatch(text), math.prod(sizes.values())
  assert talk
  places = _places(talk, devices)
  if not places.size:
    return Talk((), 1, places)
  along = np.sort(np.unravel_index(places, tuple(sizes.values())), axis=-1)
  different = 1 + np.count_nonzero(np.diff(along), axis=-1).max(axis=-1)
  counts = {axis: int(count) for axis, count in zip(sizes, different, strict=True) if count > 1}
  if talk['what'] == 'source_target_pairs':
    return Talk(tuple(counts), 2, places)
  everyone = np.array_equal(np.sort(places, axis=None), np.arange(devices))
  if not everyone or math.prod(counts.values()) != places.shape[1]:
    raise ValueError(f'not groups along axes of the mesh {sizes}: {text[:_SHOWN]}')
  axes = tuple(a if n == sizes[a] else f'{a}:{n}' for a, n in counts.items())
  return Talk(axes, places.shape[1], places)


def _places(talk: re.Match[str], partitions: int) -> np.ndarray:
  """Places in the mesh of those that talk: a row for each group, or for each source and target."""
  if talk['iota']:
    rows, columns = talk['shape'].split(',')
    return _iota(talk['iota']).reshape(int(rows), int(columns))
  if talk['mesh']:
    return _mesh_groups(talk['mesh'], talk['ids'], talk['axes'])
  rows = [_numbers(row) for row in re.findall(r'\{[\d,]*\}', talk['lists'])]
  if not rows and talk['what'] == 'replica_groups':
    rows = [list(range(partitions))]
  if len({len(row) for row in rows}) > 1:
    raise ValueError(f'groups of different sizes: {talk[0][:_SHOWN]}')
  return np.array(rows, dtype=np.int64)


def _iota(text: str) -> np.ndarray:
  """`[2,4]T(1,0)`: numbers in order, in this shape, transposed."""
  shape, _, order = text.partition('T')
  numbers = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
  return numbers.transpose(_numbers(order)) if order else numbers


def _numbers(text: str) -> list[int]:
  return [int(number) for number in re.findall(r'\d+', text)]


def _mesh_groups(mesh: str, ids: str | None, axes: str) -> np.ndarray:
  """`mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}`: groups along axes or parts of them."""
  chosen = _AXIS.findall(axes)
  shape, grouped = [], []
  for entry in mesh.split(','):
    name, _, size = entry.replace("'", '').partition('=')
    parts = [(int(start or 1), int(count or size)) for axis, start, count in chosen if axis == name]
    edges = {1, int(size)}.union(*((start, start * count) for start, count in parts))
    for low, high in itertools.pairwise(sorted(edges)):
      if any(start <= low and high <= start * count for start, count in parts):
        grouped.append(len(shape))
      shape.append(high // low)
  places = np.arange(math.prod(shape))
  if ids:
    places = _iota(ids) if ids.startswith('[') else np.array(_numbers(ids))
  grouped_last = np.moveaxis(places.reshape(shape), grouped, range(-len(grouped), 0))
  return grouped_last.reshape(-1, math.prod(shape[dimension] for dimension in grouped))
