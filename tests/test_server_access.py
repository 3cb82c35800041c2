"""Who may ask a server: web pages, other names of the machine, callers without the key."""

import pytest
from servers import serving, settings_of

from mlx_lfm2vl import OptionError, OutputError
from mlx_lfm2vl.server.access import Access
from mlx_lfm2vl.server.run import Settings, listening

ORIGIN = "https://app.example"


@pytest.fixture(scope="module")
def server():
    with serving(settings_of(access=Access(hosts=("studio.local",), origins=(ORIGIN,)))) as running:
        yield running


@pytest.fixture(scope="module")
def keyed():
    with serving(settings_of(access=Access(api_key="söcret"))) as running:
        yield running


HOSTS = [
    ("127.0.0.1", 200),
    ("127.0.0.1:8080", 200),
    ("localhost", 200),
    ("LOCALHOST:1", 200),
    ("[::1]:8080", 200),
    ("192.168.1.5:8080", 200),
    ("studio.local:8080", 200),
    ("evil.example", 403),
    ("evil.example:8080", 403),
    ("localhost.evil.example", 403),
    ("127.0.0.1.evil.example", 403),
    ("127.0.0.1@evil.example", 403),
    ("evil.example@127.0.0.1", 403),
    ("evil.example#127.0.0.1", 403),
    ("127.0.0.1/evil.example", 403),
    ("2130706433", 403),
    ("", 403),
    ("[::1", 403),
    ("localhost:port", 403),
]


@pytest.mark.parametrize(("host", "status"), HOSTS)
def test_a_request_must_name_this_machine(server, host, status):
    found, _, body = server.raw("GET", "/v1/models", host=host)
    assert found == status
    if status == 403:
        assert body["error"]["code"] == "host_not_allowed" and body["error"]["type"] == "permission_error"


ORIGINS = [
    (ORIGIN, 200),
    ("https://evil.example", 403),
    ("https://app.example.evil.example", 403),
    ("http://app.example", 403),
    ("null", 403),
    ("http://localhost:1", 403),
]


@pytest.mark.parametrize(("origin", "status"), ORIGINS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_page_of_another_origin_must_be_named(server, origin, status, method):
    path = "/v1/models" if method == "GET" else "/v1/chat/completions"
    extra = {"access_control_request_method": "POST"} if method == "OPTIONS" else {}
    body = '{"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}'
    sent = body if method == "POST" else None
    found, headers, _ = server.raw(method, path, sent, origin=origin, content_type="application/json", **extra)
    assert headers["access-control-allow-origin"] == (ORIGIN if status == 200 else None)
    assert found == (400 if status == 403 and method == "OPTIONS" else status)


def test_a_named_page_may_read_errors(server):
    status, headers, body = server.raw(
        "POST", "/v1/chat/completions", "{}", origin=ORIGIN, content_type="application/json"
    )
    assert status == 400 and headers["access-control-allow-origin"] == ORIGIN and body["error"]["param"] == "model"


def test_the_server_s_own_page_may_ask(server):
    found, _, _ = server.raw("GET", "/v1/models", origin=server.url)
    assert found == 200


def test_no_page_may_ask_unless_one_is_named(keyed):
    key = {"authorization": "Bearer söcret".encode().decode("latin-1")}
    assert keyed.raw("GET", "/v1/models", origin=keyed.url, **key)[0] == 200
    found, headers, _ = keyed.raw("GET", "/v1/models", origin=ORIGIN, **key)
    assert found == 403 and headers["access-control-allow-origin"] is None
    found, headers, _ = keyed.raw("OPTIONS", "/v1/models", origin=ORIGIN, access_control_request_method="GET")
    assert found == 403 and headers["access-control-allow-origin"] is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic söcret"},
        {"authorization": "Bearer "},
        {"x_api_key": "söcre"},
        {"authorization": "Bearer söcret", "x_api_key": "wrong"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/messages", "/v1/chat/completions", "/metrics", "/nothing"])
def test_without_the_key_nothing_is_answered(keyed, headers, path):
    sent = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    status, answered, body = keyed.raw("GET", path, **sent)
    anthropic = path == "/v1/messages"
    assert status == 401 and answered["www-authenticate"] == "Bearer"
    assert body["error"]["type"] == ("authentication_error" if anthropic else "invalid_request_error")
    assert (body.get("type") == "error") == anthropic


@pytest.mark.parametrize("name", ["authorization", "x_api_key"])
def test_with_the_key_a_request_is_answered(keyed, name):
    value = ("Bearer söcret" if name == "authorization" else "söcret").encode().decode("latin-1")
    assert keyed.raw("GET", "/v1/models", **{name: value})[0] == 200


def test_health_is_open_and_says_nothing_of_answers(keyed):
    status, _, body = keyed.raw("GET", "/health")
    assert status == 200 and body == {"status": "ok", "models": {"demo": "unloaded"}}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5"])
def test_another_address_needs_a_key_or_a_flag(host):
    with pytest.raises(OptionError, match="needs an API key"):
        Settings(host=host)
    assert Settings(host=host, access=Access(api_key="a")).host == host
    assert Settings(host=host, open_to_all=True).host == host


NO_ORIGINS = ["foo", "app.example", "https://app.example/", "https://App.example", "*", "null", "https://", ""]


@pytest.mark.parametrize("origin", NO_ORIGINS)
def test_what_is_no_origin_is_told_what_one_looks_like(origin):
    with pytest.raises(OptionError, match=r"--allow-origin takes; give scheme, host .* https://app.example"):
        Access(origins=(ORIGIN, origin))


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://[::1]:8080", "app://obsidian.md", "tauri://localhost"]
)
def test_origins_of_apps_may_be_named(origin):
    assert Access(origins=(origin,)).origins == (origin,)


@pytest.mark.parametrize("name", ["studio.local:8080", "http://studio.local", "Studio", "", "a@b"])
def test_what_is_no_name_of_a_host_is_refused(name):
    with pytest.raises(OptionError, match="no name that --allow-host takes"):
        Access(hosts=(name,))


@pytest.mark.parametrize("host", ["example.org", "300.1.1.1", "203.0.113.7", "2001:db8::1", "1.2.3", ""])
def test_an_address_of_another_machine_is_said_to_be_none_of_this_one(host):
    with pytest.raises(OptionError, match=r"^--host .* is no IP address of this machine; give one, such as 127"):
        listening(Settings(host=host, access=Access(api_key="a")).host, 0)


def test_a_port_that_is_taken_is_said_to_be():
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OutputError, match=rf"127\.0\.0\.1:{port} cannot be listened at .*; choose another --port"):
            listening("127.0.0.1", port)


def test_a_path_that_is_not_there_is_told_of_those_that_are(server):
    status, _, body = server.raw("POST", "/chat/completions", "{}", content_type="application/json")
    message = body["error"]["message"]
    assert status == 404 and "/v1/detect" in message and message.endswith("did you mean /v1/chat/completions?")


def test_a_method_that_a_path_lacks_is_told_the_one_it_has(server):
    status, headers, body = server.raw("GET", "/v1/chat/completions")
    assert (status, headers["allow"]) == (405, "POST")
    assert body["error"]["message"] == "/v1/chat/completions takes POST, not GET"


def test_a_body_must_be_declared_as_json(server):
    body = '{"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert server.raw("POST", "/v1/chat/completions", body, content_type=kind)[0] == 415
    status, _, _ = server.raw(
        "POST", "/v1/chat/completions", body[:-1] + ', "max_tokens": 1}', content_type="Application/JSON; charset=utf-8"
    )
    assert status == 200
