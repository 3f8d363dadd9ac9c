"""A matrix with a low-rank term beside it, which products take in place of an array.

The term is never added to the matrix: its gradients then cost as little as it is large, and none are
taken of the matrix. R is the rank.
"""

from typing import Any, NamedTuple

import jax


class Adapted(NamedTuple):
  """w + a b, a product over the rank (LoRA, Hu et al. 2021, arXiv:2106.09685).

  w: array in einsum's shape, or `Packed`.
  a: f32 [inputs..., R].
  b: f32 [R, outputs...].
  """

  w: Any
  a: jax.Array
  b: jax.Array


def low_rank_specs(spec: str) -> tuple[str, str]:
  """Of `spec`, x and w to y: the einsums of x and a, and of what that gives and b.

  'BLD,DHK->BLHK' gives 'BLD,DR->BLR' and 'BLR,RHK->BLHK'.
  """
  operands, result = spec.split('->')
  left, right = operands.split(',')
  inner = ''.join(letter for letter in right if letter not in result)
  outer = ''.join(letter for letter in right if letter in result)
  rows = left.removesuffix(inner)
  assert 'R' not in spec, spec
  assert (left, result) == (rows + inner, rows + outer), spec
  return f'{left},{inner}R->{rows}R', f'{rows}R,R{outer}->{result}'
