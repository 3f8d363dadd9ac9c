"""LoRA: a trained term of low rank beside frozen matrices; functions from parameters to parameters.

    W' = W + (alpha / rank) A B      A [inputs..., R] starts random, B [R, outputs...] at zero

Hu et al. 2021, arXiv:2106.09685. Any matrix can have one, stacked ones a layer's own: which, is said
by path. Knows no model beyond the dimension names of its parameters.
"""

import dataclasses
import fnmatch
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmjax.adapt.quantize import quantize
from lmjax.core import tree
from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError
from lmjax.core.types import Params
from lmjax.ops.adapted import Adapted
from lmjax.ops.packed import Packed, unpack
from lmjax.parallel import sharding

_STACKED = ('layers', 'expert')  # leading dimensions of which each has a matrix of its own
# Matrices that products take as `Adapted` or `Packed`, by their dimension names, and how many of those
# they sum over. What is not here gets its term added.
_PRODUCTS = {
  ('embed', 'heads', 'head_dim'): 1,
  ('embed', 'kv_heads', 'head_dim'): 1,
  ('heads', 'head_dim', 'embed'): 2,
  ('embed', 'mlp'): 1,
  ('mlp', 'embed'): 1,
}


class Lora(Config):
  """Which matrices get a term of low rank, and of which."""

  paths: tuple[str, ...] = leaf(
    ('layers/*',),
    'Patterns of the paths of matrices, * for anything: layers/*/query, layers/mlp/*, embed.',
  )
  rank: int = leaf(16, 'Of the term that each gets.', low=1)
  alpha: float = leaf(32.0, 'Its factor is alpha / rank.', above=0.0)

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


class Matrix(NamedTuple):
  """A matrix in einsum's shape, taken apart.

  Attributes:
    lead: how many leading dimensions are of layers or experts.
    inputs: how many after them are summed over.
    shape, dims: of all of it.
  """

  lead: int
  inputs: int
  shape: tuple[int, ...]
  dims: sharding.Dims

  @property
  def a(self) -> tuple[tuple[int, ...], sharding.Dims]:
    """Shape without the rank, and dimension names, of A."""
    end = self.lead + self.inputs
    return self.shape[:end], (*self.dims[:end], 'rank')

  @property
  def b(self) -> tuple[tuple[int, ...], sharding.Dims]:
    """The same of B."""
    start = self.lead + self.inputs
    names = (*self.dims[: self.lead], 'rank', *self.dims[start:])
    return self.shape[: self.lead] + self.shape[start:], names

  @property
  def is_product(self) -> bool:
    """Whether products take it as `Adapted` and `Packed`; experts' do not."""
    return self.dims[self.lead :] in _PRODUCTS and 'expert' not in self.dims

  def multiply(self, a: jax.Array, b: jax.Array) -> jax.Array:
    """A B, shaped as the matrix."""
    lead, rank = self.shape[: self.lead], a.shape[-1]
    product = a.reshape(*lead, -1, rank) @ b.reshape(*lead, rank, -1)
    return product.reshape(self.shape)

  def pack(self, w: jax.Array) -> Packed:
    end = self.lead + self.inputs
    order = (*range(self.lead), *range(end, w.ndim), *range(self.lead, end))
    return Packed(jnp.transpose(w, order))

  def unpack(self, w: Packed) -> jax.Array:
    values, outputs = unpack(w), len(self.shape) - self.lead - self.inputs
    start = self.lead + outputs
    order = (*range(self.lead), *range(start, values.ndim), *range(self.lead, start))
    return jnp.transpose(values, order)


