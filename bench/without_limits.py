"""Our application without any limit, to see what the limits cost."""

from chatkit.limits.rate import Limits

Limits.count = lambda *_args, **_kwargs: None  # type: ignore[method-assign]

import bench.trusting  # noqa: E402, F401
from app import app  # noqa: E402, F401
