"""Where something in a compiled program comes from: an argument of the step, a line of source, a layer.

Knows nothing of meshes and says nothing of costs.
"""

import functools
import re
from collections.abc import Sequence

from lmjax.parallel.hlo import Instruction, Module

Names = frozenset[str]
"""Of arguments of the step, as JAX calls them: state.params['embed']."""

# What changes how an array lies, its type or which part of it, and no number in it.
_LAYOUT = ('bitcast', 'bitcast-convert', 'convert', 'reshape', 'transpose', 'reverse', 'broadcast')
_MOVES = ('copy', 'pad', 'slice', 'dynamic-slice', 'dynamic-update-slice', 'all-gather', 'async')
_BARRIERS = ('opt-barrier', 'custom-call')
_STAGE = re.compile(r'-(start|update|done)$')  # of what goes on beside other instructions
_INSIDE = ('fusion', 'call', 'async-start')
_BODY = re.compile(r'\bbody=%([^\s,]+)')
_PACKAGE = re.compile(r'.*/(lmjax/.*:\d+)$')
_FRAME = re.compile(r'stack_frame_id=(\d+)')
# Lines that many callers share: the one above them says more.
_SHARED = (
  'ops/dot.py',
  'parallel/sharding.py',
  'core/types.py',
  'train/step.py',
  'plan/compile.py',
)
_AROUND = ('models/transformer.py', 'objectives/language.py')  # call everything, and say little
_NOISE = re.compile(
  r'jit\(\w+\)/|while/body/|closed_call/|checkpoint/|rematted_computation/|cond/branch_\d+_fun/'
  r'|shard_map/|(transpose\()?jvp\(\)\)?/'
)
_ENDS = ('while', 'conditional', 'parameter')  # behind which much else is computed
_STEPS = 8  # instructions back at most, to one that says where it is from


class Origins:
  """For every instruction of a program the arguments whose numbers it holds, moved and rounded only."""

  def __init__(self, module: Module) -> None:
    self.module = module
    self._found: dict[str, Names] = {}
    entry = module.computations[module.entry]
    given = [each for each in entry if each.opcode == 'parameter']
    given.sort(key=lambda each: int(each.rest.split(')')[0]))
    self._walk(module.entry, [(frozenset({each.op_name}),) for each in given])

  def of(self, name: str) -> Names:
    """Of an instruction by name; empty for what was computed."""
    return self._found.get(name, frozenset())

  def _walk(self, computation: str, given: Sequence[tuple[Names, ...]]) -> tuple[Names, ...]:
    """The elements of a computation's result, its arguments being those of `given`."""
    values: dict[str, tuple[Names, ...]] = {}
    result: tuple[Names, ...] = ()
    for each in self.module.computations[computation]:
      value = self._value(each, values, given)
      values[each.name] = value
      self._found[each.name] = self.of(each.name).union(*value)
      result = value if each.is_root else result
    return result

  def _value(self, each: Instruction, values, given) -> tuple[Names, ...]:
    if each.opcode == 'parameter':
      number = int(each.rest.split(')')[0])
      return given[number] if number < len(given) else ()
    operands = [values.get(name, ()) for name in each.operands]
    if each.opcode == 'tuple':
      return tuple(frozenset().union(*value) for value in operands)
    if each.opcode == 'get-tuple-element':
      return _element(each, operands[0])
    if each.opcode == 'while' and (body := _BODY.search(each.rest)):
      state = operands[0]
      for _ in range(2):  # what goes round once has come to every place
        after = self._walk(body[1], [state])
        state = _merged(state, after)
      return state
    if each.opcode in _INSIDE and each.called:
      return self._walk(each.called[0], operands)
    if _STAGE.sub('', each.opcode) in (*_LAYOUT, *_MOVES, *_BARRIERS) and operands:
      return self._moved(each, operands)
    return ()

  def _moved(self, each: Instruction, operands) -> tuple[Names, ...]:
    if each.opcode == 'custom-call':
      return operands[0] if 'Barrier' in each.rest or 'Sharding' in each.rest else ()
    if each.opcode in ('dynamic-slice', 'pad') or len(operands) == 1:
      return operands[0]
    whole = tuple(frozenset().union(*value) for value in operands)
    if each.opcode == 'dynamic-update-slice':  # layers put away one after another
      return (whole[0] | whole[1],)
    return whole  # gathered together, each an element of the result


def _element(each: Instruction, value: tuple[Names, ...]) -> tuple[Names, ...]:
  index = int(each.rest.rpartition('index=')[2].split(',')[0].split('}')[0])
  return (value[index],) if index < len(value) else ()


def _merged(one: tuple[Names, ...], other: tuple[Names, ...]) -> tuple[Names, ...]:
  if len(one) != len(other):
    return one or other
  return tuple(a | b for a, b in zip(one, other, strict=True))


class Sources:
  """Lines of this package that instructions come from."""

  def __init__(self, module: Module) -> None:
    self.module = module
    # XLA gives no name twice in a program.
    self._by_name = {each.name: each for rows in module.computations.values() for each in rows}

  def described(self, instruction: Instruction) -> Instruction:
    """The instruction, or the nearest before it that has kept its metadata."""
    level = [instruction]
    for _ in range(_STEPS):
      for each in level:
        if each.op_name and _FRAME.search(each.rest):
          return each
        if inner := self._root(each):
          return inner
        if each.opcode in _ENDS:
          return instruction
      level = [self._by_name[name] for each in level for name in each.operands][:_STEPS]
    return instruction

  def joined(self, instruction: Instruction) -> list[Instruction]:
    """What an instruction puts one after another to be sent at once; itself where it does not."""
    inside = (
      self.module.computations[instruction.called[0]] if instruction.called else [instruction]
    )
    root = next((each for each in inside if each.is_root), instruction)
    if instruction.opcode not in ('fusion', 'concatenate') or root.opcode != 'concatenate':
      return [instruction]
    return [self._by_name[name] for name in instruction.operands]

  def _root(self, each: Instruction) -> Instruction | None:
    """Of a fusion without metadata, an instruction inside that has some."""
    if each.opcode != 'fusion' or not each.called:
      return None
    inside = self.module.computations[each.called[0]]
    return next((one for one in reversed(inside) if one.op_name and _FRAME.search(one.rest)), None)

  def lines(self, instruction: Instruction) -> list[str]:
    """'lmjax/ops/loss.py:73', innermost first."""
    frames = map(_PACKAGE.match, self.module.frames(instruction))
    return [frame[1] for frame in frames if frame]

  def where(self, instruction: Instruction) -> str:
    """The line that says most of an instruction, and what JAX calls it."""
    told = self.described(instruction)
    lines = self.lines(told)
    own = [line for line in lines if not any(shared in line for shared in _SHARED)]
    best = [line for line in own if not any(around in line for around in _AROUND)]
    line = (best or own or lines or [''])[0]
    return ' '.join(part for part in (line, short(told.op_name)) if part)


@functools.lru_cache(1 << 12)
def short(op_name: str) -> str:
  """'Block/mlp/BLD,DF->BLF/dot_general' of a name that tells every transformation."""
  first = op_name.strip('()').split(':')[0]
  return _NOISE.sub('', first).removeprefix('jit(train_step)')


def path_of(argument: str) -> tuple[str, ...]:
  """('layers', 'mlp', 'up') of state.params['layers']['mlp']['up']."""
  return tuple(re.findall(r"\[\\?'([^'\\]*)\\?'\]", argument))
