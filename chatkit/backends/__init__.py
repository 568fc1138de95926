"""The backends, which issue the sessions and may serve the chat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatkit.settings import BackendName, Settings

if TYPE_CHECKING:
    from chatkit.backends.interface import Backend
    from chatkit.limits.rate import Limits


def open_backend(settings: Settings, limits: Limits) -> Backend:
    """Open the configured backend, and import only that one: ``selfhosted`` takes seconds.

    Raises:
        SettingsError: the backend can't work with these settings.
    """
    if settings.backend is BackendName.HOSTED:
        from chatkit.backends.hosted.backend import HostedBackend

        return HostedBackend(settings)
    from chatkit.backends.selfhosted.backend import SelfhostedBackend

    return SelfhostedBackend(settings, limits)
