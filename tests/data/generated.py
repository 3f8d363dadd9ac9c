"""Posts made up by a seed, and their shards."""

import json
import random
from pathlib import Path

from lmjax.data.prepare import prepare
from lmjax.data.shards import Shards
from lmjax.data.sources import Posts
from lmjax.data.split import Split
from lmjax.data.tokenizer import TokenizerConfig

WORDS = [
  'we',
  'ran',
  'the',
  'ferry',
  'late',
  '—',
  'Übung',
  'macht',
  '😀',
  'مرحبا',
  'नमस्ते',
  '#sea',
  '@harbour',
  '17',
  'http://ex.org/a9',
]


def make_posts(count: int, seed: int) -> list[str]:
  """`count` different posts of 1 to 60 words."""
  draw = random.Random(seed)
  texts = [' '.join(draw.choices(WORDS, k=draw.randint(1, 60))) for _ in range(count)]
  return [f'{number} {text}' for number, text in enumerate(texts)]


def write_posts(path: Path, texts: list[str]) -> Path:
  path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
  return path


def prepare_posts(path: Path, **tokenizer) -> Shards:
  return prepare(Posts(posts=str(path)), Split(), TokenizerConfig(**{'vocab': 320, **tokenizer}))
