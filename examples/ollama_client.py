"""Ollama's Python client against `mlx-gptoss serve`: thinking, a stream, and a Python function as a tool.

pip install ollama; mlx-gptoss serve --model demo; python examples/ollama_client.py [MODEL [ADDRESS]]
"""

from __future__ import annotations

import sys

from ollama import Client, ResponseError


def get_weather(city: str) -> str:
    """Get the weather in a city.

    Args:
        city: The name of the city.
    """
    return f"21 C and sunny in {city}"


def main() -> None:
    model, address = (*sys.argv[1:3], *("demo", "http://127.0.0.1:11434")[len(sys.argv) - 1 :])
    try:
        converse(model, address)
    except ResponseError as error:
        sys.exit(f"the server refused: {error}")
    except ConnectionError:
        sys.exit(f"no server answers at {address}; start `mlx-gptoss serve`, or give MODEL and its ADDRESS")


def converse(model: str, address: str) -> None:
    client = Client(address)
    question = {"role": "user", "content": "What is the weather in Paris?"}
    first = client.chat(model, [question], tools=[get_weather], think="low", options={"temperature": 0})
    results = [
        {"role": "tool", "tool_name": call.function.name, "content": get_weather(**call.function.arguments)}
        for call in first.message.tool_calls or []
    ]
    for part in client.chat(model, [question, first.message, *results], stream=True, options={"temperature": 0}):
        print(part.message.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
