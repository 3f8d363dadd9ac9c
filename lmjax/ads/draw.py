"""Banners as PNG and SVG files that say how they were made, and checks of the pictures in them.

Provenance is XMP with IPTC's digital source type, in an iTXt chunk of a PNG and the metadata of an SVG.
Extra [ads].
"""

import base64
import io
import re
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from lmjax.ads.banner import Banner, Fonts
from lmjax.core.errors import UserError

TRAINED = 'http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia'
COMPOSITE = 'http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia'
RULES = 'http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicMedia'
_XMP_KEY = 'XML:com.adobe.xmp'
_FORMATS = ('PNG', 'JPEG', 'WEBP')
_LEAST, _MOST = 64, 40_000_000  # pixels: of a side, of all


def read_picture(path: Path) -> Any:
  """A picture of the user's as Pillow's RGB image, without what its file says of place and person.

  Raises:
    UserError: it is none, of another format than PNG, JPEG or WebP, smaller than 64 pixels a side, larger
      than 40 million pixels, or of one colour.
  """
  from PIL import Image, ImageOps, UnidentifiedImageError

  try:
    with Image.open(path, formats=_FORMATS) as file:
      if min(file.size) < _LEAST or file.width * file.height > _MOST:
        raise UserError(
          f'picture {path} has {file.width}x{file.height} pixels: give {_LEAST} a side to {_MOST:,} in all'
        )
      image = ImageOps.exif_transpose(file).convert('RGBA')
  except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
    raise UserError(
      f'picture {path} cannot be read ({error}): give a PNG, JPEG or WebP file'
    ) from None
  white = Image.new('RGBA', image.size, 'white')
  image = Image.alpha_composite(white, image).convert('RGB')
  bounds: Any = image.getextrema()
  if all(low == high for low, high in bounds):
    raise UserError(f'picture {path} is of one colour: give one that shows something')
  return image


def to_png(banner: Banner, fonts: Fonts, picture: Any, provenance: str) -> bytes:
  """The file of a banner; `picture` is Pillow's image, cut to its box, or None."""
  from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

  image = Image.new('RGB', (banner.width, banner.height), banner.palette.ground)
  if banner.picture is not None:
    box = banner.picture
    image.paste(ImageOps.fit(picture, (box.width, box.height)), (box.x, box.y))
  draw = ImageDraw.Draw(image)
  for shape in banner.shapes:
    x, y, width, height = shape.box
    draw.rounded_rectangle((x, y, x + width - 1, y + height - 1), shape.radius, shape.colour)
  for line in banner.lines:
    draw.text((line.x, line.y), line.text, line.colour, fonts.at(line.size), anchor='ls')
  said = PngImagePlugin.PngInfo()
  said.add_itxt(_XMP_KEY, provenance)
  said.add_itxt('Description', banner.alt)
  file = io.BytesIO()
  image.save(file, 'PNG', pnginfo=said, optimize=True)
  return file.getvalue()


def to_svg(banner: Banner, picture: Any, provenance: str) -> str:
  """The same as SVG; whatever font shows it, each line takes the width it was laid out with."""
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{banner.width}" height="{banner.height}" '
    f'viewBox="0 0 {banner.width} {banner.height}" role="img" aria-label={quoteattr(banner.alt)}>',
    f'<title>{escape(banner.alt)}</title>',
    f'<metadata>{provenance}</metadata>',
    f'<rect width="100%" height="100%" fill="{banner.palette.ground}"/>',
  ]
  if banner.picture is not None:
    x, y, width, height = banner.picture
    parts.append(
      f'<image x="{x}" y="{y}" width="{width}" height="{height}" preserveAspectRatio="xMidYMid slice" '
      f'href="{_data_uri(picture, (width, height))}"/>'
    )
  for shape in banner.shapes:
    x, y, width, height = shape.box
    parts.append(
      f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{shape.radius}" fill="{shape.colour}"/>'
    )
  for line in banner.lines:
    parts.append(
      f'<text x="{line.x:.1f}" y="{line.y:.1f}" font-size="{line.size}" font-family="Aileron, Arial, sans-serif" '
      f'fill="{line.colour}" textLength="{line.width:.1f}" lengthAdjust="spacingAndGlyphs">{escape(line.text)}</text>'
    )
  return '\n'.join([*parts, '</svg>', ''])


def _data_uri(picture: Any, size: tuple[int, int]) -> str:
  from PIL import ImageOps

  file = io.BytesIO()
  ImageOps.fit(picture, size).save(file, 'PNG')
  return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'


def provenance(source: str, tool: str, description: str) -> str:
  """An XMP packet; `source` is one of IPTC's digital source types."""
  return (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'xmp:CreatorTool={quoteattr(tool)} Iptc4xmpExt:DigitalSourceType={quoteattr(source)} '
    f'dc:description={quoteattr(description)}/></rdf:RDF></x:xmpmeta>'
  )


def read_provenance(path: Path) -> dict[str, str]:
  """`source` and `tool` of a PNG or SVG file of ours; empty where it says nothing."""
  if path.suffix == '.svg':
    packet = path.read_text(encoding='utf-8')
  else:
    from PIL import Image

    with Image.open(path) as image:
      packet = str(image.info.get(_XMP_KEY, ''))
  found = {
    'source': re.search(r'DigitalSourceType="([^"]*)"', packet),
    'tool': re.search(r'CreatorTool="([^"]*)"', packet),
  }
  return {name: match[1] for name, match in found.items() if match}
