"""Tiny GGUF files of the families, made from their tiny folders as llama.cpp's converter makes them."""

from pathlib import Path

import gguf
import numpy as np
import tiny

from lmjax.core.types import Params
from lmjax.interop import families, names, tensors
from lmjax.models.transformer import Decoder

# Model type -> architecture, and the configuration's keys that a file can say.
ARCHITECTURES = {
  'llama': 'llama',
  'mixtral': 'llama',
  'qwen2': 'qwen2',
  'qwen3': 'qwen3',
  'qwen2_moe': 'qwen2moe',
  'qwen3_moe': 'qwen3moe',
  'gemma2': 'gemma2',
  'gemma3_text': 'gemma3',
  'gpt2': 'gpt2',
}
# Nothing in a file says these.
_UNSAID = {
  'llama': {
    'attention_bias': False,
    'mlp_bias': False,
    'rope_scaling': None,
    'rope_theta': 500_000.0,
  },
  'mixtral': {'sliding_window': None},
  'qwen2': {'use_sliding_window': False},
  'qwen3': {'use_sliding_window': False, 'attention_bias': False},
  'qwen2_moe': {'use_sliding_window': False},
  'qwen3_moe': {'use_sliding_window': False, 'attention_bias': False},
  'gemma2': {'attention_bias': False, 'query_pre_attn_scalar': 10},
  'gemma3_text': {
    'attention_bias': False,
    'query_pre_attn_scalar': 10,
    'sliding_window_pattern': 6,
    'rope_local_base_freq': 10_000.0,
    'rope_scaling': None,
    'final_logit_softcapping': None,
  },
}


def config_of(name: str) -> dict:
  return tiny.config_of(name) | _UNSAID.get(name, {})


def unread(name: str) -> dict:
  """Settings that transformers does not find in a file, or not there."""
  keys = ('query_pre_attn_scalar', 'final_logit_softcapping', 'attn_logit_softcapping')
  keys += (
    'head_dim',
    'vocab_size',
    'n_inner',
    'n_positions',
    'moe_intermediate_size',
    'norm_topk_prob',
  )
  return {key: value for key, value in config_of(name).items() if key in keys}


def write(path: Path, name: str, *, extra=None) -> tuple[Decoder, Params]:
  """Writes the file; returns the model and the parameters that it must be read as.

  Args:
    extra: called with the writer, to add tensors and keys.
  """
  config, architecture = config_of(name), ARCHITECTURES[name]
  family, model = families.read(config, name)
  table = names.GGUF_GPT2 if name == 'gpt2' else names.GGUF_MOE if model.moe else names.GGUF
  wanted = tensors.pieces(model, family.names, family.order)
  drawn = {piece.name: tiny.draw(piece.name, piece.their_shape) for piece in wanted}
  source = tensors.Source(name, {}, drawn.__getitem__)
  params = tensors.fill(model, wanted, source)
  writer = gguf.GGUFWriter(path, architecture)
  _write_keys(writer, config, model, architecture)
  for key, tensor in tensors.give(params, tensors.pieces(model, table, 'outputs first')):
    if architecture == 'llama' and '.attn_q.' in key:
      tensor = _interleave(tensor, model.heads)
    if architecture == 'llama' and '.attn_k.' in key:
      tensor = _interleave(tensor, model.kv_heads)
    if architecture.startswith('gemma') and key.endswith('norm.weight'):
      tensor = tensor + 1
    writer.add_tensor(key, np.ascontiguousarray(tensor))
  if extra is not None:
    extra(writer)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return model, params


def _interleave(tensor, heads):
  halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
  return halves.swapaxes(1, 2).reshape(tensor.shape)


def _write_keys(writer, config, model, architecture) -> None:
  writer.add_embedding_length(model.width)
  writer.add_block_count(model.layers)
  writer.add_feed_forward_length(config.get('intermediate_size', model.mlp))
  writer.add_head_count(model.heads)
  writer.add_context_length(tiny.PLACES)
  writer.add_vocab_size(tiny.VOCAB)
  if architecture == 'gpt2':
    writer.add_layer_norm_eps(model.norm.eps)
    return
  writer.add_head_count_kv(model.kv_heads)
  writer.add_key_length(model.head_dim)
  writer.add_value_length(model.head_dim)
  writer.add_rope_dimension_count(model.head_dim)
  writer.add_layer_norm_rms_eps(model.norm.eps)
  writer.add_rope_freq_base(model.rope.base)
  if architecture.startswith('gemma'):
    writer.add_sliding_window(max(model.windows))
  if model.attention_softcap is not None:
    writer.add_attn_logit_softcapping(model.attention_softcap)
    writer.add_final_logit_softcapping(model.logit_softcap)
  if model.moe is not None:
    writer.add_expert_count(model.moe.experts)
    writer.add_expert_used_count(model.moe.top_k)
    if architecture != 'llama':
      writer.add_expert_feed_forward_length(model.mlp)
    if model.moe.shared:
      writer.add_expert_shared_feed_forward_length(model.mlp * model.moe.shared)
