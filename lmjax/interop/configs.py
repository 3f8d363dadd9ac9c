"""What a config.json of each family says as a `Decoder`, and which keys say a `Decoder`.

Keys are those of Hugging Face's transformers; of its versions 4 and 5 both are read, and written are
those that both know. A setting that a decoder does not have is a UserError. A function of a decoder
writes what it can say of it, whether or not the family is the right one: `families.write` compares.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmjax.core.errors import UserError
from lmjax.models.layers import Norm
from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder, Rope
from lmjax.ops.rope import RopeScaling

Keys = Mapping[str, Any]
"""Of a config.json; `Write` those that are written."""
Write = dict[str, Any]
Settings = dict[str, Any]
"""Of a `Decoder`."""

_SILU, _GELU = ('silu', 'swish'), ('gelu_pytorch_tanh', 'gelu_new', 'gelu_fast')


def _sizes(c: Keys, tied: bool) -> Settings:
  """What all of Llama's descendants call the same."""
  heads = c['num_attention_heads']
  return {
    'vocab': c['vocab_size'],
    'width': c['hidden_size'],
    'layers': c['num_hidden_layers'],
    'heads': heads,
    'kv_heads': c.get('num_key_value_heads') or heads,
    'head_dim': c.get('head_dim') or c['hidden_size'] // heads,
    'mlp': c['intermediate_size'],
    'activation': _activation(c),
    'norm': Norm(eps=c.get('rms_norm_eps', 1e-6)),
    'rope': _rope(c),
    'head': 'tied' if c.get('tie_word_embeddings', tied) else 'untied',
  }


def _write_sizes(model: Decoder) -> Write:
  return {
    'vocab_size': model.vocab,
    'hidden_size': model.width,
    'num_hidden_layers': model.layers,
    'num_attention_heads': model.heads,
    'num_key_value_heads': model.kv_heads,
    'head_dim': model.head_dim,
    'intermediate_size': model.mlp,
    'hidden_act': 'gelu_pytorch_tanh' if model.activation == 'geglu' else 'silu',
    'rms_norm_eps': model.norm.eps,
    'tie_word_embeddings': model.head == 'tied',
    **_write_rope(model.rope),
  }


def _activation(c: Keys) -> str:
  said = c.get('hidden_activation') or c.get('hidden_act') or 'silu'
  if said in _SILU:
    return 'swiglu'
  if said in _GELU:
    return 'geglu'
  raise UserError(f'hidden_act={said!r} is not known here: known are {", ".join(_SILU + _GELU)}')


def _rope(c: Keys, base: float = 10_000.0) -> Rope:
  """Of `rope_theta` and `rope_scaling` (version 4), or of `rope_parameters` (version 5)."""
  said = c.get('rope_parameters') or c.get('rope_scaling') or {}
  base = said.get('rope_theta') or c.get('rope_theta') or base
  if (said.get('partial_rotary_factor') or c.get('partial_rotary_factor') or 1.0) != 1.0:
    raise UserError('partial_rotary_factor is not 1: heads that turn in part are not known here')
  return Rope(base=float(base), scaling=_scaling(said))


def _scaling(said: Keys) -> RopeScaling | None:
  kind = said.get('rope_type') or said.get('type') or 'default'
  if kind == 'default':
    return None
  if kind == 'linear':
    return RopeScaling(kind='linear', factor=said['factor'])
  if kind == 'llama3':
    return RopeScaling(
      kind='llama3',
      factor=said['factor'],
      original_length=said['original_max_position_embeddings'],
      low_frequency_factor=said['low_freq_factor'],
      high_frequency_factor=said['high_freq_factor'],
    )
  raise UserError(f'rope scaling {kind!r} is not known here: known are linear and llama3')


def _write_rope(rope: Rope) -> Write:
  return {'rope_theta': rope.base, 'rope_scaling': write_scaling(rope.scaling)}


def write_scaling(scaling: RopeScaling | None) -> Write | None:
  """The value of `rope_scaling`."""
  if scaling is None:
    return None
  if scaling.kind == 'linear':
    return {'rope_type': 'linear', 'factor': scaling.factor}
  return {
    'rope_type': 'llama3',
    'factor': scaling.factor,
    'original_max_position_embeddings': scaling.original_length,
    'low_freq_factor': scaling.low_frequency_factor,
    'high_freq_factor': scaling.high_frequency_factor,
  }


