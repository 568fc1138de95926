"""Our application with a demo that says ten words, a tenth of a second apart, so that both sides do the same."""

from chatkit.conversation import demo

demo.INTRODUCTION = "one two three four five six seven eight nine ten"
demo.SECONDS_A_WORD = 0.1

from app import app  # noqa: E402, F401
