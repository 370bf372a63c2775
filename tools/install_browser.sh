#!/usr/bin/env bash
# What the tests of the page need: Chromium, from Debian (root), and axe-core, which looks for what
# people who see or hear little cannot use, from npm, in .page. Safe to run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
axe="axe-core-4.10.3"

if ! command -v chromium >/dev/null || ! command -v npm >/dev/null; then
  packages=(chromium)
  command -v npm >/dev/null || packages+=(npm)
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" \
    >/dev/null
fi
if [[ ! -e .page/$axe ]]; then
  rm -rf .page
  mkdir .page
  npm pack --silent --pack-destination .page "${axe%-*}@${axe##*-}" >/dev/null
  tar -xzf ".page/$axe.tgz" -C .page --strip-components=1 package/axe.min.js
  touch ".page/$axe"
fi
