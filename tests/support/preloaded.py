"""What the process imports that the tests' services are forked from. Not gunicorn: its modules read the environment."""

import gc

import httpcore2  # the SDK imports it with its first client  # noqa: F401
import openai.resources.beta.chatkit  # noqa: F401

import chatkit.backends.hosted.backend
import chatkit.backends.selfhosted.backend  # noqa: F401

gc.collect()
gc.freeze()  # so that the services don't collect this again
