"""The host page in Firefox and in WebKit: the same page, the same script, the same answers as in Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from chatkit.backends.selfhosted.chat.demo import INTRODUCTION
from tests.support.other_browsers import firefox, webkit
from tests.support.service import Service


@pytest.fixture(scope="module", params=[firefox, webkit])
def browser(request: pytest.FixtureRequest) -> Iterator[WebDriver]:
    start: Callable[[], AbstractContextManager[WebDriver]] = request.param
    with start() as running:
        yield running


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    database = f"sqlite:///{tmp_path}/chatkit.db"
    with Service(CHATKIT_ENV="development", SECRET_KEY="", CHATKIT_SESSION_TTL="60", DATABASE_URL=database) as running:
        yield running


def until(browser: WebDriver, condition: Callable[[WebDriver], Any]) -> Any:
    return WebDriverWait(browser, 20).until(condition)


def states(browser: WebDriver) -> list[str | None]:
    return [step.get_attribute("data-state") for step in browser.find_elements(By.CSS_SELECTOR, "#status li")]


def is_well(browser: WebDriver) -> None:
    until(browser, lambda _: states(browser) == ["ok"] * 4)


def chat(browser: WebDriver) -> Any:
    return browser.find_element(By.TAG_NAME, "openai-chatkit").shadow_root


def say(browser: WebDriver, text: str) -> None:
    chat(browser).find_element(By.CSS_SELECTOR, "input").send_keys(text)
    chat(browser).find_element(By.CSS_SELECTOR, "form button").click()
    answered(browser, text)


def answered(browser: WebDriver, text: str) -> None:
    last_words = INTRODUCTION.format(said=text)[-120:]
    until(browser, lambda _: last_words in chat(browser).find_element(By.CSS_SELECTOR, ".log").text)


def test_a_first_answer_a_new_secret_and_a_reload(browser: WebDriver, service: Service) -> None:
    browser.get(service.url)
    is_well(browser)
    say(browser, "Hello")
    browser.find_element(By.ID, "run-out").click()
    say(browser, "Still there?")
    browser.refresh()
    is_well(browser)
    answered(browser, "Still there?")
    minted = service.stop().count("POST /api/chatkit/sessions 200")
    assert minted == 3, "one for each visit, and one in place of the secret that had run out"


def test_a_service_that_stops(browser: WebDriver, service: Service) -> None:
    browser.get(service.url)
    is_well(browser)
    service.stop()
    until(browser, lambda _: states(browser) == ["failed", "failed", "ok", "failed"])
    chat(browser).find_element(By.CSS_SELECTOR, "input").send_keys("Lost?")
    chat(browser).find_element(By.CSS_SELECTOR, "form button").click()
    message = browser.find_element(By.ID, "error-message")
    until(browser, lambda _: message.text == "Network connection lost. Please check your internet.")


def test_dark_mode(browser: WebDriver, service: Service) -> None:
    browser.get(service.url)
    is_well(browser)
    button = browser.find_element(By.ID, "dark")
    was = button.get_attribute("aria-pressed")
    button.click()
    assert button.get_attribute("aria-pressed") != was
    scheme = browser.find_element(By.TAG_NAME, "openai-chatkit").get_attribute("color-scheme")
    assert (scheme == "dark") == (was == "false")
