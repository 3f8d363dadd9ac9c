"""Published encoders: a folder as sentence-transformers and Hugging Face have it, or an asset's name.

Knows nothing of texts beyond which tokenizer they go through.
"""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from lmjax.core import assets
from lmjax.core.errors import UserError, nearest
from lmjax.core.storage import at
from lmjax.core.types import Params
from lmjax.interop import huggingface, names, tensors
from lmjax.models.encoder import Encoder, Pooling
from lmjax.models.layers import Norm

MINILM = 'all-minilm-l6-v2'
_POOLING = '1_Pooling/config.json'
_POOLINGS: dict[str, Pooling] = {
  'pooling_mode_mean_tokens': 'mean',
  'pooling_mode_cls_token': 'first',
  'pooling_mode_lasttoken': 'last',
}
# Heads that a folder may have and a text's vector does not need.
_IGNORED = ('pooler.dense.weight', 'pooler.dense.bias', 'embeddings.position_ids')


class LoadedEncoder(NamedTuple):
  """An encoder, ready to use.

  Attributes:
    tokenizer: gives a text its control tokens too; neither cut nor padded.
    path: where it was read.
  """

  model: Encoder
  params: Params
  tokenizer: tokenizers.Tokenizer
  path: Path


def is_encoder(path: Path) -> bool:
  """Whether `path` is a folder with an encoder that can be read here."""
  return huggingface.is_folder(path) and _json(path / 'config.json')['model_type'] == 'bert'


def load_encoder(name: str) -> LoadedEncoder:
  """The encoder of an asset or in a folder: config.json, model.safetensors, tokenizer.json.

  Raises:
    UserError: there is none, it is of another family than BERT, or its tensors are not as it says.
  """
  path = _locate(name)
  config = _json(path / 'config.json')
  if config.get('model_type') != 'bert':
    raise UserError(
      f'{path}: model_type={config.get("model_type")!r} is no encoder known here: pass a folder of '
      f'model_type bert or the asset {MINILM}'
    )
  try:
    model = _model(config, path)
  except KeyError as error:
    raise UserError(
      f'{path}: its config.json has no {error}: take the folder as published'
    ) from None
  source = huggingface.open_tensors(path, _IGNORED)
  prefix = '' if names.BERT['embed'] in source.shapes else 'bert.'
  table = {ours: prefix + theirs for ours, theirs in names.BERT.items()}
  wanted = tensors.pieces(model, table, 'outputs first')
  tensors.check(source, wanted, lambda name: name.startswith('cls.'))
  params = tensors.fill(model, wanted, source)
  return LoadedEncoder(model, params, load_tokenizer(path / 'tokenizer.json'), path)


def save_encoder(folder: Path, encoder: LoadedEncoder) -> None:
  """Writes what `load_encoder` reads: the parameters, and the rest as it is where it was read."""
  from safetensors.numpy import save_file

  folder.mkdir(parents=True, exist_ok=True)
  for name in ('config.json', 'tokenizer.json', _POOLING):
    if (encoder.path / name).is_file():
      (folder / name).parent.mkdir(exist_ok=True)
      shutil.copyfile(encoder.path / name, folder / name)
  wanted = tensors.pieces(encoder.model, names.BERT, 'outputs first')
  given = {name: np.array(tensor) for name, tensor in tensors.give(encoder.params, wanted)}
  save_file(given, folder / huggingface.WEIGHTS)


def load_tokenizer(path: Path) -> tokenizers.Tokenizer:
  """The tokenizer in a `tokenizer.json`, of any kind, which neither cuts nor pads."""
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises nothing narrower
    raise UserError(f'tokenizer {path} cannot be read: {error}: copy it again') from None
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


def _locate(name: str) -> Path:
  path = at(name)
  if path.exists():
    return path
  known = [name for name in assets.of_kind('encoder') if '/' not in name]
  if name.lower() not in known:
    raise UserError(f'encoder {name!r} is neither a folder nor an asset: {nearest(name, known)}')
  parts = [part for part in assets.of_kind('encoder') if part.startswith(name.lower())]
  files = [assets.fetch(part) for part in parts]  # all into one folder
  return files[0].parent


def _model(config: dict[str, Any], path: Path) -> Encoder:
  if config['hidden_act'] != 'gelu' or config.get('position_embedding_type') not in (
    None,
    'absolute',
  ):
    raise UserError(
      f'{path}: hidden_act={config["hidden_act"]!r} or its positions are not those of BERT: '
      'pass an encoder with gelu and absolute positions'
    )
  pooling = path / _POOLING
  said = _json(pooling) if pooling.is_file() else {}
  return Encoder(
    vocab=config['vocab_size'],
    width=config['hidden_size'],
    layers=config['num_hidden_layers'],
    heads=config['num_attention_heads'],
    mlp=config['intermediate_size'],
    positions=config['max_position_embeddings'],
    types=config['type_vocab_size'],
    norm=Norm(kind='layer', eps=config['layer_norm_eps']),
    pooling=_pooling(said),
  )


def _pooling(said: dict[str, Any]) -> Pooling:
  for key, pooling in _POOLINGS.items():
    if said.get(key):
      return pooling
  return 'mean'


def _json(path: Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read: {error}: copy it again') from None
