"""The cost of authentication and rate limits: session requests with and without tokens, limits and Redis.

``python -m bench.guards``
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from bench.server import PROCFILE, running
from bench.sessions import certificates, failures, fake_sessions_api
from tests.support.identity_provider import SECRET, IdentityProvider, claims, shared
from tests.support.load import callers
from tests.support.redis_server import Redis

ROUNDS = 3  # designs take turns, so that a slow minute of the machine affects all of them
CALLERS, SECONDS = 32, 5
ISSUER = "https://login.example.com/"


def main() -> None:
    with tempfile.TemporaryDirectory() as name, Redis() as redis, IdentityProvider() as provider:
        folder = Path(name)
        certificates(folder)
        hs256, rs256 = f"Bearer {shared()}", f"Bearer {provider.token(claims(iss=ISSUER))}"
        jwks = {"AUTH_JWKS_URL": provider.url, "AUTH_JWT_ISSUER": ISSUER}
        designs: dict[str, tuple[str, dict[str, str], str]] = {
            "no tokens, no limits": ("bench.without_limits:app", {}, ""),
            "limits in process": ("bench.with_test_ca:app", {}, ""),
            "limits, HS256 token": ("bench.with_test_ca:app", {"AUTH_JWT_SECRET": SECRET}, hs256),
            "limits, RS256 token": ("bench.with_test_ca:app", jwks, rs256),
            "limits in Redis": ("bench.with_test_ca:app", {"REDIS_URL": redis.url}, ""),
            "limits in Redis, RS256 token": ("bench.with_test_ca:app", {**jwks, "REDIS_URL": redis.url}, rs256),
        }
        print(f"A fast fake of OpenAI over TLS, two workers, {CALLERS} callers, {ROUNDS} x {SECONDS} s each")
        rates, cpus = defaultdict(list), defaultdict(list)
        with fake_sessions_api(folder, 0) as variables:
            for _ in range(ROUNDS):
                for design, (app, settings, token) in designs.items():
                    with running([*PROCFILE[:-1], app], {**variables, **settings}) as server:
                        server.wait()
                        asyncio.run(callers(server.port, CALLERS, seconds=1, authorization=token))  # warm up
                        before = server.cpu()
                        outcome = asyncio.run(callers(server.port, CALLERS, seconds=SECONDS, authorization=token))
                        good = outcome.statuses.get(200, 0)
                        assert good == len(outcome.latencies), failures(outcome)
                        rates[design].append(good / outcome.seconds)
                        cpus[design].append((server.cpu() - before) / good * 1000)
        without = None
        for design in designs:
            rate, cpu = statistics.median(rates[design]), statistics.median(cpus[design])
            without = without or (rate, cpu)
            print(f"  {design:29} {rate:6.0f}/s ({rate / without[0]:4.2f}x)  {cpu:5.2f} ms CPU each ({cpu / without[1]:4.2f}x)")


if __name__ == "__main__":
    main()
