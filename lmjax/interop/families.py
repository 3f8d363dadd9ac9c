"""Families of published models: what their config.json says as a `Decoder`, and the way back.

What a decoder cannot do is refused, and so is a decoder that no family can be. Knows nothing of files.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lmjax.core.config import leaves, to_json
from lmjax.core.errors import UserError, nearest
from lmjax.interop import configs, names
from lmjax.interop.configs import Keys, Write
from lmjax.interop.tensors import Order
from lmjax.models.transformer import Decoder


class Family(NamedTuple):
  """One `model_type` of config.json.

  Attributes:
    architecture: the class of transformers that runs it.
    names: our paths -> names of its tensors.
    read: its keys -> the model.
    write: a model -> the keys that say what it is, as far as the family can say it.
    order: of its matrices.
    ignored: ends of the names of tensors that files may have and nothing needs.
  """

  architecture: str
  names: Mapping[str, str]
  read: Callable[[Keys], Decoder]
  write: Callable[[Decoder], Write]
  order: Order = 'outputs first'
  ignored: tuple[str, ...] = ('.rotary_emb.inv_freq',)


def read(config: Keys, where: str) -> tuple[Family, Decoder]:
  """The family and the model of a config.json.

  Raises:
    UserError: no such family here, or a setting that a decoder does not have.
  """
  kind = config.get('model_type', '')
  if kind not in FAMILIES:
    raise UserError(f'{where}: model_type={kind!r} is not known here: {nearest(kind, FAMILIES)}')
  try:
    return FAMILIES[kind], FAMILIES[kind].read(config)
  except KeyError as error:
    raise UserError(
      f'{where}: its config.json has no {error}: take the folder as published'
    ) from None
  except UserError as error:
    raise UserError(f'{where}: {error}') from None


def write(model: Decoder) -> tuple[str, Write]:
  """The `model_type` that can be `model`, and its keys.

  Raises:
    UserError: none can; with what the nearest would make of it.
  """
  here = _facts(model)
  found = []
  for kind, family in FAMILIES.items():
    try:
      keys = family.write(model)
      there = _facts(family.read(keys))
    except UserError:
      continue
    differs = [name for name in here if here[name] != there.get(name)]
    # Of a part that is on here alone, only that it is.
    parts = tuple(f'{name}.' for name in differs if there.get(name) == 'none')
    differs = [name for name in differs if not name.startswith(parts)]
    found.append((len(differs), kind, keys, differs, there))
  count, kind, keys, differs, there = min(found, key=lambda one: one[0])
  if count:
    told = ', '.join(f'model.{name}={here[name]} ({there.get(name)} there)' for name in differs)
    raise UserError(
      f'no family of models on Hugging Face is this model; the nearest, {kind}, is not for {told}: '
      'train one that is, such as a Llama (--model.activation=swiglu, no extra norms)'
    )
  return kind, {'model_type': kind, 'architectures': [FAMILIES[kind].architecture], **keys}


# How a model is trained, which a published configuration does not say.
_TRAINING = ('embedding_std', 'dtype', 'matmul', 'moe.balance_loss', 'moe.z_loss')


def _facts(model: Decoder) -> dict[str, Any]:
  """What decides about a model's logits, equal where they are."""
  run = {leaf.name for leaf in leaves(model) if leaf.run}
  facts = {
    name: value
    for name, value in to_json(model).items()
    if name not in run and name not in (*_TRAINING, 'moe.capacity_factor')
  }
  if model.positions is not None:
    facts = {name: value for name, value in facts.items() if not name.startswith('rope')}
  elif not any(model.windows):
    facts['rope.local_base'] = None
  elif model.rope.local_base is None and model.rope.scaling is None:
    facts['rope.local_base'] = model.rope.base
  if model.moe is not None and not model.moe.shared:
    del facts['moe.shared_gate']
  scale = model.attention_scale or model.head_dim**-0.5
  windows = [model.window(layer) for layer in range(model.layers)]
  return facts | {'windows': windows, 'attention_scale': f'{scale:.6g}'}


FAMILIES: dict[str, Family] = {
  'llama': Family('LlamaForCausalLM', names.LLAMA, configs.read_llama, configs.write_llama),
  'mistral': Family('MistralForCausalLM', names.LLAMA, configs.read_mistral, configs.write_mistral),
  'qwen2': Family('Qwen2ForCausalLM', names.LLAMA, configs.read_qwen2, configs.write_qwen2),
  'qwen3': Family('Qwen3ForCausalLM', names.LLAMA, configs.read_qwen3, configs.write_qwen3),
  'mixtral': Family(
    'MixtralForCausalLM', names.MIXTRAL, configs.read_mixtral, configs.write_mixtral
  ),
  'qwen2_moe': Family(
    'Qwen2MoeForCausalLM', names.QWEN_MOE, configs.read_qwen2_moe, configs.write_qwen2_moe
  ),
  'qwen3_moe': Family(
    'Qwen3MoeForCausalLM', names.QWEN_MOE, configs.read_qwen3_moe, configs.write_qwen3_moe
  ),
  'gemma2': Family('Gemma2ForCausalLM', names.GEMMA, configs.read_gemma2, configs.write_gemma),
  'gemma3_text': Family(
    'Gemma3ForCausalLM', names.GEMMA, configs.read_gemma3, configs.write_gemma3
  ),
  'gpt2': Family(
    'GPT2LMHeadModel',
    names.GPT2,
    configs.read_gpt2,
    configs.write_gpt2,
    'inputs first',
    ('.attn.bias', '.attn.masked_bias'),
  ),
  # The published weights as Hugging Face folders have them: github.com/xai-org/grok-1 says what they
  # do, with tied embeddings, a soft-cap of 30 and gates that are not scaled to sum to 1.
  'grok-1': Family('Grok1ModelForCausalLM', names.GROK, configs.read_grok, configs.write_grok),
}
