#!/usr/bin/env bash
# Makes an environment of its own for lerobot 0.4.4, as far as its datasets need it, beside a torch of any build:
#     tools/lerobot_env.sh FOLDER        # then FOLDER/bin/python is what --python and --lerobot-python want
# lerobot asks for torch below 2.11; its datasets also run with later ones, and with the CPU build that is used here.
# Videos are decoded by torchcodec, which loads FFmpeg's libraries: sudo apt-get install ffmpeg
set -euo pipefail

folder=${1:?usage: tools/lerobot_env.sh FOLDER}
python=${PYTHON:-python3}

"$python" -m venv "$folder"
pip="$folder/bin/python -m pip --disable-pip-version-check install --quiet"
$pip 'torch==2.13.0' 'datasets>=4,<5' 'av>=15,<16' 'huggingface-hub>=0.34.2,<0.36' 'accelerate>=1.10,<2' \
    'einops>=0.8,<0.9' 'opencv-python-headless>=4.9,<4.13' 'jsonlines>=4,<5' 'packaging>=24.2,<26' 'draccus==0.10.0' \
    'gymnasium>=1.1.1,<2' 'deepdiff>=7.0.1,<9' 'imageio>=2.34,<3' 'termcolor>=2.4,<4' pyserial pillow 'setuptools<81'
$pip --no-deps 'lerobot==0.4.4' 'torchvision==0.28.0' 'torchcodec==0.13.0'
"$folder/bin/python" "$(dirname "$0")/../benchmarks/rigs/lerobot_side.py" --help > /dev/null
ldconfig -p 2> /dev/null | grep -q libavcodec || echo 'FFmpeg is missing: sudo apt-get install ffmpeg' >&2
