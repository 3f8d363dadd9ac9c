"""LoRA terms in the format of the library peft: adapter_config.json and adapter_model.safetensors.

peft keeps a term as lora_A [R, inputs] and lora_B [outputs, R] beside a module; heads are flattened. Of a
tensor of theirs that holds several of our matrices (GPT-2's queries, keys and values) there is none.
"""

import math
from pathlib import Path

import numpy as np

from lmjax.adapt.lora import Lora
from lmjax.core import tree
from lmjax.core.errors import UserError
from lmjax.core.task import write_json
from lmjax.core.types import Params
from lmjax.interop import families, tensors
from lmjax.interop.families import FAMILIES
from lmjax.models.transformer import Decoder

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'


def save(path: Path, model: Decoder, terms: Params, lora: Lora, base: str) -> list[str]:
  """Writes a folder that peft loads over the model; returns the names of its files.

  Args:
    terms: as `Adapter.init` gives them, in either layout.
    base: what peft is told that the model is called.

  Raises:
    UserError: no family can be this model, or a matrix is no module of its own there.
  """
  try:
    from safetensors.numpy import save_file
  except ImportError:
    raise UserError("peft's format needs safetensors: pip install 'lmjax[hf]'") from None
  kind, _ = families.write(model)
  family = FAMILIES[kind]
  arrays = {name: tree.gather(x) for name, x in tree.paths(tree.stack(terms))}
  written, modules = {}, set()
  for piece in tensors.pieces(model, family.names, family.order):
    if f'{piece.path}/a' not in arrays:
      continue
    if piece.parts > 1 or piece.inputs is None or piece.batch or piece.order != 'outputs first':
      raise UserError(
        f'{piece.path} is no module of its own in {kind}, so peft has no term for it: export the '
        'merged model, or leave it out of --lora.paths'
      )
    module = piece.name.removesuffix('.weight')
    a, b = (arrays[f'{piece.path}/{side}'][piece.index] for side in 'ab')
    inputs = math.prod(piece.shape[: piece.inputs])
    both = {'lora_A': a.reshape(inputs, lora.rank).T, 'lora_B': b.reshape(lora.rank, -1).T}
    for side, matrix in both.items():
      key = f'base_model.model.{module}.{side}.weight'
      written[key] = np.ascontiguousarray(matrix, np.float32)
    modules.add(module.rpartition('.')[2])
  path.mkdir(parents=True, exist_ok=True)
  save_file(written, path / WEIGHTS, metadata={'format': 'pt'})
  config = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'r': lora.rank,
    'lora_alpha': lora.alpha,
    'target_modules': sorted(modules),
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }
  write_json(path / CONFIG, config)
  return [CONFIG, WEIGHTS]
