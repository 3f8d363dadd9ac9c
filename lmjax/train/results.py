"""The end of a run: what every report says of it, and of one on posts the held-out figure beside its baselines."""

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.core import tree
from lmjax.core.clock import peak_flops
from lmjax.core.storage import origin
from lmjax.core.task import Report
from lmjax.data.shards import Shards
from lmjax.data.tokenizer import Tokenizer
from lmjax.parallel import hosts
from lmjax.train.baselines import Posts, baselines
from lmjax.train.header import expert_padding, pipeline_report
from lmjax.train.sample import draw_texts
from lmjax.train.state import TrainState

if TYPE_CHECKING:
  from lmjax.train.job import Job
  from lmjax.train.pretrain import Pretraining
  from lmjax.train.training import Training

_SAMPLE_TOKENS = 120
# LZMA takes about a second a megabyte: of a larger corpus the baselines see this much.
_BASELINE_BYTES = 32 << 20
_LAST_SECONDS = 3600.0  # that the other processes wait for the baselines


def finished_report(task: 'Training', workdir: Path) -> Report | None:
  """The report of a run that has come as far as it is asked to, shown, or None.

  Of several processes the first has it, the others an empty one.
  """
  path = workdir / 'report.json'
  report = {}
  if hosts.is_leader() and path.exists():
    report = json.loads(path.read_text(encoding='utf-8'))
  finished = report.get('steps', -1) >= task.last_step
  if not hosts.share('finished', 'yes' if finished else '')[0]:
    return None
  if report:
    closing = task.closing_text(report, origin(workdir))
    print(f'This run is finished, at step {report["steps"]:,}.\n{closing}')
  return report


def run_report(job: 'Job', state: TrainState, step: int) -> Report:
  """What the report of every run says: size, steps, loss, speed, data and where the checkpoint is.

  Closes the job. All processes must call; of several, the first alone has the report, and the
  others, which wait until it has come here too, an empty one.
  """
  sha256 = tree.sha256(tree.stack(state.params))
  hosts.barrier('report', _LAST_SECONDS)
  if not hosts.is_leader():
    return {}
  job.close()
  metrics = _read_metrics(job.workdir / 'metrics.jsonl')
  return {
    'params': tree.count(state.params),
    'steps': step,
    'tokens': int(sum(line['tokens'] for line in metrics)),
    'loss': metrics[-1]['loss'],
    'skipped': metrics[-1]['skipped'],
    **_timing(job, metrics),
    'data': job.work.data,
    'checkpoint': {'path': str(origin(job.workdir) / 'checkpoints' / str(step)), 'step': step},
    'parameters_sha256': sha256,
  }


def conclude(work: 'Pretraining', job: 'Job', state: TrainState, step: int) -> Report:
  """Evaluates on all held-out posts, generates, and shows and returns what the report holds."""
  task, tokenizer = work.task, work.tokenizer
  trained = job.ledger.summary()['wall']
  posts = list(itertools.islice(work.held_out(), task.final_posts))
  with job.ledger.measure('evaluation'):
    hosts.say('evaluating on all held-out posts ...')
    bits = work.evaluator.bits_per_byte(state.params, posts)
    bits_without_urls = work.evaluator.bits_per_byte_without_urls(state.params, posts)
    samples = (
      draw_texts(
        work.model,
        state.params,
        tokenizer,
        prompts=[''] * task.samples,
        sampler=task.sampler,
        max_tokens=_SAMPLE_TOKENS,
        seed=task.seed,
      )
      if task.samples
      else []
    )
    base = _baselines(work, posts) if hosts.is_leader() and task.baselines else {}
  report = run_report(job, state, step)
  if not report:
    return report
  report |= {
    'trained_seconds': trained,
    'evaluated_posts': len(posts),
    'bits_per_byte': bits,
    'bits_per_byte_without_urls': bits_without_urls,
    **base,
    'rows': _total_rows(work.shards),
    'samples': samples,
    'pipeline': pipeline_report(job),
    'expert_padding_bytes': expert_padding(job),
  }
  print(closing_text(report, origin(job.workdir)))
  return report


