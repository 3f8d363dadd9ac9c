"""Banners: nothing is cut or too pale, and a file says how it was made."""

import io

import pytest
from PIL import Image

from lmjax.ads import draw
from lmjax.ads.banner import AA, Fonts, choose_palette, contrast, lay_out
from lmjax.ads.creative import Copy, limits_of
from lmjax.core.errors import UserError

SIZES = [(300, 250), (728, 90), (160, 600), (1200, 628), (1080, 1080)]
FONTS = Fonts()


def longest(size):
  """A copy of as many characters as are allowed, of words that break badly."""
  limits = limits_of([size])
  word = 'Wonderfully '
  return Copy(*((word * 20)[:limit].rstrip() for limit in limits))


def picture(colour='teal'):
  image = Image.new('RGB', (200, 120), colour)
  image.putpixel((3, 3), (255, 0, 0))
  return image


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('shown', [True, False])
def test_all_text_is_inside_and_apart(size, shown):
  copy = longest(size)
  palette = choose_palette(['#0a7'])
  banner = lay_out(copy, size, palette, FONTS, picture=shown, alt='x', disclosure='Made with AI')
  said = ' '.join(line.text for line in banner.lines)
  assert all(' '.join(text.split()) in said for text in copy)
  boxes = []
  for line in banner.lines:
    left, top, right, bottom = FONTS.at(line.size).getbbox(line.text, anchor='ls')
    box = (line.x + left, line.y + top, line.x + right, line.y + bottom)
    assert min(box[0], box[1], size[0] - box[2], size[1] - box[3]) >= 0, line
    image = banner.picture
    assert image is None or not _overlap(
      box, (image.x, image.y, image.x + image.width, image.y + image.height)
    )
    assert not any(_overlap(box, other) for other in boxes), line
    boxes.append(box)
  assert banner.contrast >= AA


def _overlap(one, other):
  return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize(
  'colours', [[], ['#777'], ['#000', '#010101'], ['#fff', '#ff0'], ['#0a7', '#fff', '#d33']]
)
def test_palettes_are_readable(colours):
  palette = choose_palette(colours)
  assert contrast(palette.text, palette.ground) >= AA
  assert contrast(palette.label, palette.button) >= AA
  assert contrast(palette.button, palette.ground) >= 3
  assert not colours or palette.ground == choose_palette(colours[:1]).ground


def test_contrast_is_wcags():
  assert contrast('#000', '#fff') == 21
  assert contrast('#767676', '#ffffff') == pytest.approx(4.54, abs=0.01)


def test_files_say_how_they_were_made(tmp_path):
  copy = Copy('Oat & barley bread', 'Baked every morning', 'See more')
  banner = lay_out(
    copy, (300, 250), choose_palette(['#0a7']), FONTS, picture=True, alt='A "loaf" <b>'
  )
  said = draw.provenance(draw.COMPOSITE, 'lmjax 1', 'bread & more')
  (tmp_path / 'a.png').write_bytes(draw.to_png(banner, FONTS, picture(), said))
  (tmp_path / 'a.svg').write_text(draw.to_svg(banner, picture(), said))
  for name in ('a.png', 'a.svg'):
    assert draw.read_provenance(tmp_path / name) == {'source': draw.COMPOSITE, 'tool': 'lmjax 1'}
  with Image.open(tmp_path / 'a.png') as image:
    assert image.size == (300, 250)
    assert image.info['Description'] == banner.alt
    assert image.getpixel((20, 20)) == picture().getpixel((20, 20))
  import xml.etree.ElementTree as tree

  root = tree.parse(tmp_path / 'a.svg').getroot()
  assert root.get('aria-label') == banner.alt


def test_what_cannot_be_shown_is_named(tmp_path):
  with pytest.raises(UserError, match='--font='):
    lay_out(Copy('茶', '', 'See'), (300, 250), choose_palette([]), FONTS, picture=False, alt='')
  with pytest.raises(UserError, match='larger format'):
    lay_out(longest((300, 250)), (40, 40), choose_palette([]), FONTS, picture=False, alt='')
  for name, image, said in [
    ('small.png', picture().resize((50, 90)), '64 a side'),
    ('flat.png', Image.new('RGB', (90, 90), 'red'), 'one colour'),
  ]:
    image.save(tmp_path / name)
    with pytest.raises(UserError, match=said):
      draw.read_picture(tmp_path / name)
  (tmp_path / 'text.png').write_text('no picture')
  with pytest.raises(UserError, match='PNG, JPEG or WebP'):
    draw.read_picture(tmp_path / 'text.png')


def test_a_pictures_file_data_is_not_kept(tmp_path):
  exif = Image.Exif()
  exif[0x8298] = 'Jane Roe'
  picture().save(tmp_path / 'a.jpg', exif=exif)
  image = draw.read_picture(tmp_path / 'a.jpg')
  copy = Copy('Bread', '', 'See more')
  banner = lay_out(copy, (300, 250), choose_palette([]), FONTS, picture=True, alt='Bread')
  made = draw.to_png(banner, FONTS, image, '')
  assert b'Jane' not in made
  assert Image.open(io.BytesIO(made)).format == 'PNG'
