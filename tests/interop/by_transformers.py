"""Tiny models as transformers runs them."""

import os
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'

import numpy as np
import tiny
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def load(path: Path, gguf_file: str | None = None, **settings):
  """The model in a folder; every tensor of it must have been found, and none be left.

  Args:
    settings: of its configuration, which transformers does not find in a GGUF file.
  """
  how = {'gguf_file': gguf_file, 'dtype': torch.float32, 'attn_implementation': 'eager'}
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    str(path), output_loading_info=True, **how, **settings
  )
  assert not any(info[kind] for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), (
    info
  )
  return model.eval()


def logits(path: Path, gguf_file: str | None = None, **settings) -> np.ndarray:
  """f32 [B, L, V] of `tiny.tokens`."""
  with torch.no_grad():
    return load(path, gguf_file, **settings)(
      torch.tensor(tiny.tokens(), dtype=torch.long)
    ).logits.numpy()


def tokenizer(path: Path):
  return transformers.AutoTokenizer.from_pretrained(str(path))
