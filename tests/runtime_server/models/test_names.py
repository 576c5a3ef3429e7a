"""Ids of models, and what people may ask to pull."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_server.models.catalogue import CATALOGUE, HubRepo, WheelFile
from runtime_server.models.errors import PullError
from runtime_server.models.names import ModelName, derive
from runtime_server.models.target import LocalPath, resolve


@given(st.text())
def test_an_id_is_safe_or_refused(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except PullError:
        return
    assert ModelName.parse(str(name)) == name
    assert len(name.folder.parts) == 2
    assert not any(part.startswith(".") or part.endswith(".") or os.sep in part for part in name.folder.parts)
    assert str(name) == str(name).lower()


@given(st.text())
def test_any_file_name_gives_an_id(text: str) -> None:
    name = derive(text)
    assert ModelName.parse(str(name)) == name


@given(
    st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?", fullmatch=True), st.sampled_from(["latest", "q4_1", "8b"])
)
def test_good_ids_are_taken_as_they_are(name: str, tag: str) -> None:
    assert str(ModelName.parse(f"{name}:{tag}")) == f"{name}:{tag}"


@pytest.mark.parametrize(
    "text", ["", ":", "a:", ":b", "../x", "a/b", "a:b:c", ".a", "a.", "-a", "a b", "ä", "a" * 81, "a+b"]
)
def test_bad_ids_are_refused(text: str) -> None:
    with pytest.raises(PullError, match=r"cannot be the (name|tag) of a model"):
        ModelName.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "smollm2-135m-instruct:q4_1"),
        ("Qwen2.5-0.5B-Instruct-Q4_K_M", "qwen2.5-0.5b-instruct:q4_k_m"),
        ("model-IQ2_XXS", "model:iq2_xxs"),
        ("Llama-3.2-1B.f16", "llama-3.2-1b:f16"),
        ("Qwen3-0.6B", "qwen3-0.6b:latest"),
        ("Ein Modell!", "ein-modell:latest"),
        ("...", "model:latest"),
    ],
)
def test_ids_are_derived_sensibly(text: str, expected: str) -> None:
    assert str(derive(text)) == expected


def test_targets(tmp_path: Path) -> None:
    file = tmp_path / "My.Q8_0.gguf"
    file.touch()
    folder = tmp_path / "Some Model"
    folder.mkdir()
    assert resolve(str(file)).origin == LocalPath(file)
    assert str(resolve(str(file)).name) == "my:q8_0"
    assert str(resolve(str(folder)).name) == "some-model:latest"
    assert str(resolve(str(file), "mine").name) == "mine:latest"
    assert resolve("hf:Qwen/Qwen3-0.6B").origin == HubRepo("Qwen/Qwen3-0.6B")
    assert resolve("hf:a/b@v1.0").origin == HubRepo("a/b", "v1.0")
    assert isinstance(resolve("SmolLM2:135M").origin, WheelFile)


@pytest.mark.parametrize("text", ["hf:", "hf:a", "hf:a/b/c", "hf:../b", "hf:a/b@", "hf:a/b@../x", "hf:-a/b"])
def test_bad_repositories_are_refused(text: str) -> None:
    with pytest.raises(PullError, match="does not name a repository"):
        resolve(text)


def test_unknown_names_get_suggestions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PullError, match=r"'smollm:135m'.*did you mean smollm2:135m"):
        resolve("smollm:135m")
    with pytest.raises(PullError, match=r"known are smollm2:135m"):
        resolve("zzz")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PullError, match=r"no file or folder 'x\.gguf'"):
        resolve("x.gguf")


def test_the_catalogue_is_sound() -> None:
    for model_id in CATALOGUE:
        assert str(ModelName.parse(model_id)) == model_id
        assert resolve(model_id).origin == CATALOGUE[model_id].origin