def _windows(windows: Sequence[int]) -> Settings:
  """The shortest run of sliding windows that, repeated, is that of all layers."""
  layers = len(windows)
  fits = lambda n: layers % n == 0 and all(w == windows[i % n] for i, w in enumerate(windows))
  period = next(n for n in range(1, layers + 1) if fits(n))
  return {'windows': tuple(windows[:period]) if any(windows) else ()}


def _layer_windows(c: Keys, slides: Callable[[int], bool]) -> Settings:
  """Of `layer_types`, else of `slides(layer)`."""
  layers, window = c['num_hidden_layers'], c.get('sliding_window') or 0
  kinds = c.get('layer_types')
  if kinds is not None:
    slides = lambda layer: kinds[layer] == 'sliding_attention'
  return _windows([window if slides(layer) else 0 for layer in range(layers)])


def _write_layer_windows(model: Decoder) -> Write:
  sliding = [model.window(layer) > 0 for layer in range(model.layers)]
  return {
    'sliding_window': max(model.windows, default=0) or None,
    'layer_types': ['sliding_attention' if s else 'full_attention' for s in sliding],
  }


def read_llama(c: Keys) -> Decoder:
  attention, mlp = c.get('attention_bias', False), c.get('mlp_bias', False)
  if mlp and not attention:
    raise UserError('mlp_bias without attention_bias is not known here')
  biases = 'all' if mlp else 'attention' if attention else 'none'
  return Decoder(**_sizes(c, False), biases=biases)  # type: ignore[arg-type]


def write_llama(model: Decoder) -> Write:
  biased = {
    'attention_bias': model.biases in ('attention', 'all'),
    'mlp_bias': model.biases == 'all',
  }
  return _write_sizes(model) | biased


def read_mistral(c: Keys) -> Decoder:
  window = c.get('sliding_window', 4096) or 0
  return Decoder(**_sizes(c, False), windows=(window,) if window else ())


def write_mistral(model: Decoder) -> Write:
  return _write_sizes(model) | {'sliding_window': max(model.windows, default=0) or None}


def _qwen_windows(c: Keys, slides: Callable[[int], bool]) -> Settings:
  if not c.get('use_sliding_window', False):
    return {}
  return _layer_windows({'sliding_window': 4096, **c}, slides)


def _write_qwen_windows(model: Decoder) -> Write:
  return {'use_sliding_window': any(model.windows), 'max_window_layers': 0} | _write_layer_windows(
    model
  )


def read_qwen2(c: Keys) -> Decoder:
  windows = _qwen_windows(c, lambda layer: layer >= c.get('max_window_layers', 28))
  return Decoder(**_sizes(c, False), **windows, biases='qkv')


def write_qwen2(model: Decoder) -> Write:
  return _write_sizes(model) | _write_qwen_windows(model)


def _qwen3(c: Keys) -> Settings:
  sizes = _sizes(c, False)
  biases = 'attention' if c.get('attention_bias', False) else 'none'
  return sizes | {'head_dim': c.get('head_dim') or 128, 'qk_norm': sizes['norm'], 'biases': biases}


def read_qwen3(c: Keys) -> Decoder:
  windows = _qwen_windows(c, lambda layer: layer >= c.get('max_window_layers', 28))
  return Decoder(**_qwen3(c), **windows)


def write_qwen3(model: Decoder) -> Write:
  return write_qwen2(model) | {'attention_bias': model.biases == 'attention'}


def _moe(c: Keys, **settings: Any) -> Settings:
  """Experts as Qwen says them; every layer must have them."""
  if c.get('mlp_only_layers') or c.get('decoder_sparse_step', 1) != 1:
    raise UserError('layers without experts among others with (mlp_only_layers) are not known here')
  experts = c['num_experts'] if 'num_experts' in c else c['num_local_experts']
  moe = MoE(
    experts=experts,
    top_k=c['num_experts_per_tok'],
    renormalise=c.get('norm_topk_prob', False),
    balance_loss=c.get('router_aux_loss_coef', 0.001),
    z_loss=0.0,
    **settings,
  )
  return {'moe': moe, 'mlp': c['moe_intermediate_size']}


