"""A decoder that can be a Llama, Mistral, Qwen, Gemma, Mixtral, GPT-2 or Grok-1 by its configuration.

Token ids in, hidden states out, and a head that turns them into logits. Knows nothing about text,
losses or sampling.

B batch, L length, M cache slots, D width, F mlp hidden, H query heads, G key/value heads, K head
dim, V vocab, N layers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lmjax.core import tree
from lmjax.core.config import Config, leaf, part
from lmjax.core.errors import UserError
from lmjax.core.types import Mean, Output, Params
from lmjax.models.attention import Attention
from lmjax.models.layers import Mlp, Norm, NormLayer, declare, ungated, weight
from lmjax.models.moe import MoE, MoeMlp
from lmjax.ops import attention_gpu, rope
from lmjax.ops.dot import dot
from lmjax.parallel.pipeline import Pipeline, run_stages
from lmjax.parallel.sharding import axis_sizes, batch_ways, constrain, nearest_multiples

Cache = dict[str, Any]

_BLOCK_INPUT = 'block_input'
_REMAT = {
  'full': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'offload': jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[_BLOCK_INPUT],
    offload_src='device',
    offload_dst='pinned_host',
  ),
}


class Rope(Config):
  """Rotary position embedding."""

  base: float = leaf(10_000.0, 'Longest wavelength over 2 pi, in tokens.', above=1.0)
  local_base: float | None = leaf(
    None, 'Base of the sliding-window layers; none: the same.', above=1.0
  )
  scaling: rope.RopeScaling | None = part(None, 'Stretch to read further than trained.')


class Decoder(Config):
  """A causal transformer. `init` and `apply` are pure functions over a nested dict."""

  vocab: int | None = leaf(None, "Tokens V; none: the tokenizer's, up to a multiple of 64.", low=2)
  width: int = leaf(256, 'Size D of the residual stream.', low=2)
  layers: int = leaf(4, 'Blocks N.', low=1)
  heads: int = leaf(4, 'Query heads H.', low=1)
  kv_heads: int = leaf(4, 'Key/value heads G; fewer than heads is grouped-query attention.', low=1)
  head_dim: int = leaf(64, 'Size K of a head, even.', low=2)
  mlp: int = leaf(1024, 'Hidden size F of the feed-forward (of one expert).', low=1)
  activation: Literal['swiglu', 'geglu', 'relu2', 'gelu'] = leaf(
    'swiglu', 'Feed-forward non-linearity.'
  )
  biases: Literal['none', 'qkv', 'attention', 'all'] = leaf('none', 'Which matrices have a bias.')
  norm: Norm = part(Norm(), 'Before attention, before the feed-forward and at the end.')
  post_norm: Norm | None = part(
    None, 'Also after attention and the feed-forward (Gemma 2, Grok-1).'
  )
  qk_norm: Norm | None = part(None, 'Normalise queries and keys of every head.')
  embedding_norm: Norm | None = part(None, 'Normalise token embeddings.')
  rope: Rope = part(Rope(), 'Positions.')
  positions: int | None = leaf(
    None, 'Places with a learnt vector each, in place of rope (GPT-2); none: rope.', low=1
  )
  windows: tuple[int, ...] = leaf(
    (),
    'Sliding window of each layer in turn, in tokens, repeated over the layers; 0 = full.',
    low=0,
  )
  head: Literal['tied', 'untied'] = leaf(
    'tied', 'Logits from the embedding table or a matrix of their own.'
  )
  logit_softcap: float | None = leaf(None, 'Logits become cap * tanh(logits / cap).', above=0.0)
  attention_softcap: float | None = leaf(None, 'The same for attention scores.', above=0.0)
  attention_scale: float | None = leaf(
    None, 'Factor of attention scores; none: 1 / sqrt(head_dim).', above=0.0
  )
  embedding_scale: float = leaf(1.0, 'Factor of token embeddings.', above=0.0)
  residual_scale: float = leaf(
    1.0, 'Factor of what a layer adds to the residual stream.', above=0.0
  )
  logit_scale: float = leaf(1.0, 'Factor of the logits.', above=0.0)
  embedding_std: float = leaf(
    0.02, 'Standard deviation of the token table at the start.', above=0.0
  )
  moe: MoE | None = part(None, 'Experts in place of the feed-forward.')
  dtype: Literal['float32', 'bfloat16'] = leaf(
    'float32', 'Compute dtype (f32 on CPUs without bf16); parameters and sums are f32.'
  )
  matmul: Literal['float32', 'bfloat16', 'float8'] | None = leaf(
    None, "What weights' products round to; none: dtype. float8: from H100 on, not for experts."
  )
  layout: Literal['scan', 'list'] = leaf(
    'scan',
    'Compile one block and scan it, or every block (faster steps, slower compile).',
    run=True,
  )
  remat: Literal['none', 'dots', 'full', 'offload'] = leaf(
    'none',
    'Recompute in the backward pass: nothing; all but matrix products; all; all, inputs on the host.',
    run=True,
  )
  attention: attention_gpu.Choice = leaf(
    'auto',
    'XLA a block of queries at a time, or a Pallas kernel for NVIDIA GPUs; auto: where it can be.',
    run=True,
  )
  attention_block: int = leaf(512, 'Queries of a row at a time in attention.', low=1, run=True)
  pipeline: Pipeline = part(Pipeline(), 'How mesh.pipe is used.', run=True)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.heads % self.kv_heads:
      allowed = [g for g in range(1, self.heads + 1) if self.heads % g == 0]
      raise UserError(
        f'heads={self.heads} is not a multiple of kv_heads={self.kv_heads}: pass kv_heads one of {allowed}'
      )
    if self.head_dim % 2:
      raise UserError(
        f'head_dim={self.head_dim} is odd, rotary positions need pairs: pass {self.head_dim + 1}'
      )
    if self.layout == 'scan' and self.layers % self.pattern:
      raise UserError(
        f'layers={self.layers} is not a multiple of the {self.pattern} windows, which layout=scan '
        'needs: pass layout=list or another number of layers'
      )
    if self.moe is not None and self.biases == 'all':
      raise UserError(
        'biases=all contradicts moe=on, experts have none: pass biases=attention, qkv or none'
      )

    if self.attention == 'pallas':
      self.choose_attention()

  @property
  def product_dtype(self) -> str:
    """What the products with weights round their operands to."""
    return self.matmul or self.dtype

  def choose_attention(self) -> Callable[..., jax.Array]:
    """The attention of packed rows that `attention` and this model's shape give."""
    return attention_gpu.choose(
      self.attention,
      softcap=self.attention_softcap,
      windows=self.windows,
      head_dim=self.head_dim,
    )

  def with_vocab(self, tokens: int) -> 'Decoder':
    """This model for a tokenizer of `tokens` ids: its own vocab where it has room, else refused."""
    if self.vocab is None:
      return dataclasses.replace(self, vocab=-(-tokens // 64) * 64)
    if self.vocab < tokens:
      raise UserError(
        f'model.vocab={self.vocab} is less than the {tokens} tokens of the tokenizer: '
        f'pass --model.vocab={tokens} or more, or a smaller --vocab'
      )
    return self

  @property
  def dimension_sizes(self) -> dict[str, tuple[int, str]]:
    """Setting -> (its value, the dimension name that a mesh may split)."""
    vocab = {} if self.vocab is None else {'vocab': (self.vocab, 'vocab')}
    experts = {} if self.moe is None else {'moe.experts': (self.moe.experts, 'expert')}
    return (
      vocab
      | experts
      | {
        'width': (self.width, 'embed'),
        'heads': (self.heads, 'heads'),
        'kv_heads': (self.kv_heads, 'kv_heads'),
        'mlp': (self.mlp, 'mlp'),
      }
    )

  def check_stages(self, stages: int, rows: int) -> None:
    """UserError when the layers, or `rows` rows of a device, do not split into pipeline stages."""
    rounds = self.pipeline.rounds
    unit = stages * rounds * self.pattern
    if self.layers % unit:
      shape = f'{stages} stages x {rounds} rounds x {self.pattern} windows'
      fit = [n for n in range(1, self.layers + 1) if self.layers % (n * rounds * self.pattern) == 0]
      fewer, more = [n for n in fit if n < stages][-1:], [n for n in fit if n > stages][:1]
      also = f', or mesh.pipe={" or ".join(map(str, fewer + more))}' if fit else ''
      raise UserError(
        f'model.layers={self.layers} does not divide over {shape}: '
        f'{nearest_multiples(self.layers, unit)}{also}'
      )
    if self.layout == 'list':
      raise UserError(
        'model.layout=list keeps every layer on every stage of mesh.pipe: pass --model.layout=scan'
      )
    self.pipeline.plan(stages, rows)

  @property
  def pattern(self) -> int:
    """After how many layers the sliding windows repeat."""
    return max(1, len(self.windows))

  def window(self, layer: int) -> int:
    return self.windows[layer % self.pattern] if self.windows else 0

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
    ends = Ends(self).init(fold(key, 0), *[jnp.zeros((1, 1), jnp.int32)] * 2, method='both')[
      'params'
    ]
    # No attention is computed, so the kernel for GPUs need not be traced either: 0.1 s of a start.
    block, example = Block(dataclasses.replace(self, attention='blocked'), 0), _block_example(self)
    init_layer = lambda i: block.init(fold(fold(key, 1), i), *example)['params']
    layers = jax.lax.map(init_layer, jnp.arange(self.layers))
    name = lambda box: box.replace(names=('layers', *box.names))
    stacked = jax.tree.map(name, layers, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    if self.layout == 'scan':
      return {**ends, 'layers': stacked}
    pick = lambda i: jax.tree.map(
      lambda box: box.replace(value=box.value[i], names=box.names[1:]),
      stacked,
      is_leaf=lambda x: isinstance(x, nn.Partitioned),
    )
    return {**ends, 'layers': {str(i): pick(i) for i in range(self.layers)}}

  def apply(
    self,
    params: Params,
    tokens_BL: jax.Array,
    segments_BL: jax.Array,
    positions_BL: jax.Array,
    cache: Cache | None = None,
  ) -> Output:
    """Hidden states of packed rows, or of the next tokens of cached ones.

    Args:
      tokens_BL: i32 token ids.
      segments_BL: i32 post of each token in its row, 0 = padding.
      positions_BL: i32 place within the post; with a cache also the slot that is written.
      cache: from `init_cache`; then every row is one post and sees its slots up to its position. One of
        no slots (not in int8) is for prompts: they are seen as packed rows are, and get a slot a token.
    """
    x_BLD = _apply(Ends(self), params, tokens_BL, positions_BL, method='embed')
    x_BLD = constrain(x_BLD, 'batch', 'stream', None)
    if axis_sizes().get('pipe', 1) > 1:
      run = self._stages
    else:
      run = self._scan if self.layout == 'scan' else self._list
    x_BLD, cache, aux = run(params['layers'], x_BLD, segments_BL, positions_BL, cache)
    hidden_BLD = _apply(Ends(self), params, x_BLD, method='finish')
    return Output(constrain(hidden_BLD, 'batch', 'length', None), cache, aux)

  def logits(self, params: Params, hidden_BLD: jax.Array) -> jax.Array:
    """f32 logits_BLV; reads only the parameters of `head_params`."""
    if self.head == 'tied':
      table_VD = constrain(params['embed'], 'vocab', None)
      logits_BLV = dot('BLD,VD->BLV', hidden_BLD, table_VD, self.dtype)
    else:
      head_DV = constrain(params['head'], None, 'vocab')
      logits_BLV = dot('BLD,DV->BLV', hidden_BLD, head_DV, self.dtype)
    logits_BLV = constrain(logits_BLV * self.logit_scale, 'batch', 'length', 'vocab')
    if self.logit_softcap is not None:
      logits_BLV = self.logit_softcap * jnp.tanh(logits_BLV / self.logit_softcap)
    return logits_BLV

  def head_params(self, params: Params) -> Params:
    """The part of `params` that `logits` reads."""
    name = 'embed' if self.head == 'tied' else 'head'
    return {name: params[name]}

  def init_cache(self, batch: int, slots: int, int8: bool = False) -> Cache:
    """Empty keys and values of every layer for `batch` posts of up to `slots` tokens.

    `int8`: they are rounded, with an f32 scale for each token and head.
    """
    if self.positions is not None and slots > self.positions:
      raise UserError(
        f'{slots} tokens of a post are more than the model.positions={self.positions} that were '
        'learnt: give it a shorter prompt, or ask for fewer tokens'
      )
    shape = (batch, slots, self.kv_heads, self.head_dim)
    kept: dict[str, Any] = dict.fromkeys(('k', 'v'), (shape, 'int8' if int8 else self.dtype))
    if int8:
      kept |= dict.fromkeys(('k_scale', 'v_scale'), ((*shape[:-1], 1), 'float32'))
    empty = lambda: {name: jnp.zeros(*like) for name, like in kept.items()}
    layers = {'layers': {str(i): empty() for i in range(self.layers)}}
    return tree.stack(layers)['layers'] if self.layout == 'scan' else layers['layers']

  def flops_per_token(self, length: int) -> float:
    """Training FLOPs a token: 6 x the weights of its matrix products + 12 x N x H x K x L.

    The attention term counts full rows of `length` though causal ones need half (PaLM,
    arXiv:2204.02311 appendix B). Of experts, those a token goes through count.
    """
    attention_weights = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
    mlps = 1 if self.moe is None else self.moe.top_k + self.moe.shared
    matrices = 2 if self.activation in ungated else 3
    router = 0 if self.moe is None else self.width * self.moe.experts
    layer = attention_weights + mlps * matrices * self.width * self.mlp + router
    weights = self.layers * layer + self.width * (self.vocab or 0)
    return 6.0 * weights + 12.0 * self.layers * self.heads * self.head_dim * length

  def _turns(self, positions_BL: jax.Array):
    """(global, local) cosines and sines; the same pair where sliding windows have no base of their own."""
    r = self.rope
    full = rope.angles(positions_BL, rope.frequencies(self.head_dim, r.base, r.scaling))
    if r.local_base is None:
      return full, full
    return full, rope.angles(positions_BL, rope.frequencies(self.head_dim, r.local_base, None))

  def _block(self, layer: int):
    """layer parameters, x, segments, positions, turns, cache -> x, cache, aux; with remat."""
    window = self.window(layer)

    def run(params, x_BLD, segments_BL, positions_BL, turns, cache):
      x_BLD = checkpoint_name(x_BLD, _BLOCK_INPUT)
      turn = turns[1] if window else turns[0]
      block = Block(self, window)
      return _apply(block, params, x_BLD, segments_BL, positions_BL, turn, cache)

    return run if self.remat == 'none' else jax.checkpoint(run, policy=_REMAT[self.remat])

  def _stages(self, layers, x_BLD, segments_BL, positions_BL, cache):
    """The layers of each pipeline stage on its own devices."""
    assert cache is None, 'generation is not pipelined'
    sizes = axis_sizes()

    def stage(params, x_BLD, segments_BL, positions_BL):
      x_BLD, _, aux = self._scan(params, x_BLD, segments_BL, positions_BL, None)
      return x_BLD, aux

    plan = self.pipeline.plan(sizes['pipe'], x_BLD.shape[0] // batch_ways(sizes))
    x_BLD, aux = run_stages(stage, layers, x_BLD, (segments_BL, positions_BL), plan)
    return x_BLD, None, aux

  def _list(self, layers, x_BLD, segments_BL, positions_BL, cache):
    turns = self._turns(positions_BL)
    aux: list[dict[str, Mean]] = []
    new_cache = None if cache is None else {}
    blocks: dict[int, Callable] = {}  # each traced once, however many layers are alike
    for i in range(self.layers):
      layer_cache = None if cache is None else cache[str(i)]
      block = blocks.setdefault(self.window(i), jax.jit(self._block(i)))
      x_BLD, layer_cache, layer_aux = block(
        layers[str(i)], x_BLD, segments_BL, positions_BL, turns, layer_cache
      )
      if new_cache is not None:
        new_cache[str(i)] = layer_cache
      aux.append(layer_aux)
    total = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *aux)
    return x_BLD, new_cache, total

  def _scan(self, layers, x_BLD, segments_BL, positions_BL, cache):
    """Scans groups of `pattern` blocks, so that each keeps its own static window."""
    turns = self._turns(positions_BL)
    group = lambda stacked: jax.tree.map(
      lambda x: x.reshape(len(x) // self.pattern, self.pattern, *x.shape[1:]), stacked
    )

    def body(x_BLD, layer):
      params, cache = layer
      outputs = []
      for i in range(self.pattern):
        pick = lambda x, i=i: x[i]
        x_BLD, new_cache, aux = self._block(i)(
          jax.tree.map(pick, params),
          x_BLD,
          segments_BL,
          positions_BL,
          turns,
          jax.tree.map(pick, cache),
        )
        outputs.append((new_cache, aux))
      return x_BLD, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)

    x_BLD, (new_cache, aux) = jax.lax.scan(body, x_BLD, (group(layers), group(cache)))
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    return x_BLD, jax.tree.map(flat, new_cache), jax.tree.map(jnp.sum, aux)


class Block(nn.Module):
  """Attention and feed-forward, each added to the residual stream.

  `window`: tokens that a query sees, 0 = all before it.
  """

  config: Decoder
  window: int

  @nn.compact
  def __call__(self, x_BLD, segments_BL, positions_BL, turn, cache):
    c = self.config
    norm = lambda config, name, x: NormLayer(config, c.width, name=name)(x)
    whole = lambda x: constrain(x, 'batch', 'length', None)
    after = lambda name, y: y if c.post_norm is None else norm(c.post_norm, name, y)
    attend = Attention(c, self.window, name='attention')
    y_BLD, cache = attend(
      whole(norm(c.norm, 'attention_norm', x_BLD)), segments_BL, positions_BL, turn, cache
    )
    x_BLD = self._add(x_BLD, after('attention_post_norm', y_BLD))
    h_BLD = whole(norm(c.norm, 'mlp_norm', x_BLD))
    aux: dict[str, Mean] = {}
    if c.moe is None:
      shape = (c.width, c.mlp, c.activation, c.biases == 'all')
      y_BLD = Mlp(*shape, c.dtype, c.product_dtype, name='mlp')(h_BLD)
    else:
      counted_BL = (segments_BL > 0).astype(jnp.float32)
      experts = MoeMlp(c.moe, c.width, c.mlp, c.activation, c.dtype, name='mlp')
      y_BLD, aux = experts(h_BLD, counted_BL)
    return self._add(x_BLD, after('mlp_post_norm', y_BLD)), cache, aux

  def _add(self, x_BLD, y_BLD):
    x_BLD = x_BLD + (self.config.residual_scale * y_BLD).astype(x_BLD.dtype)
    return constrain(x_BLD, 'batch', 'stream', None)


class Ends(nn.Module):
  """The token table f32 [V, D], that of learnt positions, the final norm, an untied head f32 [D, V]."""

  config: Decoder

  def setup(self) -> None:
    c = self.config
    if c.vocab is None:
      raise UserError('model.vocab is none and no tokenizer gives it: pass --model.vocab=N')
    start = nn.initializers.normal(c.embedding_std)
    self.table_VD = declare(self, 'embed', start, (c.vocab, c.width), ('vocab', 'embed'))
    if c.positions is not None:
      dims = ('position', 'embed')
      self.positions_PD = declare(self, 'positions', start, (c.positions, c.width), dims)
    self.final_norm = NormLayer(c.norm, c.width)
    if c.embedding_norm is not None:
      self.embedding_norm = NormLayer(c.embedding_norm, c.width)
    if c.head == 'untied':
      self.head_DV = weight(self, 'head', (c.width, c.vocab), ('embed', 'vocab'))

  def embed(self, tokens_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
    c = self.config
    # Gathered over fsdp first: looked up in a table sharded over two axes, XLA would replicate x.
    table_VD = constrain(self.table_VD, 'vocab', None)
    x_BLD = jnp.take(table_VD, tokens_BL, axis=0) * c.embedding_scale
    if c.positions is not None:  # a place that has no vector gets NaN
      x_BLD += jnp.take(constrain(self.positions_PD, None, None), positions_BL, axis=0)
    if c.embedding_norm is not None:
      x_BLD = self.embedding_norm(x_BLD)
    return x_BLD.astype(c.dtype)

  def finish(self, x_BLD: jax.Array) -> jax.Array:
    return self.final_norm(x_BLD)

  def both(self, tokens_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
    """Touches every parameter, for `init`."""
    return self.finish(self.embed(tokens_BL, positions_BL))


def _apply(module: nn.Module, params: Params, *arguments: Any, method: str | None = None) -> Any:
  """What `module` returns of `arguments`; Flax types it as possibly mutated variables too."""
  return module.apply({'params': params}, *arguments, method=method)


@functools.lru_cache(32)
def _abstract(model: Decoder) -> dict[str, Any]:
  """What `init` gives, without arrays; kept, since a start asks for it several times, at 0.1 s each."""
  return jax.eval_shape(model._init_boxed, jax.random.key(0))


def _block_example(c: Decoder):
  """Arguments of a `Block` of one token, for `init`."""
  one = jnp.zeros((1, 1), jnp.int32)
  turn = (jnp.ones((1, 1, 1, c.head_dim // 2)), jnp.zeros((1, 1, 1, c.head_dim // 2)))
  return jnp.zeros((1, 1, c.width), c.dtype), one, one, turn, None
