"""What no library sits between: curl, a web interface's own requests, a client that hangs up."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from typing import Any

import pytest

pytestmark = pytest.mark.clients


def curl(*arguments: str) -> str:
    return subprocess.run(
        ["curl", "-sS", "--max-time", "60", *arguments], capture_output=True, text=True, check=True
    ).stdout


def test_curl_as_ollamas_page_shows_it(server: str) -> None:
    # No Content-Type header: curl then sends a form's.
    body = '{"model": "demo", "prompt": "What is 17 + 25?", "options": {"temperature": 0}}'
    lines = [json.loads(line) for line in curl(f"{server}/api/generate", "-d", body).splitlines()]
    assert "42" in "".join(line["response"] for line in lines)


def test_curl_server_sent_events(server: str) -> None:
    body = '{"model": "demo", "stream": true, "messages": [{"role": "user", "content": "hello"}]}'
    text = curl(f"{server}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body)
    assert text.endswith("data: [DONE]\n\n")


def post(server: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(f"{server}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [json.loads(line) for line in answer.read().decode().splitlines()]


def test_a_web_interfaces_session(server: str) -> None:
    """The requests that a chat front end for Ollama makes, in its order: probe, list, chat, title, next turn."""
    for path in ("/", "/api/version", "/api/tags", "/api/ps", "/v1/models"):
        with urllib.request.urlopen(f"{server}{path}", timeout=60) as answer:
            assert answer.status == 200
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is 17 + 25?"}]
    options = {"temperature": 0, "num_ctx": 8192, "num_keep": 24, "repeat_last_n": 64}
    first = post(
        server,
        "/api/chat",
        {"model": "demo:latest", "messages": messages, "stream": True, "options": options, "think": True},
    )
    said = "".join(line["message"]["content"] for line in first)
    assert "42" in said
    title = {"model": "demo:latest", "stream": False, "messages": [{"role": "user", "content": "Give a title."}],
             "options": {"num_predict": 50}, "metadata": {"task": "title_generation"}}  # fmt: skip
    assert post(server, "/api/chat", title)[0]["done"]
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "What is 8 + 5?"}]
    second = post(server, "/api/chat", {"model": "demo:latest", "messages": messages, "options": options})
    assert "13" in "".join(line["message"]["content"] for line in second)


def metric(server: str, name: str) -> float:
    with urllib.request.urlopen(f"{server}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_a_client_that_hangs_up_frees_its_place(server: str) -> None:
    host, port = server.removeprefix("http://").split(":")
    body = json.dumps({"model": "demo", "prompt": "hello", "raw": True, "options": {"num_predict": 4000}}).encode()
    head = f"POST /api/generate HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(3):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head + body)
            assert connection.recv(200)
    for _ in range(100):
        if metric(server, "mlx_gptoss_running") == 0:
            break
        time.sleep(0.1)
    assert metric(server, "mlx_gptoss_running") == 0
