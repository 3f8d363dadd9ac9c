"""Why a compiled step holds, sends or waits more than it need: the tensor, the line, and the flag.

Found from the program and its task alone. A program that is in order has no findings.
"""

import itertools
import math
import re
from collections.abc import Iterator

import numpy as np

from lmjax.parallel import hlo
from lmjax.parallel.hlo import Instruction
from lmjax.plan import memory
from lmjax.plan.design import Design, Parameter, design
from lmjax.plan.estimate import Estimate, model_of
from lmjax.plan.excess import excess
from lmjax.plan.finding import Finding, Weighed, few, file_of, size
from lmjax.plan.origin import Sources, path_of, short
from lmjax.plan.surprises import surprises

# Of a device at its fullest. Norms and biases, which nothing splits, are not asked to be.
_LEAST = 0.005
_SMALL = 1 << 16  # numbers: such tensors prove nothing of a rule
_DONATED = 0.9  # of the state: counters and keys need not be
_HOST = 'S(5)'  # XLA's memory space of the host
Missing = tuple[tuple[str, str], ...]
"""(axis, dimension name) of what a tensor could be split over and is not."""
Unsplit = dict[tuple[str, Missing], list[tuple[float, Parameter]]]
"""(owner, what is missing) -> (bytes lost, tensor)."""

_SHARDING = re.compile(
  r'sharding=\{(?:devices=\[([\d,]+)\](?:<=\[([\d,]+)\](?:T\(([\d,]+)\))?|([\d,]+))|replicated)'
)
_WARNING = re.compile(
  r'Involuntary full rematerialization.*? from sharding (?P<old>\{.*?\}) to (?P<new>\{.*?\}) efficiently'
  r' for HLO operation:? %?[\w.-]+ = (?P<array>\w+\[[\d,]*\])'
)


def explain(found: Estimate) -> list[Finding]:
  """What is wrong with a step, worst first."""
  plan = design(found.task, model_of(found.task))
  unsplit = _unsplit(found, plan)
  least = _LEAST * found.program.peak_bytes
  blamed = {
    parameter.path
    for tensors in unsplit.values()
    for _, parameter in tensors
    if sum(lost for lost, _ in tensors) > least
  }
  weighed = [
    *_unsplit_state(found, plan, unsplit),
    *_undonated(found),
    *_unsplit_batch(found, plan),
    *_rematerialized(found, plan),
    *excess(found, plan),
    *surprises(found, plan, blamed),
  ]
  return [each.finding for each in sorted(weighed, key=lambda each: -each.share)]


def _unsplit(found: Estimate, plan: Design) -> Unsplit:
  """Parameters and moments that more devices could share."""
  wasted: Unsplit = {}
  for each in memory.arguments(found.module):
    owner = memory.argument_owner(each.op_name)
    parameter = _parameter(each, plan)
    if parameter is None or owner not in ('parameters', 'optimizer moments'):
      continue
    dims = _dims(each, parameter)
    held, wanted = placed(each, plan.mesh), plan.wanted(dims)
    missing = [axis for axis in wanted if axis not in held]
    others = math.prod(plan.mesh[axis] for axis in held if axis not in wanted)
    share = others / math.prod(plan.mesh[axis] for axis in missing)
    lost = each.arrays[0].bytes * (1 - share)
    if missing and lost > 0:
      key = owner, tuple((axis, str(dims[wanted[axis]])) for axis in missing)
      wasted.setdefault(key, []).append((lost, parameter))
  return wasted


def _unsplit_state(found: Estimate, plan: Design, wasted: Unsplit) -> Iterator[Weighed]:
  for (owner, missing), tensors in wasted.items():
    same = wasted.get(('parameters', missing), [])
    if owner == 'optimizer moments' and same:
      continue  # laid out as their parameters, which are named
    moments = wasted.get(('optimizer moments', missing), []) if owner == 'parameters' else []
    share = sum(lost for lost, _ in tensors + moments) / found.program.peak_bytes
    if share > _LEAST:
      yield Weighed(
        share, _state_finding(owner, missing, tensors, moments, _is_table(missing, wasted, plan))
      )


