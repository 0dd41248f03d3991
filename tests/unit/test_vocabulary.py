from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_gptoss.errors import InternalError
from mlx_gptoss.harmony import vocabulary_file
from mlx_gptoss.harmony.runs import RUN_LIMIT, split_long_runs
from mlx_gptoss.harmony.special import CALL, END, RETURN, START, STOP_IDS, TEXT_TOKENS, VOCABULARY_SIZE
from mlx_gptoss.harmony.vocabulary import Vocabulary, load_vocabulary

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


def test_special_tokens_agree_with_openai_harmony() -> None:
    encoding = load_vocabulary().encoding
    for token_id in (RETURN, START, END, CALL, 199_999, 200_013):
        assert encoding.encode(load_vocabulary().decode([token_id]), allowed_special="all") == [token_id]
    assert sorted(encoding.stop_tokens_for_assistant_actions()) == sorted(STOP_IDS)
    assert not encoding.is_special_token(TEXT_TOKENS - 1)
    assert encoding.is_special_token(VOCABULARY_SIZE - 1)


@given(any_text)
def test_encode_agrees_with_the_reference_and_round_trips(text: str) -> None:
    vocabulary = load_vocabulary()
    ids = vocabulary.encode(text)
    assert ids == vocabulary.encoding.encode(text, disallowed_special=())
    assert vocabulary.decode(ids) == text
    assert all(token_id < TEXT_TOKENS for token_id in ids)
    assert list(vocabulary.encode_cached(text)) == ids


@given(st.lists(st.sampled_from(["<|start|>", "<|end|>", "<|call|>", "<|return|>", "<|reserved_200013|>", "x", "<|"])))
def test_text_of_special_tokens_is_encoded_as_plain_text(parts: list[str]) -> None:
    assert all(token_id < TEXT_TOKENS for token_id in load_vocabulary().encode("".join(parts)))


@given(st.lists(st.tuples(st.sampled_from("aZé漢🎉 \n\t-_7\u0301"), st.integers(1, 3 * RUN_LIMIT)), max_size=5))
@settings(max_examples=50)
def test_pieces_join_to_the_text_and_short_runs_are_never_cut(runs: list[tuple[str, int]]) -> None:
    text = "".join(char * count for char, count in runs)
    pieces = list(split_long_runs(text))
    assert "".join(pieces) == text
    assert load_vocabulary().decode(load_vocabulary().encode(text)) == text
    if all(count <= RUN_LIMIT // 5 for _, count in runs):
        assert len(pieces) <= 1


def test_a_word_at_the_limit_is_whole_and_one_past_it_is_cut() -> None:
    assert list(split_long_runs("x" * RUN_LIMIT)) == ["x" * RUN_LIMIT]
    assert list(split_long_runs("x" * (RUN_LIMIT + 1))) == ["x" * RUN_LIMIT, "x"]


def test_long_text_without_spaces_but_with_short_words_is_not_cut() -> None:
    text = "漢字、かな。" * 500 + "a1b2" * 500
    assert list(split_long_runs(text)) == [text]


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "é",
        "漢",
        "🎉",
        " ",
        "\n",
        "-",
        "_",
        "aB",
        "a\u0301",
        "\t ",
        "漢\U00031350",
        "-\U00031350",
        "\u0378a",
        "=-",
        "--\u0301",
    ],
)
def test_two_hundred_thousand_characters_of_one_kind_encode_fast(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    started = time.process_time()
    ids = load_vocabulary().encode(text)
    assert time.process_time() - started < 3.0
    assert load_vocabulary().decode(ids) == text


def test_lone_surrogates_become_replacement_characters() -> None:
    vocabulary = load_vocabulary()
    assert vocabulary.decode(vocabulary.encode("a\ud83db")) == "a\ufffdb"
    assert vocabulary.decode(vocabulary.encode("\ud83d\ude00")) == "😀"


@given(st.integers(-5, VOCABULARY_SIZE + 5))
def test_token_text_and_bytes_agree(token_id: int) -> None:
    vocabulary = load_vocabulary()
    data = vocabulary.token_bytes(token_id)
    assert bool(data) == (0 <= token_id < VOCABULARY_SIZE)
    if 0 <= token_id < TEXT_TOKENS:
        assert data == bytes(vocabulary.encoding._inner.decode_bytes([token_id]))
        text = vocabulary.token_text(token_id)
        assert text == "" or text.encode() == data


def test_cached_texts_are_bounded() -> None:
    vocabulary = Vocabulary(load_vocabulary().encoding, [b"x"] * 4, cached_tokens=2_000)
    for index in range(60):
        assert len(vocabulary.encode_cached(f"{index} " * 100)) >= 100
    assert vocabulary._cached_tokens <= 2_000
    assert 0 < len(vocabulary._cache) < 20
    vocabulary.encode_cached("large " * 1_000)
    assert "large " * 1_000 not in vocabulary._cache


def test_the_file_is_unpacked_once_and_mended_when_damaged(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "cache"
    with vocabulary_file.vocabulary_folder(target) as folder:
        assert folder == target
        first = (folder / vocabulary_file.FILE_NAME).stat()
    with vocabulary_file.vocabulary_folder(target) as folder:
        assert (folder / vocabulary_file.FILE_NAME).stat().st_mtime_ns == first.st_mtime_ns
    (target / vocabulary_file.FILE_NAME).write_bytes(b"damaged")
    with vocabulary_file.vocabulary_folder(target) as folder:
        assert (folder / vocabulary_file.FILE_NAME).stat().st_size == first.st_size
    assert [path.name for path in target.iterdir()] == [vocabulary_file.FILE_NAME]


def test_a_folder_that_cannot_be_written_falls_back_to_a_temporary_one(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with vocabulary_file.vocabulary_folder(blocked / "cache") as folder:
        assert folder != blocked / "cache"
        assert (folder / vocabulary_file.FILE_NAME).exists()
        kept = folder
    assert not kept.exists()


def test_loading_leaves_the_environment_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", "/nowhere")
    vocabulary = Vocabulary.load(tmp_path)
    assert os.environ["TIKTOKEN_ENCODINGS_BASE"] == "/nowhere"
    monkeypatch.delenv("TIKTOKEN_ENCODINGS_BASE")
    Vocabulary.load(tmp_path)
    assert "TIKTOKEN_ENCODINGS_BASE" not in os.environ
    assert vocabulary.decode(vocabulary.encode("hello")) == "hello"


def test_damaged_package_data_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{vocabulary_file.FILE_NAME}.xz").write_bytes(b"junk")
    monkeypatch.setattr(vocabulary_file, "files", lambda _: tmp_path)
    with pytest.raises(InternalError, match="Reinstall"), vocabulary_file.vocabulary_folder(tmp_path / "cache"):
        pass
