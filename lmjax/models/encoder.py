"""A bidirectional transformer in the form of BERT, and the vector it makes of each text.

Devlin et al. 2018 (arXiv:1810.04805): norms stand after attention and feed-forward. Token ids in, hidden
states or vectors out. Knows nothing about text or losses.

B batch, L length, D width, F mlp hidden, H heads, K head dim, V vocab, N layers, S texts of a row.
"""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.core.config import Config, leaf, part
from lmjax.core.errors import UserError
from lmjax.core.types import Output, Params
from lmjax.models.layers import Mlp, Norm, NormLayer, bias, declare, weight
from lmjax.ops import attention
from lmjax.ops.dot import project
from lmjax.parallel.sharding import constrain

Pooling = Literal['mean', 'first', 'last']


class Encoder(Config):
  """A transformer whose every token sees its whole text. `init` and `apply` are pure functions."""

  vocab: int | None = leaf(30_522, "Tokens V; none: the tokenizer's.", low=2)
  width: int = leaf(384, 'Size D of the residual stream, a multiple of heads.', low=2)
  layers: int = leaf(6, 'Blocks N.', low=1)
  heads: int = leaf(12, 'Heads H.', low=1)
  mlp: int = leaf(1536, 'Hidden size F of the feed-forward.', low=1)
  positions: int = leaf(
    512, 'Places with a learnt vector each: the longest text, in tokens.', low=1
  )
  types: int = leaf(2, 'Kinds of text with a learnt vector each; all text is of the first.', low=1)
  norm: Norm = part(Norm(kind='layer', eps=1e-12), 'After each sum.')
  embedding_std: float = leaf(
    0.02, 'Standard deviation of the token table at the start.', above=0.0
  )
  pooling: Pooling = leaf('mean', "A text's vector: mean of its tokens', or that of one.")
  dtype: Literal['float32', 'bfloat16'] = leaf(
    'float32', 'Compute dtype (f32 on CPUs without bf16); parameters and sums are f32.'
  )
  layout: Literal['scan', 'list'] = leaf(
    'scan',
    'Compile one block and scan it, or every block (faster steps, slower compile).',
    run=True,
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.width % self.heads:
      allowed = [h for h in range(1, self.width + 1) if self.width % h == 0][:12]
      raise UserError(
        f'width={self.width} is not a multiple of heads={self.heads}: pass heads one of {allowed}'
      )

  @property
  def head_dim(self) -> int:
    return self.width // self.heads

  def with_vocab(self, tokens: int) -> 'Encoder':
    """This model for a tokenizer of `tokens` ids; refused where it has no room."""
    if self.vocab is None:
      return dataclasses.replace(self, vocab=tokens)
    if self.vocab < tokens:
      raise UserError(
        f'model.vocab={self.vocab} is less than the {tokens} tokens of the tokenizer: '
        f'pass --model.vocab={tokens} or more'
      )
    return self

  @property
  def dimension_sizes(self) -> dict[str, tuple[int, str]]:
    """Setting -> (its value, the dimension name that a mesh may split)."""
    vocab = {} if self.vocab is None else {'vocab': (self.vocab, 'vocab')}
    return vocab | {
      'width': (self.width, 'embed'),
      'heads': (self.heads, 'heads'),
      'mlp': (self.mlp, 'mlp'),
    }

  def init(self, key: jax.Array) -> Params:
    """Fresh f32 parameters in the configured layout; the same values in either layout."""
    return nn.unbox(self._init_boxed(key))

  def dims(self) -> dict[str, Any]:
    """The dimension names of every parameter, a tree like `init`'s."""
    return jax.tree.map(
      lambda box: box.names, _abstract(self), is_leaf=lambda x: isinstance(x, nn.Partitioned)
    )

  def shapes(self) -> Params:
    """Shape and dtype of every parameter, a tree like `init`'s."""
    return nn.unbox(_abstract(self))

  def _init_boxed(self, key: jax.Array) -> dict[str, Any]:
    fold = jax.random.fold_in
    one = jnp.zeros((1, 1), jnp.int32)
    table = Table(self).init(fold(key, 0), one, one)['params']
    example = jnp.zeros((1, 1, self.width), self.dtype)
    init_layer = lambda i: Block(self).init(fold(fold(key, 1), i), example, one)['params']
    layers = jax.lax.map(init_layer, jnp.arange(self.layers))
    is_box = lambda x: isinstance(x, nn.Partitioned)
    if self.layout == 'scan':
      name = lambda box: box.replace(names=('layers', *box.names))
      return {**table, 'layers': jax.tree.map(name, layers, is_leaf=is_box)}
    pick = lambda i: jax.tree.map(lambda b: b.replace(value=b.value[i]), layers, is_leaf=is_box)
    return {**table, 'layers': {str(i): pick(i) for i in range(self.layers)}}

  def apply(
    self, params: Params, tokens_BL: jax.Array, segments_BL: jax.Array, positions_BL: jax.Array
  ) -> Output:
    """Hidden states of packed rows: each token sees those of its own segment.

    Args:
      tokens_BL: i32 token ids.
      segments_BL: i32 text of each token in its row, 0 = padding.
      positions_BL: i32 place within the text, below `positions`.
    """
    x_BLD: Any = Table(self).apply({'params': params}, tokens_BL, positions_BL)
    x_BLD = constrain(x_BLD, 'batch', 'length', None)
    block: Any = lambda layer, x: Block(self).apply({'params': layer}, x, segments_BL)
    if self.layout == 'scan':
      x_BLD, _ = jax.lax.scan(lambda x, layer: (block(layer, x), None), x_BLD, params['layers'])
    else:
      for i in range(self.layers):
        x_BLD = block(params['layers'][str(i)], x_BLD)
    return Output(x_BLD, None, {})

  def flops_per_token(self, length: int) -> float:
    """Training FLOPs a token: 6 x the weights of its matrix products + 12 x N x D x L."""
    weights = self.layers * self.width * (4 * self.width + 2 * self.mlp)
    return 6.0 * weights + 12.0 * self.layers * self.width * length


def pool(hidden_BLD: jax.Array, segments_BL: jax.Array, texts: int, pooling: Pooling) -> jax.Array:
  """A vector of length 1 for each text of packed rows, f32 [B, S, D]; of no text, zeros.

  Args:
    hidden_BLD: hidden states of any model.
    segments_BL: i32 text of each token, from 1; 0 = padding.
    texts: S, at least the largest segment.
  """
  member_BSL = segments_BL[:, None] == jnp.arange(1, texts + 1)[None, :, None]
  places_L = jnp.arange(segments_BL.shape[1])[None, None]
  if pooling == 'first':
    member_BSL &= places_L == jnp.argmax(member_BSL, axis=-1, keepdims=True)
  elif pooling == 'last':
    last = jnp.max(jnp.where(member_BSL, places_L, -1), axis=-1, keepdims=True)
    member_BSL &= places_L == last
  sum_BSD = jnp.einsum('BSL,BLD->BSD', member_BSL.astype(jnp.float32), hidden_BLD.astype('float32'))
  # The mean is the sum but for its length, which is made 1.
  return sum_BSD / jnp.maximum(jnp.linalg.norm(sum_BSD, axis=-1, keepdims=True), 1e-12)


def read_texts(
  model: Any, params: Params, tokens_BL: jax.Array, lengths_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Hidden states [B, L, D] of rows that hold one text each, and their segments i32 [B, L].

  Args:
    model: an encoder, or a decoder.
    tokens_BL, lengths_B: i32; the first `lengths_B` tokens of a row are its text.
  """
  positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1])[None], tokens_BL.shape)
  segments_BL = (positions_BL < lengths_B[:, None]).astype(jnp.int32)
  return model.apply(params, tokens_BL, segments_BL, positions_BL).hidden_BLD, segments_BL


def text_vectors(
  model: Any, params: Params, tokens_BL: jax.Array, lengths_B: jax.Array, pooling: Pooling
) -> jax.Array:
  """A vector of length 1 for each row, f32 [B, D]; arguments as of `read_texts`."""
  hidden_BLD, segments_BL = read_texts(model, params, tokens_BL, lengths_B)
  return pool(hidden_BLD, segments_BL, 1, pooling)[:, 0]


class Table(nn.Module):
  """The vectors of tokens f32 [V, D], places and kinds of text, summed and normalised."""

  config: Encoder

  @nn.compact
  def __call__(self, tokens_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
    c = self.config
    if c.vocab is None:
      raise UserError('model.vocab is none and no tokenizer gives it: pass --model.vocab=N')
    start = nn.initializers.normal(c.embedding_std)
    table_VD = declare(self, 'embed', start, (c.vocab, c.width), ('vocab', 'embed'))
    places = declare(self, 'positions', start, (c.positions, c.width), ('position', 'embed'))
    types = declare(self, 'types', start, (c.types, c.width), ('position', 'embed'))
    # Gathered over fsdp first: looked up in a table sharded over two axes, XLA would replicate x.
    x_BLD = jnp.take(constrain(table_VD, 'vocab', None), tokens_BL, axis=0)
    x_BLD += jnp.take(constrain(places, None, None), positions_BL, axis=0) + types[:1, None]
    return NormLayer(c.norm, c.width, name='embedding_norm')(x_BLD).astype(c.dtype)


class Block(nn.Module):
  """norm(x + attention(x)), then norm(x + mlp(x))."""

  config: Encoder

  @nn.compact
  def __call__(self, x_BLD: jax.Array, segments_BL: jax.Array) -> jax.Array:
    c = self.config
    y_BLD = Attention(c, name='attention')(x_BLD, segments_BL)
    x_BLD = NormLayer(c.norm, c.width, name='attention_norm')(x_BLD + y_BLD.astype(x_BLD.dtype))
    y_BLD = Mlp(c.width, c.mlp, 'gelu_exact', True, c.dtype, c.dtype, name='mlp')(x_BLD)
    return NormLayer(c.norm, c.width, name='mlp_norm')(x_BLD + y_BLD.astype(x_BLD.dtype))


class Attention(nn.Module):
  """Self-attention within the segments of a row, f32 [B, L, D]."""

  config: Encoder

  @nn.compact
  def __call__(self, x_BLD: jax.Array, segments_BL: jax.Array) -> jax.Array:
    c = self.config
    q_BLHK, k_BLHK, v_BLHK = (self._project(name, x_BLD) for name in ('query', 'key', 'value'))
    mask_BLM = segments_BL[:, :, None] == segments_BL[:, None, :]
    scale = attention.default_scale(c.head_dim)
    y_BLHK = attention.attend(q_BLHK, k_BLHK, v_BLHK, mask_BLM, scale=scale, dtype=c.dtype)
    shape, dims = (c.heads, c.head_dim, c.width), ('heads', 'head_dim', 'embed')
    out_HKD = weight(self, 'out', shape, dims, inputs=2, output=True)
    y_BLD = project('BLHK,HKD->BLD', y_BLHK.astype(c.dtype), out_HKD, c.dtype)
    return y_BLD + bias(self, 'out_bias', (c.width,), ('norm',))[None, None]

  def _project(self, name: str, x_BLD: jax.Array) -> jax.Array:
    c = self.config
    shape, dims = (c.heads, c.head_dim), ('heads', 'head_dim')
    w_DHK = weight(self, name, (c.width, *shape), ('embed', *dims))
    y_BLHK = project('BLD,DHK->BLHK', x_BLD, w_DHK, c.dtype)
    y_BLHK += bias(self, f'{name}_bias', shape, dims)[None, None]
    return constrain(y_BLHK.astype(c.dtype), 'batch', 'length', 'heads', None)


@functools.lru_cache(32)
def _abstract(model: Encoder) -> dict[str, Any]:
  """What `init` gives, without arrays."""
  return jax.eval_shape(model._init_boxed, jax.random.key(0))
