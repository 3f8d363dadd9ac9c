"""The task that generates posts with a trained model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError
from lmjax.core.task import Report, Task
from lmjax.core.types import Params
from lmjax.data.tokenizer import Tokenizer
from lmjax.generate.engine import generate
from lmjax.generate.prepare import prepare
from lmjax.generate.sampler import Sampler
from lmjax.interop.load import load
from lmjax.models.transformer import Decoder


class Sample(Task):
  """Continues a prompt with a trained model."""

  checkpoint: str = leaf(
    '', "A run's folder, a Hugging Face folder, a GGUF file or an asset's name."
  )
  prompt: str = leaf('', 'Text that every sample begins with; empty = a whole post.')
  samples: int = leaf(5, 'How many to draw.', low=1)
  max_tokens: int = leaf(120, 'Tokens to add at most.', low=1)
  seed: int = leaf(0, 'The same seed draws the same samples.', low=0, high=2**32 - 1)
  sampler: Sampler = part(Sampler(), 'How tokens are drawn.')

  def run(self, workdir: Path) -> Report:
    """Prints the samples; the report holds them with their prompt and checkpoint."""
    if not self.checkpoint:
      raise UserError('no checkpoint was given: pass --checkpoint=RUN, the folder of a trained run')
    loaded = load(self.checkpoint)
    texts = draw_texts(
      *prepare(loaded.model, loaded.params),
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
