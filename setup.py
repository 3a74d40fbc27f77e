"""Build with pip. colcon goes by package.xml and CMakeLists.txt instead."""

import os
from pathlib import Path
import subprocess
import sys

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
NAME = 'flow_vla'


class BuildInterfaces(build_ext):
    """Compile the interfaces with CMake, and lay out what ROS tools look for."""

    def run(self) -> None:
        """Build into a staging folder, and install that tree into the prefix of the environment."""
        build = Path(self.build_temp).resolve() / NAME
        stage = build / 'stage'
        subprocess.run([
            'cmake', '-S', HERE, '-B', build,
            '-DINTERFACES_ONLY=ON',
            '-DBUILD_TESTING=OFF',
            '-DCMAKE_BUILD_TYPE=Release',
            f'-DCMAKE_INSTALL_PREFIX={stage}',
            f'-DCMAKE_PROJECT_INCLUDE={HERE / "cmake" / "ros_wheels.cmake"}',
            f'-DPython3_EXECUTABLE={sys.executable}',
        ], check=True)
        subprocess.run(['cmake', '--build', build, '--parallel', str(os.cpu_count())], check=True)
        subprocess.run(['cmake', '--install', build, '--strip'], check=True)

        # ros2 run and launch look for executables in lib/<package>.
        scripts = stage / 'lib' / NAME
        scripts.mkdir(parents=True, exist_ok=True)
        for entry in self.distribution.entry_points['console_scripts']:
            name, target = entry.replace(' ', '').split('=')
            module, function = target.split(':')
            (scripts / name).write_text(
                f'#!{sys.executable}\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n')
            (scripts / name).chmod(0o755)

        # The staged tree goes as it is into the prefix of the environment:
        # lib/*.so, lib/python3.x/site-packages/flow_vla, include and share.
        for folder, _, names in os.walk(stage):
            files = [os.path.join(folder, name) for name in names if not name.endswith('.pyc')]
            if files:
                self.distribution.data_files.append((os.path.relpath(folder, stage), files))
        if self.editable_mode:  # setuptools leaves data files out of an editable wheel
            self.run_command('install_data')


setup(
    packages=find_packages(include=['flow_vla_core*', 'flow_vla_ros*']),
    data_files=[],
    ext_modules=[Extension(NAME, sources=[])],  # marks the wheel as built for one platform
    cmdclass={'build_ext': BuildInterfaces},
)
