"""Builds a tokenizer out of the fields of a GGUF file.

Field names and token types: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from runtime_server.models.errors import PullError
from runtime_server.models.gguf_file import GgufFile
from runtime_server.models.vocabulary import TURN_ENDS, TokenizerData, Vocabulary

UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
"""Values of ``tokenizer.ggml.token_type`` that are not plain text."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS_ON = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    "llama-bpe": _CONTRACTIONS + _LETTERS_ON + r"\p{N}{1,3}" + _REST,
    "qwen2": _CONTRACTIONS + _LETTERS_ON + r"\p{N}" + _REST,
}
"""How Llama 3 and Qwen 2 cut text before merging, as their makers published it."""
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
PRE_TOKENIZERS = ("smollm", "llama-bpe", "qwen2", "gpt-2")

_SPECIAL_FIELDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


def read_tokenizer(file: GgufFile) -> TokenizerData:
    """The file's tokenizer and chat template. Raises :class:`PullError` where either cannot be right."""
    tokens = _strings(file, "tokenizer.ggml.tokens")
    if not tokens or len(set(tokens)) != len(tokens):
        raise PullError("The model's vocabulary is damaged: it is empty or holds a token twice.")
    kinds = file.get("tokenizer.ggml.token_type", list, [1] * len(tokens))
    if len(kinds) != len(tokens):
        raise PullError("The model's vocabulary is damaged: it has not one type per token.")
    model = file.need("tokenizer.ggml.model", str)
    if model == "gpt2":
        tokenizer = _byte_level(file, tokens)
    elif model == "llama":
        tokenizer = _sentencepiece(file, tokens, kinds)
    else:
        raise PullError(f"Tokenizers of the GGUF kind {model!r} are not supported.", hint="supported: gpt2, llama")
    # In this order, because the library numbers tokens that it does not know yet: here it knows them all.
    tokenizer.add_special_tokens([_added(t) for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL])
    tokenizer.add_tokens([_added(t) for t, kind in zip(tokens, kinds, strict=True) if kind == USER_DEFINED])
    special = {name: tokens[i] for name, key in _SPECIAL_FIELDS.items() if (i := _token_id(file, key, tokens)) >= 0}
    _add_bos_and_eos(file, tokenizer, tokens, default_bos=model == "llama")
    silent = tuple(i for i, kind in enumerate(kinds) if kind in (UNKNOWN, CONTROL, UNUSED))
    vocabulary = Vocabulary(len(tokens), _eos_ids(file, tokens, kinds), silent, special)
    return TokenizerData(tokenizer, vocabulary, file.get("tokenizer.chat_template", str))


def _byte_level(file: GgufFile, tokens: list[str]) -> Tokenizer:
    pre = file.get("tokenizer.ggml.pre", str)
    if pre is None:
        raise PullError(
            "The file does not say how its tokenizer cuts text (tokenizer.ggml.pre).", hint="get a newer conversion"
        )
    kind = _ALIASES.get(pre, pre)
    if kind not in PRE_TOKENIZERS:
        raise PullError(f"The pre-tokenizer {pre!r} is not supported.", hint=f"supported: {', '.join(PRE_TOKENIZERS)}")
    merges = [_pair(merge) for merge in _strings(file, "tokenizer.ggml.merges")]
    tokenizer = _bpe(tokens, merges, ignore_merges=kind == "llama-bpe")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind not in _SPLITS)
    if kind == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    elif kind in _SPLITS:
        cut = pre_tokenizers.Split(Regex(_SPLITS[kind]), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, whole])
    else:
        tokenizer.pre_tokenizer = whole
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GgufFile, tokens: list[str], kinds: list[int]) -> Tokenizer:
    """SentencePiece's BPE as merges: it always joins the neighbours whose whole has the best score."""
    scores = file.get("tokenizer.ggml.scores", list, [])
    if len(scores) != len(tokens):
        raise PullError("The model's vocabulary is damaged: it has not one score per token.")
    rank = {token: (-score, i) for i, (token, score) in enumerate(zip(tokens, scores, strict=True)) if kinds[i] == 1}
    merges = [
        (token[:cut], token[cut:])
        for token in sorted(rank, key=rank.__getitem__)
        for cut in sorted(
            (c for c in range(1, len(token)) if token[:c] in rank and token[c:] in rank),
            key=lambda c, token=token: (rank[token[:c]][1], rank[token[c:]][1]),  # type: ignore[misc]
        )
    ]
    unknown = tokens[max(_token_id(file, "tokenizer.ggml.unknown_token_id", tokens), 0)]
    tokenizer = _bpe(tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    spaces = normalizers.Replace(" ", "\u2581")
    if file.get("tokenizer.ggml.add_space_prefix", bool, True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _bpe(tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> Tokenizer:
    known = set(tokens)
    if not all(left in known and right in known and left + right in known for left, right in merges):
        raise PullError("The model's vocabulary is damaged: a merge names tokens that are not in it.")
    return Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, **options))


def _add_bos_and_eos(file: GgufFile, tokenizer: Tokenizer, tokens: list[str], *, default_bos: bool) -> None:
    """Plain text gets the tokens around it that the model was trained with."""
    bos = _token_id(file, "tokenizer.ggml.bos_token_id", tokens)
    eos = _token_id(file, "tokenizer.ggml.eos_token_id", tokens)
    before = [bos] if bos >= 0 and file.get("tokenizer.ggml.add_bos_token", bool, default_bos) else []
    after = [eos] if eos >= 0 and file.get("tokenizer.ggml.add_eos_token", bool, False) else []
    if before or after:
        names = {i: f"<id {i}>" for i in (*before, *after)}
        single = [*(names[i] for i in before), "$A", *(names[i] for i in after)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(name, i) for i, name in names.items()]
        )


def _eos_ids(file: GgufFile, tokens: list[str], kinds: list[int]) -> tuple[int, ...]:
    ids = {_token_id(file, f"tokenizer.ggml.{name}_token_id", tokens) for name in ("eos", "eot", "eom")}
    ids |= {i for i, kind in enumerate(kinds) if kind == CONTROL and tokens[i] in TURN_ENDS}
    ids.discard(-1)
    if not ids:
        raise PullError("The file does not say which token ends an answer.")
    return tuple(sorted(ids))


def _token_id(file: GgufFile, key: str, tokens: list[str]) -> int:
    token_id: int = file.get(key, int, -1)
    if token_id >= len(tokens):
        raise PullError(f"The model's vocabulary is damaged: {key} is {token_id}, of {len(tokens)} tokens.")
    return token_id


def _strings(file: GgufFile, key: str) -> list[str]:
    values: list[Any] = file.need(key, list)
    if not all(isinstance(value, str) for value in values):
        raise PullError(f"The model's vocabulary is damaged: {key!r} does not hold text.")
    return values


def _pair(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right):
        raise PullError("The model's vocabulary is damaged: a merge is not two tokens.")
    return left, right


def _added(token: str) -> AddedToken:
    return AddedToken(token, normalized=False)
