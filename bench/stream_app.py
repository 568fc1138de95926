"""Our application with a demo that streams ten words at the pace of ``BENCH_SECONDS_PER_WORD``, as ``stream_peer`` does."""

import os

from chatkit.backends.selfhosted.chat import demo

demo.INTRODUCTION = "one two three four five six seven eight nine ten"
demo.SECONDS_PER_WORD = float(os.environ["BENCH_SECONDS_PER_WORD"])

from app import app  # noqa: E402, F401
