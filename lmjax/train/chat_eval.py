"""The task that measures a language model or an assistant, alone or beside another on the same items."""

import importlib.util
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError, nearest, need
from lmjax.core.outside import find_function
from lmjax.core.storage import at
from lmjax.core.task import Report, Task
from lmjax.data import questions
from lmjax.generate.sampler import Sampler
from lmjax.generate.score import score
from lmjax.interop.load import CHECKPOINT, Loaded, load
from lmjax.train.answers import answer_all, read_prompts
from lmjax.train.bootstrap import Items, of_values, paired_bootstrap
from lmjax.train.evaluation_page import page
from lmjax.train.judge import win_items
from lmjax.train.score import read_rows

Measured = dict[str, Items]
TOXIC = 0.5  # a classifier's number from which on a text counts as toxic


class ChatEval(Task):
  """Asks questions through lm-eval, scores texts, and judges what a model writes."""

  checkpoint: str = leaf('', CHECKPOINT)
  against: str = leaf('', 'Another, measured on the same items: what --checkpoint was before, say.')
  tasks: tuple[str, ...] = leaf(questions.SETS, 'Question sets to ask; empty = none.')
  limit: int | None = leaf(None, 'The first questions of each set alone; none: 1,000.', low=1)
  texts: str = leaf('', 'A JSONL file whose rows have a text, for bits per byte.')
  prompts: str = leaf('', 'A JSONL file of texts to answer; empty = the asset toxicity-prompts.')
  answers: int = leaf(200, 'Prompts to answer at most, for --toxicity and --judge.', low=1)
  toxicity: str = leaf(
    '', 'MODULE:FUNCTION, texts -> numbers from 0 to 1, as lmjax.ads.review:toxicity.'
  )
  judge: str = leaf('', 'MODULE:FUNCTION or a command that says which of two answers is better.')
  max_tokens: int = leaf(64, 'Tokens of an answer at most.', low=1)
  seed: int = leaf(0, 'Of answers, of the order a judge sees, and of bootstraps.', low=0)
  rounds: int = leaf(2000, 'Draws of the bootstrap.', low=100)
  sampler: Sampler = part(Sampler(), 'How tokens of answers are drawn.')

  def __post_init__(self) -> None:
    super().__post_init__()
    for name in self.tasks:
      if name not in questions.SETS:
        raise UserError(f'tasks={name}: there is no such set: {nearest(name, questions.SETS)}')

  def run(self, workdir: Path) -> Report:
    """Prints a table and writes evaluation.html.

    The report has `after`, metric -> value of the checkpoint; with --against also `before`, the same of
    that one, and `differences`: after - before, its 95% interval and p by paired bootstrap.
    """
    need('checkpoint', self.checkpoint, 'RUN, the folder of a trained run')
    self._check()
    texts = [row['text'] for row in read_rows(at(self.texts))] if self.texts else []
    sides = {'before': self.against} if self.against else {}
    found, answers, where = {}, {}, {}
    for side, checkpoint in (sides | {'after': self.checkpoint}).items():
      print(f'measuring {checkpoint} ...', flush=True)
      start, loaded = time.perf_counter(), load(checkpoint)
      found[side] = self._measure(loaded, texts)
      answers[side] = self._answers(loaded)
      found[side] |= self._toxicity(answers[side])
      seconds = time.perf_counter() - start
      where[side] = {'path': str(loaded.path), 'step': loaded.step, 'seconds': seconds}
    prompts = self._prompts() if any(answers.values()) else []
    report = self._report(found, where, prompts, answers)
    (workdir / 'evaluation.html').write_text(page(report), encoding='utf-8')
    print(f'{_table(report)}\nwritten to {workdir / "evaluation.html"}')
    return report

  def _check(self) -> None:
    """What is wrong with the flags, before any model is loaded."""
    if not (self.tasks or self.texts or self.toxicity or self.judge):
      raise UserError('nothing to measure: pass --tasks, --texts, --toxicity or --judge')
    if self.judge and not self.against:
      raise UserError('--judge compares answers of two models: pass --against=CHECKPOINT too')
    if self.tasks and importlib.util.find_spec('lm_eval') is None:
      raise UserError("--tasks need lm-eval: pip install 'lmjax[eval]', or pass --tasks= for none")
    if self.toxicity:
      find_function('toxicity', self.toxicity)

  def _measure(self, loaded: Loaded, texts: Sequence[str]) -> Measured:
    found: Measured = {}
    if self.tasks:
      from lmjax.train import harness

      adapter = harness.Adapter(loaded, _show)
      for name in self.tasks:
        chosen = questions.chosen_questions(name)[: self.limit]
        print(f'{name}: {len(chosen):,} questions', flush=True)
        metrics = harness.ask(adapter, name, chosen).metrics
        found |= {f'{name}/{metric}': of_values(values) for metric, values in metrics.items()}
    if texts:
      found['bits_per_byte'] = bits_per_byte(loaded, texts)
    return found

  def _prompts(self) -> list[str]:
    return read_prompts(self.prompts)[: self.answers]

  def _answers(self, loaded: Loaded) -> list[str]:
    if not (self.toxicity or self.judge):
      return []
    return answer_all(
      loaded, self._prompts(), sampler=self.sampler, max_tokens=self.max_tokens, seed=self.seed
    )

  def _toxicity(self, answers: Sequence[str]) -> Measured:
    if not self.toxicity:
      return {}
    given = find_function('toxicity', self.toxicity)(list(answers))
    scores = np.array([float(number) for number in given])
    if scores.shape != (len(answers),) or not ((scores >= 0) & (scores <= 1)).all():
      raise UserError(
        f'--toxicity={self.toxicity} gave {len(scores)} numbers for {len(answers)} texts: return one '
        'from 0 to 1 for each'
      )
    return {'toxicity': of_values(scores), 'toxic_share': of_values(scores >= TOXIC)}

  def _report(
    self, found: dict[str, Measured], where: dict, prompts: Sequence[str], answers: dict
  ) -> Report:
    """The report's part of this task."""
    values = {side: {n: items.mean for n, items in each.items()} for side, each in found.items()}
    how: dict[str, Any] = {'rounds': self.rounds, 'seed': self.seed}
    differences = {}
    if self.against:
      for name, after in found['after'].items():
        difference = paired_bootstrap(found['before'][name], after, **how)
        differences[name] = difference._asdict()
    if self.judge:
      items = win_items(self.judge, prompts, answers['before'], answers['after'], self.seed)
      chance = of_values(np.full(len(prompts), 0.5))
      values['before']['win_rate'], values['after']['win_rate'] = 1 - items.mean, items.mean
      # What the other side loses is won: the interval is that of the rate less one half.
      differences['win_rate'] = paired_bootstrap(chance, items, **how)._asdict()
    samples = [
      {'prompt': prompt} | {side: texts[number] for side, texts in answers.items() if texts}
      for number, prompt in enumerate(prompts)
    ]
    counts = {name: len(items.values) for name, items in found['after'].items()}
    return {
      'checkpoints': where,
      'before': values.get('before', {}),
      'after': values['after'],
      'differences': differences,
      'items': counts,
      'samples': samples,
    }


