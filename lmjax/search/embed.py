"""Texts to vectors: many at a time, sorted by length and padded as little as few programs allow.

B texts of a batch, L length, D size of a vector, S texts.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.core import assets, tree
from lmjax.core.errors import UserError
from lmjax.core.storage import at
from lmjax.core.types import Params
from lmjax.data.tokenizer import Tokenizer
from lmjax.interop import huggingface
from lmjax.interop.encoder import LoadedEncoder, is_encoder, load_encoder
from lmjax.interop.load import Loaded, load
from lmjax.models.encoder import Encoder, Pooling, read_texts, text_vectors
from lmjax.models.transformer import Decoder
from lmjax.search.kept import kept

_STEP = 4  # lengths are multiples of it
_FEW, _FEW_STEP = 64, 16  # of fewer texts than the first, multiples of the second
_TOKENS = 65_536  # of a batch
_CPU_TOKENS = 1024  # on CPUs: more leave the caches between two products, measured 20 % slower
_KEPT = 1000  # texts from which on vectors are kept
LENGTH = 256  # tokens of a text that are read, of an encoder that says nothing

Progress = Callable[[int, int], None]


class Embedder:
  """An encoder, or a decoder, with its tokenizer.

  Args:
    length: tokens of a text that are read at most.
    dimensions: numbers of a vector that are kept, the first ones: models trained for that (Matryoshka
      representation learning, Kusupati et al. 2022, arXiv:2205.13147) lose little. None: all.
    pooling: what makes a vector of hidden states; None: as the encoder says, the mean of a decoder's.

  Attributes:
    loaded: the model as it was given.
    size: D of its vectors.
    name: says which weights these are, for an index to know whose vectors it holds.
  """

  def __init__(
    self,
    loaded: LoadedEncoder | Loaded,
    length: int = LENGTH,
    *,
    dimensions: int | None = None,
    pooling: Pooling | None = None,
  ) -> None:
    self.loaded, self.model = loaded, loaded.model
    self._params, self._tokenizer = loaded.params, loaded.tokenizer
    if isinstance(self.model, Encoder):  # no copies of a layer's weights: 4 % faster
      self.model = dataclasses.replace(self.model, layout='list')
      self._params = tree.unstack(self._params)
    self.length = min(length, self.model.positions or length)
    self.pooling: Pooling = pooling or (
      self.model.pooling if isinstance(self.model, Encoder) else 'mean'
    )
    if not isinstance(self._tokenizer, Tokenizer):
      self._tokenizer.enable_truncation(self.length)
    self.size = dimensions or self.model.width
    if self.size > self.model.width:
      raise UserError(
        f'dimensions={self.size}: this encoder has {self.model.width}: pass as many or fewer'
      )

  @functools.cached_property
  def name(self) -> str:
    words = self._tokenizer
    told = words.to_json() if isinstance(words, Tokenizer) else words.to_str()
    settings = f'{self.loaded.model!r} {self.length} {told}'
    own = self.model.pooling if isinstance(self.model, Encoder) else None
    if self.size < self.model.width or self.pooling != own:
      settings += f' {self.size} {self.pooling}'
    weights = tree.sha256(self.loaded.params)
    return hashlib.sha256(f'{settings} {weights}'.encode()).hexdigest()[:16]

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """The tokens of each text, i32, cut at `length`."""
    if isinstance(self._tokenizer, Tokenizer):
      before = np.array(self._tokenizer.before, np.int32)
      found = self._tokenizer.encode_batch(list(texts))
      return [np.concatenate([before, ids])[: self.length].astype(np.int32) for ids in found]
    return [np.array(found.ids, np.int32) for found in self._tokenizer.encode_batch_fast(texts)]

  def embed(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
    """A vector of length 1 for each text, f32 [S, D]."""
    vectors = np.zeros((len(texts), self.size), np.float32)
    for chosen, tokens_BL, lengths_B in batches(self.encode(texts), self.model.positions):
      found = _text_vectors(self.model, self._params, tokens_BL, lengths_B, self.pooling)
      vectors[chosen] = np.asarray(found)[:, : self.size]
      if progress is not None:
        progress(len(chosen), len(texts))
    return shorten(vectors, self.size) if self.size < self.model.width else vectors

  def embed_kept(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
    """`embed`; what takes long is kept in LMJAX_CACHE/vectors, and read from there the next time."""
    if len(texts) < _KEPT:
      return self.embed(texts, progress)
    return kept('vectors', [self.name, *texts], lambda: self.embed(texts, progress))

  def embed_tokens(self, texts: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
    """(which text, a vector of length 1 for each of its tokens, f32 [L, D]), in an order of its own.

    Those of some texts are in memory at a time.
    """
    for chosen, tokens_BL, lengths_B in batches(self.encode(texts), self.model.positions):
      found_BLD = np.asarray(_token_vectors(self.model, self._params, tokens_BL, lengths_B))
      for row, index in enumerate(chosen.tolist()):
        yield index, found_BLD[row, : lengths_B[row]].copy()


def shorten(vectors: np.ndarray, size: int) -> np.ndarray:
  """The first `size` numbers of vectors f32 [S, D], of length 1 again."""
  some = vectors[:, :size]
  return some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-12)


def open_embedder(
  name: str, *, dimensions: int | None = None, pooling: Pooling | None = None
) -> Embedder:
  """The embedder of an encoder, or of a decoder as `--checkpoint` takes one.

  Raises:
    UserError: there is neither under that name.
  """
  loaded = load(name) if _is_decoder(name) else load_encoder(name)
  return Embedder(loaded, dimensions=dimensions, pooling=pooling)


def _is_decoder(name: str) -> bool:
  path = at(name)
  if not path.exists():
    return name.lower() in assets.of_kind('model')
  published = huggingface.is_folder(path) and not is_encoder(path)
  return path.is_file() or (path / 'checkpoints').is_dir() or published


def batches(
  tokens: Sequence[np.ndarray], positions: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """(which texts, tokens_BL, lengths_B), the longest first.

  L is a multiple of 4, for a few texts, queries say, of 16, and never more than `positions`, where a model has so
  many. B fills a batch, or is a power of 2 where too few texts are longer than L / 2: few programs, little padding.
  """
  lengths = np.array([len(ids) for ids in tokens], int)
  most = _CPU_TOKENS if jax.default_backend() == 'cpu' else _TOKENS
  step = _STEP if len(tokens) >= _FEW else _FEW_STEP
  padded = np.maximum(-(-lengths // step), 1) * step
  order = np.argsort(-lengths, kind='stable')
  shrinking = -padded[order]
  start = 0
  while start < len(order):
    length = -int(shrinking[start])
    near = int(np.searchsorted(shrinking, -(length // 2))) - start
    full = max(most // length, 1)
    chosen = order[start : start + (full if near >= full else 1 << near.bit_length() - 1)]
    tokens_BL = np.zeros((len(chosen), min(length, positions or length)), np.int32)
    for row, index in enumerate(chosen):
      tokens_BL[row, : lengths[index]] = tokens[index]
    yield chosen, tokens_BL, lengths[chosen].astype(np.int32)
    start += len(chosen)


_text_vectors = jax.jit(text_vectors, static_argnums=(0, 4))


@functools.partial(jax.jit, static_argnums=0)
def _token_vectors(model: Encoder | Decoder, params: Params, tokens_BL, lengths_B) -> jax.Array:
  hidden_BLD, _ = read_texts(model, params, tokens_BL, lengths_B)
  hidden_BLD = hidden_BLD.astype(jnp.float32)
  length_BL1 = jnp.linalg.norm(hidden_BLD, axis=-1, keepdims=True)
  return hidden_BLD / jnp.maximum(length_BL1, 1e-12)
