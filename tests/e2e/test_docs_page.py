"""The documentation page in a real browser: it renders with no internet, its Authorize button works, and so does a call from it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from support.service import Service

FLAGS = [
    "--no-sandbox",  # Chromium refuses to run as root with it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # What it would say to its maker; the page's own requests are what counts here.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Seen:
    """What a page did while it was open."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """What it wrote to the console as an error or a warning, what it threw, and what its policy refused."""


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a new profile."""
    with browser.new_context(viewport={"width": 1280, "height": 1400}) as context:
        context.set_default_timeout(PATIENCE_MS)
        yield context.new_page()


@pytest.fixture
def seen(page: Page) -> Seen:
    """Watches `page`."""
    seen = Seen()
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("console", lambda message: seen.complaints.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.add_init_script(
        "document.addEventListener('securitypolicyviolation', e => console.error('CSP', e.violatedDirective, e.blockedURI))"
    )
    return seen


def open_docs(page: Page, service: Service) -> None:
    page.goto(f"{service.url}/docs")
    expect(page.locator("#operations-predictions-predict_predict_post")).to_be_visible(timeout=PATIENCE_MS)


def authorize(page: Page, client: dict[str, Any], *scopes: str) -> None:
    page.get_by_role("button", name="Authorize").first.click()
    page.fill("#client_id_clientCredentials", client["client_id"])
    page.fill("#client_secret_clientCredentials", client["client_secret"])
    for scope in scopes:
        page.click(f"label[for={scope}-clientCredentials-checkbox-clientCredentials]")
    page.get_by_role("button", name="Apply given OAuth2 credentials").click()


def test_it_renders_without_a_complaint_and_asks_nobody_else(service: Service, page: Page, seen: Seen) -> None:
    open_docs(page, service)
    for path in ("/oauth2/token", "/predict", "/predict/batch", "/models", "/livez", "/readyz"):
        expect(page.get_by_text(path, exact=True).first).to_be_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('.opblock-post')).borderTopStyle") == "solid", "no style sheet"
    page.wait_for_load_state("networkidle")
    assert seen.complaints == []
    outside = [url for url in seen.requests if not url.startswith(("data:", service.url + "/"))]
    assert outside == []
    assert {urlsplit(url).path for url in seen.requests if not url.startswith("data:")} == {
        "/docs",
        "/openapi.json",
        "/static/swagger-ui.css",
        "/static/swagger-ui-bundle.js",
    }


def test_the_policy_of_the_page_is_in_force(service: Service, page: Page, seen: Seen) -> None:
    open_docs(page, service)
    page.evaluate("document.head.appendChild(Object.assign(document.createElement('script'), {textContent: 'window.injected = 1'}))")
    page.evaluate("fetch('https://elsewhere.invalid/').catch(() => 0)")
    assert page.evaluate("window.injected") is None
    assert any("script-src" in complaint for complaint in seen.complaints)
    assert any("connect-src" in complaint for complaint in seen.complaints)


def test_authorize_gets_a_token_and_try_it_out_classifies_a_photograph(
    service: Service, page: Page, seen: Seen, photographs_by_name: dict[str, bytes], tmp_path: Path
) -> None:
    photograph = tmp_path / "coffee.png"
    photograph.write_bytes(photographs_by_name["coffee.png"])
    open_docs(page, service)
    authorize(page, service.create_client("browser", "predict"), "predict")
    expect(page.get_by_text("Authorized", exact=True)).to_be_visible()
    page.locator(".modal-ux .btn-done").first.click()  # one for each scheme

    operation = page.locator("#operations-predictions-predict_predict_post")
    operation.locator(".opblock-summary").click()
    operation.locator(".try-out__btn").click()
    operation.locator("input[type=file]").set_input_files(photograph)
    operation.locator(".execute").click()

    answer = operation.locator(".live-responses-table")
    expect(answer.locator(".response-col_status").last).to_contain_text("200", timeout=PATIENCE_MS)
    expect(answer).to_contain_text(re.compile(r'"label": "espresso"'))
    assert seen.complaints == []


def test_a_wrong_secret_is_told_in_the_dialogue(service: Service, page: Page, seen: Seen) -> None:
    open_docs(page, service)
    authorize(page, service.create_client("mistyped", "predict") | {"client_secret": "wrong"}, "predict")
    expect(page.locator(".modal-ux .errors").first).to_contain_text("invalid_client")
    assert not [complaint for complaint in seen.complaints if "CSP" in complaint]
