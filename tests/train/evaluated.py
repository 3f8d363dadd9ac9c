"""A tiny model in a folder, for tests of what measures models; and classifiers and judges to name."""

import numpy as np
from small_models import random_params

from lmjax.data.tokenizer import train
from lmjax.interop import huggingface
from lmjax.models.transformer import Decoder

MODEL = Decoder(vocab=262, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=48)


def write_folder(path):
  tokenizer = train(['a text', 'another'], 262)
  huggingface.save(path, MODEL, random_params(MODEL), tokenizer, ends=(tokenizer.end,), length=96)
  return str(path)


def count_letters(texts):
  return [min(1.0, len(text) / 100) for text in texts]


def say_one_number(texts):
  return [0.5]


def prefer_first(rows):
  return ['first'] * len(rows)


def tokens_of(tokenizer, text):
  return np.concatenate([[tokenizer.start], tokenizer.encode(text)]).astype(np.int32)
