"""Whose the bytes of a device are: the state's, the batch's, and what a step holds at its fullest.

How many bytes a device needs in all is what the compiler allocates. Whose they are is read from the
schedule: which values are still wanted when most of them are. The compiler packs them better than
that count, so the shares are scaled to what it found.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from lmjax.parallel import hlo
from lmjax.parallel.hlo import Instruction, Module
from lmjax.plan.compile import Program

_ARGUMENTS = (
  ('state.params', 'parameters'),
  ('state.opt_state', 'optimizer moments'),
  ('batch.', 'batch'),
  ('', 'other state'),
)
_SAME = ('bitcast', 'while', 'opt-barrier', 'add-dependency')
_HOST = 'S(5)'  # XLA's memory space of the host


class Buffer(NamedTuple):
  """A value that needs memory of its own.

  Attributes:
    name: of the instruction that makes it.
    shape: of the largest array in it, with its dtype.
    bytes: of all arrays in it.
    source: the instruction.
  """

  name: str
  shape: str
  bytes: int
  source: Instruction


class Shape(NamedTuple):
  """Of the model, what tells its tensors apart: sizes on one device.

  Attributes:
    vocab: logits have it as their last dimension.
    width: the head and the token table have both.
    layers: what is kept of every layer has it as its first.
    parameters: shapes of parameters.
  """

  vocab: int
  width: int
  layers: int
  parameters: frozenset[tuple[int, ...]]


def owners(module: Module, program: Program, shape: Shape) -> dict[str, float]:
  """Bytes of a device by what they are for, largest first; their sum is the program's peak."""
  found: Counter[str] = Counter()
  for each in arguments(module):
    found[argument_owner(each.op_name)] += sum(array.bytes for array in each.arrays)
  held = sum(found.values())
  live = Counter[str]()
  for buffer in fullest(module):
    live[owner(buffer, shape)] += buffer.bytes
  left = max(0, program.peak_bytes - held)
  scale = min(1.0, left / max(1, sum(live.values())))
  for name, size in live.items():
    found[name] += size * scale  # type: ignore[assignment]
  found['other temporaries'] += program.peak_bytes - sum(found.values())  # type: ignore[assignment]
  return {name: size for name, size in found.most_common() if size > 0}


def arguments(module: Module) -> list[Instruction]:
  """What a step is given: parameters of the program, named as JAX calls them."""
  return [each for each in module.computations[module.entry] if each.opcode == 'parameter']


def argument_owner(op_name: str) -> str:
  return next(owner for start, owner in _ARGUMENTS if op_name.startswith(start))


def owner(buffer: Buffer, shape: Shape) -> str:
  """What a temporary is for, by how it was made and its shape."""
  arrays = hlo.arrays(buffer.source.type)
  largest = max(arrays, key=lambda array: array.bytes)
  where = buffer.source.op_name
  if buffer.source.opcode.startswith(('all-gather', 'collective-permute')):
    return 'gathered weights' if 'all-gather' in buffer.source.opcode else 'sent and received'
  whole_head = {shape.vocab, shape.width} <= set(largest.shape)
  if largest.dtype == 'f32' and (largest.shape in shape.parameters or whole_head):
    return 'gradients and updates'
  if largest.shape and largest.shape[-1] == shape.vocab and 'update' not in where:
    return 'logits'
  if largest.shape and largest.shape[0] == shape.layers and len(largest.shape) > 2:
    return 'kept of every layer'
  return 'working on one layer' if 'while' in where else 'other temporaries'


def fullest(module: Module) -> list[Buffer]:
  """The temporaries that are alive when most bytes are."""
  return _Lives(module).fullest(module.entry)


