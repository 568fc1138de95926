"""Our application without rate limits, to measure their cost."""

from chatkit.limits.rate import Limits

Limits.count = lambda *_args, **_kwargs: None  # type: ignore[method-assign]

import bench.with_test_ca  # noqa: E402, F401
from app import app  # noqa: E402, F401
