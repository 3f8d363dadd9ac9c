"""lm-eval over our model beside its own `hf` backend over the same weights; extras [eval] and [torch]."""

import evaluated
import numpy as np
import pytest

pytest.importorskip('lm_eval', reason='asks through lm-eval: pip install "lmjax[eval]"')
pytest.importorskip('torch', reason='compares with transformers: pip install "lmjax[torch]"')

from lm_eval.api.instance import Instance

from lmjax.interop.load import load
from lmjax.train import harness

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('default')]


def test_log_likelihoods_are_those_of_the_hf_backend(tmp_path, monkeypatch):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  from lm_eval.models.huggingface import HFLM

  folder = evaluated.write_folder(tmp_path / 'tiny')
  ours = harness.Adapter(load(folder), lambda *progress: None)
  theirs = HFLM(pretrained=folder, device='cpu', dtype='float32', batch_size=2)
  pairs = [
    ('a text', ' goes on'),
    ('a text', ' ends here'),
    ('a text ', 'with a space'),
    ('Жук', ' в траве'),
    ('one more ' * 20, ' word'),
  ]
  asked = [Instance(request_type='loglikelihood', doc={}, arguments=pair, idx=0) for pair in pairs]
  found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
  np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected], rtol=1e-3)
  assert [f[1] for f in found] == [e[1] for e in expected]
