"""Advertising: which briefs are refused, and why."""

from lmjax.ads.evaluate import BriefEval
from lmjax.core.registry import experiment


@experiment
def brief_eval() -> BriefEval:
  """Measure which briefs are refused, on a judged list: --briefs=FILE."""
  return BriefEval()
