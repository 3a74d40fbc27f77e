#!/bin/sh
# Makes .venv with everything that flow_vla needs; does nothing when nothing has changed since the last time.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.13.0}
TORCH_ARGS=${TORCH_ARGS:-}
VENV_ARGS=${VENV_ARGS:-}
ROS=${ROS_DISTRO:-wheels}

stop() {
  printf 'flow_vla: %s\n' "$*" >&2
  exit 1
}

# What the environment is made from: a change of the first line makes a new one.
base="$ROS $PYTHON $VENV_ARGS"
built=$(cat pyproject.toml setup.py setup.cfg package.xml CMakeLists.txt cmake/* action/* msg/* srv/* tools/setup.sh | cksum)
key=$(printf '%s\n%s %s\n' "$base" "$TORCH" "$built")
stamp=.venv/flow_vla.stamp
[ "$(cat "$stamp" 2>/dev/null)" != "$key" ] || exit 0

# --- the system ---------------------------------------------------------------------------------
command -v "$PYTHON" >/dev/null || stop "there is no $PYTHON; name one: make PYTHON=..."
try() { "$PYTHON" -c "$1" >/dev/null 2>&1; }
try 'import sys; sys.exit(sys.version_info < (3, 10))' || stop "$PYTHON is older than 3.10; name one: make PYTHON=..."

[ "$ROS" != wheels ] ||
  try 'import platform, sys; sys.exit(sys.version_info >= (3, 14) or platform.machine() != "x86_64")' ||
  stop "the wheels of ROS 2 exist for Python 3.10 to 3.13 on x86-64 Linux. Name such a Python: make PYTHON=python3.13, \
or source a ROS distribution"

lacking=
command -v c++ >/dev/null || lacking="$lacking g++"
try 'import ensurepip, venv' || lacking="$lacking python3-venv"
try 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' ||
  lacking="$lacking python3-dev"
egl='import ctypes, glob; [ctypes.CDLL(f"lib{n}.so.{v}") for n, v in (("EGL", 1), ("OpenGL", 0))]
glob.glob("/usr/share/glvnd/egl_vendor.d/*.json")[0]'
try "$egl" || try 'import ctypes; ctypes.CDLL("libOSMesa.so.8")' ||
  lacking="$lacking libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"

if [ -n "$lacking" ]; then
  install="apt-get install -y --no-install-recommends$lacking"
  command -v apt-get >/dev/null || stop "this machine lacks (by their Debian names):$lacking"
  [ "$(id -u)" = 0 ] || stop "this machine lacks some packages. Run this, then make again:
sudo apt-get update && sudo $install"
  echo "flow_vla: installing$lacking"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -q && $install; } >/dev/null || stop "this failed: apt-get update && $install"
fi

# --- the environment ----------------------------------------------------------------------------
made=$(head -n 1 "$stamp" 2>/dev/null) || made=
if [ "$made" != "$base" ]; then
  echo 'flow_vla: making .venv; the first time takes a few minutes'
  [ "$ROS" = wheels ] || VENV_ARGS="--system-site-packages $VENV_ARGS"
  [ -z "$made" ] || VENV_ARGS="--clear $VENV_ARGS"
  # shellcheck disable=SC2086
  "$PYTHON" -m venv $VENV_ARGS .venv
fi
rm -f "$stamp"
python=$PWD/.venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PATH="$PWD/.venv/bin:$PATH"
pip_install() { "$python" -m pip install -q "$@" || stop 'pip failed; the lines above say why'; }

extras=ros,sim,data,train,test
if [ "$ROS" != wheels ]; then
  "$python" -c 'import rclpy' || stop "ROS 2 $ROS is sourced, but $PYTHON cannot import its rclpy: its own Python is \
needed (make PYTHON=/usr/bin/python3, outside of conda)"
  extras=sim,data,train,test
fi

# shellcheck disable=SC2086
"$python" -c 'import torch' 2>/dev/null || pip_install $TORCH_ARGS "$TORCH"

requires=$("$python" - "$ROS" <<'END'
import sys
try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib
with open('pyproject.toml', 'rb') as file:
    names = tomllib.load(file)['build-system']['requires']
print('\n'.join(name for name in names if sys.argv[1] == 'wheels' or not name.startswith('ros-')))
END
)
# shellcheck disable=SC2086
pip_install $requires
cmake --version 2>/dev/null | grep -Eq 'version (3\.2[0-9]|3\.3|4)' || pip_install 'cmake>=3.20,<4'

echo 'flow_vla: compiling the messages and installing'
rm -rf build/temp* build/lib* build/bdist*
pip_install --no-build-isolation -e ".[$extras]"
pip_install --no-deps 'torchcfm==1.0.7'  # what it asks for besides pot, torch and torchdiffeq is for its examples
printf '%s\n' "$key" >"$stamp"
