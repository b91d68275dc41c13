#!/usr/bin/env bash
# Debian packages: scripts/apt-packages.sh PACKAGE... Installs what is missing when it may, and says
# what to do when it may not.
set -euo pipefail
missing=()
for package in "$@"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "Not installed: ${missing[*]}. What needs them fails or skips; as root: apt-get install ${missing[*]}"
  exit 0
fi
echo "Installing ${missing[*]} …"
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
  "${missing[@]}"; } >/dev/null 2>&1 || echo "apt-get could not install ${missing[*]}: what needs them fails or skips."
