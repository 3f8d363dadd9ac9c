"""The text of a compiled program, taken apart: computations, instructions, arrays, source lines.

Knows nothing of meshes and machines, and does not say what an instruction does or costs.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

_SHOWN = 400  # characters of a text in an error
_COMPUTATION = re.compile(r'(ENTRY )?%(\S+) \(.*\) -> .*\{$')
# `%name = type opcode(operands), attributes`: in a type, no word stands before a parenthesis.
_INSTRUCTION = re.compile(r'\s+(ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)')
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,<=]*)\](?:\{[^}]*?(S\(\d+\))?\})?')
_CALLED = re.compile(
  r'\b(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation'
  r'|called_computations)=(%[^\s,]+|\{[^}]*\})'
)
_TRIPS = re.compile(r'known_trip_count\W+n\W+(\d+)')
_OP_NAME = re.compile(r'metadata=\{[^}]*?op_name="([^"]*)"')
_FRAME = re.compile(r'stack_frame_id=(\d+)')
_ROW = re.compile(r'(\d+) (?:"(.*)"|\{(.*)\})$')
_TABLES = ('FileNames', 'FunctionNames', 'FileLocations', 'StackFrames')


class Array(NamedTuple):
  """One array of a type; `space` is XLA's memory space, 'S(5)' being the host's."""

  dtype: str
  shape: tuple[int, ...]
  bytes: int
  space: str

  @property
  def size(self) -> int:
    return math.prod(self.shape)


class Instruction(NamedTuple):
  """One instruction; `rest` is what stands behind the parenthesis: operands and attributes."""

  name: str
  type: str
  opcode: str
  rest: str
  is_root: bool

  def __str__(self) -> str:
    return f'%{self.name} = {self.type} {self.opcode}({self.rest}'[:_SHOWN]

  @property
  def operands(self) -> list[str]:
    """The names of the instructions that it reads."""
    return re.findall(r'%([^\s,)]+)', re.split(r'\)(?:, |$)', self.rest, maxsplit=1)[0])

  @property
  def called(self) -> list[str]:
    """The computations that it runs."""
    return re.findall(r'%([^\s,}]+)', ' '.join(_CALLED.findall(self.rest)))

  @property
  def arrays(self) -> tuple[Array, ...]:
    return arrays(self.type)

  @property
  def op_name(self) -> str:
    """Where JAX had it from: 'jit(train_step)/jvp()/while/body/Block/mlp/dot_general'; may be ''."""
    found = _OP_NAME.search(self.rest)
    return found[1] if found else ''


class Module(NamedTuple):
  """A program.

  Attributes:
    computations: name -> instructions, in the order that they are scheduled in.
    entry: the computation where it starts.
    partitions: devices that it is for.
    tables: of the source: FileNames, FunctionNames, FileLocations, StackFrames, by id.
  """

  computations: dict[str, list[Instruction]]
  entry: str
  partitions: int
  tables: Mapping[str, Mapping[int, str]]

  def frames(self, instruction: Instruction) -> list[str]:
    """The lines of source that an instruction comes from, 'FILE:LINE', innermost first."""
    found, rows = [], self.tables['StackFrames']
    match = _FRAME.search(instruction.rest)
    frame = int(match[1]) if match else 0
    while row := rows.get(frame):
      where = self.tables['FileLocations'][_number(row, 'file_location_id')]
      file = self.tables['FileNames'][_number(where, 'file_name_id')]
      found.append(f'{file}:{_number(where, "line")}')
      frame = _number(row, 'parent_frame_id') - 1  # XLA counts these from 1, and 1 is none
    return found

  def rounds(self, loop: Instruction, computation: str) -> int | None:
    """How often a `while` of a computation runs its body; None where that is not to be told.

    The compiler says so of most loops. Of others, such as one it took the first round out of, it is
    reckoned from where the counter starts, what a round adds and where the condition ends it.
    """
    if found := _TRIPS.search(loop.rest):
      return int(found[1])
    counter = re.search(r'known_induction_variable\W+tuple_index\W+(\d+)', loop.rest)
    parts = [re.search(rf'\b{name}=%([^\s,]+)', loop.rest) for name in ('body', 'condition')]
    if not counter or not all(parts):
      return None
    index = int(counter[1])
    body, condition = (part[1] for part in parts if part)
    start = self._count(computation, self._element(computation, loop.operands[0], index), {})
    root = next(each for each in self.computations[body] if each.is_root)
    step = self._count(body, self._element(body, root.name, index), {('', index): 0})
    ends = self._limits(condition, {})
    if start is None or not step or len(ends) != 1:
      return None
    return max(0, -(-(ends[0] - start) // step))

  def _find(self, computation: str, name: str) -> Instruction | None:
    return next((each for each in self.computations[computation] if each.name == name), None)

  def _element(self, computation: str, name: str, index: int) -> str:
    """The name of an element of a tuple; the tuple's own where it is not made there."""
    found = self._find(computation, name)
    return found.operands[index] if found and found.opcode == 'tuple' else name

  def _count(self, computation: str, name: str, given: Mapping) -> int | None:
    """The value of a whole number; `given` are those of parameters, or of ('', i) of a tuple."""
    each = self._find(computation, name)
    if each is None:
      return None
    if each.opcode == 'constant':
      found = re.match(r'-?\d+\)', each.rest)
      return int(found[0][:-1]) if found else None
    if each.opcode == 'get-tuple-element':
      return given.get(('', int(each.rest.rpartition('index=')[2].split(',')[0])))
    if each.opcode == 'parameter':
      return given.get(int(each.rest.partition(')')[0]))
    values = [self._count(computation, operand, given) for operand in each.operands]
    if each.opcode in ('copy', 'bitcast', 'convert'):
      return values[0]
    if each.opcode == 'add' and None not in values:
      return sum(value for value in values if value is not None)
    if each.opcode == 'fusion':
      root = next(one for one in self.computations[each.called[0]] if one.is_root)
      return self._count(each.called[0], root.name, dict(enumerate(values)))
    return None

  def _limits(self, computation: str, given: Mapping) -> list[int]:
    """The numbers that something is compared to be less than, in a condition."""
    found = []
    for each in self.computations[computation]:
      values = [self._count(computation, operand, given) for operand in each.operands]
      if each.opcode == 'compare' and 'direction=LT' in each.rest:
        found += [value for value in values[1:] if value is not None]
      for called in each.called:
        found += self._limits(called, dict(enumerate(values)))
    return found


