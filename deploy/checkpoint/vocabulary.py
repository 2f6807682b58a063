"""What a folder's tokenizer has ids for, as its files say: read as JSON, without loading a tokenizer.

Owns which of the ids matter to the network. Called by padding and pretrained_inputs.
"""

from typing import Any

from deploy.checkpoint.pretrained_folder import PretrainedFolder


def tokenizer_padding(folder: PretrainedFolder) -> int | None:
    """The id that the folder's tokenizer fills up with; None where its files do not tell."""
    said = (folder.read("tokenizer_config.json") or {}).get("pad_token")
    token = said.get("content") if isinstance(said, dict) else said
    tokenizer = folder.read("tokenizer.json") or {}
    ids = {one.get("content"): one.get("id") for one in tokenizer.get("added_tokens") or []}
    vocabulary = (tokenizer.get("model") or {}).get("vocab")
    found = ids.get(token, vocabulary.get(token) if isinstance(vocabulary, dict) else None)
    return found if token is not None and isinstance(found, int) else None


def words_without_a_row(folder: PretrainedFolder, rows: int) -> tuple[str, ...]:
    """A note where the tokenizer gives ids that the network's table of `rows` embeddings does not reach; else none.

    As after tokens were added to the tokenizer and not to the network: only texts with such a token fail.
    """
    beyond = sorted(
        (number, word) for number, word in _words(folder.read("tokenizer.json") or {}).items() if number >= rows
    )
    if not beyond:
        return ()
    number, word = beyond[0]
    return (
        f"the tokenizer has {len(beyond)} tokens that the network has no embedding for, the first {word!r} ({number}, "
        f"where 0..{rows - 1} have one): texts with one of them fail, unless training makes room for them",
    )


def _words(tokenizer: Any) -> dict[int, str]:
    """The words of a tokenizer.json by their ids: it has a dict of ids by word, or a list in the order of the ids."""
    words = (tokenizer.get("model") or {}).get("vocab") or ()
    if isinstance(words, dict):
        found = {number: word for word, number in words.items() if isinstance(number, int)}
    else:
        found = {number: str(one[0]) for number, one in enumerate(words) if isinstance(one, list) and one}
    added = tokenizer.get("added_tokens") or ()
    return found | {one["id"]: str(one.get("content")) for one in added if isinstance(one.get("id"), int)}
