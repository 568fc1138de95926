# The service, ready for production. docs/deployment.md says how to run it.
FROM python:3.13-slim AS build
RUN python -m venv /venv
COPY requirements.txt .
RUN /venv/bin/pip install --no-cache-dir --disable-pip-version-check --requirement requirements.txt

FROM python:3.13-slim
RUN useradd --uid 10001 --no-create-home chatkit
WORKDIR /app
COPY --from=build /venv /venv
COPY . .
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
USER chatkit
EXPOSE 8000
# A start waits up to 30 s for PostgreSQL and 60 s for another process's migration.
HEALTHCHECK --interval=10s --timeout=5s --start-period=100s CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen('http://127.0.0.1:%s/healthz' % (os.environ.get('PORT') or 8000), timeout=4)"]
CMD ["python", "-m", "chatkit", "app:app"]
