"""Pictures with what they show: Twemoji's, by name, category and skin tone, as small arrays over white.

Art by Twitter and others, CC BY 4.0; names of the Unicode Consortium by iamcal/emoji-data, MIT. Extra [ads].
S pictures, K features of one, X features there are.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmjax.core import assets
from lmjax.core.errors import UserError
from lmjax.data.files import numbered_lines

TONES = {
  '1F3FB': 'light skin tone',
  '1F3FC': 'medium-light skin tone',
  '1F3FD': 'medium skin tone',
  '1F3FE': 'medium-dark skin tone',
  '1F3FF': 'dark skin tone',
}
_FORMS = ('person', 'people', 'man', 'men', 'woman', 'women', 'boy', 'girl', 'male', 'female')
_MOST = 64  # features of a picture
_ATTRIBUTE = 4.0  # what one counts; words count 1


class Picture(NamedTuple):
  """What a picture shows.

  Attributes:
    prompt: its name and skin tone in words.
    tone: one of `TONES`' values; '' where it has none or is of two people.
    concept: its name without tone and gender: forms of one are held out together.
    file: its name among the pictures.
  """

  prompt: str
  category: str
  tone: str
  concept: str
  file: str


def read_names(path: Path, files: set[str]) -> list[Picture]:
  """The pictures of `emoji.json` that are among `files`, in its order."""
  found = []
  for entry in json.loads(path.read_text(encoding='utf-8')):
    name = entry['name'] or entry['short_name'].replace('-', ' ').replace('_', ' ')
    forms = [
      ('', entry['unified']),
      *((k, v['unified']) for k, v in entry.get('skin_variations', {}).items()),
    ]
    for key, code in forms:
      file = _file(code, files)
      if file:
        tones = [TONES[one] for one in key.split('-') if one in TONES]
        words = [word for word in _words(name) if word not in _FORMS]
        prompt = ' '.join([*_words(name), *' and '.join(dict.fromkeys(tones)).split()])
        tone = tones[0] if len(tones) == 1 else ''
        found.append(
          Picture(prompt, entry['category'], tone, ' '.join(words) or name.lower(), file)
        )
  return found


def _file(code: str, files: set[str]) -> str | None:
  """The file of a code, with and without leading zeros and the selector of coloured forms."""
  parts = [part.lstrip('0') for part in code.lower().split('-')]
  for tried in (parts, [part for part in parts if part != 'fe0f']):
    if (name := f'{"-".join(tried)}.png') in files:
      return name
  return None


def _words(text: str) -> list[str]:
  return re.findall(r'\w+', text.lower())


def tones_in(prompt: str) -> list[str]:
  """The skin tones that a prompt names, the longest name first: medium-light is no light."""
  plain = lambda text: f' {" ".join(_words(text))} '
  longest = sorted(TONES.values(), key=len, reverse=True)
  return [tone for tone in longest if plain(tone) in plain(prompt)]


def load_pictures(side: int) -> tuple[list[Picture], np.ndarray]:
  """Twemoji, fetched the first time: what they show, and u8 [S, side, side, 3] over white."""
  try:
    from PIL import Image
  except ImportError:
    raise UserError("pictures need Pillow: pip install 'lmjax[ads]'") from None
  names, pictures = assets.fetch('emoji-names'), assets.fetch('twemoji')
  with zipfile.ZipFile(pictures) as archive:
    shown = read_names(names, set(archive.namelist()))
    rows = []
    for picture in shown:
      with archive.open(picture.file) as file, Image.open(file) as image:
        over = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
        rows.append(np.asarray(over.convert('RGB').resize((side, side), Image.Resampling.LANCZOS)))
  return shown, np.stack(rows)


def load_folder(folder: Path, side: int) -> tuple[list[Picture], np.ndarray]:
  """A user's pictures: `pictures.jsonl` in `folder` names file and prompt of each, category and tone if known."""
  from PIL import Image

  shown, rows = [], []
  for number, line in numbered_lines('pictures', str(folder / 'pictures.jsonl')):
    try:
      said = json.loads(line)
      prompt = ' '.join(_words(said['prompt']))
      with Image.open(folder / said['file']) as image:
        over = image.convert('RGBA')
    except (ValueError, KeyError, TypeError, OSError) as error:
      raise UserError(
        f'--pictures={folder}: line {number} of pictures.jsonl cannot be used ({error}): give '
        '{"file": "cat.png", "prompt": "a black cat", "category": "animals", "tone": ""}'
      ) from None
    over = Image.alpha_composite(Image.new('RGBA', over.size, 'white'), over)
    rows.append(np.asarray(over.convert('RGB').resize((side, side), Image.Resampling.LANCZOS)))
    shown.append(
      Picture(prompt, said.get('category', ''), said.get('tone', ''), prompt, said['file'])
    )
  if not shown:
    raise UserError(f'--pictures={folder} has no pictures.jsonl with pictures: see --help')
  return shown, np.stack(rows)