def _is_table(missing: Missing, wasted: Unsplit, plan: Design) -> bool:
  """Whether every parameter with these dimensions lacks the axes: the table is wrong then, not a name."""
  guilty = {each.path for (_, same), rest in wasted.items() if same == missing for _, each in rest}
  alike = [each for each in plan.parameters.values() if {dim for _, dim in missing} <= {*each.dims}]
  return bool(alike) and all(each.path in guilty for each in alike if each.size > _SMALL)


def _state_finding(owner: str, missing: Missing, tensors, moments, is_table: bool) -> Finding:
  """The finding of tensors that lack the same axes; `moments` of parameters lack them too."""
  ranked = sorted(tensors, key=lambda pair: -pair[0])
  tensor = few(list(dict.fromkeys(parameter.path for _, parameter in ranked)))
  axes = ' and '.join(axis for axis, _ in missing)
  dims = ', '.join(f'{dim!r} on {axis!r}' for axis, dim in missing)
  fix = f'dimension {dims} in the table of lmjax/parallel/sharding.py'
  if not is_table:
    fix = f'dimension names of {tensor}, where it is declared in lmjax/models'
  where = 'lmjax/parallel/sharding.py state.params'
  if owner == 'optimizer moments':
    tensor = f'optimizer moments of {tensor}'
    fix = 'lay moments out as their parameters: state_dims in lmjax/train/state.py'
    where = 'lmjax/train/state.py state.opt_state'
  cost = f'{size(sum(lost for lost, _ in [*tensors, *moments]))} of memory'
  what = f'not split over {axes}: {tensor}{", and their moments" if moments else ""}'
  return Finding(what, tensor, where, cost, fix)


def _parameter(argument: Instruction, plan: Design) -> Parameter | None:
  """The parameter that an argument is, or is a moment of."""
  path = path_of(argument.op_name)
  tails = ('/'.join(path[start:]) for start in range(len(path)))
  return next((plan.parameters[tail] for tail in tails if tail in plan.parameters), None)


def _dims(argument: Instruction, parameter: Parameter) -> tuple[str | None, ...]:
  """Dimension names of an argument: of a factored moment those that it has left."""
  shape, dims = argument.arrays[0].shape, parameter.dims
  if len(shape) == len(dims):
    return dims
  for gone in range(len(dims)):  # Adafactor's, which sum over one dimension
    left = parameter.shape[:gone] + parameter.shape[gone + 1 :]
    if len(left) == len(shape) and all(
      whole % n == 0 for whole, n in zip(left, shape, strict=True)
    ):
      return dims[:gone] + dims[gone + 1 :]
  return (None,) * len(shape)


def placed(argument: Instruction, mesh: dict[str, int]) -> dict[str, int]:
  """Axis -> the dimension of an argument that it splits."""
  found = _SHARDING.search(argument.rest)
  if not found or not found[1]:
    return {}
  numbers = lambda text: [int(number) for number in text.split(',')]
  order = np.array(numbers(found[4])) if found[4] else np.arange(math.prod(numbers(found[2])))
  if found[3]:
    order = order.reshape(numbers(found[2])).transpose(numbers(found[3]))
  tiles = order.reshape(numbers(found[1]))
  rank, result = len(argument.arrays[0].shape), {}
  place = {int(device): where for where, device in np.ndenumerate(tiles)}
  strides = itertools.accumulate([*reversed(mesh.values())][:-1], lambda a, b: a * b, initial=1)
  for axis, stride in zip(reversed(mesh), strides, strict=True):
    if mesh[axis] > 1:
      for dim in range(rank):
        if place[stride][dim] != place[0][dim]:
          result[axis] = dim
  return result


