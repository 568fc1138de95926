"""The errors of hosted sessions. Errors shared with the chat are in ``chatkit.web.errors``."""

from __future__ import annotations

import logging
from http import HTTPStatus

from chatkit.web.errors import ApiError


class WorkflowMissing(ApiError):
    status, code, message = HTTPStatus.INTERNAL_SERVER_ERROR, "chatkit_workflow_missing", "ChatKit workflow not configured"
    log_level = logging.ERROR


class SessionNotCreated(ApiError):
    status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "openai_session_not_created"
    message = "OpenAI service error: Could not create session"
    log_level = logging.ERROR


class SessionNotEnded(ApiError):
    status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "openai_session_not_ended"
    message = "OpenAI service error: Could not end session"
    log_level = logging.ERROR
