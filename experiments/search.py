"""Search over posts and other documents: measured, and tuned on one's own judgments."""

from lmjax.core.registry import experiment
from lmjax.search.evaluate import SearchEval
from lmjax.search.posts import SearchPosts
from lmjax.search.pretrain import SearchPretrain
from lmjax.search.tune import SearchTune


@experiment
def search_eval() -> SearchEval:
  """Measure search on judged queries: --documents=FILE --queries=FILE [--checkpoint=RUN]."""
  return SearchEval()


@experiment
def search_posts() -> SearchPosts:
  """Make posts searchable, measure that and ask: --posts=FILE for your own."""
  return SearchPosts()


@experiment
def search_pretrain() -> SearchPretrain:
  """Have an encoder learn from posts alone: --posts=FILE --pairs=crops,hashtags,title."""
  return SearchPretrain()


@experiment
def search_tune() -> SearchTune:
  """Learn to rank from judged queries: --documents=FILE --queries=FILE."""
  return SearchTune()
