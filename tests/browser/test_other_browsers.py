"""The host page in Firefox and WebKit."""

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


def expect_all_ok(browser: WebDriver) -> None:
    until(browser, lambda _: states(browser) == ["ok"] * 4)


def chat(browser: WebDriver) -> Any:
    return browser.find_element(By.TAG_NAME, "openai-chatkit").shadow_root


def say(browser: WebDriver, text: str) -> None:
    chat(browser).find_element(By.CSS_SELECTOR, "input").send_keys(text)
    chat(browser).find_element(By.CSS_SELECTOR, "form button").click()
    expect_reply(browser, text)


def expect_reply(browser: WebDriver, text: str) -> None:
    last_words = INTRODUCTION.format(said=text)[-120:]
    until(browser, lambda _: last_words in chat(browser).find_element(By.CSS_SELECTOR, ".log").text)


def expire(browser: WebDriver) -> None:
    """Press the button, again if the click missed it because the page's layout has just changed."""

    def is_expired(_: WebDriver) -> bool:
        browser.find_element(By.ID, "expire").click()
        return states(browser)[1] == "waiting"

    until(browser, is_expired)


def test_first_reply_new_secret_and_reload(browser: WebDriver, service: Service) -> None:
    browser.get(service.url)
    expect_all_ok(browser)
    say(browser, "Hello")
    expire(browser)
    say(browser, "Still there?")
    browser.refresh()
    expect_all_ok(browser)
    expect_reply(browser, "Still there?")
    issued = service.stop().count("POST /api/chatkit/sessions 200")
    assert issued == 3, "one for each visit, and one after the expiry"


def test_service_stops_during_a_chat(browser: WebDriver, service: Service) -> None:
    browser.get(service.url)
    expect_all_ok(browser)
    service.stop()
    until(browser, lambda _: states(browser) == ["failed", "failed", "ok", "failed"])
    chat(browser).find_element(By.CSS_SELECTOR, "input").send_keys("Lost?")
    chat(browser).find_element(By.CSS_SELECTOR, "form button").click()
    message = browser.find_element(By.ID, "error-message")
    until(browser, lambda _: message.text == "Network connection lost. Please check your internet.")


def test_dark_mode(browser: WebDriver, service: Service) -> None:
    browser.get(service.url)
    expect_all_ok(browser)
    button = browser.find_element(By.ID, "dark")
    was = button.get_attribute("aria-pressed")
    button.click()
    assert button.get_attribute("aria-pressed") != was
    scheme = browser.find_element(By.TAG_NAME, "openai-chatkit").get_attribute("color-scheme")
    assert (scheme == "dark") == (was == "false")
