#!/bin/sh
# What a fresh Debian or Ubuntu machine needs to build, run and test kvnode; nothing when it is
# all there already. `.venv/setup-stamp` holds a checksum of all that the build depends on.
#
# The way of a run with nothing to do starts no Python: that alone would cost more than the rest.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'kvnode setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

python=${PYTHON:-python3}
command -v "$python" >/dev/null \
  || die "$python is missing: apt-get install python3 python3-venv python3-dev"
stamp=.venv/setup-stamp
wanted() {
  { printf '%s\n' "$PWD" "$(uname -sm)"
    cat pyproject.toml setup.py tools/setup.sh tools/gen_proto.py
    find kvnode \( -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.proto' \) -print0 \
      | LC_ALL=C sort -z | xargs -0 cat; } | cksum
}
done_already() { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted)" ]; }
done_already && exit 0

[ "$(uname -s)" = Linux ] || die "kvnode runs on Linux, this is $(uname -s)"
case "$(uname -m)" in
  x86_64|aarch64|arm64) ;;
  *) die "kvnode runs on x86-64 and arm64, this is $(uname -m)" ;;
esac
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || die "Python 3.11 or newer is needed, $python is $("$python" -V 2>&1): set PYTHON to another"

# Two at once (`make run` in one terminal, `make test` in another) take turns.
mkdir -p .venv
exec 9> .venv/setup-lock
flock 9
done_already && exit 0

# System libraries that PyPI does not carry: LMDB (one engine a process, so py-lmdb is built
# against the same one), a compiler, Python's headers.
missing=
command -v cc >/dev/null || missing="$missing gcc libc6-dev"
command -v c++ >/dev/null || missing="$missing g++"
echo '#include <lmdb.h>' | cc -E - >/dev/null 2>&1 || missing="$missing liblmdb-dev"
echo '#include <nghttp2/nghttp2.h>' | cc -E - >/dev/null 2>&1 || missing="$missing libnghttp2-dev"
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
"$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
  || missing="$missing python3-dev"
if [ -n "$missing" ]; then
  command -v apt-get >/dev/null \
    || die "missing:$missing (names of Debian packages); install them, then run this again"
  as=
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null && as="sudo -n" \
      || die "no right to install$missing: run 'sudo apt-get install$missing', then this again"
  fi
  say "installing$missing"
  $as apt-get -qq update >/dev/null || say "apt-get update failed, going on with the lists there are"
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive $as apt-get -qq -y install --no-install-recommends $missing >/dev/null \
    || die "apt-get could not install$missing"
fi

if [ ! -x .venv/bin/python ]; then
  say "making .venv"
  "$python" -m venv .venv
fi
pip() { .venv/bin/python -m pip -q --disable-pip-version-check "$@"; }
deps=$(cksum < pyproject.toml)
if [ "$(cat .venv/deps-stamp 2>/dev/null)" != "$deps" ]; then
  say "installing Python packages"
  pip install -U 'pip>=25.1'
  pip install --group build --group test
  LMDB_FORCE_SYSTEM=1 pip install --no-binary lmdb 'lmdb>=1.4'
  .venv/bin/python - <<'PYTHON' | xargs .venv/bin/python -m pip -q --disable-pip-version-check install
import tomllib
for line in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]:
    print(f"'{line}'")
PYTHON
  printf '%s' "$deps" > .venv/deps-stamp
fi

say "building the extensions"
now=$(wanted)
.venv/bin/python tools/gen_proto.py
.venv/bin/python setup.py -q build_ext --inplace -j "$(nproc)" > build.log 2>&1 \
  || { tail -40 build.log >&2; die "the build failed, see build.log"; }
rm -f build.log
# In place: the packages are this folder's, the command a small script.
printf '%s\n' "$PWD" > "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/kvnode.pth"
printf '#!%s/.venv/bin/python\nfrom kvnode.cli.main import main\n\nmain()\n' "$PWD" > .venv/bin/kvnode
chmod +x .venv/bin/kvnode
printf '%s' "$now" > "$stamp"
say "done"
