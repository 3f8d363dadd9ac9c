"""Keys and values of many sequences at once: a row each, counted in pages that others may take over.

What is compiled depends on the rows and slots alone, never on who uses them. Knows nothing about text.
T tokens of a step, S rows, M slots of a row.
"""

import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.models.transformer import Cache, Decoder
from lmjax.parallel.sharding import Dims

PAGE = 32  # tokens


def cache_dims(model: Decoder) -> Dims:
  """The dimension names of each array of a cache."""
  dims = (None, None, 'kv_heads', None)
  return ('layers', *dims) if model.layout == 'scan' else dims


def with_rows(model: Decoder, cache: Cache, row_T: jax.Array) -> Cache:
  """`cache` for T tokens that are of the rows `row_T`, i32."""
  if model.layout == 'scan':
    return {**cache, 'row': jnp.broadcast_to(row_T[None], (model.layers, len(row_T)))}
  return {layer: {**kept, 'row': row_T} for layer, kept in cache.items()}


def without_rows(model: Decoder, cache: Cache) -> Cache:
  """What of a cache is kept from step to step."""
  drop = lambda kept: {key: x for key, x in kept.items() if key != 'row'}
  if model.layout == 'scan':
    return drop(cache)
  return {layer: drop(kept) for layer, kept in cache.items()}


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def copy_row(scanned: bool, cache: Cache, source: jax.Array, target: jax.Array) -> Cache:
  """The cache with row `source` also in row `target`; every slot, as those not needed are unseen."""
  if scanned:
    return jax.tree.map(lambda x: x.at[:, target].set(x[:, source]), cache)
  return jax.tree.map(lambda x: x.at[target].set(x[source]), cache)


class Pages:
  """Which tokens the full pages of each row are of, and where a beginning of some text lies already.

  A page is known by a hash of all tokens up to its end, so equal pages follow equal texts.
  """

  def __init__(self, rows: int) -> None:
    self._held: list[list[bytes]] = [[] for _ in range(rows)]

  def matches(self, tokens: Sequence[int]) -> list[int]:
    """How many of the first `tokens` each row holds, in full pages and fewer than all of them."""
    wanted = _hashes(tokens[: len(tokens) - 1])
    return [PAGE * _common(wanted, held) for held in self._held]

  def begin(self, row: int, tokens: int) -> None:
    """Row `row` is given to a text of which its first `tokens` are held; what followed is lost."""
    del self._held[row][tokens // PAGE :]

  def copied(self, source: int, target: int, tokens: int) -> None:
    """The first `tokens` of row `source` are in row `target` too."""
    self._held[target] = self._held[source][: tokens // PAGE]

  def written(self, row: int, tokens: Sequence[int]) -> None:
    """Row `row` now holds these tokens, all of them final."""
    held = self._held[row]
    if len(tokens) // PAGE > len(held):
      self._held[row] = _hashes(tokens)

  @property
  def used(self) -> int:
    """Pages that hold something which could be taken over."""
    return sum(map(len, self._held))


def _hashes(tokens: Sequence[int]) -> list[bytes]:
  """A hash for every full page, of all up to its end."""
  digest, found = hashlib.blake2b(digest_size=16), []
  for start in range(0, len(tokens) - PAGE + 1, PAGE):
    digest.update(np.asarray(tokens[start : start + PAGE], np.int32).tobytes())
    found.append(digest.digest())
  return found


def _common(wanted: Sequence[bytes], held: Sequence[bytes]) -> int:
  pairs = zip(wanted, held, strict=False)
  return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(held)))