def bits_per_byte(loaded: Loaded, texts: Sequence[str]) -> Items:
  """Bits and bytes of each text: -log2 p of its tokens and end, given the start token."""
  tokenizer = loaded.tokenizer
  ends = np.array([tokenizer.start], np.int32), np.array([tokenizer.end], np.int32)
  tokens = [np.concatenate([ends[0], ids, ends[1]]) for ids in tokenizer.encode_batch(texts)]
  nats = -score(loaded.model, loaded.params, tokens)
  return Items(nats / math.log(2), np.array([float(len(text.encode())) for text in texts]))


def _show(what: str, done: int, total: int) -> None:
  """A line that is written over while there is somebody to read it."""
  if sys.stdout.isatty():
    print(f'\r  {what} {done:,}/{total:,}', end='\n' if done == total else '', flush=True)


def _table(report: Report) -> str:
  before, differences = report['before'], report['differences']
  lines = ['', f'{"":28} {"before":>9} {"after":>9}   difference (95%)']
  for name, after in report['after'].items():
    line = f'{name:28} {before[name]:9.4f}' if name in before else f'{name:28} {"":9}'
    line += f' {after:9.4f}'
    if name in differences:
      d = differences[name]
      line += f'   {d["difference"]:+.4f} ({d["low"]:+.4f} to {d["high"]:+.4f}), p {d["p"]:.3f}'
    lines.append(line)
  return '\n'.join(lines)
