"""What every task that goes on from a trained model has: where it begins, and what of it is trained."""

import dataclasses
import functools
import json
import resource
from pathlib import Path
from typing import Any, Literal

import jax
import optax

from lmjax.adapt.lora import Adapter, Lora
from lmjax.core import tree
from lmjax.core.config import Config, leaf, part, to_json
from lmjax.core.errors import UserError
from lmjax.core.storage import origin
from lmjax.core.task import Report, write_json
from lmjax.core.types import Params
from lmjax.data import chat
from lmjax.generate.engine import generate
from lmjax.generate.prepare import prepare
from lmjax.generate.sampler import Sampler
from lmjax.interop.load import CHECKPOINT, load, locate
from lmjax.models.transformer import Decoder
from lmjax.parallel import hosts
from lmjax.parallel.accelerator import Preset
from lmjax.train import results
from lmjax.train.header import decoder_lines
from lmjax.train.state import TrainState, state_of, state_shardings
from lmjax.train.training import Training
from lmjax.train.work import Work, suited

_BEFORE = 'before.json'


class Base(Config):
  """The model that training begins from."""

  checkpoint: str = leaf('smollm2-135m-instruct', CHECKPOINT)


class Tune(Training):
  """Base of the tasks that go on from a trained model: all of its weights, or LoRA beside them."""

  base: Base = part(Base(), 'The model to begin from.', inline=True)
  lora: Lora | None = part(Lora(), 'Train terms of low rank beside its matrices; none: all of it.')
  base_weights: Literal['float32', 'int8'] = leaf(
    'float32', "What LoRA keeps the model's matrices in."
  )
  length: int = leaf(256, 'Positions of a row, in tokens.', low=2)
  layout: Literal['scan', 'list'] = leaf(
    'scan', 'Compile one block and scan it, or every block.', run=True
  )
  remat: Literal['none', 'dots', 'full', 'offload'] = leaf(
    'dots', 'What the backward pass computes again: see model.remat of pretraining.', run=True
  )
  prompts: tuple[str, ...] = leaf((), 'What the model answers before and after.', run=True)
  answer_tokens: int = leaf(60, 'Of such an answer at most.', low=1, run=True)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.lora is None and self.base_weights == 'int8':
      raise UserError('base_weights=int8 cannot be trained: pass --lora=on, or drop it')

  def closing_text(self, report: Report, workdir: Path) -> str:
    """Before and after, figures and answers."""
    before, after = report['before'], report['after']
    lines = ['', f'{"":34}{"before":>10}{"after":>10}']
    lines += [f'  {name:32}{before[name]:10.3f}{after[name]:10.3f}' for name in after]
    for answer in report['answers']:
      lines += ['', f'> {answer["prompt"]}']
      lines += [f'  {when}: {" ".join(answer[when].split())}' for when in ('before', 'after')]
    return '\n'.join(
      [
        *lines,
        '',
        f'{report["steps"]:,} steps of {report["trainable_params"]:,} parameters in '
        f'{report["train_seconds"]:.0f} s; at most {report["peak_rss_gib"]:.1f} GiB',
        f'written to {workdir}; pass it as --checkpoint',
      ]
    )