@dataclasses.dataclass(frozen=True)
class Adapter:
  """The terms beside the matrices of `model`: what the optimizer moves, with `init` and `dims`."""

  model: Any
  lora: Lora

  def init(self, key: jax.Array) -> Params:
    """{path of the matrix: {'a', 'b'}}, nested as the model's parameters; the same in either layout."""
    if self.model.layout != 'scan':
      stacked = dataclasses.replace(self, model=dataclasses.replace(self.model, layout='scan'))
      return tree.unstack(stacked.init(key))
    found = {}
    for number, (path, matrix) in enumerate(self._matrices.items()):
      (a, _), (b, _) = matrix.a, matrix.b
      fan_in = math.prod(a[matrix.lead :])
      a_shape, b_shape = (
        (*a, self.lora.rank),
        (*b[: matrix.lead], self.lora.rank, *b[matrix.lead :]),
      )
      noise = jax.random.normal(jax.random.fold_in(key, number), a_shape, jnp.float32)
      found[path] = {'a': noise * fan_in**-0.5, 'b': jnp.zeros(b_shape, jnp.float32)}
    return _nested(found)

  def dims(self) -> dict[str, Any]:
    """The dimension names of every array of `init`'s tree."""
    named = {path: {'a': m.a[1], 'b': m.b[1]} for path, m in self._matrices.items()}
    return _nested(named)

  def shapes(self) -> Params:
    return jax.eval_shape(self.init, jax.random.key(0))

  def attach(self, params: Params, terms: Params) -> Params:
    """`params` with its terms, for the model to compute with; gradients flow to the terms alone.

    A matrix that products take so becomes `Adapted`; to another, a table say, its term is added.

    Args:
      params: the base's, whose matrices may be `Packed`.
      terms: as `init` gives them.
    """
    matrices, found = self._matrices, _flat(terms)

    def one(path: str, w: Any) -> Any:
      w = jax.lax.stop_gradient(w)
      if path not in found:
        return w
      a, b = found[path]
      if matrices[path].is_product:
        return Adapted(w, a * self.lora.scale, b)
      return w + self.lora.scale * matrices[path].multiply(a, b)

    return _map(one, params)

  def merge(self, params: Params, terms: Params) -> Params:
    """`params` with every term added: as large as the base, and as fast."""
    matrices, found = self._matrices, _flat(terms)

    def one(path: str, w: Any) -> Any:
      w = matrices[path].unpack(w) if isinstance(w, Packed) else w
      return w + self.lora.scale * matrices[path].multiply(*found[path]) if path in found else w

    return _map(one, params)

  def to_int8(self, params: Params) -> Params:
    """`params` with the matrices that get a term in int8, a scale for each 32 inputs: to be frozen.

    Those that no product takes so stay as they are.
    """
    matrices = self._matrices
    is_product = lambda path: path in matrices and matrices[path].is_product
    packed = lambda path, w: quantize({'w': matrices[path].pack(w)})['w'] if is_product(path) else w
    return tree.map_with_path(packed, params)

  @functools.cached_property
  def _matrices(self) -> dict[str, Matrix]:
    """The matrices of the model that get a term, by path; UserError where a pattern names none."""
    dims = jax.tree.leaves(self.model.dims(), is_leaf=sharding.is_dims)
    leaves = jax.tree.leaves_with_path(self.model.shapes())
    every = {}
    for (keys, x), names in zip(leaves, dims, strict=True):
      path = jax.tree_util.keystr(keys, simple=True, separator='/')
      lead = len(tuple(itertools.takewhile(_STACKED.__contains__, names)))
      if x.ndim - lead >= 2 and not path.endswith('_bias'):
        every[path] = Matrix(lead, _PRODUCTS.get(names[lead:], 1), x.shape, names)
    stacked = lambda path: '/'.join(word for word in path.split('/') if not word.isdigit())
    for pattern in self.lora.paths:
      if not any(fnmatch.fnmatchcase(stacked(path), pattern) for path in every):
        known = ', '.join(sorted({stacked(path) for path in every}))
        raise UserError(f'lora.paths={pattern}: no matrix has such a path: there are {known}')
    chosen = lambda path: any(fnmatch.fnmatchcase(stacked(path), p) for p in self.lora.paths)
    found = {path: matrix for path, matrix in every.items() if chosen(path)}
    if not found:
      raise UserError('lora.paths= names no matrix: pass patterns such as layers/*')
    return found


def _flat(terms: Params) -> dict[str, tuple[jax.Array, jax.Array]]:
  """(A, B) by the path of their matrix."""
  arrays = dict(tree.paths(terms))
  found = {path.removesuffix('/a') for path in arrays if path.endswith('/a')}
  return {path: (arrays[f'{path}/a'], arrays[f'{path}/b']) for path in found}


def _map(f: Callable[[str, Any], Any], params: Params) -> Params:
  """`params` with `f(path, leaf)` in place of each array or `Packed` matrix."""
  return jax.tree.map_with_path(
    lambda keys, leaf: f(jax.tree_util.keystr(keys, simple=True, separator='/'), leaf),
    params,
    is_leaf=lambda node: isinstance(node, Packed),
  )


def _nested(found: Mapping[str, Any]) -> dict[str, Any]:
  """A nested dict of values by path."""
  nested: dict[str, Any] = {}
  for path, value in found.items():
    *folders, name = path.split('/')
    node = nested
    for folder in folders:
      node = node.setdefault(folder, {})
    node[name] = value
  return nested
