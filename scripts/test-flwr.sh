#!/usr/bin/env bash
# Run the tests that touch Flower under other versions of it: scripts/test-flwr.sh VERSION… [-- pytest's arguments]
#
# Each version gets .venv-flwr-VERSION with that Flower and the Ray that it asks for; all else comes from .venv,
# which stays as it is. What passes here is what pyproject.toml may allow.
set -euo pipefail

versions=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  versions+=("$1")
  shift
done
[ $# -eq 0 ] || shift
if [ ${#versions[@]} -eq 0 ]; then
  echo "usage: scripts/test-flwr.sh VERSION… [-- pytest's arguments], e.g. 1.39.0 1.42.0" >&2
  exit 2
fi
source "$(dirname "$0")/setup.sh" test
behind=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

failed=()
for version in "${versions[@]}"; do
  venv=.venv-flwr-$version
  if [ ! -e "$venv/installed" ]; then
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "flwr[simulation]==$version"
    # Looked into last, and with what is in it only as a link, such as fedkd.
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "import site; site.addsitedir('$behind')" > "$site/behind.pth"
    touch "$venv/installed"
  fi
  echo "flwr $version"
  PATH=$PWD/$venv/bin:$PATH PYTHONPATH=$PWD "$venv/bin/python" -m pytest -q -p no:cacheprovider -m 'not slow and not docs' \
    tests/federation tests/engine tests/plan/test_flower.py "$@" || failed+=("$version")
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed under flwr ${failed[*]}" >&2
  exit 1
fi