def parse(text: str) -> Module:
  """Takes `compiled.as_text()` apart.

  Raises:
    ValueError: it is not the text of a compiled program.
  """
  computations: dict[str, list[Instruction]] = {}
  tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
  entry, current, table = None, [], None
  for line in text.splitlines():
    if line in tables:
      table = tables[line]
    elif table is not None and (row := _ROW.match(line)):
      table[int(row[1])] = row[2] or row[3] or ''
    elif head := _COMPUTATION.match(line):
      current = computations[head[2]] = []
      entry, table = (head[2] if head[1] else entry), None
    elif instruction := _INSTRUCTION.match(line):
      root, *parts = instruction.groups()
      current.append(Instruction(*parts, is_root=bool(root)))
  if entry is None:
    raise ValueError(f'not the text of a compiled program: {text[:100]!r}')
  partitions = re.match(r'HloModule .*\bnum_partitions=(\d+)', text)
  return Module(computations, entry, int(partitions[1]) if partitions else 1, tables)


@functools.lru_cache(1 << 14)
def arrays(type_text: str) -> tuple[Array, ...]:
  """The arrays of a type, those of a tuple in order."""
  found = []
  for dtype, bits, lengths, space in _ARRAY.findall(type_text):
    shape = tuple(int(length.strip('<=')) for length in lengths.split(',') if length)
    size = math.ceil(math.prod(shape) * int(bits or 8) / 8)
    found.append(Array(dtype, shape, size, space))
  return tuple(found)


def _number(row: str, key: str) -> int:
  found = re.search(rf'\b{key}=(\d+)', row)
  return int(found[1]) if found else 0
