"""The backends: who issues the sessions, and who serves the chat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatkit.settings import BackendName, Settings

if TYPE_CHECKING:
    from chatkit.backends.interface import Backend
    from chatkit.limits.rate import Limits


def open_backend(settings: Settings, limits: Limits) -> Backend:
    """The configured backend. Only that one is imported: the other may cost seconds.

    Raises:
        SettingsError: when it can't work with these settings at all.
    """
    if settings.backend is BackendName.HOSTED:
        from chatkit.backends.hosted.backend import HostedBackend

        return HostedBackend(settings)
    from chatkit.backends.selfhosted.backend import SelfhostedBackend

    return SelfhostedBackend(settings, limits)
