"""The search for secrets in what was logged."""

from __future__ import annotations

import re

from tests.provider import SECRET
from tests.service import SECRET_KEY
from tests.upstream import API_KEY, SECRET_PREFIX

SHAPES = [
    API_KEY,
    "wf_test_",
    SECRET_KEY,
    SECRET_PREFIX,
    "sk-test",
    r"\bcs_[A-Za-z0-9_-]{27}",
    r"chatkit_visitor=",
    SECRET,
    r"\beyJ[A-Za-z0-9_-]+\.eyJ",
]
"""Every secret of the tests has one of these."""


def leaks(logged: str) -> list[str]:
    """Where ``logged`` has a secret, with what stands around it."""
    return [logged[max(found.start() - 300, 0) : found.end()] for shape in SHAPES for found in re.finditer(shape, logged)]