def save_grid(rows: Sequence[np.ndarray], path: Path) -> None:
  """Rows of pictures of one size as a PNG, each 48 pixels a side."""
  from PIL import Image

  wide = max(map(len, rows))
  grid = Image.new('RGB', (48 * wide, 48 * len(rows)), 'white')
  for y, row in enumerate(rows):
    for x, pixels in enumerate(row):
      grid.paste(Image.fromarray(pixels).resize((48, 48)), (48 * x, 48 * y))
  grid.save(path)


def encode_prompts(
  prompts: Sequence[str], attributes: Sequence[Sequence[str]], size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Features i32 [S, 64] below `size` of prompts and attributes, and f32 weights, 0 where there is none.

  Every word counts 1, its letters in threes together 1/2, so that an unseen word is like those it
  resembles; an attribute, `tone=light`, counts 4, as medium-light has the same words.
  """
  features = np.zeros((len(prompts), _MOST), np.int32)
  weights = np.zeros((len(prompts), _MOST), np.float32)
  for row, (prompt, more) in enumerate(zip(prompts, attributes, strict=True)):
    found: dict[str, float] = {}
    for word in _words(prompt):
      grams = [f'~{f"<{word}>"[i : i + 3]}' for i in range(len(word))]
      found |= {f'={word}': 1.0}
      for gram in grams:
        found[gram] = max(found.get(gram, 0.0), 0.5 / len(grams) ** 0.5)
    found |= dict.fromkeys(more, _ATTRIBUTE)
    kept = sorted(found.items(), key=lambda item: -item[1])[:_MOST]
    for k, (name, weight) in enumerate(kept):
      features[row, k] = zlib.crc32(name.encode()) % size
      weights[row, k] = weight
  return features, weights


class Latent(NamedTuple):
  """Pictures as vectors of principal components, and back. Y values of a picture, Z of a vector.

  Attributes:
    mean_Y: f32, of the pictures it was made of.
    basis_YZ: f32, orthonormal columns, those of most variance first.
    scale: vectors are divided by it, so that their mean square is 1.
  """

  mean_Y: np.ndarray
  basis_YZ: np.ndarray
  scale: float

  def encode(self, pixels: np.ndarray) -> np.ndarray:
    """u8 [S, H, W, 3] -> f32 [S, Z]."""
    return (_flat(pixels) - self.mean_Y) @ self.basis_YZ / np.float32(self.scale)

  def decode(self, latents_SZ: np.ndarray) -> np.ndarray:
    """f32 [S, Z] -> u8 [S, side, side, 3]."""
    values = latents_SZ @ self.basis_YZ.T * np.float32(self.scale) + self.mean_Y
    side = round((len(self.mean_Y) / 3) ** 0.5)
    return np.clip(np.rint((values + 1) * 127.5), 0, 255).astype('u1').reshape(-1, side, side, 3)


def fit_latent(pixels: np.ndarray, size: int, seed: int) -> Latent:
  """The first `size` principal components, by a random range (Halko et al. 2011, arXiv:0909.4061 alg. 4.4)."""
  values = _flat(pixels)
  if size > min(values.shape):
    raise UserError(
      f'model.latent={size} is more than {min(values.shape)}, of {values.shape[0]} pictures of '
      f'{values.shape[1]} values: pass --model.latent={min(values.shape)} or less'
    )
  mean_Y = values.mean(axis=0)
  values = values - mean_Y
  start = np.random.default_rng(seed).standard_normal(
    (values.shape[1], min(size + 32, *values.shape))
  )
  basis = start.astype('f4')
  for _ in range(3):
    basis = np.linalg.qr(values.T @ (values @ basis))[0]
  _, _, turned = np.linalg.svd(values @ basis, full_matrices=False)
  basis_YZ = np.ascontiguousarray((basis @ turned.T)[:, :size])
  scale = float(np.sqrt(np.mean(np.square(values @ basis_YZ))))
  return Latent(mean_Y, basis_YZ, scale)


def _flat(pixels: np.ndarray) -> np.ndarray:
  return pixels.reshape(len(pixels), -1).astype('f4') / 127.5 - 1
