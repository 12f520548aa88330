# Shared by the scripts: a venv with the project in it. Source it from the repository's root.

unset PYTHONDONTWRITEBYTECODE # where it is set, every start of the tool compiles it anew: half a second

# make_venv EXTRAS: .venv with the project and EXTRAS ("" or "[test]"); nothing is done when pyproject.toml has not changed.
make_venv() {
  local python=${PYTHON:-python3} stamp key
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    { echo "Python 3.11 or later is needed: install it, or name it with PYTHON=/path/to/python3.11" >&2; exit 1; }
  key=$(cksum <pyproject.toml)
  stamp=.venv/installed
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  for done in "$1" "[test]"; do # what holds the test extras holds the rest too
    grep -qxF "$key $done" "$stamp" 2>/dev/null && return 0
  done
  echo "installing into .venv (about 500 MB, a minute or two)" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$1"
  echo "$key $1" >>"$stamp"
}
