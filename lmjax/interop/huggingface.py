"""Folders as Hugging Face has them: config.json, safetensors in one file or several, tokenizer.json.

Read and written tensor by tensor, without torch or transformers; needs the extra [hf].
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.core.errors import UserError
from lmjax.core.types import Params
from lmjax.data.tokenizer import Tokenizer
from lmjax.interop import families, tensors
from lmjax.interop.families import FAMILIES, Family
from lmjax.interop.tensors import Piece, Source
from lmjax.models.transformer import Decoder

CONFIG, WEIGHTS, INDEX = 'config.json', 'model.safetensors', 'model.safetensors.index.json'
_FLOATS = ('F64', 'F32', 'F16', 'BF16')
DTYPES = {'float32': np.float32, 'bfloat16': jnp.bfloat16}

Dtype = Literal['float32', 'bfloat16']


class Folder(NamedTuple):
  """What a folder says beside its tensors.

  Attributes:
    chat_template: Jinja source, or None.
    ends: ids after which the model has no more to say.
    length: tokens that it was made to read at most, or None.
  """

  family: Family
  model: Decoder
  chat_template: str | None
  ends: tuple[int, ...]
  length: int | None


def is_folder(path: Path) -> bool:
  """Whether `path` is such a folder; a run's config.json has no model_type."""
  file = path / CONFIG
  return file.is_file() and 'model_type' in _json(file)


def read(path: Path) -> Folder:
  """The model in `path`; UserError where it is none of those known here."""
  config = _json(path / CONFIG)
  family, model = families.read(config, str(path))
  generation = (
    _json(path / 'generation_config.json') if (path / 'generation_config.json').is_file() else {}
  )
  ends = generation.get('eos_token_id', config.get('eos_token_id'))
  ends = () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)
  length = config.get('max_position_embeddings') or config.get('n_positions')
  return Folder(family, model, _chat_template(path), ends, length)


def load_params(path: Path, folder: Folder, mesh: jax.sharding.Mesh | None = None) -> Params:
  """The parameters in `path`, layers stacked, streamed onto their shards.

  Raises:
    UserError: a file is missing, or does not match config.json (tensor, expected and found shape).
  """
  family, model = folder.family, folder.model
  source = open_tensors(path)
  wanted = tensors.pieces(model, family.names, family.order)
  source = _with_prefix(source, family.names['embed'])
  unused = family.names['head'] if model.head == 'tied' else None
  tensors.check(source, wanted, lambda name: name == unused or name.endswith(family.ignored))
  return tensors.fill(model, wanted, source, mesh)


