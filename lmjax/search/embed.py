"""Texts to vectors: many at a time, sorted by length and padded as little as few programs allow.

B texts of a batch, L length, D size of a vector, S texts.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.core import tree
from lmjax.core.types import Params
from lmjax.interop.encoder import LoadedEncoder
from lmjax.models.encoder import Encoder, pool

_STEP = 16  # lengths are multiples of it
_TOKENS = 4096  # of a batch
LENGTH = 256  # tokens of a text that are read, of an encoder that says nothing

Progress = Callable[[int, int], None]


class Embedder:
  """An encoder with its tokenizer.

  Attributes:
    size: D of its vectors.
    name: says which weights these are, for an index to know whose vectors it holds.
  """

  def __init__(self, loaded: LoadedEncoder, length: int = LENGTH) -> None:
    self.model, self._params, self._tokenizer = loaded.model, loaded.params, loaded.tokenizer
    self.length = min(length, loaded.model.positions)
    self._tokenizer.enable_truncation(self.length)
    self.size = loaded.model.width

  @functools.cached_property
  def name(self) -> str:
    settings = f'{self.model!r} {self.length} {self._tokenizer.to_str()}'
    weights = tree.sha256(self._params)
    return hashlib.sha256(f'{settings} {weights}'.encode()).hexdigest()[:16]

  def embed(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
    """A vector of length 1 for each text, f32 [S, D]."""
    tokens = [np.array(found.ids, np.int32) for found in self._tokenizer.encode_batch_fast(texts)]
    vectors = np.zeros((len(texts), self.size), np.float32)
    for chosen, tokens_BL, lengths_B in batches(tokens):
      found = _vectors(self.model, self._params, tokens_BL, lengths_B)
      vectors[chosen] = np.asarray(found)[: len(chosen)]
      if progress is not None:
        progress(len(chosen), len(texts))
    return vectors

  def embed_tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
    """A vector of length 1 for each token of each text, f16 [L, D] each."""
    tokens = [np.array(found.ids, np.int32) for found in self._tokenizer.encode_batch_fast(texts)]
    vectors = [np.zeros((0, self.size), np.float16)] * len(texts)
    for chosen, tokens_BL, lengths_B in batches(tokens):
      found_BLD = np.asarray(_token_vectors(self.model, self._params, tokens_BL, lengths_B))
      for row, index in enumerate(chosen):
        vectors[index] = found_BLD[row, : lengths_B[row]].copy()
    return vectors


def batches(
  tokens: Sequence[np.ndarray],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """(which texts, tokens_BL, lengths_B) in order of length; B is a power of 2, L a multiple of 16."""
  lengths = np.array([len(ids) for ids in tokens], int)
  padded = np.maximum(-(-lengths // _STEP), 1) * _STEP
  order = np.argsort(padded, kind='stable')
  start = 0
  while start < len(order):
    length = int(padded[order[start]])
    most = 1 << (_TOKENS // length).bit_length() - 1
    same = int(np.searchsorted(padded[order], length, 'right')) - start
    rows = min(most, 1 << (same - 1).bit_length())
    chosen = order[start : start + min(rows, same)]
    tokens_BL, lengths_B = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32)
    for row, index in enumerate(chosen):
      tokens_BL[row, : lengths[index]], lengths_B[row] = tokens[index], lengths[index]
    yield chosen, tokens_BL, lengths_B
    start += len(chosen)


@functools.partial(jax.jit, static_argnums=0)
def _vectors(model: Encoder, params: Params, tokens_BL, lengths_B) -> jax.Array:
  hidden_BLD, segments_BL = _hidden(model, params, tokens_BL, lengths_B)
  return pool(hidden_BLD, segments_BL, 1, model.pooling)[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _token_vectors(model: Encoder, params: Params, tokens_BL, lengths_B) -> jax.Array:
  hidden_BLD, _ = _hidden(model, params, tokens_BL, lengths_B)
  length_BL1 = jnp.linalg.norm(hidden_BLD.astype(jnp.float32), axis=-1, keepdims=True)
  return (hidden_BLD / jnp.maximum(length_BL1, 1e-12)).astype(jnp.float16)


def _hidden(model: Encoder, params: Params, tokens_BL, lengths_B) -> tuple[jax.Array, jax.Array]:
  """Hidden states of rows that hold one text each, and their segments."""
  positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1])[None], tokens_BL.shape)
  segments_BL = (positions_BL < lengths_B[:, None]).astype(jnp.int32)
  return model.apply(params, tokens_BL, segments_BL, positions_BL).hidden_BLD, segments_BL
