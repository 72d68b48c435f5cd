# Sets $python to the first Python >= 3.11 on PATH that has the venv module.
python=
for candidate in "${TIDEGATE_PYTHON:-python3}" python3 python3.13 python3.12 python3.11 python3.14; do
  if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "Tidegate needs Python 3.11 or newer and found none on PATH." >&2
  echo "Debian or Ubuntu: apt-get install python3    macOS: brew install python@3.13" >&2
  exit 1
fi
