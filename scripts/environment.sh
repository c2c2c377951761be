# Sourced by the other scripts: makes .venv once and installs hb-ssl into it.
# Usage: source scripts/environment.sh; ensure_environment "dev"   (extras, may be empty)

ensure_environment() {
    local extras="$1" python="" candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python="$candidate"
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "error: no Python 3.11 or newer with the venv module was found; install one, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
        exit 2
    fi
    if ! .venv/bin/python -c '' 2>/dev/null; then
        echo "Creating .venv ..."
        rm -rf .venv
        "$python" -m venv .venv
    fi
    # One stamp per set of extras: a second run with nothing changed installs nothing.
    local stamp=".venv/installed-${extras:-base}" wanted
    wanted="$(cat pyproject.toml constraints.txt | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "Installing hb-ssl${extras:+[$extras]} (the first time takes minutes: PyTorch is large) ..."
        .venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".${extras:+[$extras]}"
        echo "$wanted" > "$stamp"
    fi
}
