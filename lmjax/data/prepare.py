"""From posts to tokenised shards in the cache: read, split, train a tokenizer, tokenise. Once.

A prepared corpus lies under the hash of what it is made from, and is complete or not there: it is
built in a draft folder and renamed. Knows nothing about rows, packing or batches.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lmjax.core.assets import cache_folder
from lmjax.core.config import to_json
from lmjax.core.errors import UserError
from lmjax.data.shards import SCHEMA, Shards, is_complete, open_shards, write_manifest, write_part
from lmjax.data.sources import Posts, Rows
from lmjax.data.split import PARTS, Corpus, Split, collect
from lmjax.data.tokenizer import WORDS, Tokenizer, TokenizerConfig, train

# The tokenizer is trained on this much at most: the first posts of each source, which are a random
# sample of it. Merges that a larger sample would add are too rare to matter.
SAMPLE_BYTES = 96 << 20

Progress = Callable[[str, int, int], None]
"""Called now and then with (what is being done, items done, items in all or 0 if unknown)."""

T = TypeVar('T')


def prepare(
  posts: Posts, split: Split, tokenizer: TokenizerConfig, *, progress: Progress | None = None
) -> Shards:
  """The tokenised shards of one source; see `prepare_all`."""
  return prepare_all([posts], split, tokenizer, progress=progress)[0]


def prepare_all(
  sources: Sequence[Posts],
  split: Split,
  tokenizer: TokenizerConfig,
  *,
  progress: Progress | None = None,
) -> list[Shards]:
  """The tokenised shards of each source, under one tokenizer for all; built once, then opened.

  A source that is the `manifest.json` of a prepared corpus, also on s3:// or gs://, is opened as it
  is, with its own split and its tokenizer. Else a tokenizer that is not loaded from a file is trained
  on the training posts of all sources. Of several processes that want the same shards one builds them and the others wait. A process that
  is killed leaves nothing that would be taken for a corpus.

  Raises:
    UserError: a source cannot be read or has too few posts, corpora have different tokenizers, or the
      cache is not writable.
  """
  opened = {posts: open_shards(posts.corpus) for posts in sources if posts.corpus}
  loaded = _one_tokenizer(tokenizer.load(), opened)
  jobs = _plan([posts for posts in sources if not posts.corpus], split, loaded or tokenizer.vocab)
  if not all(is_complete(job.folder) for job in jobs):
    with contextlib.ExitStack() as locks:
      for folder in sorted({job.folder for job in jobs}):
        locks.enter_context(_locked(folder))
      missing = {job.folder: job for job in jobs if not is_complete(job.folder)}
      ready = [job.folder for job in jobs if job.folder not in missing]
      known = Shards(ready[0]).tokenizer if ready else loaded
      _build(list(missing.values()), split, known or tokenizer.vocab, progress or _silent)
  built = {job.posts: Shards(job.folder) for job in jobs}
  return [(opened | built)[posts] for posts in sources]


def _one_tokenizer(loaded: Tokenizer | None, opened: Mapping[Posts, Shards]) -> Tokenizer | None:
  """The tokenizer of prepared corpora, or the one that was loaded from a file."""
  found = {shards.tokenizer.sha256: posts.corpus for posts, shards in opened.items()}
  if loaded is not None:
    found |= {loaded.sha256: '--tokenizer'}
  if len(found) > 1:
    raise UserError(
      f'{" and ".join(found.values())} have different tokenizers: prepare the posts again with one, '
      'passing --tokenizer=FOLDER/tokenizer.json'
    )
  return loaded or next((shards.tokenizer for shards in opened.values()), None)


class _Job(NamedTuple):
  """One source to prepare: what is read and how, what is done with it, and where it belongs."""

  posts: Posts
  source: dict[str, Any]
  settings: dict[str, Any]
  folder: Path


def _plan(sources: Sequence[Posts], split: Split, tokenizer: Tokenizer | int) -> list[_Job]:
  """A job for each source; `tokenizer` is one that is ready or the size of one to train."""
  described = [posts.fingerprint() for posts in sources]
  if isinstance(tokenizer, Tokenizer):
    made = {'sha256': tokenizer.sha256}
  else:
    trained_on = [_digest(source) for source in described]
    made = {'vocab': tokenizer, 'words': WORDS, 'trained_on': trained_on}
  settings = {'split': to_json(split), 'tokenizer': made}
  root = cache_folder() / 'corpora'
  return [
    _Job(posts, source, settings, root / _digest([SCHEMA, source, settings]))
    for posts, source in zip(sources, described, strict=True)
  ]


def _build(jobs: list[_Job], split: Split, tokenizer: Tokenizer | int, progress: Progress) -> None:
  """Builds the folder of each job; the caller holds their locks."""
  with contextlib.ExitStack() as drafts:
    work = []
    for job in jobs:
      draft = drafts.enter_context(_draft(job.folder))
      work.append((job, draft, *_collect(job.posts, split, draft / 'texts', progress)))
    if not isinstance(tokenizer, Tokenizer):
      progress('training the tokenizer', 0, 0)
      tokenizer = train(_sample([corpus for _, _, corpus, _ in work]), tokenizer)
    for job, draft, corpus, notes in work:
      parts = {}
      for part in PARTS:
        posts = corpus.counts['used' if part == 'train' else 'held_out']
        texts = _watch(corpus.texts(part), 'tokenising posts', posts, progress)
        parts[part] = write_part(draft, part, texts, posts, tokenizer)
      described = {'source': job.source, 'settings': job.settings, 'rows': corpus.counts}
      write_manifest(draft, tokenizer, {**described, 'parts': parts}, notes)
      shutil.rmtree(draft / 'texts')
      draft.rename(job.folder)


def _collect(
  posts: Posts, split: Split, folder: Path, progress: Progress
) -> tuple[Corpus, list[str]]:
  """The split texts of one source, spilled to `folder`, and sentences about its rows."""
  rows = Rows()
  read = _watch(posts.read(rows), 'reading posts', 0, progress)
  return collect(read, split, rows, folder), rows.sentences()


def _sample(corpora: list[Corpus]) -> Iterator[str]:
  """The same share of the training texts of each corpus, `SAMPLE_BYTES` in all."""
  share = min(1.0, SAMPLE_BYTES / sum(corpus.bytes('train') for corpus in corpora))
  for corpus in corpora:
    yield from itertools.islice(corpus.texts('train'), math.ceil(share * corpus.counts['used']))


@contextlib.contextmanager
def _draft(folder: Path) -> Iterator[Path]:
  """An empty folder beside `folder` to build it in; gone afterwards unless it was renamed."""
  if folder.exists():
    logging.getLogger(__name__).warning('%s is damaged and is prepared again', folder)
    shutil.rmtree(folder)
  draft = folder.with_name(f'{folder.name}.draft')
  shutil.rmtree(draft, ignore_errors=True)  # what a killed process left
  draft.mkdir()
  try:
    yield draft
  finally:
    shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
  """Holds the lock of `folder`, which the kernel frees should this process die."""
  with contextlib.ExitStack() as stack:
    try:
      folder.parent.mkdir(parents=True, exist_ok=True)
      file = stack.enter_context(folder.with_name(f'{folder.name}.lock').open('w'))
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
      raise UserError(
        f'prepared posts cannot be kept in {folder.parent} ({error.strerror or error}): '
        'set LMJAX_CACHE to a folder that you can write'
      ) from error
    yield


def _watch(items: Iterable[T], what: str, total: int, progress: Progress) -> Iterator[T]:
  for done, item in enumerate(items):
    if done % 1000 == 0:
      progress(what, done, total)
    yield item


def _silent(what: str, done: int, total: int) -> None:
  """No progress is shown."""


def _digest(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]