def _write_moe(model: Decoder) -> Write:
  if model.moe is None:
    raise UserError('no experts')
  return {
    'num_experts': model.moe.experts,
    'num_experts_per_tok': model.moe.top_k,
    'norm_topk_prob': model.moe.renormalise,
    'moe_intermediate_size': model.mlp,
    'router_aux_loss_coef': model.moe.balance_loss,
    'mlp_only_layers': [],
    'decoder_sparse_step': 1,
  }


def read_qwen2_moe(c: Keys) -> Decoder:
  shared, rest = divmod(c['shared_expert_intermediate_size'], c['moe_intermediate_size'])
  if rest:
    raise UserError('shared_expert_intermediate_size is not a multiple of moe_intermediate_size')
  moe = _moe(c, shared=shared, shared_gate='sigmoid' if shared else 'none')
  last = c.get('max_window_layers', 28)
  windows = _qwen_windows(c, lambda layer: layer % 2 == 0 and layer < last)
  biases = 'qkv' if c.get('qkv_bias', True) else 'none'
  return Decoder(**_sizes(c, False) | moe, **windows, biases=biases)  # type: ignore[arg-type]


def write_qwen2_moe(model: Decoder) -> Write:
  experts = _write_moe(model)
  shared = 0 if model.moe is None else model.moe.shared * model.mlp
  biased = {'qkv_bias': model.biases == 'qkv', 'shared_expert_intermediate_size': shared}
  return write_qwen2(model) | experts | biased


def read_qwen3_moe(c: Keys) -> Decoder:
  windows = _qwen_windows({**c, 'layer_types': None}, lambda layer: True)
  return Decoder(**_qwen3(c) | _moe(c), **windows)


def write_qwen3_moe(model: Decoder) -> Write:
  return write_qwen3(model) | _write_moe(model)


def read_mixtral(c: Keys) -> Decoder:
  c = {'rms_norm_eps': 1e-5, **c}
  experts = {**c, 'norm_topk_prob': True, 'moe_intermediate_size': c['intermediate_size']}
  window = c.get('sliding_window') or 0
  sizes: Settings = {**_sizes(c, False), 'rope': _rope(c, 1e6), **_moe(experts)}
  return Decoder(**sizes, windows=(window,) if window else ())


def write_mixtral(model: Decoder) -> Write:
  experts = _write_moe(model)
  keep = ('num_experts_per_tok', 'router_aux_loss_coef')
  shape = {'num_local_experts': experts['num_experts']}
  return write_mistral(model) | {key: experts[key] for key in keep} | shape


def _gemma(c: Keys) -> Settings:
  if c.get('use_bidirectional_attention'):
    raise UserError('use_bidirectional_attention is not known here: a decoder looks back alone')
  norm = Norm(eps=c.get('rms_norm_eps', 1e-6), scale='offset')
  return _sizes({'hidden_act': 'gelu_pytorch_tanh', **c, 'rope_parameters': {}}, True) | {
    'head_dim': c.get('head_dim', 256),
    'norm': norm,
    'post_norm': norm,
    'embedding_scale': math.sqrt(c['hidden_size']),
    'attention_scale': c.get('query_pre_attn_scalar', 256) ** -0.5,
    'biases': 'attention' if c.get('attention_bias', False) else 'none',
  }


def write_gemma(model: Decoder) -> Write:
  scale = model.attention_scale or model.head_dim**-0.5
  squared = round(scale**-2, 6)
  return (
    _write_sizes(model)
    | _write_layer_windows(model)
    | {
      'hidden_activation': 'gelu_pytorch_tanh',
      'query_pre_attn_scalar': int(squared) if squared == int(squared) else squared,
      'attention_bias': model.biases == 'attention',
      'final_logit_softcapping': model.logit_softcap,
      'attn_logit_softcapping': model.attention_softcap,
    }
  )


