#!/usr/bin/env bash
# Put promtool, which tests the alert rules, into a folder: scripts/promtool.sh FOLDER. It is taken out
# of Debian's package `prometheus`, without installing that: the package would start a service.
set -euo pipefail
folder=$(realpath "$1")
[ -x "$folder/promtool" ] || command -v promtool >/dev/null && exit 0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
if { apt-get download -qq prometheus && dpkg-deb --fsys-tarfile prometheus_*.deb |
  tar -x -C "$scratch" ./usr/bin/promtool; } >/dev/null 2>&1; then
  install -m 755 usr/bin/promtool "$folder/promtool"
else
  echo "No promtool (Debian's package prometheus): the tests of the alert rules skip."
fi