class Tuning(Work):
  """A trained model to go on from.

  Attributes:
    task: the configuration.
    adapter: what is trained beside the model, or None where it is the model.
    rewards: whether it learns to reward, and no longer to speak.
  """

  rewards = False

  def __init__(self, task: Tune, mesh: jax.sharding.Mesh, preset: Preset) -> None:
    self.task, self._mesh = task, mesh
    base = load(task.base.checkpoint, mesh)
    self._asked = base.model.dtype
    self.tokenizer, self.ends = base.tokenizer, base.ends
    self.chat_template = base.chat_template
    model = dataclasses.replace(base.model, layout=task.layout, remat=task.remat)
    self.model = suited(model, preset)
    relay = tree.stack if task.layout == 'scan' else tree.unstack
    params = relay(base.params)
    sha256 = tree.sha256(tree.stack(params))
    self.adapter = None if task.lora is None else Adapter(self.model, task.lora)
    if self.adapter is None:
      self._params = params
    else:
      packs = task.base_weights == 'int8'
      self.frozen = self.adapter.to_int8(params) if packs else params
    self.data = [sha256]
    self.files = self._files(base.model, base.length, sha256)

  def _files(self, model: Decoder, length: int | None, sha256: str) -> dict[str, bytes]:
    """What `interop.load` finds a tuned model by."""
    said = {
      'model': to_json(model),
      'rewards': self.rewards,
      'chat_template': self.chat_template,
      'ends': list(self.ends),
      'length': length,
      'base': {'checkpoint': _lasting(self.task.base.checkpoint), 'sha256': sha256},
      'base_weights': self.task.base_weights,
      'lora': None if self.task.lora is None else to_json(self.task.lora),
    }
    tokenizer = self.tokenizer.to_json().encode()
    return {'model.json': json.dumps(said).encode(), 'tokenizer.json': tokenizer}

  @property
  def trained(self) -> Any:
    return self.model if self.adapter is None else self.adapter

  def begin(
    self, tx: optax.GradientTransformation, seed: int, mesh: jax.sharding.Mesh
  ) -> TrainState:
    if self.adapter is not None:
      return super().begin(tx, seed, mesh)
    start = lambda params: state_of(params, tx, seed)
    layout = state_shardings(self.model, tx, mesh)
    state = jax.jit(start, out_shardings=layout, donate_argnums=0)(self._params)
    del self._params
    return state

  def begun(self, state: TrainState, workdir: Path) -> None:
    hosts.say('evaluating before the first step ...')
    metrics, answers = self.measure(state), self.answers(state)
    if hosts.is_leader():
      write_json(workdir / _BEFORE, {'metrics': metrics, 'answers': answers})

  def assemble(self, params: Params, frozen: Any) -> Any:
    return params if self.adapter is None else self.adapter.attach(frozen, params)

  def whole(self, state: TrainState) -> Params:
    """The model's parameters as they are trained, for it to compute with."""
    return self.assemble(state.params, state.frozen)

  def merged(self, state: TrainState) -> Params:
    """The same with every term added up."""
    if self.adapter is None:
      return state.params
    return jax.jit(self.adapter.merge)(state.frozen, state.params)

  def lines(self, job: Any) -> list[str]:
    size, trained = tree.count(self.model.shapes()), tree.count(self.trained.shapes())
    part = '' if trained == size else f', {trained:,} are trained beside them'
    return [
      *decoder_lines(job, self._asked),
      f'model       {size:,} parameters of {self.task.base.checkpoint}{part}',
    ]

  @property
  def template(self) -> str:
    """The chat template; UserError of a model without one."""
    if self.chat_template is None:
      raise UserError(
        f'--checkpoint={self.task.base.checkpoint} has no chat template: pass a model that was taught '
        'to chat'
      )
    return self.chat_template

  def measure(self, state: TrainState) -> dict[str, float]:
    """What is reported as `before` and `after`."""
    raise NotImplementedError

  def evaluate(self, state: TrainState) -> dict[str, float]:
    return {f'held_out/{name}': value for name, value in self.measure(state).items()}

  def answers(self, state: TrainState) -> list[str]:
    """What the model answers to the prompts of the task, taking the likeliest token each time."""
    if not self.task.prompts or self.chat_template is None:
      return []
    ask = functools.partial(chat.encode, self.chat_template, tokenizer=self.tokenizer, answer=True)
    prompts = [ask([{'role': 'user', 'content': prompt}]) for prompt in self.task.prompts]
    model, params = prepare(self.model, self.merged(state))
    new = generate(
      model,
      params,
      prompts,
      sampler=Sampler(temperature=0.0),
      max_tokens=self.task.answer_tokens,
      end=self.ends[0],
      vocab=self.tokenizer.vocab,
      seed=0,
    )
    return [self.tokenizer.text(tokens) for tokens in new]

  def conclude(self, job: Any, state: TrainState, step: int) -> Report:
    with job.ledger.measure('evaluation'):
      hosts.say('evaluating ...')
      after, answers = self.measure(state), self.answers(state)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    report = results.run_report(job, state, step)
    if not report:
      return report
    before = json.loads((job.workdir / _BEFORE).read_text(encoding='utf-8'))
    said = zip(self.task.prompts, before['answers'], answers, strict=False)
    report |= {
      'before': before['metrics'],
      'after': after,
      'trainable_params': tree.count(state.params),
      'peak_rss_gib': peak,
      'base': {'checkpoint': self.task.base.checkpoint, 'sha256': self.data[0]},
      'answers': [{'prompt': p, 'before': b, 'after': a} for p, b, a in said],
    }
    print(self.task.closing_text(report, origin(job.workdir)))
    return report


def _lasting(checkpoint: str) -> str:
  """`checkpoint` as it is found from other folders too."""
  path = locate(checkpoint)
  return checkpoint if not Path(checkpoint).exists() else str(path.absolute())
