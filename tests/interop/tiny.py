"""A tiny model of each family, in which every branch differs from Llama's defaults, as its folder.

Weights are drawn by the name of their tensor, so that whoever reads the folder, with torch or without,
has the same. B batch, L length, V vocab.
"""

import json
import zlib
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from lmjax.core import tree
from lmjax.core.types import Params
from lmjax.interop import families, tensors
from lmjax.models.transformer import Decoder

VOCAB, LENGTH, PLACES = 96, 24, 64
GOLDENS = Path(__file__).with_name('families.json')
_SIZES = {
  'vocab_size': VOCAB,
  'hidden_size': 48,
  'intermediate_size': 72,
  'num_hidden_layers': 4,
  'num_attention_heads': 6,
  'num_key_value_heads': 3,
  'max_position_embeddings': PLACES,
  'bos_token_id': 0,
  'eos_token_id': 1,
}
_LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 4.0,
  'original_max_position_embeddings': 16,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
}
_EXPERTS = {'num_experts': 5, 'num_experts_per_tok': 3, 'moe_intermediate_size': 24}
_QWEN = {'use_sliding_window': True, 'sliding_window': 5}
_GEMMA = {
  'head_dim': 10,
  'sliding_window': 5,
  'query_pre_attn_scalar': 20,
  'final_logit_softcapping': 5.0,
  'attention_bias': True,
}
CONFIGS = {
  'llama': {
    'head_dim': 10,
    'attention_bias': True,
    'mlp_bias': True,
    'tie_word_embeddings': True,
    'rms_norm_eps': 1e-3,
    'rope_theta': 1000.0,
    'rope_scaling': _LLAMA3,
  },
  'mistral': {
    'head_dim': 10,
    'sliding_window': 5,
    'tie_word_embeddings': False,
    'rope_theta': 1000.0,
    'rope_scaling': {'type': 'linear', 'factor': 4.0},
  },
  'qwen2': {**_QWEN, 'max_window_layers': 2, 'tie_word_embeddings': True},
  'qwen3': {**_QWEN, 'head_dim': 10, 'attention_bias': True, 'max_window_layers': 1},
  'mixtral': {
    'head_dim': 10,
    'sliding_window': 7,
    'num_local_experts': 5,
    'num_experts_per_tok': 2,
  },
  'qwen2_moe': {
    **_QWEN,
    **_EXPERTS,
    'shared_expert_intermediate_size': 48,
    'norm_topk_prob': False,
    'max_window_layers': 3,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0},
  },
  'qwen3_moe': {
    **_QWEN,
    **_EXPERTS,
    'head_dim': 10,
    'norm_topk_prob': True,
    'attention_bias': True,
  },
  'gemma2': {**_GEMMA, 'attn_logit_softcapping': 2.0},
  'gemma3_text': {
    **_GEMMA,
    'sliding_window_pattern': 3,
    'rope_theta': 10_000.0,
    'rope_local_base_freq': 100.0,
    'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
  },
  'gpt2': {
    'n_embd': 48,
    'n_layer': 4,
    'n_head': 6,
    'n_inner': 72,
    'n_positions': PLACES,
    'layer_norm_epsilon': 1e-3,
  },
  'grok-1': {
    'attn_output_multiplier': 0.2,
    'max_attn_value': 2.0,
    'embedding_multiplier_scale': 5.0,
    'output_multiplier_scale': 0.5,
    'num_experts': 5,
    'num_experts_per_tok': 2,
    'rms_norm_eps': 1e-3,
  },
}


def config_of(name: str) -> dict:
  """The whole config.json of a family."""
  sizes = _SIZES
  if name == 'gpt2':
    sizes = {key: _SIZES[key] for key in ('vocab_size', 'bos_token_id', 'eos_token_id')}
  architecture = families.FAMILIES[name].architecture
  return {'model_type': name, 'architectures': [architecture], **sizes, **CONFIGS[name]}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """The weights of the tensor called `name`."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  return (0.2 * rng.normal(size=shape) + ('norm' in name and len(shape) == 1)).astype(np.float32)


def tensors_of(name: str) -> dict[str, np.ndarray]:
  """Every tensor of a family's tiny folder."""
  family, model = families.read(config_of(name), name)
  wanted = tensors.pieces(model, family.names, family.order)
  return {piece.name: draw(piece.name, piece.their_shape) for piece in wanted}


def write_folder(path: Path, name: str) -> Path:
  """The family's folder, without a tokenizer; every other tensor in a file of its own."""
  path.mkdir()
  (path / 'config.json').write_text(json.dumps(config_of(name)))
  drawn = tensors_of(name)
  weight_map = {key: f'model-{i % 2 + 1:05d}-of-00002.safetensors' for i, key in enumerate(drawn)}
  for file in set(weight_map.values()):
    held = {key: value for key, value in drawn.items() if weight_map[key] == file}
    save_file(held, path / file, metadata={'format': 'pt'})
  index = {'metadata': {}, 'weight_map': weight_map}
  (path / 'model.safetensors.index.json').write_text(json.dumps(index))
  return path


def tokens() -> np.ndarray:
  """Two rows i32 [B, L]."""
  return np.random.default_rng(1).integers(0, VOCAB, (2, LENGTH)).astype(np.int32)


def logits(model: Decoder, params: Params, tokens_BL: np.ndarray) -> np.ndarray:
  """f32 [B, L, V] of rows that are one text each."""
  positions_BL = np.broadcast_to(np.arange(tokens_BL.shape[1], dtype=np.int32), tokens_BL.shape)
  run = lambda params, tokens, positions: model.logits(
    params, model.apply(params, tokens, np.ones_like(tokens_BL), positions).hidden_BLD
  )
  return np.asarray(jax.jit(run)(params, tokens_BL, positions_BL))


def sampled(logits_BLV: np.ndarray) -> list[float]:
  """Some of them, for a file."""
  return [round(float(x), 5) for x in logits_BLV[:, 5::6].reshape(-1)]


def write_goldens(logits_of) -> None:
  """`logits_of`: folder -> logits of `tokens` by transformers."""
  import tempfile

  found = {}
  with tempfile.TemporaryDirectory() as scratch:
    for name in CONFIGS:
      if name != 'grok-1':  # transformers has none: the tests have it in NumPy
        found[name] = sampled(logits_of(write_folder(Path(scratch) / name, name)))
  lines = ',\n'.join(f'{json.dumps(name)}: {json.dumps(row)}' for name, row in found.items())
  GOLDENS.write_text(f'{{\n{lines}\n}}\n')


def same(a: Params, b: Params) -> bool:
  """Whether two trees hold the same arrays."""
  pairs = zip(tree.paths(a), tree.paths(b), strict=True)
  return all(p == q and np.array_equal(x, y) for (p, x), (q, y) in pairs)
