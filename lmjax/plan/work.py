"""What an instruction of a compiled program does: floating-point operations, bytes, which kernel.

One device, one execution. Counts are exact for products; kernels of our own are counted by the
formulas beside them; everything else is the bytes it reads and writes. Knows nothing of machines.

B batch, H heads, L length, K head dim, N blocks, T rows of a block, D columns, F columns out.
"""

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from lmjax.ops.attention_gpu import KERNEL_PRODUCTS
from lmjax.parallel import hlo
from lmjax.parallel.hlo import Instruction, Module

Kind = Literal['product', 'attention', 'experts', 'memory', 'none']
Types = Mapping[str, str]
"""The type of every instruction of a computation, by name."""

_FREE = frozenset(
  [
    'parameter',
    'constant',
    'tuple',
    'get-tuple-element',
    'bitcast',
    'after-all',
    'partition-id',
    'replica-id',
    'opt-barrier',
    'add-dependency',
  ]
)
_SLICES = ('dynamic-slice', 'slice', 'gather')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:ension)?s"?[:=](\[[^\]]*\]|\{[^}]*\})')
_NAME = re.compile(r'\bname = "([^"]*)"')  # of a Triton kernel, in its configuration
_MASK = re.compile(r'"mask_type":"([A-Z_]*)"')


class Work(NamedTuple):
  """What one execution costs a device.

  Attributes:
    kind: 'product' of matrices by XLA or a library, 'attention' and 'experts' by a kernel, 'memory':
      anything bound by its bytes, 'none': nothing is moved.
    flops: of its products, a multiply-add being two.
    bytes: read and written.
    dtype: of the operands of its products, in XLA's words; '' without.
    kernel: what runs: 'cublas', 'cudnn', 'triton mha_forward', 'fusion', 'copy' ...
    shape: rows and columns of the result of a product, for how it fills a GPU; () otherwise.
  """

  kind: Kind
  flops: float
  bytes: float
  dtype: str = ''
  kernel: str = ''
  shape: tuple[int, ...] = ()


NOTHING = Work('none', 0.0, 0.0)


def work(module: Module, instruction: Instruction, types: Types) -> Work:
  """What an instruction that is neither a collective nor a loop does."""
  if instruction.opcode in _FREE:
    return NOTHING
  if instruction.opcode == 'custom-call':
    return _custom_call(module, instruction, types)
  if instruction.opcode == 'dot':
    return _product(instruction, types, 'dot')
  if instruction.opcode in ('fusion', 'call') and instruction.called:
    return _fusion(module, instruction, types)
  return Work('memory', 0.0, _bytes(instruction, types), kernel=instruction.opcode)


def _custom_call(module: Module, instruction: Instruction, types: Types) -> Work:
  found = _TARGET.search(instruction.rest)
  target = found[1] if found else ''
  if 'cublas' in target or 'matmul' in target:
    return _product(instruction, types, 'cublas' if 'cublas' in target else target)
  if 'cudnn$fmha' in target:
    return _cudnn(instruction, types, target)
  if target.endswith('triton'):
    return _triton(instruction, types)
  if instruction.called:
    return _fusion(module, instruction, types)
  return Work('memory', 0.0, _bytes(instruction, types), kernel=target)


