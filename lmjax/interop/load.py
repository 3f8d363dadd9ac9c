"""What `--checkpoint` means: a run, a Hugging Face folder, a GGUF file, the name of an asset or a recipe.

Model, weights, tokenizer, and what else a published model says of itself.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lmjax.adapt.lora import Adapter, Lora
from lmjax.checkpoint.store import find_checkpoint, restore_params
from lmjax.core import assets, config, recipes, registry, tree
from lmjax.core.errors import UserError, closest
from lmjax.core.storage import at
from lmjax.core.types import Params
from lmjax.data.tokenizer import Tokenizer
from lmjax.interop import gguf, huggingface
from lmjax.models.transformer import Decoder
from lmjax.parallel import sharding

CHECKPOINT = "A run's folder, a Hugging Face folder, a GGUF file, an asset's or a recipe's name."
"""What the flag --checkpoint says of itself."""


class Loaded(NamedTuple):
  """A trained model, ready to use.

  Attributes:
    step: how far it was trained here; 0 of a published model.
    chat_template: Jinja source of how messages become text, or None.
    ends: ids after which the model has no more to say.
    length: tokens that it was made to read at most, or None where nothing says so.
  """

  model: Decoder
  params: Params
  tokenizer: Tokenizer
  path: Path
  step: int
  chat_template: str | None
  ends: tuple[int, ...]
  length: int | None


def load(checkpoint: str, mesh: jax.sharding.Mesh | None = None) -> Loaded:
  """The model at `checkpoint`, its parameters on their shards of `mesh` or on the first device.

  Args:
    checkpoint: RUN or RUN/checkpoints/STEP, also on s3:// or gs://; a Hugging Face folder; a GGUF
      file; or a name, see `locate`.

  Raises:
    UserError: there is nothing of the kind, or it is not whole.
  """
  path = locate(checkpoint)
  if gguf.is_file(path):
    file = gguf.read(path)
    tokenizer = gguf.load_tokenizer(file)
    return _published(path, file, tokenizer, gguf.load_params(file, mesh))
  if huggingface.is_folder(path):
    folder = huggingface.read(path)
    tokenizer = Tokenizer.load(path / 'tokenizer.json', every_byte=False)
    return _published(path, folder, tokenizer, huggingface.load_params(path, folder, mesh))
  return _load_run(_checkpoint_folder(path), mesh)


def locate(checkpoint: str) -> Path:
  """The file or folder that `checkpoint` stands for: the only place where a name becomes a path.

  An asset's name, in whatever case, is that of a file which is downloaded the first time, a recipe's that
  of a run which is trained the first time; where there is a file or folder of that name, it is meant.
  """
  path = at(checkpoint)
  name = checkpoint.lower()
  if name in recipes.RECIPES and not path.exists():
    return recipes.ready(name)
  return assets.fetch(name) if name in assets.of_kind('model') and not path.exists() else path


def _published(path: Path, said: Any, tokenizer: Tokenizer, params: Params) -> Loaded:
  """`said` is a `huggingface.Folder` or a `gguf.File`."""
  model = said.model.with_vocab(tokenizer.vocab)
  ends = said.ends or (tokenizer.end,)
  return Loaded(model, params, tokenizer, path, 0, said.chat_template, ends, said.length)


def _load_tuned(folder: Path, mesh: jax.sharding.Mesh | None) -> Loaded:
  """A run that went on from another model: all of its weights, or terms to add to its base's."""
  said = json.loads((folder / 'model.json').read_text(encoding='utf-8'))
  if said['rewards']:
    raise UserError(f'{folder} is a model of rewards, which says nothing: pass its base')
  model = config.from_json(Decoder(), said['model'])
  tokenizer = Tokenizer.load(folder / 'tokenizer.json', every_byte=False)
  if said['lora'] is None:
    params = restore_params(folder, tree.stack(_shapes(model, mesh)))
    params = params if model.layout == 'scan' else tree.unstack(params)
  else:
    base = load(said['base']['checkpoint'], mesh).params
    terms = _load_terms(folder, said, model, mesh)
    if tree.sha256(tree.stack(base)) != said['base']['sha256']:
      raise UserError(
        f'{folder} was trained beside {said["base"]["checkpoint"]}, which has other weights now: '
        'put back those it began from'
      )
    adapter = Adapter(model, config.from_json(Lora(), said['lora']))
    base = adapter.to_int8(base) if said['base_weights'] == 'int8' else base
    params = jax.jit(adapter.merge)(base, terms)
  return Loaded(
    model,
    params,
    tokenizer,
    folder,
    int(folder.name),
    said['chat_template'],
    tuple(said['ends']),
    said['length'],
  )


