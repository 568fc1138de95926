"""What it costs to know who asks, and how often: sessions with and without tokens, limits and Redis, all in one run.

``python -m bench.guards``
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from bench.load import callers
from bench.server import PROCFILE, running
from bench.sessions import certificates, others, upstream
from tests.provider import SECRET, Provider, claims, shared
from tests.redis_server import Redis

ROUNDS = 3  # one design after another, again and again, so that a slow minute of the machine is nobody's alone
CALLERS, SECONDS = 32, 5
ISSUER = "https://login.example.com/"


def main() -> None:
    with tempfile.TemporaryDirectory() as name, Redis() as redis, Provider() as provider:
        folder = Path(name)
        certificates(folder)
        by_secret, by_keys = f"Bearer {shared()}", f"Bearer {provider.token(claims(iss=ISSUER))}"
        keys = {"AUTH_JWKS_URL": provider.url, "AUTH_JWT_ISSUER": ISSUER}
        designs: dict[str, tuple[str, dict[str, str], str]] = {
            "neither tokens nor limits": ("bench.unguarded:app", {}, ""),
            "limits in the process": ("bench.trusting:app", {}, ""),
            "limits, HS256 token": ("bench.trusting:app", {"AUTH_JWT_SECRET": SECRET}, by_secret),
            "limits, RS256 token": ("bench.trusting:app", keys, by_keys),
            "limits in Redis": ("bench.trusting:app", {"REDIS_URL": redis.url}, ""),
            "limits in Redis, RS256 token": ("bench.trusting:app", {**keys, "REDIS_URL": redis.url}, by_keys),
        }
        print(f"A fast upstream over TLS, two workers, {CALLERS} callers, {ROUNDS} x {SECONDS} s each")
        rates, cpus = defaultdict(list), defaultdict(list)
        with upstream(folder, 0) as variables:
            for _ in range(ROUNDS):
                for design, (app, more, token) in designs.items():
                    with running([*PROCFILE[:-1], app], {**variables, **more}) as server:
                        server.wait()
                        asyncio.run(callers(server.port, CALLERS, seconds=1, authorization=token))  # warm up
                        before = server.cpu()
                        outcome = asyncio.run(callers(server.port, CALLERS, seconds=SECONDS, authorization=token))
                        good = outcome.statuses.get(200, 0)
                        assert good == len(outcome.latencies), others(outcome)
                        rates[design].append(good / outcome.seconds)
                        cpus[design].append((server.cpu() - before) / good * 1000)
        without = None
        for design in designs:
            rate, cpu = statistics.median(rates[design]), statistics.median(cpus[design])
            without = without or (rate, cpu)
            print(f"  {design:29} {rate:6.0f}/s ({rate / without[0]:4.2f}x)  {cpu:5.2f} ms CPU each ({cpu / without[1]:4.2f}x)")


if __name__ == "__main__":
    main()
