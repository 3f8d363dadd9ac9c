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
_PARTITIONS = re.compile(r'HloModule .*\bnum_partitions=(\d+)')
_COMPUTATION = re.compile(r'(ENTRY )?%(\S+) \(.*\) -> .*\{$')
# `%name = type opcode(operands), attributes`: in a type, no word stands before a parenthesis.
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)')
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,<=]*)\]')
_CALLED = re.compile(
  r'\b(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation'
  r'|called_computations)=(%[^\s,]+|\{[^}]*\})'
)
_TRIPS = re.compile(r'known_trip_count\W+n\W+(\d+)')

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
    bytes: of one device in one execution: results of an all-gather, operands of the others.
    times: executions in one run of the program; of a conditional, every branch counts.
    dtype: in XLA's words; where several arrays go together all of theirs, with commas.
  """

  kind: str
  axes: tuple[str, ...]
  bytes: int
  times: int
  dtype: str


class _Instruction(NamedTuple):
  name: str
  type: str
  opcode: str
  rest: str  # operands and attributes

  def __str__(self) -> str:
    return f'%{self.name} = {self.type} {self.opcode}({self.rest}'[:_SHOWN]


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
  found = _PARTITIONS.match(hlo_text)
  partitions = int(found[1]) if found else 1
  if partitions != math.prod(sizes.values()):
    raise ValueError(f'the program has {partitions} partitions: it is not of the mesh {sizes}')
  computations, entry = _split(hlo_text)
  partners = functools.cache(lambda text: _partners(text, sizes))

  @functools.cache
  def inside(computation: str) -> tuple[Collective, ...]:
    instructions = computations[computation]
    types = {instruction.name: instruction.type for instruction in instructions}
    found = []
    for instruction in instructions:
      if instruction.opcode.endswith(('-done', '-update')):
        continue
      if talk := _PARTNERS.search(instruction.rest):
        if not talk['form']:
          raise ValueError(f'cannot read who takes part in {instruction}')
        axes, size = partners(talk[0])
        found += [_collective(instruction, types, axes, size)] if axes else []
      else:
        below = [each for called in _called(instruction) for each in inside(called)]
        times = _times(instruction) if below else 1
        found += [each._replace(times=times * each.times) for each in below]
    return tuple(found)

  return list(inside(entry))


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


def _split(hlo_text: str) -> tuple[dict[str, list[_Instruction]], str]:
  """The instructions of each computation, and the name of the one where the program starts."""
  computations, entry, current = {}, None, []
  for line in hlo_text.splitlines():
    if head := _COMPUTATION.match(line):
      current = computations[head[2]] = []
      entry = head[2] if head[1] else entry
    elif instruction := _INSTRUCTION.match(line):
      current.append(_Instruction(*instruction.groups()))
  if entry is None:
    raise ValueError(f'not the text of a compiled program: {hlo_text[:100]!r}')
  return computations, entry


def _called(instruction: _Instruction) -> list[str]:
  """The computations that an instruction runs."""
  return re.findall(r'%([^\s,}]+)', ' '.join(_CALLED.findall(instruction.rest)))


def _times(instruction: _Instruction) -> int:
  """How often an instruction runs computations that have collectives."""
  if instruction.opcode != 'while':
    return 1
  if not (trips := _TRIPS.search(instruction.rest)):
    raise ValueError(f'collectives in a loop of unknown length: {instruction}')
  return int(trips[1])


def _collective(
  instruction: _Instruction, types: dict[str, str], axes: tuple[str, ...], size: int
) -> Collective:
  kind = instruction.opcode.removesuffix('-start')
  if kind not in _WIRE:
    raise ValueError(f'unknown collective: {instruction}')
  operands = re.findall(r'%([^\s,)]+)', re.split(r'\)(?:, |$)', instruction.rest)[0])
  if kind == 'ragged-all-to-all':  # the others say where things go
    operands = operands[:1]
  arrays = [array for name in operands for array in _ARRAY.findall(types[name])]
  total = sum(_bytes(bits, shape) for _, bits, shape in arrays)
  # The type of a start holds results beside operands in several ways: operands tell both.
  total *= size if kind == 'all-gather' else 1
  return Collective(kind, axes, total, 1, ','.join(sorted({dtype for dtype, _, _ in arrays})))


def _bytes(bits: str, shape: str) -> int:
  count = math.prod(int(length.strip('<=')) for length in shape.split(',') if length)
  return math.ceil(count * int(bits or 8) / 8)


def _partners(text: str, sizes: dict[str, int]) -> tuple[tuple[str, ...], int]:
  """The axes along which devices that talk differ, and how many there are in a group."""
  talk, devices = _PARTNERS.fullmatch(text), math.prod(sizes.values())
  assert talk
  places = _places(talk, devices)
  if not places.size:
    return (), 1
  along = np.sort(np.unravel_index(places, tuple(sizes.values())), axis=-1)
  different = 1 + np.count_nonzero(np.diff(along), axis=-1).max(axis=-1)
  counts = {axis: int(count) for axis, count in zip(sizes, different, strict=True) if count > 1}
  if talk['what'] == 'source_target_pairs':
    return tuple(counts), 2
  everyone = np.array_equal(np.sort(places, axis=None), np.arange(devices))
  if not everyone or math.prod(counts.values()) != places.shape[1]:
    raise ValueError(f'not groups along axes of the mesh {sizes}: {text[:_SHOWN]}')
  return tuple(a if n == sizes[a] else f'{a}:{n}' for a, n in counts.items()), places.shape[1]


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
