from __future__ import annotations

import pytest

from asking import ADDRESS, paged
from ddim.web import guard
from ddim.web.guard import Address, is_loopback


def code(answer, status):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "text"} and "\n" not in error["text"]
    return error["code"]


@pytest.mark.parametrize("path", ["/", "/static/page.css", "/api/state", "/nothing", "/api/race"])
def test_every_answer_says_what_browsers_must_not_do(page, path):
    headers = page.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert "http" not in policy and "*" not in policy


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:7860",
        "127.0.0.1",
        "127.0.0.1:7861",
        "localhost:80",
        "a:b:c",
    ],
)
def test_other_hosts_are_refused(page, host):
    assert code(page.get("/api/state", headers={"host": host}), 403) == "forbidden"


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST:7860", "[::1]:7860"]
)
def test_the_names_of_loopback_are_taken(page, host):
    assert page.get("/api/state", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "https://127.0.0.1:7860", "http://localhost:7860"]
)
def test_pages_of_other_places_are_refused(page, origin):
    answer = page.post("/api/race", {"model": "tiny", "lanes": ["ddim"]}, origin=origin)
    assert code(answer, 403) == "forbidden"


def test_the_page_s_own_origin_is_taken(page):
    body = {"model": "tiny", "images": 1, "lanes": ["ddim:steps=1"]}
    assert page.post("/api/race", body, origin="http://127.0.0.1:7860").status_code == 200


def test_a_number_is_taken_where_all_addresses_are_served_and_a_name_is_not():
    address = Address("0.0.0.0", 80)
    assert address.admits("10.0.0.7") and address.admits("10.0.0.7:80") and not address.loopback
    assert not address.admits("evil.example") and not address.admits("10.0.0.7:81")
    assert not Address("10.0.0.7", 7860).admits("10.0.0.8:7860")
    assert [is_loopback(host) for host in ("127.0.0.9", "::1", "localhost", "0.0.0.0")] == [
        *[True] * 3,
        False,
    ]


def test_a_token_is_asked_for_once(folders, monkeypatch):
    monkeypatch.setattr("asking.ADDRESS", Address("127.0.0.1", 7860, "correct-horse"))
    monkeypatch.setattr("asking.Page.wait", lambda self, name: None)
    with paged(folders["tiny"]) as page:
        assert code(page.get("/"), 403) == "forbidden"
        assert code(page.get("/api/state"), 403) == "forbidden"
        assert code(page.get("/?token=wrong"), 403) == "forbidden"
        assert code(page.get("/api/state?token=correct-horse"), 403) == "forbidden"
        answer = page.get("/?token=correct-horse", follow_redirects=False)
        assert answer.status_code == 303 and answer.headers["location"] == "/"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert page.get("/api/state").status_code == 200
        assert page.get("/").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/",
        "/static/__init__.py",
        "//etc/passwd",
        "/api",
        "/api/state/",
        "/favicon.ico",
        "/index.html",
    ],
)
def test_nothing_but_the_table_is_there(page, path):
    assert code(page.get(path), 404) == "not-found"


def test_wrong_methods_and_kinds(page):
    assert code(page.get("/api/race"), 405) == "bad-request"
    assert code(page.post("/api/state", {}), 405) == "bad-request"
    answer = page.client.post("/api/race", content="{}", headers={"content-type": "text/plain"})
    assert code(answer, 415) == "unsupported"
    answer = page.client.post("/api/race", data={"model": "tiny"})
    assert code(answer, 415) == "unsupported"


def test_bodies_are_bounded_before_they_are_read(page):
    def endless():
        while True:
            yield b" " * 1000

    kind = {"content-type": "application/json"}
    answer = page.client.post("/api/race", content=b" " * 64_001, headers=kind)
    assert code(answer, 413) == "too-large"
    answer = page.client.post("/api/encode", content=b" " * 2_000_001, headers=kind)
    assert code(answer, 413) == "too-large"
    assert ADDRESS.port == 7860


@pytest.mark.parametrize("body", ["", "[]", "{", "null", '{"a": 1, "a": 2}', "[" * 5000, "\udcff"])
def test_what_is_no_json_object_is_refused(page, body):
    content = body.encode("utf-8", "surrogatepass")
    kind = {"content-type": "application/json"}
    answer = page.client.post("/api/race", content=content, headers=kind)
    assert code(answer, 400) == "bad-request"


def test_too_many_at_once_are_refused(page, monkeypatch):
    monkeypatch.setattr(guard, "MOST", 0)
    answer = page.get("/api/state")
    assert code(answer, 503) == "busy" and answer.headers["retry-after"] == "1"


def test_a_page_names_itself_in_hexadecimal(page):
    body = {"model": "tiny", "images": 1, "lanes": ["ddim:steps=1"]}
    assert page.post("/api/race", body, **{"x-page": "0f" * 16}).status_code == 200
    assert code(page.post("/api/race", body, **{"x-page": "../.."}), 400) == "bad-request"
