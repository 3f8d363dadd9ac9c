"""lm-eval over our models: its `LM` on our scoring and generation, and its tasks over our assets.

Imported where it is used: lm-eval is in the extra [eval].
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import yaml
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lmjax.data.questions import Question
from lmjax.generate.choices import Pair, score_continuations
from lmjax.generate.engine import generate
from lmjax.generate.prepare import prepare
from lmjax.generate.sampler import Sampler
from lmjax.interop.load import Loaded

_TASKS = Path(__file__).with_name('tasks')
_LENGTH = 2048  # tokens read at most by a model that does not say
_NEW_TOKENS = 256  # where a request does not say
_ROWS = 8  # sequences generated at a time


class Adapter(TemplateLM):
  """A loaded model as lm-eval asks it: text in, log-likelihoods or text out.

  Tokens are the tokenizer's plain encoding: no chat template, control tokens spelled in text are text.

  Args:
    progress: called with what is being done, how much of it is, and how much there is.
  """

  def __init__(self, loaded: Loaded, progress: Callable[[str, int, int], None]) -> None:
    super().__init__()
    self._loaded, self._progress = loaded, progress
    self.max_length = loaded.model.positions or loaded.length or _LENGTH

  @property
  def eot_token_id(self) -> int:
    return self._loaded.tokenizer.end

  @property
  def prefix_token_id(self) -> int:
    return self._loaded.tokenizer.start

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    tokenizer = self._loaded.tokenizer
    before = [] if add_special_tokens is False else tokenizer.before
    return [*before, *tokenizer.encode(string).tolist()]

  def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
    return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

  def _loglikelihood_tokens(
    self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
  ) -> list[tuple[float, bool]]:
    pairs = []
    for _, context, continuation in requests:
      room = max(1, self.max_length + 1 - len(continuation))
      pairs.append(Pair(_ids(context[-room:]), _ids(continuation)))
    show = lambda done: self._progress('continuations', done, len(pairs))
    scores = score_continuations(self._loaded.model, self._loaded.params, pairs, show)
    return list(zip(scores.logprob.tolist(), scores.greedy.tolist(), strict=True))

  def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
    del disable_tqdm
    pairs, owners = [], []
    for owner, request in enumerate(requests):
      tokens = self.tok_encode(request.args[0], add_special_tokens=False)
      windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
      for window in windows:
        context, continuation = make_disjoint_window(window)
        pairs.append(Pair(_ids(context), _ids(continuation)))
        owners.append(owner)
    scores = score_continuations(self._loaded.model, self._loaded.params, pairs)
    return np.bincount(owners, scores.logprob, len(requests)).tolist()

  def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
    del disable_tqdm
    model, params = prepare(self._loaded.model, self._loaded.params)
    tokenizer = self._loaded.tokenizer
    prompts = [_ids(self.tok_encode(request.args[0])) for request in requests]
    texts = [''] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for first in range(0, len(order), _ROWS):
      mine = order[first : first + _ROWS]
      asked = [requests[index].args[1] for index in mine]
      limits = [int(each.get('max_gen_toks', _NEW_TOKENS)) for each in asked]
      sampled = bool(asked[0].get('do_sample'))
      room = max(1, self.max_length - max(limits))
      found = generate(
        model,
        params,
        [prompts[index][-room:] for index in mine],
        sampler=Sampler(temperature=asked[0].get('temperature', 1.0) if sampled else 0.0),
        max_tokens=max(limits),
        end=self._loaded.ends[0],
        vocab=tokenizer.vocab,
        seed=first,
      )
      for index, ids, each, limit in zip(mine, found, asked, limits, strict=True):
        texts[index] = _until(tokenizer.text(_before(ids[:limit], self._loaded.ends)), each)
    return texts


def _ids(tokens: Sequence[int]) -> np.ndarray:
  return np.array(tokens, np.int32)


def _before(ids: np.ndarray, ends: Sequence[int]) -> np.ndarray:
  stops = np.flatnonzero(np.isin(ids, ends))
  return ids[: stops[0]] if len(stops) else ids


def _until(text: str, asked: dict[str, Any]) -> str:
  stops = asked.get('until') or []
  for stop in [stops] if isinstance(stops, str) else stops:
    text = text.partition(stop)[0] if stop else text
  return text


class Answers(NamedTuple):
  """What a model got right of a set: metric -> a number for each question, in their order."""

  ids: list[int]
  metrics: dict[str, np.ndarray]


def ask(model: TemplateLM, name: str, questions: Sequence[Question]) -> Answers:
  """Asks any lm-eval model the questions by the task of that name."""
  logging.getLogger('lm_eval').setLevel(logging.ERROR)  # it warns of what tasks need not say
  task = make_task(name, questions)
  found: Any = evaluate(model, {name: task}, bootstrap_iters=0, log_samples=True)
  samples = sorted(found['samples'][name], key=lambda sample: sample['doc_id'])
  names = [metric['metric'] for metric in task.config.metric_list or []]
  metrics = {name: np.array([float(sample[name]) for sample in samples]) for name in names}
  return Answers([sample['doc']['id'] for sample in samples], metrics)


def make_task(name: str, questions: Sequence[Question]) -> ConfigurableTask:
  """The task of tasks/NAME.yaml on these questions."""
  config = yaml.safe_load((_TASKS / f'{name}.yaml').read_text(encoding='utf-8'))
  rows = datasets.Dataset.from_list([question._asdict() for question in questions])
  return ConfigurableTask(config=config | {'custom_dataset': lambda **_: {'test': rows}})
