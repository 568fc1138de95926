"""Our application, with the benchmark's certificate authority as the trusted one."""

import os

import requests.adapters

requests.adapters.DEFAULT_CA_BUNDLE_PATH = os.environ["SSL_CERT_FILE"]

from app import app  # noqa: E402, F401
