"""Pytrees of named arrays: their paths, size and hash, and the two layouts of a model's layers.

A path is the keys from the root joined by '/': `params/layers/3/mlp/up`. Layers stand either in a
list, `{'layers': {'0': {...}, '1': {...}}}`, or stacked, `{'layers': {...}}` with a leading
dimension N on every leaf; `stack` and `unstack` convert wherever such a dict stands in a tree, so
also in an optimizer's state, and on arrays as on `jax.ShapeDtypeStruct`. Knows no model.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Tree = Any


def paths(tree: Tree) -> list[tuple[str, Any]]:
  """(path, leaf) of every leaf in path order: names alphabetically, numbers by value (2 before 10)."""
  found = [(_join(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
  return sorted(found, key=lambda entry: _order(entry[0]))


def map_with_path(f: Callable[[str, Any], Any], tree: Tree) -> Tree:
  """`tree` with `f(path, leaf)` in place of each leaf."""
  return jax.tree.map_with_path(lambda path, leaf: f(_join(path), leaf), tree)


def count(params: Tree) -> int:
  """Numbers in all arrays together."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def sha256(params: Tree) -> str:
  """Hash of every array in path order: its path, dtype, shape and bytes, wherever its shards are."""
  digest = hashlib.sha256()
  for path, leaf in paths(params):
    array = gather(leaf)
    digest.update(f'{path} {array.dtype} {array.shape}\n'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def gather(leaf: Any) -> np.ndarray:
  """The whole of one array on this host. Where other processes hold shards of it, all must call."""
  if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
    assert isinstance(leaf.sharding, NamedSharding)
    everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    leaf = jax.jit(lambda x: x, out_shardings=everywhere)(leaf)
  return np.asarray(leaf)


def stack(tree: Tree, key: str = 'layers') -> Tree:
  """`tree` with each list of layers below `key` stacked; what is stacked already stays.

  A `ShapeDtypeStruct` keeps its NamedSharding, with the leading dimension on no mesh axis.
  """

  def join(layers: Tree, factored: bool) -> Tree:
    if not _is_listed(layers):
      return layers
    ordered = [layers[name] for name in sorted(layers, key=int)]
    return jax.tree.map(
      lambda *leaves: leaves[0] if _is_stand_in(leaves[0], factored) else _stack(leaves), *ordered
    )

  return _replace_layers(join, tree, key)


def unstack(tree: Tree, key: str = 'layers') -> Tree:
  """`tree` with each stack of layers below `key` as a list; what is a list already stays."""
  depth = _depth(tree, key)

  def split(layers: Tree, factored: bool) -> Tree:
    if not _is_stacked(layers) or depth is None:
      return layers
    pick = lambda i: jax.tree.map(
      lambda leaf: _copy(leaf) if _is_stand_in(leaf, factored) else _slice(leaf, i), layers
    )
    return {str(i): pick(i) for i in range(depth)}

  return _replace_layers(split, tree, key)


def _join(path: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _order(path: str) -> list[tuple[bool, int, str]]:
  return [(not k.isdigit(), int(k) if k.isdigit() else 0, k) for k in path.split('/')]


def _replace_layers(
  f: Callable[[Tree, bool], Tree], tree: Tree, key: str, factored: bool = False
) -> Tree:
  """`tree` with `f(layers, factored)` in place of what each of its dicts holds under `key`."""

  def visit(node: Any) -> Any:
    if _is_factored(node):
      return type(node)(*(_replace_layers(f, child, key, True) for child in node))
    if isinstance(node, dict) and key in node:
      inside = lambda child: _replace_layers(f, child, key, factored)
      return {k: f(child, factored) if k == key else inside(child) for k, child in node.items()}
    return node

  stop = lambda node: _is_factored(node) or (isinstance(node, dict) and key in node)
  return jax.tree.map(visit, tree, is_leaf=stop)


def _depth(tree: Tree, key: str) -> int | None:
  """How many layers are stacked in `tree`. A part whose leaves are all masked cannot tell itself."""
  depths = set()

  def note(layers: Tree, factored: bool) -> Tree:
    if _is_stacked(layers):
      leaves = jax.tree.leaves(layers)
      depths.update(leaf.shape[0] for leaf in leaves if not _is_stand_in(leaf, factored))
    return layers

  _replace_layers(note, tree, key)
  if len(depths) > 1:
    raise ValueError(f'{key!r} holds stacks of different depths: {sorted(depths)}')
  return depths.pop() if depths else None


def _is_listed(layers: Tree) -> bool:
  return isinstance(layers, dict) and bool(layers) and all(name.isdigit() for name in layers)


def _is_stacked(layers: Tree) -> bool:
  return isinstance(layers, dict) and not _is_listed(layers)


def _is_factored(node: Any) -> bool:
  """Whether `node` is Adafactor's state (`optax.FactoredState`)."""
  return isinstance(node, tuple) and hasattr(node, 'v_row')


def _is_stand_in(leaf: Any, factored: bool) -> bool:
  """Adafactor puts zeros of shape (1,) for a moment it does not keep, stacked or not."""
  return factored and leaf.shape == (1,)


def _stack(leaves: tuple[Any, ...]) -> Any:
  first = leaves[0]
  if not isinstance(first, jax.ShapeDtypeStruct):
    return jnp.stack(leaves)
  shape = (len(leaves), *first.shape)
  return jax.ShapeDtypeStruct(
    shape, first.dtype, sharding=_respec(first, lambda spec: (None, *spec))
  )


def _slice(leaf: Any, i: int) -> Any:
  if not isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf[i]
  sharding = _respec(leaf, lambda spec: spec[1:])
  return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)


def _copy(leaf: Any) -> Any:
  """One buffer each: XLA refuses a step that is donated the same buffer twice."""
  return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.copy(leaf)


def _respec(leaf: jax.ShapeDtypeStruct, change: Callable[[tuple], tuple]) -> Any:
  """The sharding of `leaf` with its spec changed, where it has one."""
  sharding = leaf.sharding
  if not isinstance(sharding, NamedSharding):
    return sharding
  spec = PartitionSpec(*change(tuple(sharding.spec)))
  return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