def _baselines(work: 'Pretraining', held_out: list[np.ndarray]) -> Report:
  """What simpler models reach on `held_out`, of the training posts that they see."""
  hosts.say('computing the baselines ...')
  train = _baseline_posts(work.posts('train'), work.tokenizer, _BASELINE_BYTES)
  test = _baseline_posts(held_out, work.tokenizer)
  return {
    'baseline_train_bytes': sum(map(len, train.texts)),
    'baseline_bits_per_byte': baselines(train, test, work.tokenizer.vocab),
  }


def _timing(job: 'Job', metrics: list[dict[str, Any]]) -> Report:
  """Speeds over the time spent training: computing, waiting for data and saving."""
  ledger = job.ledger.summary()
  seconds = ledger['compute'] + ledger['data'] + ledger['checkpoint']
  tokens = sum(line['tokens'] for line in metrics)
  return {
    'train_seconds': seconds,
    'tokens_per_second': tokens / seconds,
    'mfu': tokens / seconds * job.work.flops_per_token / peak_flops(job.model.dtype)[0],
    'data_wait_fraction': ledger['data'] / seconds,
    'first_loss_seconds': job.first_loss.seconds,
    'seconds': ledger['wall'],
    'ledger': ledger,
  }


def _read_metrics(path: Path) -> list[dict[str, Any]]:
  with path.open(encoding='utf-8') as lines:
    return [json.loads(line) for line in lines]


def _baseline_posts(
  posts: Iterable[np.ndarray], tokenizer: Tokenizer, budget_bytes: float = math.inf
) -> Posts:
  """Posts as the baselines take them, until their texts reach the budget."""
  tokens, texts, size = [], [], 0
  for post in posts:
    tokens.append(post)
    texts.append(tokenizer.decode(post))
    size += len(texts[-1])
    if size >= budget_bytes:
      break
  lengths = np.array([len(post) for post in tokens], np.int64)
  return Posts(np.concatenate(tokens).astype(np.int64), lengths, texts)


def _total_rows(shards: list[Shards]) -> dict[str, Any]:
  """Row counts of all sources together."""
  rows = [one.manifest['rows'] for one in shards]
  total = {key: sum(one[key] for one in rows) for key in ('in', 'used', 'held_out')}
  reasons = sorted({reason for one in rows for reason in one['dropped']})
  return total | {'dropped': {r: sum(one['dropped'].get(r, 0) for one in rows) for r in reasons}}


def closing_text(report: Report, workdir: Path) -> str:
  """The table, the samples, where everything is, and what to try next."""
  base = report.get('baseline_bits_per_byte', {})
  names = {'kneser_ney': 'Kneser-Ney 5-gram', 'lzma': 'LZMA', 'order0': 'order-0'}
  rows = [
    ('this model', report['bits_per_byte']),
    *((name, base[key]) for key, name in names.items() if key in base),
  ]
  run = 'python -m lmjax.main --experiment='
  lines = [
    '',
    f'held-out posts           bits per byte   ({report["evaluated_posts"]:,} posts)',
    *(f'  {name:22} {bits:13.3f}' for name, bits in rows),
    f'  {"this model, no URLs":22} {report["bits_per_byte_without_urls"]:13.3f}',
    '',
    f'{report["steps"]:,} steps, {report["tokens"]:,} tokens in {report["train_seconds"]:.0f} s of '
    f'training: {report["tokens_per_second"]:,.0f} tokens/s, MFU {report["mfu"]:.1%}',
    '',
    'generated:',
    *(f'  - {" ".join(text.split())}' for text in report['samples']),
    '',
    f'written to {workdir}: report.json, metrics.jsonl, tensorboard/, checkpoints/, config.json, '
    'tokenizer.json',
    'next:',
    f'  {run}posts_sample --checkpoint={workdir} --prompt="New study"',
    f'  {run}posts_tiny --posts="FILES" --workdir=runs/mine',
    f'  {run}posts_moe_tiny',
  ]
  return '\n'.join(lines)
