"""What a service says of its settings when it starts."""

from __future__ import annotations

import pytest

from tests.support.service import Service

PUBLISHED = "change-this-to-64-random-hex-characters"


def test_service_does_not_start() -> None:
    service = Service(SECRET_KEY=PUBLISHED)
    with pytest.raises(AssertionError, match=r"cannot start\. SECRET_KEY is published"):
        service.__enter__()
    assert PUBLISHED not in service.log


def test_notice_is_logged_at_start_up() -> None:
    with Service(CHATKIT_ALLOWED_ORIGINS="https://*.co.uk") as service:
        pass
    assert service.log.count("names below co.uk") == 1
