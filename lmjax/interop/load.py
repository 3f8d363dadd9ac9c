"""What `--checkpoint` means: a run's folder, or one of its checkpoints. Model, weights, tokenizer."""

import json
from pathlib import Path
from typing import NamedTuple

from lmjax.checkpoint.store import find_checkpoint, restore_params
from lmjax.core import config, registry, tree
from lmjax.core.errors import UserError
from lmjax.core.storage import at
from lmjax.core.types import Params
from lmjax.data.tokenizer import Tokenizer
from lmjax.models.transformer import Decoder


class Loaded(NamedTuple):
  """A trained model, ready to use; `step` is how far it was trained."""

  model: Decoder
  params: Params
  tokenizer: Tokenizer
  path: Path
  step: int


def load(checkpoint: str) -> Loaded:
  """The model at `checkpoint`: RUN, or RUN/checkpoints/STEP, also on s3:// or gs://.

  Raises:
    UserError: there is no run, or none of its checkpoints is whole.
  """
  folder = _checkpoint_folder(at(checkpoint))
  saved = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
  task = config.from_json(registry.find(saved['experiment']), saved['config'])
  tokenizer = Tokenizer.load(folder / 'tokenizer.json')
  model: Decoder = task.model.with_vocab(tokenizer.vocab)  # type: ignore[attr-defined]
  shapes = tree.stack(model.shapes())
  params = restore_params(folder, shapes)
  params = params if model.layout == 'scan' else tree.unstack(params)
  return Loaded(model, params, tokenizer, folder, int(folder.name))


def _checkpoint_folder(path: Path) -> Path:
  if not path.is_dir():
    raise UserError(f'--checkpoint={path}: there is no such folder: pass the folder of a run')
  if (path / 'checksums.json').exists():
    return path
  found = find_checkpoint(path / 'checkpoints')
  if found is None:
    raise UserError(
      f'--checkpoint={path}: no whole checkpoint in {path / "checkpoints"}: '
      'pass the folder of a run that has saved one'
    )
  return found
