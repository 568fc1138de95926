"""The service with a demo that does not pause between words, for tests that read whole replies."""

import chatkit.backends.selfhosted.chat.demo

chatkit.backends.selfhosted.chat.demo.SECONDS_PER_WORD = 0.001

from app import app  # noqa: E402, F401