def _product(instruction: Instruction, types: Types, kernel: str) -> Work:
  """A matrix product: 2 x the size of the result x the length of the sums."""
  left = hlo.arrays(types[instruction.operands[0]])[0]
  found = _CONTRACTED.search(instruction.rest)
  if not found:
    raise ValueError(f'cannot read the sums of the product {instruction}')
  depth = 1
  for dim in re.findall(r'\d+', found[1]):
    depth *= left.shape[int(dim)]
  result = instruction.arrays[0]
  moved = sum(hlo.arrays(types[name])[0].bytes for name in instruction.operands) + result.bytes
  shape = (result.size // result.shape[-1], result.shape[-1]) if result.shape else (1, 1)
  return Work('product', 2.0 * result.size * depth, moved, left.dtype, kernel, shape)


def _cudnn(instruction: Instruction, types: Types, target: str) -> Work:
  """Fused attention of cuDNN on [B, L, H, K] or [B, H, L, K], L > H; half of it where it is causal."""
  query, key = (hlo.arrays(types[name])[0] for name in instruction.operands[:2])
  mask = _MASK.search(instruction.rest)
  share = 0.5 if mask and 'CAUSAL' in mask[1] else 1.0
  products = 5 if 'ackward' in target else 2
  flops = 2.0 * products * query.size * max(key.shape[1:-1]) * share
  return Work('attention', flops, _bytes(instruction, types), query.dtype, 'cudnn attention')


def _triton(instruction: Instruction, types: Types) -> Work:
  """One of our kernels, told by its own name."""
  moved = _bytes(instruction, types)
  found = _NAME.search(instruction.rest)
  name = found[1] if found else ''
  if name in KERNEL_PRODUCTS:
    query = hlo.arrays(types[instruction.operands[0]])[0]
    flops = KERNEL_PRODUCTS[name] * 2.0 * query.size * query.shape[1] / 2
    kind = 'attention' if flops else 'memory'
    return Work(kind, flops, moved, query.dtype, f'triton {name}')
  if name.startswith('grouped_dot'):
    return _grouped(instruction, types, moved)
  raise ValueError(f'unknown kernel {name!r}: say in its file how much it computes')


def _grouped(instruction: Instruction, types: Types, moved: float) -> Work:
  """Blocks of rows with a matrix each, x_NTD and w_EDF or dy_NTF: 2 N T D F, unused blocks too."""
  blocks, other = (hlo.arrays(types[name])[0] for name in instruction.operands[:2])
  flops = 2.0 * blocks.size * other.shape[-1]
  return Work('experts', flops, moved, blocks.dtype, 'triton grouped_dot')


def _fusion(module: Module, instruction: Instruction, types: Types) -> Work:
  """A fusion: the products inside it, and what it reads and writes of its operands."""
  inside = module.computations[instruction.called[0]]
  inner = {each.name: each.type for each in inside}
  products = [work(module, each, inner) for each in inside if _may_multiply(each)]
  products = [each for each in products if each.flops]
  moved = _fusion_bytes(instruction, inside, inner, types)
  if not products:
    return Work('memory', 0.0, moved, kernel=instruction.opcode)
  largest = max(products, key=lambda each: each.flops)
  flops = sum(each.flops for each in products)
  return Work('product', flops, moved, largest.dtype, f'{instruction.opcode} dot', largest.shape)


def _may_multiply(instruction: Instruction) -> bool:
  return instruction.opcode in ('dot', 'fusion', 'call', 'custom-call')


def _fusion_bytes(
  instruction: Instruction, inside: list[Instruction], inner: Types, types: Types
) -> float:
  """Bytes read and written; of an operand that is only sliced or updated in place, those alone."""
  source = {each.name: each.operands[0] for each in inside if each.opcode == 'bitcast'}

  def behind(name: str) -> str:
    while name in source:
      name = source[name]
    return name

  users: dict[str, list[tuple[Instruction, int]]] = {}
  for each in inside:
    if each.opcode != 'bitcast':
      for place, name in enumerate(each.operands):
        users.setdefault(behind(name), []).append((each, place))
  total = 0.0
  for each in inside:
    if each.opcode == 'parameter':
      whole = sum(array.bytes for array in each.arrays)
      total += min(
        whole, sum(_read(user, place, inner) for user, place in users.get(each.name, []))
      )
  root = next(each for each in inside if each.is_root)
  results = root.operands if root.opcode == 'tuple' else [root.name]
  by_name = {each.name: each for each in inside}
  return total + sum(_written(by_name[behind(name)], inner) for name in results)


def _read(user: Instruction, place: int, inner: Types) -> float:
  """What an instruction inside a fusion reads of the operand at `place`."""
  if place == 0 and user.opcode in _SLICES:
    return sum(array.bytes for array in user.arrays)
  if place == 0 and user.opcode == 'dynamic-update-slice':
    return 0.0
  return sum(array.bytes for array in hlo.arrays(inner[user.operands[place]]))


def _written(result: Instruction, inner: Types) -> float:
  if result.opcode == 'dynamic-update-slice':
    return sum(array.bytes for array in hlo.arrays(inner[result.operands[1]]))
  return sum(array.bytes for array in result.arrays)


def _bytes(instruction: Instruction, types: Types) -> float:
  """Of operands and results."""
  if instruction.opcode in _SLICES:
    return 2.0 * sum(array.bytes for array in instruction.arrays)
  if instruction.opcode == 'dynamic-update-slice':
    return 2.0 * sum(array.bytes for array in hlo.arrays(types[instruction.operands[1]]))
  read = sum(array.bytes for name in instruction.operands for array in hlo.arrays(types[name]))
  return float(read + sum(array.bytes for array in instruction.arrays))