def save(
  path: Path,
  model: Decoder,
  params: Params,
  tokenizer: Tokenizer,
  *,
  chat_template: str | None = None,
  ends: tuple[int, ...] = (),
  length: int | None = None,
  dtype: Dtype = 'float32',
  shard_bytes: int = 2 * 10**9,
) -> list[str]:
  """Writes a folder that `read` and transformers load; returns the names of its files.

  Args:
    ends, length, chat_template: as in `Folder`.
    dtype: of the tensors.
    shard_bytes: size of one file at most; so much is in memory beside the model.

  Raises:
    UserError: no family can be this model.
  """
  kind, config = families.write(model)
  config |= {'torch_dtype': dtype, 'bos_token_id': tokenizer.start}
  ends = ends or (tokenizer.end,)
  config['eos_token_id'] = ends[0] if len(ends) == 1 else list(ends)
  if length is not None and kind != 'gpt2':
    config['max_position_embeddings'] = length
  path.mkdir(parents=True, exist_ok=True)
  family = FAMILIES[kind]
  files = _save_tensors(
    path, params, tensors.pieces(model, family.names, family.order), DTYPES[dtype], shard_bytes
  )
  _write_json(path / CONFIG, config)
  tokenizer.save(path / 'tokenizer.json')
  start, end = tokenizer.name(tokenizer.start), tokenizer.name(ends[0])
  said = {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': start, 'eos_token': end}
  said |= {'clean_up_tokenization_spaces': False}
  if chat_template is not None:
    (path / 'chat_template.jinja').write_text(chat_template, encoding='utf-8')
    said['chat_template'] = chat_template
  _write_json(path / 'tokenizer_config.json', said)
  return [CONFIG, 'tokenizer.json', 'tokenizer_config.json', *files]


def _save_tensors(
  path: Path, params: Params, wanted: list[Piece], dtype: Any, shard_bytes: int
) -> list[str]:
  """Tensors in files of at most `shard_bytes` (one alone may be more), with an index of several."""
  from safetensors.numpy import save_file

  shapes = {piece.name: piece.their_shape for piece in wanted}
  sizes = {name: int(np.prod(shape)) * np.dtype(dtype).itemsize for name, shape in shapes.items()}
  shard_of = dict(zip(sizes, _shards(list(sizes.values()), shard_bytes), strict=True))
  count = 1 + max(shard_of.values())
  file_of = lambda shard: (
    WEIGHTS if count == 1 else f'model-{shard + 1:05d}-of-{count:05d}.safetensors'
  )
  given = tensors.give(params, wanted)
  for shard, group in itertools.groupby(given, lambda item: shard_of[item[0]]):
    arrays = {name: tensor.astype(dtype) for name, tensor in group}
    save_file(arrays, path / file_of(shard), metadata={'format': 'pt'})
  files = [file_of(shard) for shard in range(count)]
  if count == 1:
    return files
  weight_map = {name: file_of(shard) for name, shard in shard_of.items()}
  _write_json(
    path / INDEX, {'metadata': {'total_size': sum(sizes.values())}, 'weight_map': weight_map}
  )
  return [INDEX, *files]


def _shards(sizes: list[int], most: int) -> Iterator[int]:
  shard = filled = 0
  for size in sizes:
    if filled and filled + size > most:
      shard, filled = shard + 1, 0
    filled += size
    yield shard


def open_tensors(path: Path, ignored: tuple[str, ...] = ()) -> Source:
  """The tensors of every safetensors file of a folder, mapped into memory and not read.

  Those whose names end in one of `ignored` are left out, whatever they hold.
  """
  try:
    from safetensors import safe_open
  except ImportError:
    raise UserError(f"reading {path} needs safetensors: pip install 'lmjax[hf]'") from None

  opened: dict[str, Any] = {}
  shapes: dict[str, tuple[int, ...]] = {}
  for file in _files(path):
    try:
      handle = safe_open(file, framework='np')
      names = list(handle.keys())
    except Exception as error:  # the library's own error is a plain Exception
      raise UserError(f'{file} cannot be read: {error}: copy it again') from None
    for name in names:
      if name.endswith(ignored):
        continue
      part = handle.get_slice(name)
      if part.get_dtype() not in _FLOATS:
        raise UserError(
          f'{file}: tensor {name} is of {part.get_dtype()}: expected is one of {", ".join(_FLOATS)}, '
          'take the folder that is not quantised'
        )
      opened[name], shapes[name] = handle, tuple(part.get_shape())
  return Source(str(path), shapes, lambda name: opened[name].get_tensor(name))


def _files(path: Path) -> list[Path]:
  index = path / INDEX
  if index.is_file():
    files = sorted({path / file for file in _json(index)['weight_map'].values()})
  else:
    files = [path / WEIGHTS]
  missing = [file for file in files if not file.is_file()]
  if missing:
    raise UserError(
      f'{path} has no {missing[0].name}: expected are safetensors, whole: copy the folder again'
    )
  return files


def _with_prefix(source: Source, first: str) -> Source:
  """`source` with the names of a whole model where it was saved without its head (GPT-2's was)."""
  prefix, _, rest = first.partition('.')
  if first in source.shapes or rest not in source.shapes:
    return source
  shapes = {f'{prefix}.{name}': shape for name, shape in source.shapes.items()}
  return Source(source.where, shapes, lambda name: source.read(name.removeprefix(f'{prefix}.')))


def _chat_template(path: Path) -> str | None:
  """In a file of its own, or in tokenizer_config.json; of several, the one called default."""
  own, beside = path / 'chat_template.jinja', path / 'tokenizer_config.json'
  if own.is_file():
    return own.read_text(encoding='utf-8')
  said = _json(beside).get('chat_template') if beside.is_file() else None
  if isinstance(said, list):
    said = {one['name']: one['template'] for one in said}.get('default')
  return said


def _json(path: Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read: {error}: copy it again') from None


def _write_json(path: Path, value: dict[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