class Terms(NamedTuple):
  """What a run with LoRA has learnt; `base` is the --checkpoint that it began from."""

  model: Decoder
  terms: Params
  lora: Lora
  base: str


def load_terms(checkpoint: str) -> Terms:
  """The terms of the run at `checkpoint` by themselves; UserError where it has none."""
  folder = _checkpoint_folder(locate(checkpoint))
  file = folder / 'model.json'
  said: dict[str, Any] = json.loads(file.read_text(encoding='utf-8')) if file.exists() else {}
  if not said.get('lora') or said['rewards']:
    raise UserError(
      f'--checkpoint={checkpoint} has no terms of LoRA: pass a run that trained some, or export it with '
      '--experiment=export_hf'
    )
  model = config.from_json(Decoder(), said['model'])
  lora = config.from_json(Lora(), said['lora'])
  return Terms(model, _load_terms(folder, said, model, None), lora, said['base']['checkpoint'])


def _load_terms(
  folder: Path, said: dict[str, Any], model: Decoder, mesh: jax.sharding.Mesh | None
) -> Params:
  """In the layout of `model`."""
  adapter = Adapter(model, config.from_json(Lora(), said['lora']))
  terms = restore_params(folder, tree.stack(_shapes(adapter, mesh)))
  return terms if model.layout == 'scan' else tree.unstack(terms)


def _shapes(model: Any, mesh: jax.sharding.Mesh | None) -> Params:
  """What `restore_params` fills, on the shards of `mesh`."""
  shapes = model.shapes()
  if mesh is None:
    return shapes
  place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  return jax.tree.map(place, shapes, sharding.shardings(mesh, model.dims()))


def _load_run(folder: Path, mesh: jax.sharding.Mesh | None) -> Loaded:
  if (folder / 'model.json').exists():
    return _load_tuned(folder, mesh)
  saved = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
  task: Any = config.from_json(registry.find(saved['experiment']), saved['config'])
  tokenizer = Tokenizer.load(folder / 'tokenizer.json', every_byte=False)
  model: Decoder = task.model.with_vocab(tokenizer.vocab)
  params = restore_params(folder, tree.stack(_shapes(model, mesh)))
  params = params if model.layout == 'scan' else tree.unstack(params)
  step = int(folder.name)
  return Loaded(model, params, tokenizer, folder, step, None, (tokenizer.end,), task.length)


def _checkpoint_folder(path: Path) -> Path:
  if not path.is_dir():
    near = closest(str(path), [*assets.of_kind('model'), *recipes.RECIPES])
    also = f' (did you mean {near[0]}?)' if near else ''
    raise UserError(
      f'--checkpoint={path}: there is no such folder: pass the folder of a run, a Hugging Face folder, '
      f'a GGUF file or the name of an asset{also}'
    )
  if (path / 'checksums.json').exists():
    return path
  found = find_checkpoint(path / 'checkpoints')
  if found is None:
    raise UserError(
      f'--checkpoint={path}: no whole checkpoint in {path / "checkpoints"}: '
      'pass the folder of a run that has saved one'
    )
  return found