def _undonated(found: Estimate) -> Iterator[Weighed]:
  state = sum(
    array.bytes
    for each in memory.arguments(found.module)
    if each.op_name.startswith('state.')
    for array in each.arrays
    if array.space != _HOST
  )
  lost = state - found.program.alias_bytes
  if lost > (1 - _DONATED) * state:
    what = f'{size(lost)} of the state is not donated: a step holds it twice'
    fix = 'donate_argnums=0 in the jit of the step, and outputs laid out like inputs (lmjax/train/job.py)'
    tensor = 'state: parameters and optimizer moments'
    cost = f'{size(lost)} of memory'
    where = 'lmjax/train/job.py jit(train_step)'
    yield Weighed(lost / found.program.peak_bytes, Finding(what, tensor, where, cost, fix))


def _unsplit_batch(found: Estimate, plan: Design) -> Iterator[Weighed]:
  """Rows that several devices have alike: all compute the same."""
  for each in memory.arguments(found.module):
    if not each.op_name.startswith('batch.tokens'):
      continue
    wanted = {'data': 'batch', 'fsdp': 'batch', 'expert': 'batch', 'context': 'length'}
    held = placed(each, plan.mesh)
    missing = [axis for axis in wanted if plan.mesh[axis] > 1 and axis not in held]
    if missing:
      ways = math.prod(plan.mesh[axis] for axis in missing)
      axes = ' and '.join(missing)
      what = (
        f'rows of the batch are the same on {ways} devices along {axes}, which all compute them'
      )
      fix = (
        f'dimension {wanted[missing[0]]!r} on {axes!r} in the table of lmjax/parallel/sharding.py'
      )
      lost = found.timeline.seconds * (1 - 1 / ways)
      finding = Finding(
        what, 'batch', 'lmjax/parallel/sharding.py batch', f'{1e3 * lost:.1f} ms a step', fix
      )
      yield Weighed(1 - 1 / ways, finding)


def _rematerialized(found: Estimate, plan: Design) -> Iterator[Weighed]:
  """What XLA says that it copies whole to every device, to lay it out anew."""
  seen: set[str] = set()
  for line in found.program.warnings:
    told = _WARNING.search(line)
    if told is None or told['array'] in seen:
      continue
    seen.add(told['array'])
    tensor, where, fix = _guilty(line, told, found, plan)
    (array,) = hlo.arrays(told['array'])[:1]
    what = (
      f'{told["array"]} is copied whole to every device, from layout {told["old"]} to {told["new"]}'
    )
    cost = f'{size(array.bytes)} of memory a copy, and on the wire'
    share = array.bytes / found.program.peak_bytes
    yield Weighed(share, Finding(what, tensor, where, cost, fix))


def _guilty(line: str, told: re.Match[str], found: Estimate, plan: Design) -> tuple[str, str, str]:
  """The tensor of a warning, where it is, and what to write there."""
  (array,) = hlo.arrays(told['array'])[:1]
  op = re.search(r'op_name="([^"]*)"', line)
  name = op[1] if op else ''
  tiles = [int(n) for n in told['new'].partition('[')[2].partition(']')[0].split(',') if n]
  is_stream = len(array.shape) > 1 and array.shape[-1] == plan.model.width
  rank = len(array.shape)
  if 'embed' in name or (is_stream and len(tiles) >= rank and tiles[rank - 1] > 1):
    # Only what was looked up in a table that is split along its width comes split so.
    fix = "constrain(table, 'vocab', None) before it is looked up, in lmjax/models/transformer.py"
    return 'embed', _first(found, 'Ends.embed'), fix
  part = next((part for part in ('attention', 'mlp', 'final_norm') if part in name), None)
  tensor = (
    f'activations of layers/{part}' if part else 'residual stream' if is_stream else 'activations'
  )
  where = _first(found, short(name)) if name else 'lmjax/models/transformer.py'
  return tensor, where, f"constrain(x, 'batch', 'length', ...) in {file_of(where)}"


def _first(found: Estimate, name: str) -> str:
  """Where the first instruction is that JAX calls so."""
  sources = Sources(found.module)
  for rows in found.module.computations.values():
    for each in rows:
      if name in short(each.op_name) and sources.lines(each):
        return sources.where(each)
  return f'lmjax/models/transformer.py {name}'
