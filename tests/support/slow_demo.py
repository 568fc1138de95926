"""The service with a demo that takes seconds per sentence, so that it can be stopped in the middle of one."""

import chatkit.backends.selfhosted.chat.demo

chatkit.backends.selfhosted.chat.demo.SECONDS_PER_WORD = 0.15

from app import app  # noqa: E402, F401
