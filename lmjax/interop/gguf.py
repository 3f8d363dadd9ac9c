"""GGUF files: the weights of one model, quantised or not, with its tokenizer and chat template inside.

Read through the package gguf (extra [hf]), tensor by tensor. Knows nothing of how llama.cpp runs them.

H heads, K head dim.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from lmjax.core.errors import UserError, nearest
from lmjax.core.types import Params
from lmjax.data.tokenizer import Tokenizer
from lmjax.interop import configs, families, names, tensors
from lmjax.interop.tensors import Source
from lmjax.models.transformer import Decoder
from lmjax.ops.rope import RopeScaling, frequencies

MAGIC = b'GGUF'
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens

# Keys of the file, behind its architecture's name, as those of config.json.
_KEYS = {
  'embedding_length': 'hidden_size',
  'block_count': 'num_hidden_layers',
  'feed_forward_length': 'intermediate_size',
  'attention.head_count': 'num_attention_heads',
  'attention.head_count_kv': 'num_key_value_heads',
  'attention.key_length': 'head_dim',
  'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
  'attention.sliding_window': 'sliding_window',
  'attn_logit_softcapping': 'attn_logit_softcapping',
  'final_logit_softcapping': 'final_logit_softcapping',
  'rope.freq_base': 'rope_theta',
  'expert_used_count': 'num_experts_per_tok',
  'expert_feed_forward_length': 'moe_intermediate_size',
  'expert_shared_feed_forward_length': 'shared_expert_intermediate_size',
}
_GPT2_KEYS = {
  'embedding_length': 'n_embd',
  'block_count': 'n_layer',
  'feed_forward_length': 'n_inner',
  'attention.head_count': 'n_head',
  'context_length': 'n_positions',
  'attention.layer_norm_epsilon': 'layer_norm_epsilon',
}
# Architecture -> model_type.
_KINDS = {
  'llama': 'llama',
  'qwen2': 'qwen2',
  'qwen3': 'qwen3',
  'qwen2moe': 'qwen2_moe',
  'qwen3moe': 'qwen3_moe',
  'gemma2': 'gemma2',
  'gemma3': 'gemma3_text',
  'gpt2': 'gpt2',
}
# The biggest of each, which alone scales its scores by width / heads (llama.cpp knows them so too).
_WIDE_SCALE = {'gemma2': 46, 'gemma3': 62}

_LLAMA3_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_QWEN_WORDS = _LLAMA3_WORDS.replace(r'\p{N}{1,3}', r'\p{N}')


_WHOLE_WORDS = ('llama-bpe', 'llama3', 'llama-v3')  # a word in the vocabulary needs no merge


class File(NamedTuple):
  """What a file says beside its tensors; the attributes are those of `huggingface.Folder`.

  Attributes:
    field: name -> what the file says under it, or None.
    source: its tensors, dequantised as they are read.
  """

  where: str
  architecture: str
  model: Decoder
  field: Callable[[str], Any]
  source: Source

  @property
  def chat_template(self) -> str | None:
    return self.field('tokenizer.chat_template')

  @property
  def ends(self) -> tuple[int, ...]:
    end = self.field('tokenizer.ggml.eos_token_id')
    return () if end is None else (end,)

  @property
  def length(self) -> int | None:
    return self.field(f'{self.architecture}.context_length')


def is_file(path: Path) -> bool:
  """Whether `path` is a GGUF file."""
  if not path.is_file():
    return False
  with path.open('rb') as file:
    return file.read(len(MAGIC)) == MAGIC


def read(path: Path) -> File:
  """The model in the file; UserError where it is none of those known here."""
  try:
    import gguf
  except ImportError:
    raise UserError(f"reading {path} needs gguf: pip install 'lmjax[hf]'") from None
  reader = gguf.GGUFReader(path)

  def field(name: str) -> Any:
    found = reader.get_field(name)
    return None if found is None else found.contents()

  source = Source(
    str(path),
    {tensor.name: tuple(tensor.shape[::-1].tolist()) for tensor in reader.tensors},
    functools.partial(dequantise, str(path), {tensor.name: tensor for tensor in reader.tensors}),
  )
  architecture = field('general.architecture')
  if architecture not in _KINDS:
    raise UserError(
      f'{path} is of architecture {architecture!r}, not known here: {nearest(str(architecture), _KINDS)}'
    )
  keys = _keys(architecture, field, source)
  _, model = families.read(keys, str(path))
  return File(str(path), architecture, model, field, source)


def load_params(file: File, mesh: jax.sharding.Mesh | None = None) -> Params:
  """The parameters in the file, layers stacked, dequantised onto their shards one by one.

  Raises:
    UserError: the file does not match what it says of itself (tensor, expected and found shape).
  """
  table = names.GGUF_GPT2 if file.architecture == 'gpt2' else names.GGUF
  table = table if file.model.moe is None else names.GGUF_MOE
  wanted = tensors.pieces(file.model, table, 'outputs first')
  tensors.check(file.source, wanted, lambda name: name == 'rope_freqs.weight')
  source = file.source._replace(read=lambda name: _restore(file, name, file.source.read(name)))
  return tensors.fill(file.model, wanted, source, mesh)


def load_tokenizer(file: File) -> Tokenizer:
  """The tokenizer in the file: byte-level BPE with the pre-tokenizer that the file names.

  Raises:
    UserError: it is of another kind.
  """
  kind, words = file.field('tokenizer.ggml.model'), file.field('tokenizer.ggml.pre')
  if kind != 'gpt2' or words not in _WORDS:
    raise UserError(
      f'{file.where} has a tokenizer {kind!r} with pre-tokenizer {words!r}, not known here: known is '
      f"'gpt2' with one of {', '.join(_WORDS)}: take the model's Hugging Face folder"
    )
  spelled = file.field('tokenizer.ggml.tokens')
  merges = [tuple(merge.split(' ')) for merge in file.field('tokenizer.ggml.merges')]
  ids = {token: index for index, token in enumerate(spelled)}
  whole_words = words in _WHOLE_WORDS
  inner = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=whole_words))
  inner.pre_tokenizer = pre_tokenizers.Sequence(
    [*_WORDS[words](), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  )
  inner.decoder = decoders.ByteLevel()
  kinds = file.field('tokenizer.ggml.token_type')
  added = lambda kind: [
    AddedToken(t, normalized=False) for t, k in zip(spelled, kinds) if k == kind
  ]
  inner.add_special_tokens(added(_CONTROL))
  inner.add_tokens(added(_USER_DEFINED))
  return Tokenizer.from_json(inner.to_str(), file.where, every_byte=False)


def _split(words: str) -> Callable[[], list[Any]]:
  return lambda: [pre_tokenizers.Split(tokenizers.Regex(words), 'isolated')]


_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# What a merge may not cross, by the name that a file gives it.
_WORDS: dict[str, Callable[[], list[Any]]] = {
  'gpt-2': _split(_GPT2_WORDS),
  'smollm': lambda: [pre_tokenizers.Digits(individual_digits=True), *_split(_GPT2_WORDS)()],
  'llama-bpe': _split(_LLAMA3_WORDS),
  'llama3': _split(_LLAMA3_WORDS),
  'llama-v3': _split(_LLAMA3_WORDS),
  'qwen2': _split(_QWEN_WORDS),
}


def _keys(architecture: str, field: Callable[[str], Any], source: Source) -> dict[str, Any]:
  """The file's own configuration as that of a Hugging Face folder."""
  said = lambda name: field(f'{architecture}.{name}')
  table = _GPT2_KEYS if architecture == 'gpt2' else _KEYS
  keys = {key: _shortest(said(name)) for name, key in table.items() if said(name) is not None}
  experts = said('expert_count')
  kind = 'mixtral' if architecture == 'llama' and experts else _KINDS[architecture]
  keys |= {
    'model_type': kind,
    'vocab_size': source.shapes['token_embd.weight'][0],
    'tie_word_embeddings': 'output.weight' not in source.shapes,
  }
  if experts:
    keys |= {'num_experts': experts, 'norm_topk_prob': kind != 'qwen2_moe'}
  if kind.startswith('gemma'):
    wide = said('block_count') == _WIDE_SCALE[architecture]
    width = keys['hidden_size'] // keys['num_attention_heads']
    keys['query_pre_attn_scalar'] = width if wide else keys.get('head_dim', 256)
  keys['rope_scaling'] = _scaling(said, keys, source)
  return keys


