"""Writes tests/data/fixture/posts.jsonl: posts in many scripts, with all that makes posts hard.

    python tools/make_fixture.py tests/data/fixture/posts.jsonl

The words are made up here; the same file comes out every time.
"""

import datetime
import json
import random
import sys
from pathlib import Path

AUTHORS = ('ada', 'borys', 'chiamaka', 'daichi', 'eleni', 'farid', 'gal', 'hye_jin')
# A few words of each script: Latin, Cyrillic, Greek, Arabic and Hebrew (right to left), Devanagari,
# Han, Kana, Hangul, Thai, Georgian, Ethiopic.
SCRIPTS = {
  'latin': 'coffee morning train garden rain music friend paper bridge quiet naïve façade',
  'cyrillic': 'утро поезд сад дождь музыка друг бумага мост тихо ёлка',
  'greek': 'πρωί τρένο κήπος βροχή μουσική φίλος χαρτί γέφυρα ήσυχα καφές',
  'arabic': 'صباح قطار حديقة مطر موسيقى صديق ورق جسر هادئ قهوة',
  'hebrew': 'בוקר רכבת גינה גשם מוזיקה חבר נייר גשר שקט קפה',
  'devanagari': 'सुबह रेल बाग बारिश संगीत मित्र काग़ज़ पुल शांत कॉफ़ी',
  'han': '早晨 火车 花园 下雨 音乐 朋友 纸张 桥梁 安静 咖啡',
  'kana': 'あさ でんしゃ にわ あめ おんがく ともだち カミ ハシ しずか コーヒー',
  'hangul': '아침 기차 정원 비 음악 친구 종이 다리 조용히 커피',
  'thai': 'เช้า รถไฟ สวน ฝน ดนตรี เพื่อน กระดาษ สะพาน เงียบ กาแฟ',
  'georgian': 'დილა მატარებელი ბაღი წვიმა მუსიკა მეგობარი ქაღალდი ხიდი ჩუმად ყავა',
  'ethiopic': 'ጠዋት ባቡር አትክልት ዝናብ ሙዚቃ ጓደኛ ወረቀት ድልድይ ጸጥታ ቡና',
}
# Joined sequences, flags, skin tones, a keycap, a variation selector.
EMOJI = ('👩‍👩‍👧‍👦', '🏳️‍🌈', '👩🏽‍🚀', '🇳🇬', '🇯🇵', '👍🏿', '🤷🏻‍♂️', '1️⃣', '❤️', '😂', '🫠')
POSTS = 360


def main(path: Path) -> None:
  choose = random.Random(20240229)
  posts = [_post(choose, number) for number in range(POSTS)]
  originals = choose.sample(posts, 36)
  copies = [{**post, 'id': f'copy-{post["id"]}'} for post in originals[:12]]
  links = [_again(post, f'{post["text"]} {_url(choose)}') for post in originals[12:24]]
  loud = [_again(post, post['text'].upper()) for post in originals[24:]]
  blank = [{**posts[0], 'id': f'blank-{number}', 'text': ' \n\t'[:number]} for number in range(3)]
  rows = [*posts, *copies, *links, *loud, *blank]
  choose.shuffle(rows)
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  path.write_text(''.join(lines), encoding='utf-8')


def _post(choose: random.Random, number: int) -> dict[str, str]:
  words = SCRIPTS[list(SCRIPTS)[number % len(SCRIPTS)]].split()
  text = ' '.join(choose.choices(words, k=choose.randint(2, 14)))
  extras = (
    lambda: f'{choose.choice(EMOJI)} {text}{choose.choice(EMOJI)}',
    lambda: f'{text} {_url(choose)}',
    lambda: f'@{choose.choice(AUTHORS)} {text}',
    lambda: f'{text} #{choose.choice(words)} #{choose.choice(words)}',
    lambda: f'{text}\n\n{choose.choice(words)}!',
    lambda: f'"{text}", \'{choose.choice(words)}\' & <{choose.choice(words)}>\t{number}',
    lambda: text,
  )
  when = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
  when += datetime.timedelta(seconds=choose.randrange(366 * 86400))
  text = choose.choice(extras)()
  author = choose.choice(AUTHORS)
  return {'id': str(1000 + number), 'created_at': when.isoformat(), 'author': author, 'text': text}


def _again(post: dict[str, str], text: str) -> dict[str, str]:
  return {**post, 'id': f'near-{post["id"]}', 'text': text}


def _url(choose: random.Random) -> str:
  return f'https://example.org/{choose.randrange(16**6):06x}'


if __name__ == '__main__':
  main(Path(sys.argv[1]))
