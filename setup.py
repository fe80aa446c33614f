"""The Cython extensions of kvnode and how they are built.

KVNODE_EXT=crc32c,logrec   builds only these (by last name)
KVNODE_SANITIZE=1          AddressSanitizer and UndefinedBehaviorSanitizer
KVNODE_COVERAGE=1          line tracing
"""

import glob
import os

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZE = os.environ.get("KVNODE_SANITIZE") == "1"
COVERAGE = os.environ.get("KVNODE_COVERAGE") == "1"
ONLY = set(filter(None, os.environ.get("KVNODE_EXT", "").split(",")))

LIBRARIES = {
    "h2": ["nghttp2"],
    "lmdbstore": ["lmdb"],
    "logwriter": ["pthread"],
    "mapcopy": ["lmdb", "pthread"],
}

flags = ["-O2", "-g1", "-fno-strict-aliasing", "-Wno-unused-function"]
links: list[str] = []
if SANITIZE:
    flags = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
    links = ["-fsanitize=address,undefined"]

extensions = []
for path in sorted(glob.glob("kvnode/**/*.pyx", recursive=True)):
    name = os.path.splitext(os.path.basename(path))[0]
    if ONLY and name not in ONLY:
        continue
    extensions.append(
        Extension(
            path[:-4].replace("/", "."),
            [path],
            include_dirs=["kvnode/_core", numpy.get_include()],
            libraries=LIBRARIES.get(name, []),
            extra_compile_args=flags,
            extra_link_args=links,
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
            depends=[*glob.glob("kvnode/_core/*.h"), *glob.glob("kvnode/_core/*.pxd")],
        )
    )

setup(
    ext_modules=cythonize(
        extensions,
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
            "linetrace": COVERAGE,
        },
    )
)