def read_gemma2(c: Keys) -> Decoder:
  windows = _layer_windows({'sliding_window': 4096, **c}, lambda layer: layer % 2 == 0)
  caps = {
    'logit_softcap': c.get('final_logit_softcapping', 30.0),
    'attention_softcap': c.get('attn_logit_softcapping', 50.0),
  }
  sizes: Settings = {**_gemma(c), 'rope': _rope(c)}
  return Decoder(**sizes, **windows, **caps)


def read_gemma3(c: Keys) -> Decoder:
  pattern = c.get('sliding_window_pattern') or 6
  windows = _layer_windows({'sliding_window': 4096, **c}, lambda layer: (layer + 1) % pattern > 0)
  said = c.get('rope_parameters') or {}
  full = said.get('full_attention') or c.get('rope_scaling') or {}
  local = said.get('sliding_attention') or {}
  turns = Rope(
    base=float(full.get('rope_theta') or c.get('rope_theta') or 1e6),
    local_base=float(local.get('rope_theta') or c.get('rope_local_base_freq') or 1e4),
    scaling=_scaling(full),
  )
  if _scaling(local) is not None:
    raise UserError('rope scaling of sliding_attention is not known here')
  sizes: Settings = {**_gemma(c), 'rope': turns}
  # Gemma 3 caps no attention scores, though its configuration has a key for it.
  cap = c.get('final_logit_softcapping')
  return Decoder(**sizes, **windows, logit_softcap=cap, qk_norm=sizes['norm'])


def write_gemma3(model: Decoder) -> Write:
  return write_gemma(model) | {'rope_local_base_freq': model.rope.local_base or model.rope.base}


def read_gpt2(c: Keys) -> Decoder:
  if c.get('activation_function', 'gelu_new') not in _GELU:
    raise UserError(f'activation_function={c["activation_function"]!r} is not known here')
  if c.get('scale_attn_by_inverse_layer_idx') or c.get('add_cross_attention'):
    raise UserError('scale_attn_by_inverse_layer_idx and add_cross_attention are not known here')
  width, heads = c['n_embd'], c['n_head']
  return Decoder(
    vocab=c['vocab_size'],
    width=width,
    layers=c['n_layer'],
    heads=heads,
    kv_heads=heads,
    head_dim=width // heads,
    mlp=c.get('n_inner') or 4 * width,
    activation='gelu',
    biases='all',
    norm=Norm(kind='layer', eps=c.get('layer_norm_epsilon', 1e-5)),
    positions=c.get('n_positions', 1024),
    attention_scale=None if c.get('scale_attn_weights', True) else 1.0,
    head='tied' if c.get('tie_word_embeddings', True) else 'untied',
  )


def write_gpt2(model: Decoder) -> Write:
  return {
    'vocab_size': model.vocab,
    'n_embd': model.width,
    'n_layer': model.layers,
    'n_head': model.heads,
    'n_inner': model.mlp,
    'n_positions': model.positions,
    'activation_function': 'gelu_new',
    'layer_norm_epsilon': model.norm.eps,
    'scale_attn_weights': model.attention_scale is None,
    'tie_word_embeddings': model.head == 'tied',
  }


def read_grok(c: Keys) -> Decoder:
  norm = Norm(eps=c.get('rms_norm_eps', 1e-5))
  c = {**c, 'moe_intermediate_size': c['intermediate_size'], 'hidden_act': 'gelu_new'}
  sizes: Settings = {**_sizes(c, True), 'norm': norm, **_moe(c)}
  return Decoder(
    **sizes,
    post_norm=norm,
    attention_scale=c.get('attn_output_multiplier', 1.0),
    attention_softcap=c.get('max_attn_value', 1.0),
    embedding_scale=c.get('embedding_multiplier_scale', 1.0),
    logit_scale=c.get('output_multiplier_scale', 1.0),
  )


def write_grok(model: Decoder) -> Write:
  experts = _write_moe(model)
  keep = ('num_experts', 'num_experts_per_tok', 'router_aux_loss_coef')
  multipliers = {
    'attn_output_multiplier': model.attention_scale or model.head_dim**-0.5,
    'max_attn_value': model.attention_softcap,
    'embedding_multiplier_scale': model.embedding_scale,
    'output_multiplier_scale': model.logit_scale,
  }
  return _write_sizes(model) | {key: experts[key] for key in keep} | multipliers
