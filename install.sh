#!/usr/bin/env bash
# Sets up what the programs need, at the versions of constraints.txt.
#   ./install.sh           the programs and the nestling command, into .venv here
#   ./install.sh --dev     the same and what the tests need
#   ./install.sh --conda   the assignment's way: a conda environment from environment.yml
set -euo pipefail
cd "$(dirname "$0")"

case "${1:-}" in
    "" | --dev | --conda) ;;
    -h | --help) sed -n '2,5s/^# //p' install.sh; exit ;;
    *) echo "error: $1 is no option of install.sh; it has --dev, --conda and --help." >&2; exit 2 ;;
esac

if [ "${1:-}" = --conda ]; then
    command -v conda > /dev/null || { echo "error: conda is not installed; run ./install.sh without --conda." >&2; exit 2; }
    conda env update --file environment.yml
    exit
fi

python=${PYTHON:-python3}
command -v "$python" > /dev/null || { echo "error: $python is not found; set PYTHON to name Python 3.11 or newer." >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: $python is too old; Python 3.11 or newer is needed (set PYTHON to name it)." >&2; exit 2; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
extras=$([ "${1:-}" = --dev ] && echo '[dev]' || true)
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".$extras"
