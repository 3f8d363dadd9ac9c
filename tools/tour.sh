#!/usr/bin/env bash
# The whole chain in one command, and one page of what came of it: posts, a model of them, a published model
# that learns of them and how to answer, search over them, advertisements.
#
#   tools/tour.sh [FOLDER]               results in FOLDER/tour.html (default runs/tour)
#   TOUR=small tools/tour.sh FOLDER      a few steps of each, to see that all of it runs
#
# Each step is an experiment that runs alone too. A step that is done is not done again, so what was
# stopped goes on. Wants the extras [search], [serve] and [ads].
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/tour}
python=${PYTHON:-python}

if [ "${TOUR:-}" = small ]; then
  posts=(--posts=tests/data/fixture/posts.jsonl)
  pretrain=(--steps=2 --batch=2 --length=32 --vocab=300)
  adapt=(--steps=1 --batch=1 --length=32 --evaluate_posts=1)
  chat=(--steps=1 --batch=1 --length=64 --prompts= --most_rows=20)
  ads=(--checkpoint= --candidates=1 --templates=1)
else
  posts=()
  pretrain=(--steps=150)
  adapt=(--steps=16 --evaluate_posts=60)
  chat=(--steps=16)
  ads=(--checkpoint="$folder/chat_sft_smol")
fi

step() { # step NAME FLAGS...
  local name=$1
  shift
  if [ -e "$folder/$name/report.json" ]; then
    echo "== $name: done before"
  else
    echo "== $name"
    "$python" -m lmjax.main --experiment="$name" --workdir="$folder/$name" "$@"
  fi
}

mkdir -p "$folder"
cat > "$folder/brief.json" <<'BRIEF'
{
  "product": "Sleep diary",
  "facts": ["120 undated pages", "fits a pocket", "recycled paper", "12 euros"],
  "audience": {"age": "25-34", "interests": ["reading"], "style": "minimal", "price": "mid"},
  "formats": ["300x250", "1200x628", "1080x1080"],
  "colours": ["#1d3557", "#f1faee"]
}
BRIEF

step posts_tiny "${posts[@]}" "${pretrain[@]}"
step posts_adapt_smol "${posts[@]}" "${adapt[@]}"
step chat_sft_smol --checkpoint="$folder/posts_adapt_smol" "${chat[@]}"
step search_posts "${posts[@]}" --boolq=0 --query='how to sleep well'
step ads_studio --brief="$folder/brief.json" "${ads[@]}"

rm -rf "$folder/tour_page"
step tour_page --runs="$folder/posts_tiny,$folder/posts_adapt_smol,$folder/chat_sft_smol,$folder/search_posts,$folder/ads_studio" \
  --output="$folder/tour.html"
