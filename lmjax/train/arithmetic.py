"""Sums to train on: a base that has read text with sums, and GRPO with rewards that can be checked."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.core.assets import cache_folder
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError
from lmjax.core.task import Report
from lmjax.core.types import Batch, Params
from lmjax.data import arithmetic, chat
from lmjax.data.arithmetic import Sum
from lmjax.data.loader import Rows
from lmjax.data.sources import Posts
from lmjax.generate.engine import generate
from lmjax.generate.sampler import Sampler
from lmjax.models.transformer import Decoder
from lmjax.objectives import rewards
from lmjax.objectives.policy import Policy, Rollouts
from lmjax.ops.loss import logprobs
from lmjax.parallel.accelerator import Preset
from lmjax.train.evaluation_page import page
from lmjax.train.pretrain import Pretrain, Pretraining
from lmjax.train.state import TrainState
from lmjax.train.tune import Tune, Tuning

_GREEDY = Sampler(temperature=0.0)
_SHOWN = 4  # rollouts of a step that are written
_ROLLOUTS = 'rollouts.jsonl'
_BUCKET = 16  # lengths of rows are multiples of it


class ArithmeticBase(Pretrain):
  """Pretrains on text in which people add, and ask, and mostly get no answer: see data/arithmetic.py."""

  corpus_posts: int = leaf(20_000, 'Posts of the text; 0: those of --posts instead.', low=0)

  def open(self, mesh: jax.sharding.Mesh, preset: Preset) -> Pretraining:
    return Pretraining(self.with_corpus(), mesh, preset)

  def with_corpus(self) -> Self:
    """This task on its text, a file of the cache that is written the first time."""
    if not self.corpus_posts:
      return self
    text = arithmetic.lines(self.corpus_posts, self.seed).encode()
    path = cache_folder() / 'arithmetic' / f'{hashlib.sha256(text).hexdigest()[:16]}.jsonl'
    if not path.exists():
      path.parent.mkdir(parents=True, exist_ok=True)
      draft = path.with_suffix('.draft')
      draft.write_bytes(text)
      draft.replace(path)
    return dataclasses.replace(self, source=Posts(posts=str(path)))


class Grpo(Tune):
  """Asks a model for sums and has it learn from which of its answers were right."""

  group: int = leaf(16, 'Answers to each question; batch is questions x group.', low=2)
  max_tokens: int = leaf(8, 'Tokens of an answer at most.', low=1)
  sampler: Sampler = part(Sampler(temperature=1.0), 'How tokens of answers are drawn.')
  objective: Policy = part(Policy(), 'What it is trained for.')
  reward: Literal['exact_match', 'last_number'] = leaf('exact_match', 'What answer is right.')
  advantages: Literal['rewards', 'zero'] = leaf(
    'rewards', 'zero: as if all answers were as good, to see what rewards do.'
  )
  evaluate_questions: int = leaf(500, 'Held-out questions of an evaluation.', low=1, run=True)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.batch % self.group:
      fewer = max(1, self.batch // self.group) * self.group
      raise UserError(
        f'batch={self.batch} is not a multiple of group={self.group}: the nearest are {fewer} and '
        f'{(self.batch // self.group + 1) * self.group}'
      )
    if self.mesh.devices != 1:
      raise UserError('answers are drawn on one device so far: leave --mesh.* at 1')

  def open(self, mesh: jax.sharding.Mesh, preset: Preset) -> 'Reinforcing':
    return Reinforcing(self, mesh, preset)


class Reinforcing(Tuning):
  """Questions, answers drawn from the weights of the step, and their rewards."""

  task: Grpo
  _log: Path  # where rollouts are written

  def __init__(self, task: Grpo, mesh: jax.sharding.Mesh, preset: Preset) -> None:
    super().__init__(task, mesh, preset)
    self.objective = task.objective
    self._questions, self._held_out = arithmetic.sums('train'), arithmetic.sums('held_out')
    longest = Sum(arithmetic.FIRST - 1, arithmetic.SECOND - 1)
    self._longest = len(self._prompt(longest))
    read = lambda rows: np.array(rows, np.int32)
    questions = task.batch // task.group
    self.source = Rows(read, len(self._questions), batch=questions, length=None, seed=task.seed)
    self._reward = getattr(rewards, task.reward)
    # Copied, since the first step takes those that training begins with.
    copied = lambda: jax.tree.map(jnp.copy, self._params)
    self._reference = copied() if self.adapter is None else self.frozen
    self._score = jax.jit(functools.partial(_score, self.model))

  @property
  def width(self) -> int:
    """Positions of a row: the longest question, and an answer."""
    return -(-(self._longest + self.task.max_tokens) // _BUCKET) * _BUCKET

  @property
  def flops_per_token(self) -> float:
    return self.model.flops_per_token(self.width)

  def _prompt(self, asked: Sum) -> np.ndarray:
    if self.chat_template is not None:
      turn = [{'role': 'user', 'content': asked.question}]
      return chat.encode(self.chat_template, turn, self.tokenizer, answer=True)
    start = np.array([self.tokenizer.start], np.int32)
    return np.concatenate([start, self.tokenizer.encode(asked.question)])

  def abstract(self, batch: Any) -> Any:
    del batch
    rows, L = self.task.batch, self.width
    ints, floats = (jax.ShapeDtypeStruct((rows, L), dtype) for dtype in (np.int32, np.float32))
    fields: Any = {'weights_BL': floats}
    fields |= dict.fromkeys(('tokens_BL', 'targets_BL', 'segments_BL', 'positions_BL'), ints)
    one = jax.ShapeDtypeStruct((rows,), np.float32)
    scored: Any = {'drawn_BL': floats, 'reference_BL': floats}
    scored |= dict.fromkeys(('rewards_B', 'advantages_B'), one)
    return Rollouts(batch=Batch(**fields), **scored)

  def complete(self, state: TrainState, batch: Any) -> Rollouts:
    """Answers to the questions of a step, drawn, rewarded and scored."""
    step = int(state.step)
    asked = [self._questions[row] for row in np.asarray(batch) for _ in range(self.task.group)]
    params = self.merged(state)
    answers = self._draw(params, asked, self.task.sampler, self.task.seed * 1_000_003 + step)
    said = [self._text(answer) for answer in answers]
    given = [self._reward(text, each.answer) for text, each in zip(said, asked, strict=True)]
    advantages_PG = self.objective.advantages(np.array(given).reshape(-1, self.task.group))
    if self.task.advantages == 'zero':
      advantages_PG = np.zeros_like(advantages_PG)
    self._write(step + 1, asked, said, given, advantages_PG.reshape(-1))
    packed = self._pack(asked, answers)
    return Rollouts(
      batch=packed,
      rewards_B=jnp.asarray(given, jnp.float32),
      advantages_B=jnp.asarray(advantages_PG.reshape(-1)),
      drawn_BL=self._score(params, packed),
      reference_BL=self._score(self._reference, packed),
    )  # type: ignore[arg-type]

  def _write(self, step: int, asked, said, given, advantages) -> None:
    """Some rollouts of the step as a line of rollouts.jsonl."""
    size = len(asked)
    rows = [
      {
        'question': asked[row].question,
        'answer': said[row],
        'reward': given[row],
        'advantage': float(advantages[row]),
      }
      for row in range(0, size, max(1, size // _SHOWN))
    ]
    with self._log.open('a', encoding='utf-8') as file:
      file.write(json.dumps({'step': step, 'rollouts': rows}, ensure_ascii=False) + '\n')

  def _draw(
    self, params: Params, asked: Sequence[Sum], sampler: Sampler, seed: int
  ) -> list[np.ndarray]:
    """Answers as token ids, each with its end where it came to it."""
    new = generate(
      self.model,
      params,
      [self._prompt(each) for each in asked],
      sampler=sampler,
      max_tokens=self.task.max_tokens,
      end=self.ends[0],
      vocab=self.tokenizer.vocab,
      seed=seed,
    )
    end = np.array([self.ends[0]], np.int32)
    room = self.task.max_tokens
    return [np.concatenate([ids, end]) if len(ids) < room else ids for ids in new]

  def _text(self, answer: np.ndarray) -> str:
    return self.tokenizer.text(answer[answer != self.ends[0]])

  def _pack(self, asked: Sequence[Sum], answers: Sequence[np.ndarray]) -> Batch:
    """A row for each question with its answer, whose tokens have weight 1."""
    shape = (len(asked), self.width)
    tokens, targets, segments = np.zeros((3, *shape), np.int32)
    weights = np.zeros(shape, np.float32)
    for row, (each, answer) in enumerate(zip(asked, answers, strict=True)):
      prompt = self._prompt(each)
      whole = np.concatenate([prompt, answer])
      stop = len(whole) - 1
      tokens[row, :stop], targets[row, :stop], segments[row, :stop] = whole[:-1], whole[1:], 1
      weights[row, len(prompt) - 1 : stop] = 1.0
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    fields: Any = {'tokens_BL': tokens, 'targets_BL': targets, 'weights_BL': weights}
    return Batch(**fields, segments_BL=jnp.asarray(segments), positions_BL=jnp.asarray(positions))

  def lines(self, job: Any) -> list[str]:
    self._log = job.workdir / _ROLLOUTS
    each = f'{self.source.batch_rows} questions x {self.task.group} answers a step'
    held = f'{len(self._questions):,} sums, {len(self._held_out):,} held out'
    return [*super().lines(job), f'rollouts    {each}, of {held}']

  def conclude(self, job: Any, state: TrainState, step: int) -> Report:
    report = super().conclude(job, state, step)
    if report:
      (job.workdir / 'evaluation.html').write_text(page(report), encoding='utf-8')
    return report

  def measure(self, state: TrainState) -> dict[str, float]:
    """Of held-out pairs: how many answers are right, the likeliest ones and drawn ones."""
    asked = self._held_out[: self.task.evaluate_questions]
    params = self.merged(state)
    found = {}
    for name, sampler in (('exact_match', _GREEDY), ('exact_match_drawn', self.task.sampler)):
      answers = self._draw(params, asked, sampler, self.task.seed)
      right = [
        rewards.exact_match(self._text(answer), each.answer)
        for answer, each in zip(answers, asked, strict=True)
      ]
      found[name] = float(np.mean(right))
    return found


def _score(model: Decoder, params: Params, batch: Batch) -> jax.Array:
  """f32 log p of every target, nats [B, L]."""
  output = model.apply(params, batch.tokens_BL, batch.segments_BL, batch.positions_BL)
  head = model.head_params(params)
  return logprobs(model.logits, head, output.hidden_BLD, batch.targets_BL, chunk=_BUCKET)[0]