def _shortest(value: Any) -> Any:
  """A number that was rounded to f32 as the decimal that it was: 1e-5, not 9.99999974e-06."""
  return float(str(np.float32(value))) if isinstance(value, float) else value


def _scaling(said: Callable[[str], Any], keys: Mapping[str, Any], source: Source):
  """`rope_scaling` of config.json. Of Llama 3's the file holds just what frequencies are divided by."""
  kind = said('rope.scaling.type')
  if kind not in (None, 'none'):
    return {'rope_type': kind, 'factor': said('rope.scaling.factor')}
  if 'rope_freqs.weight' not in source.shapes:
    return None
  by_J = np.asarray(source.read('rope_freqs.weight'), np.float64)
  scaling = RopeScaling(kind='llama3', factor=float(by_J.max()))
  head_dim = keys.get('head_dim') or keys['hidden_size'] // keys['num_attention_heads']
  base = keys['rope_theta']
  ours_J = frequencies(head_dim, base, None) / frequencies(head_dim, base, scaling)
  if not np.allclose(by_J, ours_J, rtol=1e-3):
    raise UserError(f'{source.where}: rope_freqs.weight is not the rope scaling of Llama 3')
  return configs.write_scaling(scaling)


def dequantise(where: str, found: Mapping[str, Any], name: str) -> np.ndarray:
  import gguf

  tensor = found[name]
  try:
    return gguf.dequantize(tensor.data, tensor.tensor_type)
  except NotImplementedError:
    raise UserError(
      f'{where}: tensor {name} is quantised as {tensor.tensor_type.name}, which the package gguf '
      'cannot undo: take a file in F16, Q8_0, Q4_0, Q4_1, Q4_K or Q6_K'
    ) from None


def _restore(file: File, name: str, tensor: np.ndarray) -> np.ndarray:
  """A tensor as the folder that the file was made from had it.

  llama.cpp turns neighbours (2j, 2j + 1) of a head where Llama's folders turn (j, j + K/2), so rows
  of its queries and keys are interleaved; Gemma's norms have their 1 added.
  """
  model, last = file.model, name.rpartition('blk.')[2]
  if file.architecture == 'llama' and '.attn_q.' in last:
    return _uninterleave(tensor, model.heads)
  if file.architecture == 'llama' and '.attn_k.' in last:
    return _uninterleave(tensor, model.kv_heads)
  if file.architecture.startswith('gemma') and name.endswith('norm.weight'):
    return tensor - 1.0
  return tensor


def _uninterleave(tensor: np.ndarray, heads: int) -> np.ndarray:
  """Rows of each head in order 0, 2, 4 .. 1, 3, 5 .."""
  pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
  return pairs.swapaxes(1, 2).reshape(tensor.shape)