class _Lives:
  """Which values of each computation live at once."""

  def __init__(self, module: Module) -> None:
    self.module = module
    self._known: dict[str, list[Buffer]] = {}

  def fullest(self, computation: str) -> list[Buffer]:
    if computation not in self._known:
      self._known[computation] = self._find(self.module.computations[computation])
    return self._known[computation]

  def _find(self, instructions: list[Instruction]) -> list[Buffer]:
    values: dict[str, tuple[frozenset[int], ...]] = {}
    buffers: list[Buffer] = []
    born, last = [], []
    for index, each in enumerate(instructions):
      operands = [values[name] for name in each.operands if name in values]
      for number in {n for value in operands for element in value for n in element}:
        last[number] = index
      fresh = len(buffers)
      values[each.name] = self._value(each, operands, buffers)
      born += [index] * (len(buffers) - fresh)
      last += [index] * (len(buffers) - fresh)
    return self._at_most(instructions, buffers, born, last)

  def _at_most(self, instructions, buffers, born, last) -> list[Buffer]:
    """The buffers alive at the instruction where those and what runs inside it need most."""
    change: Counter[int] = Counter()
    for buffer, first, end in zip(buffers, born, last, strict=True):
      change[first] += buffer.bytes
      change[end + 1] -= buffer.bytes
    alive, best, place = 0, -1, 0
    for index, each in enumerate(instructions):
      alive += change[index]
      inside = sum(buffer.bytes for buffer in self._inside(each))
      if alive + inside > best:
        best, place = alive + inside, index
    here = [
      buffer
      for buffer, first, end in zip(buffers, born, last, strict=True)
      if first <= place <= end
    ]
    return here + self._inside(instructions[place] if instructions else None)

  def _inside(self, each: Instruction | None) -> list[Buffer]:
    """What a loop or branch needs for itself; what it carries is counted around it."""
    if each is None or each.opcode not in ('while', 'conditional', 'call'):
      return []
    most = [self.fullest(name) for name in each.called]
    return max(most, key=lambda found: sum(buffer.bytes for buffer in found), default=[])

  def _value(self, each: Instruction, operands, buffers) -> tuple[frozenset[int], ...]:
    """The buffers of each element of a value; new ones are added to `buffers`."""
    if each.opcode in ('parameter', 'constant'):
      return (frozenset(),) * max(1, len(each.arrays))
    if each.opcode == 'tuple':
      return tuple(frozenset().union(*value) for value in operands)
    if each.opcode == 'get-tuple-element':
      index = int(each.rest.rpartition('index=')[2].split(',')[0].split('}')[0])
      value = operands[0] if operands else ()
      return (value[index] if index < len(value) else frozenset().union(*value),)
    if each.opcode in _SAME:
      return operands[0] if operands else (frozenset(),)
    if each.opcode.endswith('-done'):
      whole = frozenset().union(*operands[0]) if operands else frozenset()
      return (whole,) * max(1, len(each.arrays))
    updated = self._updated(each)
    if updated is not None and updated < len(operands):
      return operands[updated]
    return self._new(each, buffers)

  def _updated(self, each: Instruction) -> int | None:
    """Which operand an instruction writes into in place, if any."""
    if each.opcode == 'dynamic-update-slice':
      return 0
    if each.opcode != 'fusion' or not each.called:
      return None
    inside = self.module.computations[each.called[0]]
    by_name = {one.name: one for one in inside}
    root = next(one for one in inside if one.is_root)
    while root.opcode == 'bitcast':
      root = by_name[root.operands[0]]
    if root.opcode != 'dynamic-update-slice':
      return None
    target = by_name[root.operands[0]]
    while target.opcode == 'bitcast':
      target = by_name[target.operands[0]]
    if target.opcode != 'parameter':
      return None
    return int(target.rest.split(')')[0])

  def _new(self, each: Instruction, buffers: list[Buffer]) -> tuple[frozenset[int], ...]:
    arrays: Iterable[hlo.Array] = each.arrays
    if each.opcode.endswith('-start') and each.type.startswith('(('):
      arrays = hlo.arrays(each.type[each.type.index('), (') :]) if '), (' in each.type else arrays
    value = []
    for array in arrays:
      if array.space == _HOST:
        value.append(frozenset())
        continue
      text = f'{array.dtype}[{",".join(map(str, array.shape))}]'
      buffers.append(Buffer(each.name, text, array.bytes, each))
      value.append(frozenset({len(buffers) - 1}))
    if each.opcode.endswith('-start'):
      return (frozenset().union(*value),) if value else (frozenset(),)
    return tuple(value) or (frozenset(),)
