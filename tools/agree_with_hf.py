"""Asks a model the same questions through lmjax and through lm-eval's own `hf` backend; extras [eval], [torch].

usage: python tools/agree_with_hf.py CHECKPOINT FOLDER [QUESTIONS=200 [SET,SET...]]. FOLDER gets the export
that transformers reads. Prints how many answers are right, and how many are answered alike.
"""

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault('HF_HUB_OFFLINE', '1')

from lm_eval.models.huggingface import HFLM

from lmjax.data.questions import SETS, chosen_questions
from lmjax.interop.load import load
from lmjax.train import harness
from lmjax.train.export import ExportHf


def main(checkpoint: str, folder: str, count: str = '200', sets: str = ','.join(SETS)) -> None:
  at = Path(folder)
  at.mkdir(parents=True, exist_ok=True)
  ExportHf(checkpoint=checkpoint, output=folder).run(at)
  ours = harness.Adapter(load(checkpoint), lambda *progress: None)
  backend: Any = HFLM  # its signature is hidden by a metaclass
  theirs = backend(pretrained=folder, device='cpu', dtype='float32', batch_size=8)
  for name in sets.split(','):
    questions = chosen_questions(name)[: int(count)]
    found, expected = (harness.ask(model, name, questions).metrics for model in (ours, theirs))
    for metric in found:
      a, b = found[metric], expected[metric]
      print(
        f'{name:16} {metric:10} of {len(a)}: lmjax {a.mean():.4f}, hf {b.mean():.4f}, '
        f'alike {(a == b).mean():.4f}',
        flush=True,
      )


if __name__ == '__main__':
  main(*sys.argv[1:])
