"""OpenAI's Python client against `mlx-gptoss serve`: a stream with reasoning, then an answer as an object.

pip install openai; mlx-gptoss serve --model demo; python examples/openai_client.py [MODEL [ADDRESS]]
"""

from __future__ import annotations

import sys

from openai import APIConnectionError, APIStatusError, OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


def main() -> None:
    model, address = (*sys.argv[1:3], *("demo", "http://127.0.0.1:11434")[len(sys.argv) - 1 :])
    try:
        converse(model, address)
    except APIStatusError as error:
        sys.exit(f"the server refused: {error}")
    except APIConnectionError:
        sys.exit(f"no server answers at {address}; start `mlx-gptoss serve`, or give MODEL and its ADDRESS")


def converse(model: str, address: str) -> None:
    client = OpenAI(base_url=f"{address}/v1", api_key="unused")
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "What is 17 + 25?"}], temperature=0, stream=True
    )
    for chunk in stream:
        delta = chunk.choices[0].delta
        reasoning = (delta.model_extra or {}).get("reasoning")
        print(f"\033[2m{reasoning}\033[0m" if reasoning else delta.content or "", end="", flush=True)
    print()
    answer = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "Ada is 36 years old. Answer in JSON."}],
        response_format=Person,
        temperature=0,
    )
    print(answer.choices[0].message.parsed)


if __name__ == "__main__":
    main()
