"""A whole tool loop over the Responses API with nothing but httpx, against `mlx-gptoss serve`.

The server keeps the conversation: each step sends only what is new, and prefills only that.

mlx-gptoss serve --model demo; python examples/tools_server.py [MODEL [ADDRESS]]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def get_weather(city: str) -> str:
    return f"21 C and sunny in {city}"


def main() -> None:
    model, address = (*sys.argv[1:3], *("demo", "http://127.0.0.1:11434")[len(sys.argv) - 1 :])
    try:
        converse(model, address)
    except httpx.HTTPStatusError as error:
        sys.exit(f"the server refused: {error.response.text}")
    except (httpx.TransportError, httpx.InvalidURL) as error:
        sys.exit(f"no server answers at {address} ({error}); start `mlx-gptoss serve`, or give MODEL and its ADDRESS")


def converse(model: str, address: str) -> None:
    asked: dict[str, Any] = {"input": "What is the weather in Paris?"}
    with httpx.Client(base_url=address, timeout=600) as client:
        while True:
            answer = client.post("/v1/responses", json={"model": model, "tools": [WEATHER], "temperature": 0, **asked})
            response = answer.raise_for_status().json()
            usage = response["usage"]
            print(f"[{usage['input_tokens']} tokens in, {usage['input_tokens_details']['cached_tokens']} cached]")
            calls = [item for item in response["output"] if item["type"] == "function_call"]
            if not calls:
                break
            results = []
            for call in calls:
                output = get_weather(**json.loads(call["arguments"]))
                print(f"{call['name']}({call['arguments']}) -> {output}")
                results.append({"type": "function_call_output", "call_id": call["call_id"], "output": output})
            asked = {"input": results, "previous_response_id": response["id"]}
    for item in response["output"]:
        if item["type"] == "message":
            print("".join(part["text"] for part in item["content"]))


if __name__ == "__main__":
    main()
