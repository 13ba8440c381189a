"""Requests of any shape: a right answer, or one line that says what is wrong; the server lives."""

from __future__ import annotations

import json

import hypothesis
import hypothesis.strategies as st

from asking import Page, events

PATHS = (
    *("/api/state", "/api/model", "/api/race", "/api/steps", "/api/encode", "/api/draw-latents"),
    *("/api/decode", "/api/tradeoff", "/", "/static/page.css", "/api/nothing", "/static/../x"),
)
SAMPLERS = st.one_of(
    st.sampled_from(
        ["ddim:steps=2", "ddpm:steps=3", "ddim:eta=nan", "learned:weights=[[],[1e40]]", "ddim:"]
    ),
    st.from_regex(r"[a-z+-]{1,8}(:[a-z]{1,6}=[-0-9.a-z\[\],]{0,6}){0,3}", fullmatch=True),
    st.text(max_size=20),
)
NUMBERS = st.one_of(
    st.integers(-3, 20), st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3)
)
VALUES = st.recursive(
    st.one_of(NUMBERS, SAMPLERS), lambda inner: st.lists(inner, max_size=4), max_leaves=6
)
FIELDS = {
    "model": st.one_of(st.sampled_from(["tiny", "classes", "colours"]), VALUES),
    "lanes": st.one_of(st.lists(SAMPLERS, max_size=5), VALUES),
    "sampler": st.one_of(SAMPLERS, VALUES),
    "samplers": st.one_of(st.lists(SAMPLERS, max_size=3), VALUES),
    "seed": NUMBERS,
    "images": NUMBERS,
    "image": st.one_of(
        NUMBERS,
        st.fixed_dictionaries({}, optional={"png": st.text(), "pixels": st.just("A" * 88)}),
        VALUES,
    ),
    "labels": st.one_of(st.lists(NUMBERS, max_size=3), VALUES),
    "label": NUMBERS,
    "batch_size": NUMBERS,
    "codec": st.one_of(st.sampled_from(["obelm", "ddim", "implicit", "edict"]), VALUES),
    "steps": NUMBERS,
    "latents": st.one_of(st.lists(st.text(max_size=40), max_size=5), VALUES),
    "shares": st.one_of(st.lists(st.floats(), max_size=3), VALUES),
    "frames": NUMBERS,
    "__class__": VALUES,
}
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(
            ["application/json", "application/json; charset=latin-1", "text/plain", ""]
        ),
        "origin": st.sampled_from(["http://127.0.0.1:7860", "null", "http://x"]),
        "host": st.sampled_from(["127.0.0.1:7860", "x", ""]),
        "x-page": st.sampled_from(["a" * 32, "a", b"\xff"]),
        "cookie": st.text("ab=;\"' ", max_size=20),
        "content-length": st.sampled_from(["3", "99999999999999999999"]),
    },
)


def right(answer) -> bool:
    """Whether it is an answer that the page understands."""
    if answer.status_code == 200 or answer.status_code == 303:
        if answer.headers.get("content-type") == "text/event-stream":
            said = events(answer.text)
            return said[-1][0] in ("done", "error") and "\n" not in json.dumps(said[-1][1])
        return True
    error = answer.json()["error"]
    expected = answer.status_code in (400, 403, 404, 405, 413, 415, 503)
    return expected and bool(error["text"]) and "\n" not in error["text"]


@hypothesis.settings(max_examples=100)
@hypothesis.given(
    path=st.sampled_from(PATHS),
    body=st.fixed_dictionaries({}, optional=FIELDS),  # pyright: ignore[reportArgumentType]
    headers=HEADERS,
)
def test_any_body_and_headers(page: Page, path, body, headers):
    answer = page.client.post(
        path, content=json.dumps(body), headers={"content-type": "application/json", **headers}
    )
    assert right(answer), (answer.status_code, answer.text)


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    method=st.sampled_from(["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "FOO"]),
    path=st.one_of(st.sampled_from(PATHS), st.from_regex(r"/[!-~]{0,30}", fullmatch=True)),
    content=st.binary(max_size=200),
    headers=HEADERS,
)
def test_any_method_and_path(page: Page, method, path, content, headers):
    headers.pop("content-length", None)
    answer = page.client.request(
        method, f"http://127.0.0.1:7860{path}", content=content, headers=headers
    )
    assert method == "HEAD" or right(answer), (answer.status_code, answer.text)


@hypothesis.settings(max_examples=40)
@hypothesis.given(content=st.binary(max_size=300), path=st.sampled_from(PATHS[2:8]))
def test_any_bytes(page: Page, content, path):
    answer = page.client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and right(answer), answer.text


def test_the_server_lives_after_all_of_it(page: Page):
    body = {"model": "tiny", "images": 1, "lanes": ["ddim:steps=1"]}
    assert page.job("race", body)[-1][0] == "done"
    assert page.jobs.waiting == 0
