"""Our application with a demo that says ten words at the pace of ``BENCH_SECONDS_A_WORD``, so that both sides do the same."""

import os

from chatkit.backends.selfhosted.chat import demo

demo.INTRODUCTION = "one two three four five six seven eight nine ten"
demo.SECONDS_A_WORD = float(os.environ["BENCH_SECONDS_A_WORD"])

from app import app  # noqa: E402, F401
