"""The task that generates posts with a trained model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from lmjax.adapt.quantize import quantize
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError, need
from lmjax.core.task import Report, Task
from lmjax.core.types import Params
from lmjax.data.tokenizer import Tokenizer
from lmjax.generate.engine import generate
from lmjax.generate.prepare import is_prepared, prepare
from lmjax.generate.sampler import Sampler
from lmjax.interop.load import CHECKPOINT, load
from lmjax.models.transformer import Decoder


class Sample(Task):
  """Continues a prompt with a trained model."""

  checkpoint: str = leaf('', CHECKPOINT)
  prompt: str = leaf('', 'Text that every sample begins with; empty = a whole post.')
  samples: int = leaf(5, 'How many to draw.', low=1)
  max_tokens: int = leaf(120, 'Tokens to add at most.', low=1)
  seed: int = leaf(0, 'The same seed draws the same samples.', low=0, high=2**32 - 1)
  weights: Literal['trained', 'int8'] = leaf(
    'trained', 'As they were trained, or in int8 with a scale for every 32: a quarter to read.'
  )
  sampler: Sampler = part(Sampler(), 'How tokens are drawn.')

  def run(self, workdir: Path) -> Report:
    """Prints the samples; the report holds them with their prompt and checkpoint."""
    need('checkpoint', self.checkpoint, 'RUN, the folder of a trained run')
    loaded = load(self.checkpoint)
    model, params = prepare(loaded.model, loaded.params)
    texts = draw_texts(
      model,
      self._rounded(params),
      loaded.tokenizer,
      prompts=[self.prompt] * self.samples,
      sampler=self.sampler,
      max_tokens=self.max_tokens,
      seed=self.seed,
    )
    for text in texts:
      print(f'- {text}')
    where = {'path': str(loaded.path), 'step': loaded.step}
    return {'samples': texts, 'prompt': self.prompt, 'checkpoint': where}

  def _rounded(self, params: Params) -> Params:
    if self.weights == 'trained':
      return params
    if not is_prepared(params):
      raise UserError('weights=int8 is for one CPU so far: pass --weights=trained')
    return quantize(params)


def draw_texts(
  model: Decoder,
  params: Params,
  tokenizer: Tokenizer,
  *,
  prompts: Sequence[str],
  sampler: Sampler,
  max_tokens: int,
  seed: int,
) -> list[str]:
  """Each prompt with its continuation, as text."""
  tokens = [tokenizer.encode(prompt) for prompt in prompts]
  starts = [np.concatenate([[tokenizer.start], prompt]).astype(np.int32) for prompt in tokens]
  new = generate(
    model,
    params,
    starts,
    sampler=sampler,
    max_tokens=max_tokens,
    end=tokenizer.end,
    vocab=tokenizer.vocab,
    seed=seed,
  )
  return [tokenizer.text([*prompt, *added]) for prompt, added in zip(tokens, new, strict=True)]
