"""The environment of an isolated handler: the variables that programs need to run, and those that the settings name."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

ALLOWED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TZ", "TMPDIR", "TEMP", "TMP", "LANG", "LANGUAGE", "LC_*"),
    *("PYTHON*", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_*", "DJANGO_SETTINGS_MODULE", "*_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("NO_PROXY", "no_proxy", "XDG_*", "FONTCONFIG_*", "PENSTOCK_CONFIG", "PENSTOCK_PREFIX", "PENSTOCK_LOG_FORMAT"),
)
"""Names, with `*` for any characters. None of them holds a secret: a proxy's URL and `PENSTOCK_…_URL` may."""


def allowed(environment: Mapping[str, str], more: Sequence[str]) -> dict[str, str]:
    """The variables that an isolated handler may see.

    Arguments:
        more: names that are allowed in addition, in the form of `ALLOWED`.
    """
    names = (*ALLOWED, *more)
    return {name: value for name, value in environment.items() if any(fnmatchcase(name, form) for form in names)}


def replace_environment(environment: Mapping[str, str]) -> None:
    """Make this the environment of this process and of those that it starts; nothing of the former one is left."""
    os.environ.clear()
    os.environ.update(environment)  # in new memory: `/proc/self/environ` shows what the process was started with
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return  # not on Linux
    start, end = int(fields[47]), int(fields[48])  # env_start and env_end, the 50th and 51st with the two before ")"
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
