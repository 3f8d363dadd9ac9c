"""The task that says how likely a model finds each text of a file."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.core.config import leaf
from lmjax.core.errors import UserError, need
from lmjax.core.storage import at
from lmjax.core.task import Report, Task
from lmjax.generate.score import score
from lmjax.interop.load import CHECKPOINT, load


class Score(Task):
  """Writes the rows of a JSONL file with the log-probability of their texts."""

  checkpoint: str = leaf('', CHECKPOINT)
  texts: str = leaf('', 'A JSONL file whose rows have a text.')
  output: str = leaf('', 'The JSONL file to write: the same rows with tokens and logprob.')

  def run(self, workdir: Path) -> Report:
    """Adds to each row `tokens`, how many its text has, and `logprob`.

    That is the sum of log p, in nats, of the tokenizer's plain encoding after its first token: no chat
    template, and control tokens that are spelled in a text are text.
    """
    need('checkpoint', self.checkpoint, 'RUN, the folder of a trained run')
    need('texts', self.texts, 'FILE.jsonl, rows with a text')
    need('output', self.output, 'FILE.jsonl, the file to write')
    rows = read_rows(at(self.texts))
    loaded = load(self.checkpoint)
    before = np.array(loaded.tokenizer.before, np.int32)
    encoded = loaded.tokenizer.encode_batch([row['text'] for row in rows])
    tokens = [np.concatenate([before, text]) for text in encoded]
    logprobs = score(loaded.model, loaded.params, tokens)
    output = at(self.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open('w', encoding='utf-8') as file:
      for row, ids, logprob in zip(rows, tokens, logprobs.tolist(), strict=True):
        scored = row | {'tokens': len(ids), 'logprob': logprob}
        file.write(json.dumps(scored, ensure_ascii=False) + '\n')
    print(f'{len(rows):,} texts scored, written to {output}')
    return {
      'checkpoint': {'path': str(loaded.path), 'step': loaded.step},
      'texts': len(rows),
      'tokens': sum(map(len, tokens)),
      'logprob': float(logprobs.sum()),
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
  """The rows of a JSONL file; UserError at the first that has no text."""
  try:
    lines = path.read_text(encoding='utf-8').split('\n')
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'--texts={path} cannot be read: {error}: pass a JSONL file in UTF-8') from None
  rows = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      good = isinstance(row['text'], str)
    except (ValueError, KeyError, TypeError):
      good = False
    if not good:
      raise UserError(
        f'--texts={path}: line {number} is not a JSON object with a text: write it as '
        '{"text": "..."}'
      )
    rows.append(row)
  return rows
